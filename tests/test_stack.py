"""A stack of one's own in an ordinary program (D10): LWIPv6's operations by their names here, its guide's example."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vring
from guest.net.address import parse_address
from guest.sys.constants import AF_INET, POLLIN, SOCK_DGRAM, SOCK_STREAM
from hw.wire.link import WireError
from tests.netns import Namespace, namespace
from tests.tap_world import HOST4, HOST6, make_tap
from tests.test_docs import exists
from vring.config import ConfigError

ROOT = Path(__file__).resolve().parent.parent
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")

# The functions of LWIPv6's header, without the two that a static library needs.
LWIPV6 = re.findall(
    r"\w+",
    """
    stack_new stack_free stack_get stack_set stack_flags_get stack_flags_set thread_new
    vdeif_add tapif_add tunif_add slirpif_add slirp_listen_add slirp_listen_del
    add_addr del_addr add_route del_route ifup ifdown
    msocket socket bind connect listen accept shutdown close getpeername getsockname getsockopt setsockopt ioctl fcntl
    recv recvfrom recvmsg read readv send sendto sendmsg write writev
    select pselect poll ppoll event_subscribe radv_load_configfile
    """,
)


@pytest.fixture
def stack() -> Iterator[vring.Stack]:
    with vring.Stack() as made:
        yield made


@pytest.fixture
def timed() -> Iterator[vring.Stack]:
    with vring.Stack(clock="virtual", seed=1) as made:
        yield made


# -- names -----------------------------------------------------------------------------------------------------------


def rows() -> list[tuple[list[str], str]]:
    table = API.partition("| LWIPv6 | here |")[2].partition("\n\n")[0]
    cells = re.findall(r"^\| (.*) \| (.*) \|$", table, flags=re.MULTILINE)
    return [(re.findall(r"`(lwip_\w+)", left), right) for left, right in cells]


def test_d10_every_operation_of_lwipv6s_header_stands_in_the_table() -> None:
    named = [name for names, _ in rows() for name in names]

    assert sorted(named) == sorted(f"lwip_{name}" for name in LWIPV6)


def test_d10_and_has_a_name_here_that_is_there() -> None:
    missing = []
    for names, here in rows():
        found = re.findall(r"`((?:vring|guest)\.[\w.]+)", here)
        missing += [name for name in found if not exists(name)]
        assert found or "not there yet" in here, f"{names} has no name here"

    assert missing == []
    assert [names for names, here in rows() if "not there yet" in here] == [
        ["lwip_vdeif_add"], ["lwip_radv_load_configfile"]
    ]  # fmt: skip


# -- the guide's example ---------------------------------------------------------------------------------------------


def lwipnc() -> str:
    return re.findall(r"```python no-run\n(.*?)```", API.partition("### LWIPv6's names")[2], flags=re.DOTALL)[0]


def test_d10_lwipnc_takes_at_most_15_lines() -> None:
    assert len([line for line in lwipnc().splitlines() if line.strip()]) <= 15


def test_d10_lwipnc_talks_to_a_server_of_the_host(tmp_path: Path) -> None:
    """As `nc`: what is typed goes out, what comes is printed, and the server's end is the end."""
    (tmp_path / "lwipnc.py").write_text(lwipnc(), encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        words = [sys.executable, str(tmp_path / "lwipnc.py"), "10.0.2.2", str(server.getsockname()[1])]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as nc:
            assert nc.stdin is not None
            assert nc.stdout is not None
            peer, _ = server.accept()
            peer.settimeout(30)
            for said, answer in ((b"hello\n", b"who is there?\n"), (b"lwipnc\n", b"oh.\n")):
                nc.stdin.write(said)
                nc.stdin.flush()
                assert peer.recv(100) == said
                peer.sendall(answer)
                assert nc.stdout.readline() == answer
            peer.close()
            assert nc.wait(30) == 0


# -- interfaces, addresses, routes -----------------------------------------------------------------------------------


def test_d10_an_interface_is_down_and_without_address_until_it_is_told(timed: vring.Stack) -> None:
    nic = timed.add_interface("hub:lan")

    assert (nic.name, nic.addrs) == ("eth0", [])
    assert not timed.guest.stack.interfaces[1].is_up
    nic.add_addr("192.168.250.20", 24)
    nic.add_addr("fd00::20", 64)
    nic.up()
    assert nic.addrs[:2] == [("192.168.250.20", 24), ("fd00::20", 64)]
    nic.del_addr("192.168.250.20")
    nic.down()
    assert ("192.168.250.20", 24) not in nic.addrs
    assert not timed.guest.stack.interfaces[1].is_up


def test_d10_routes_come_and_go(timed: vring.Stack) -> None:
    nic = timed.add_interface("hub:lan", name="lan", mac="02:00:00:00:00:01", mtu=1400)
    nic.add_addr("10.0.0.1", 24)
    timed.add_route("0.0.0.0", 0, "10.0.0.254")
    timed.add_route("10.9.0.0", 16, nic=nic)
    shown = [(route.destination, route.prefix_len, route.gateway) for route in timed.calls.routes()]

    assert ("0.0.0.0", 0, "10.0.0.254") in shown
    assert ("10.9.0.0", 16, None) in shown
    timed.del_route("0.0.0.0", 0)
    timed.del_route("10.9.0.0", 16, nic)
    assert [route.destination for route in timed.calls.routes() if route.interface == "lan"] == ["10.0.0.0"]
    assert (timed.guest.stack.interfaces[1].mac, timed.guest.stack.interfaces[1].mtu) == (b"\2\0\0\0\0\1", 1400)


@pytest.mark.parametrize(
    ("wire", "options", "said"),
    [
        ("vde:/run/vde.ctl", {}, "where time is real"),
        ("tap", {}, "lacks a name"),
        ("hub:lan", {"mtu": 20}, "MTU of 20"),
        ("hub:lan", {"mac": "nonsense"}, "mac is written as"),
        ("hub:lan", {"name": "lo"}, "'lo' already"),
        ("tap:t0", {}, "leads outside, where time is real"),
    ],
)
def test_d10_what_cannot_be_added_is_one_line(timed: vring.Stack, wire: str, options: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as failed:
        timed.add_interface(wire, **options)

    assert "\n" not in str(failed.value)
    assert len(timed.guest.stack.interfaces) == 1
    timed.add_interface("hub:lan", name="t1")
    with pytest.raises(ConfigError, match="'t1' already"):
        timed.add_interface("hub:lan", name="t1")


def test_d10_d21_a_card_has_no_tun_for_it_carries_frames() -> None:
    with pytest.raises(ConfigError, match="guest nic 0: a card carries Ethernet frames"):
        vring.boot(wire="tun:t0")


def test_d10_a_wire_that_the_host_refuses_leaves_no_interface(stack: vring.Stack) -> None:
    with pytest.raises(WireError):
        stack.add_interface("packet:no-such-if")

    assert len(stack.guest.stack.interfaces) == 1
    assert stack.add_interface("hub").name == "eth0"


# -- DHCP, slirp -----------------------------------------------------------------------------------------------------


def test_d10_up_with_dhcp_waits_for_the_lease_of_a_user_wire(stack: vring.Stack) -> None:
    nic = stack.add_interface("user")

    nic.up(dhcp=True)

    assert nic.addrs[0] == ("10.0.2.15", 24)
    assert ("0.0.0.0", "10.0.2.2") in [(each.destination, each.gateway) for each in stack.calls.routes()]


def test_d10_up_without_a_server_says_that_it_took_too_long(timed: vring.Stack) -> None:
    nic = timed.add_interface("hub:lan")

    with pytest.raises(TimeoutError):
        nic.up(dhcp=True, timeout=5)
    assert timed.now() == 5_000_000


def test_d10_a_forward_leads_a_client_of_the_host_to_the_stack(stack: vring.Stack) -> None:
    """lwip_slirp_listen_add and _del, by QEMU's spelling."""
    nic = stack.add_interface("user")
    nic.add_addr("10.0.2.15", 24)
    nic.up()
    rule = stack.hostfwd_add("tcp::0-:80")
    with stack.socket.create_server(("", 80)) as server:
        port = int(rule.host_side.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"from inside")
                assert client.recv(100) == b"from inside"
    assert stack.hostfwd_remove(rule.host_side)


def test_d10_a_name_and_a_page_of_the_simulated_outside(timed: vring.Stack) -> None:
    nic = timed.add_interface("sim")
    nic.up(dhcp=True)

    with timed.socket.create_connection(("example.com", 80)) as sock:
        sock.sendall(b"GET / HTTP/1.0\r\nHost: example.com\r\n\r\n")
        assert sock.recv(15) == b"HTTP/1.1 200 OK"


# -- sockets ---------------------------------------------------------------------------------------------------------


def test_d10_two_stacks_in_one_program_share_no_port_and_each_socket_is_of_one() -> None:
    with vring.Stack() as one, vring.Stack() as two:
        servers = [stack.socket.create_server(("127.0.0.1", 7)) for stack in (one, two)]
        clients = [stack.socket.create_connection(("127.0.0.1", 7)) for stack in (one, two)]
        for number, client in enumerate(clients):
            client.sendall(str(number).encode())
        accepted = [server.accept()[0] for server in servers]
        assert [each.recv(10) for each in accepted] == [b"0", b"1"]
        for each in (*servers, *clients, *accepted):
            each.close()


def test_d10_the_calls_are_the_stacks_and_a_closed_stack_has_none(timed: vring.Stack) -> None:
    calls = timed.calls
    listener, client = calls.socket(AF_INET, SOCK_STREAM), calls.socket(AF_INET, SOCK_STREAM)
    calls.bind(listener, ("127.0.0.1", 7))
    calls.listen(listener, 1)
    calls.connect(client, ("127.0.0.1", 7))
    server, _ = calls.accept(listener)
    calls.send(client, b"hello")

    assert calls.select([server], [], [], 1_000_000) == ([server], [], [])
    assert calls.recv(server, 100) == b"hello"
    timed.close()
    with pytest.raises(RuntimeError, match="closed"):
        timed.add_interface("hub")


def test_d10_a_subscriber_hears_of_an_event_at_a_descriptor(stack: vring.Stack) -> None:
    calls = stack.calls
    receiver, sender = calls.socket(AF_INET, SOCK_DGRAM), calls.socket(AF_INET, SOCK_DGRAM)
    calls.bind(receiver, ("127.0.0.1", 7))
    came = threading.Event()

    assert calls.poll_subscribe(receiver, POLLIN, came.set) == 0
    calls.sendto(sender, b"x", ("127.0.0.1", 7))

    assert came.wait(30)


# -- the host's kernel on the wire -----------------------------------------------------------------------------------


@pytest.fixture
def host() -> Iterator[Namespace]:
    with namespace() as made:
        yield made


def carried(writer: socket.socket, reader: socket.socket, data: bytes) -> bytes:
    """What comes out when `data` goes in."""
    thread = threading.Thread(target=writer.sendall, args=(data,))
    thread.start()
    got = b""
    while len(got) < len(data):
        got += reader.recv(1 << 16)
    thread.join()
    return got


@pytest.mark.root
@pytest.mark.parametrize("kind", ["tap", "tun"])
@pytest.mark.parametrize(("own", "length", "peer"), [("10.9.0.2", 24, HOST4), ("fd09::2", 64, HOST6)])
def test_d10_d21_a_stack_on_a_tap_and_on_a_tun_of_the_kernels(
    host: Namespace, kind: str, own: str, length: int, peer: str
) -> None:
    """Frames on the one, bare IP packets on the other, and a megabyte of TCP in each direction."""
    make_tap(host, "t0", f"{peer}/{length}", mode=kind)
    with host.entered(), vring.Stack() as stack:
        nic = stack.add_interface(f"{kind}:t0")
        nic.add_addr(own, length)
        nic.up()
        assert (stack.guest.stack.interfaces[1].mac is None) == (kind == "tun")
        assert stack.run_until(lambda: stack.guest.stack.ip.is_local(parse_address(own)), 10)
        family = socket.AF_INET6 if ":" in own else socket.AF_INET
        with (
            stack.socket.create_server((own, 7), family=family) as server,
            socket.create_connection((own, 7), timeout=30) as client,
            server.accept()[0] as connection,
        ):
            data = bytes(range(256)) * 4000
            assert carried(client, connection, data) == data
            assert carried(connection, client, data) == data
        done = host.run("ip", "-br", "link", "show", "t0")
    assert ("POINTOPOINT" in done.stdout) == (kind == "tun")
