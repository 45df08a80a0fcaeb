"""The whole guest, both families, against the host's kernel over TAPs: pings of every size, traceroute's probes,
datagrams of every size, duplicate addresses, and autoconfiguration from a real router daemon.

All in namespaces of the test's own.
"""

from __future__ import annotations

import os
import random
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest.apps.env import Env
from guest.net.address import format_address
from guest.net.pbuf import PacketBuffer
from guest.sys.constants import AF_INET6, SO_RCVBUF, SOCK_DGRAM, SOL_SOCKET
from tests.netns import Namespace, namespace
from tests.tap_world import (
    GUEST4,
    GUEST6,
    HOST4,
    HOST6,
    LINK6,
    MAC,
    STATIC,
    IcmpError,
    boot,
    has_address,
    kernel_socket,
    make_tap,
    pings,
    probe,
    radvd,
    until,
)
from vring.session import Session

pytestmark = pytest.mark.root

PING_SIZES = (0, 1, 56, 1000, 1472, 1473, 4000, 9000, 30_000, 60_000)
FAR_GUEST4, FAR_HOST4, FAR_GUEST6, FAR_HOST6 = "10.8.0.2", "10.8.0.1", "fd08::2", "fd08::1"


@pytest.fixture
def host() -> Iterator[Namespace]:
    """A namespace with a TAP t0, 10.9.0.1/24 and fd09::1/64."""
    with namespace() as made:
        make_tap(made, "t0", f"{HOST4}/24", f"{HOST6}/64")
        yield made


@pytest.fixture
def guest(host: Namespace) -> Iterator[Session]:
    """A guest on the TAP that answers under an address of each family and a link-local one, and echoes on port 7."""
    with boot(host, f"{STATIC} -ip6 -s udpecho -l 7") as session:
        assert session.run_until(lambda: session.guest.booted, 20), session.log
        session.calls.if_add_addr("eth0", GUEST6, 64)
        for address in (GUEST4, GUEST6, LINK6):
            assert has_address(session, address), f"{address}\n{session.log}"
        assert until(lambda: "udpecho: port 7" in session.console)
        yield session


@pytest.mark.parametrize("destination", [GUEST4, GUEST6, f"{LINK6}%t0"])
def test_the_kernel_pings_the_guest_1000_of_1000_of_all_sizes(
    host: Namespace, guest: Session, destination: str
) -> None:
    for size in PING_SIZES:
        assert pings(host, destination, size, 100) == 100, f"{size} bytes"
    layer = "icmp" if "." in destination else "icmpv6"
    counters = guest.counters()["guest"]
    assert counters[layer]["tx_echo_replies"] == 1000
    assert counters["ip"]["rx_reassembled"] >= 500
    assert not [name for name in counters["ip"] if "fragment_" in name], counters["ip"]


def test_the_guest_pings_the_kernels_link_local_address(host: Namespace, guest: Session) -> None:
    text = host.run("ip", "-6", "-o", "addr", "show", "dev", "t0", "scope", "link").stdout
    found = re.search(r"inet6 (\S+)/64", text)
    assert found, text
    process = guest.call(lambda: guest.guest.spawn("ping", f"{found[1]}%eth0", "-c", "20", "-i", "0.01", "-s", "3000"))
    assert guest.run_until(lambda: not process.alive, 20)
    assert "20 packets transmitted, 20 received" in guest.console


# -- traceroute's probes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("destination", "error"),
    [(GUEST4, IcmpError(3, 3, GUEST4)), (GUEST6, IcmpError(1, 4, GUEST6))],
    ids=["v4", "v6"],
)
def test_probes_with_few_hops_reach_the_guest_who_says_that_nobody_listens(
    host: Namespace, guest: Session, destination: str, error: IcmpError
) -> None:
    for hops in (1, 2, 30):
        assert probe(host, destination, hops, port=33433 + hops) == error


def second_card(env: Env, _argv: list[str]) -> int:
    """An interface of the stack at the second card, through an outlet; for as long as the program runs."""
    guest = env.guest
    outlet = guest.outlets.open("eth1", owner=env.process)
    card = guest.fes[1]

    def output(packets: object) -> None:
        for packet in packets:  # type: ignore[attr-defined]
            outlet.send(packet.tobytes())

    interface = guest.stack.add_interface("eth1", card.mac, card.mtu, output)
    interface.add_address(FAR_GUEST4, 24)
    interface.add_address(FAR_GUEST6, 64)
    interface.set_up()
    while True:
        match env.receive():
            case (_, ("data", frame)):
                interface.input([PacketBuffer.from_bytes(frame)])


@pytest.fixture
def far(host: Namespace) -> Iterator[Namespace]:
    """Another namespace behind a guest that forwards between t0 and t1."""
    make_tap(host, "t1")
    with namespace() as far, boot(host, f"{STATIC} -gateway {HOST4} -s idle", wires=["tap:t0", "tap:t1"]) as session:
        assert session.run_until(lambda: session.guest.booted, 20), session.log
        session.calls.if_add_addr("eth0", GUEST6, 64)
        with far.entered():
            holder = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            host.run("ip", "link", "set", "t1", "netns", f"/proc/{os.getpid()}/fd/{holder}")
        finally:
            os.close(holder)
        far.run("sysctl", "-qw", "net.ipv6.conf.t1.disable_ipv6=0", "net.ipv6.conf.t1.accept_dad=0")
        for address in (f"{FAR_HOST4}/24", f"{FAR_HOST6}/64"):
            far.run("ip", "addr", "add", address, "dev", "t1")
        far.run("ip", "link", "set", "t1", "up")

        def start() -> None:
            session.guest.stack.forwarding = True
            session.guest.spawn(second_card)

        session.call(start)
        for address in (GUEST6, FAR_GUEST4, FAR_GUEST6):
            assert has_address(session, address), f"{address}\n{session.log}"
        for here, net4, via4, net6, via6 in (
            (host, "10.8.0.0/24", GUEST4, "fd08::/64", GUEST6),
            (far, "10.9.0.0/24", FAR_GUEST4, "fd09::/64", FAR_GUEST6),
        ):
            here.run("ip", "route", "add", net4, "via", via4)
            here.run("ip", "-6", "route", "add", net6, "via", via6)
        yield far


def test_traceroute_through_a_guest_that_forwards(host: Namespace, far: Namespace) -> None:
    assert probe(host, FAR_HOST4, 1) == IcmpError(11, 0, GUEST4), "time exceeded, on the way"
    assert probe(host, FAR_HOST4, 2) == IcmpError(3, 3, FAR_HOST4), "port unreachable, at the end"
    assert probe(host, FAR_HOST6, 1) == IcmpError(3, 0, GUEST6)
    assert probe(host, FAR_HOST6, 2) == IcmpError(1, 4, FAR_HOST6)
    assert probe(far, HOST4, 1) == IcmpError(11, 0, FAR_GUEST4)
    assert probe(far, HOST6, 2) == IcmpError(1, 4, HOST6)
    for destination in (FAR_HOST4, FAR_HOST6):
        assert pings(host, destination, 3000, 20) == 20, destination


# -- datagrams ---------------------------------------------------------------------------------------------------

DATAGRAMS = [
    (GUEST4, HOST4, (0, 1, 1472, 1473, 9000, 65_507)),
    (GUEST6, HOST6, (0, 1, 1452, 1453, 9000, 65_487, 65_527)),
    (LINK6, "link", (0, 1453, 65_487)),
]


@pytest.mark.parametrize(("guests", "hosts", "sizes"), DATAGRAMS, ids=["v4", "v6", "link-local"])
def test_datagrams_of_all_sizes_are_echoed_both_ways(
    host: Namespace, guest: Session, guests: str, hosts: str, sizes: tuple[int, ...]
) -> None:
    rng = random.Random(guests)
    version = 6 if ":" in guests else 4
    with host.entered():
        scope = socket.if_nametoindex("t0") if hosts == "link" else 0
    target = (guests, 7, 0, scope) if version == 6 else (guests, 7)
    with kernel_socket(host, version) as client:
        for size in sizes:
            data = rng.randbytes(size)
            client.sendto(data, target)
            answer, sender = client.recvfrom(70_000)
            assert answer == data, f"{size} bytes"
            assert sender[1] == 7

    calls = guest.calls
    if hosts == "link":
        text = host.run("ip", "-6", "-o", "addr", "show", "dev", "t0", "scope", "link").stdout
        hosts = text.partition("inet6 ")[2].partition("/")[0]
    fd = calls.socket(AF_INET6 if version == 6 else socket.AF_INET, SOCK_DGRAM)
    calls.setsockopt(fd, SOL_SOCKET, SO_RCVBUF, 1 << 20)
    with kernel_socket(host, version) as server:
        server.bind(("::" if version == 6 else "0.0.0.0", 7007))
        peer = (hosts, 7007, 0, calls.if_nametoindex("eth0")) if version == 6 else (hosts, 7007)
        for size in sizes:
            data = rng.randbytes(size)
            calls.sendto(fd, data, peer)
            received, sender = server.recvfrom(70_000)
            assert received == data, f"{size} bytes"
            server.sendto(received, sender)
            assert calls.recvfrom(fd, 70_000)[0] == data, f"{size} bytes back"
    calls.close(fd)


# -- duplicate addresses -----------------------------------------------------------------------------------------


def mac_of_tap(host: Namespace) -> str:
    found = re.search(r"link/ether (\S+)", host.run("ip", "link", "show", "t0").stdout)
    assert found
    return found[1]


def test_an_ipv4_address_that_the_kernel_holds_is_reported(host: Namespace) -> None:
    host.run("ip", "addr", "add", f"{GUEST4}/24", "dev", "t0")
    with boot(host, STATIC) as session:
        line = f"conflict: eth0 {GUEST4} is claimed by {mac_of_tap(host)}"
        assert until(lambda: line in session.log), session.log
        assert session.counters()["guest"]["arp"]["rx_conflicts"] >= 1


def test_ipv6_addresses_that_the_kernel_holds_are_refused_and_reported(host: Namespace) -> None:
    host.run("ip", "addr", "add", f"{GUEST6}/64", "dev", "t0")
    host.run("ip", "addr", "add", f"{LINK6}/64", "dev", "t0")
    with boot(host, f"{STATIC} -ip6") as session:
        assert session.run_until(lambda: session.guest.booted, 20), session.log
        session.calls.if_add_addr("eth0", GUEST6, 64)
        for address in (GUEST6, LINK6):
            line = f"conflict: eth0 {address} is claimed by {mac_of_tap(host)}"
            assert until(lambda line=line: line in session.log), session.log
        assert [text for text, _ in session.calls.if_addrs("eth0")] == [GUEST4]
        assert session.counters()["guest"]["nd"]["duplicates"] == 2


def test_addresses_that_the_guest_holds_are_refused_by_the_kernel_and_defended(
    host: Namespace, guest: Session
) -> None:
    host.run("sysctl", "-qw", "net.ipv6.conf.t0.accept_dad=1")
    host.run("ip", "addr", "add", f"{GUEST6}/64", "dev", "t0")
    assert until(lambda: "dadfailed" in host.run("ip", "-6", "addr", "show", "dev", "t0").stdout)
    assert has_address(guest, GUEST6)
    done = host.run("arping", "-D", "-c", "2", "-w", "10", "-I", "t0", GUEST4, check=False)
    assert done.returncode == 1, f"arping -D finds a holder: {done.stdout}"
    assert MAC in done.stdout.lower()


# -- autoconfiguration -------------------------------------------------------------------------------------------


def when(log: str, words: str) -> float:
    """The seconds that the first line of a log with these words bears."""
    line = next(line for line in log.splitlines() if words in line)
    return float(line[1:].partition("]")[0])


def test_an_address_a_router_and_a_name_server_from_radvd(host: Namespace, tmp_path: Path) -> None:
    host.run("ip", "addr", "add", "2001:db8:9::1/64", "dev", "t0")
    own = "2001:db8:9:0:5054:ff:fe09:2"
    with radvd(host, tmp_path) as said, boot(host, f"{STATIC} -ip6 -s idle") as session:
        stack = session.guest.stack if has_address(session, own, 20) else None
        assert stack is not None, session.log + said()
        took = when(session.log, f"address: eth0 added {own}") - when(session.log, f"address: eth0 tentative {own}")
        heard = when(session.log, "route: eth0 added ::/0")
        assert when(session.log, f"address: eth0 added {own}") - heard < 3, session.log
        assert took >= 1, "it is checked first"
        router = session.call(lambda: [row.gateway for row in session.calls.routes() if row.destination == "::"])
        assert len(router) == 1
        assert str(router[0]).startswith("fe80::")
        assert session.call(lambda: [format_address(one) for one in session.guest.resolver.servers]) == ["fd09::53"]
        assert session.call(lambda: session.guest.ni.interface.mtu6 if session.guest.ni else 0) == 1400

        assert pings(host, own, 56, 20) == 20
        process = session.call(lambda: session.guest.spawn("ping", HOST6, "-c", "5", "-i", "0.01"))
        assert session.run_until(lambda: not process.alive, 20)
        assert "5 packets transmitted, 5 received" in session.console, "through the router"


def test_a_router_daemon_that_ends_takes_its_default_route_along(host: Namespace, tmp_path: Path) -> None:
    with boot(host, f"{STATIC} -ip6 -s idle") as session:
        with radvd(host, tmp_path) as said:
            assert has_address(session, "2001:db8:9:0:5054:ff:fe09:2", 20), session.log + said()
        assert until(lambda: "route: eth0 removed ::/0" in session.log), session.log
        assert has_address(session, "2001:db8:9:0:5054:ff:fe09:2"), "the address stays until its lifetime is over"
