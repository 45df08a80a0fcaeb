"""The programs: ping, sniff, ifconfig, idle; what they print, and their exit statuses."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from guest.apps import programs
from guest.apps.decode import decode
from guest.kernel import Guest
from hw.wire.impair import ImpairedLink
from tests.fakes import frame
from tests.guest_board import CARDS, STATIC, Board, Peer, arp, echo


@pytest.fixture(params=CARDS)
def board(request: pytest.FixtureRequest) -> Iterator[Board]:
    made = Board(request.param)
    yield made
    made.close()


@pytest.fixture
def host(board: Board) -> tuple[Guest, Peer]:
    """A guest that runs, and a peer at 10.0.0.1 (and every other address) that answers."""
    near, peer = board.peer()
    peer.answers = True
    guest = board.boot(STATIC, near)
    return guest, peer


def run(board: Board, guest: Guest, line: str, seconds: float = 20) -> tuple[int | None, list[str]]:
    """The exit status of a program, and what it printed."""
    name, *words = line.split()
    guest.log.output.clear()
    process = guest.spawn(name, *words)
    board.run(seconds)
    return process.exit_status, guest.log.output


# -- ping ----------------------------------------------------------------------------------------------------------


def test_ping_prints_what_ping_prints(board: Board, host: tuple[Guest, Peer]) -> None:
    status, output = run(board, host[0], "ping 10.0.0.1 -c 3")
    assert status == 0
    assert output == [
        "PING 10.0.0.1 (10.0.0.1) 56(84) bytes of data.",
        "64 bytes from 10.0.0.1: icmp_seq=1 ttl=64 time=0.000 ms",
        "64 bytes from 10.0.0.1: icmp_seq=2 ttl=64 time=0.000 ms",
        "64 bytes from 10.0.0.1: icmp_seq=3 ttl=64 time=0.000 ms",
        "",
        "--- 10.0.0.1 ping statistics ---",
        "3 packets transmitted, 3 received, 0% packet loss, time 2000ms",
        "rtt min/avg/max/mdev = 0.000/0.000/0.000/0.000 ms",
    ]


def test_ping_measures_round_trips(board: Board) -> None:
    near, peer = board.peer()
    peer.answers = True
    guest = board.boot(STATIC, ImpairedLink(near, board.loop, 1, delay_us=1500))
    status, output = run(board, guest, "ping 10.0.0.1 -c 5 -q")
    assert status == 0
    assert len(output) == 5, "-q leaves the replies out"
    assert output[-1].startswith("rtt min/avg/max/mdev = 3.000/")
    assert output[-1].endswith("ms")


@pytest.mark.parametrize("size", [0, 1, 255, 256, 1471, 1472])
def test_ping_carries_payloads_of_any_size(board: Board, host: tuple[Guest, Peer], size: int) -> None:
    status, output = run(board, host[0], f"ping 10.0.0.1 -c 2 -s {size}")
    assert status == 0
    assert f"{size + 8} bytes from 10.0.0.1" in output[1]
    requests = [raw for raw in host[1].frames if raw[12:14] == b"\x08\x00" and raw[34] == 8]
    assert [len(raw) for raw in requests] == [size + 42] * 2
    assert size == 0 or requests[0][42:] != requests[1][42:], "each request has bytes of its own"


def test_ping_without_an_answer_is_status_1(board: Board, host: tuple[Guest, Peer]) -> None:
    guest, peer = host
    peer.answers = False
    status, output = run(board, guest, "ping 10.0.0.9 -c 2 -W 5")
    assert status == 1
    assert "From 10.0.0.2 icmp_seq=1 Destination Host Unreachable" in output
    assert output[-1].startswith("2 packets transmitted, 0 received, +2 errors, 100% packet loss")


def test_ping_waits_for_the_last_reply_as_long_as_w_says(board: Board) -> None:
    near, peer = board.peer()
    peer.answers = True
    guest = board.boot(STATIC, ImpairedLink(near, board.loop, 1, delay_us=400_000))
    assert run(board, guest, "ping 10.0.0.1 -c 1 -W 5")[0] == 0
    status, output = run(board, guest, "ping 10.0.0.1 -c 1 -W 0.5")
    assert status == 1
    assert output[-1] == "1 packets transmitted, 0 received, 100% packet loss, time 500ms"


def test_ping_counts_duplicates_once(board: Board) -> None:
    near, peer = board.peer()
    peer.answers = True
    guest = board.boot(STATIC, ImpairedLink(near, board.loop, 1, duplicate=1.0))
    status, output = run(board, guest, "ping 10.0.0.1 -c 4")
    assert status == 0
    assert [line for line in output if line.endswith("(DUP!)")]
    summary = next(line for line in output if "transmitted" in line)
    assert re.match(r"4 packets transmitted, 4 received, \+\d+ duplicates, 0% packet loss", summary)


def test_ping_refuses_a_payload_that_differs(board: Board, host: tuple[Guest, Peer]) -> None:
    guest, peer = host
    peer.flip_payload = True
    status, output = run(board, guest, "ping 10.0.0.1 -c 2")
    assert status == 1
    assert "64 bytes from 10.0.0.1: icmp_seq=1 payload differs" in output
    assert "2 packets transmitted, 0 received, +2 corrupted, 100% packet loss" in output[-1]


def test_ping_ignores_replies_that_nobody_asked_for(board: Board, host: tuple[Guest, Peer]) -> None:
    guest, peer = host
    guest.log.output.clear()
    process = guest.spawn("ping", "10.0.0.1", "-c", "2", "-i", "2")
    board.run(1)
    ident = next(raw[38:40] for raw in peer.frames if raw[12:14] == b"\x08\x00")
    mac = guest.fes[0].mac
    own, other, third = bytes([10, 0, 0, 2]), bytes([10, 0, 0, 1]), bytes([10, 0, 0, 3])
    payload = bytes((2 + at) & 0xFF for at in range(56))
    peer.send(
        echo(0, peer.mac, mac, other, own, ident, b"\x10\x00", payload),  # a sequence number not sent
        echo(0, peer.mac, mac, third, own, ident, b"\0\1", payload),  # from somebody else
    )
    board.run(5)
    assert process.exit_status == 0
    assert "2 packets transmitted, 2 received, 0% packet loss" in guest.log.output[-2]


def test_ping_without_a_route_says_so(board: Board) -> None:
    guest = board.boot("", board.peer()[0])
    status, output = run(board, guest, "ping 10.0.0.1 -c 1")
    assert status == 1
    assert output[1] == "ping: icmp_seq=1: Network is unreachable"


def test_ping_that_is_killed_prints_its_statistics(board: Board, host: tuple[Guest, Peer]) -> None:
    guest, _ = host
    guest.log.output.clear()
    process = guest.spawn("ping", "10.0.0.1")
    board.run(10.5)
    assert process.alive is True
    guest.scheduler.kill(process)
    assert "11 packets transmitted, 11 received, 0% packet loss, time 10500ms" in guest.log.output


def test_flood_ping_lets_others_run(board: Board, host: tuple[Guest, Peer]) -> None:
    status, output = run(board, host[0], "ping 10.0.0.1 -c 1000 -i 0.001 -q")
    assert status == 0
    assert "1000 packets transmitted, 1000 received, 0% packet loss" in output[-2]


@pytest.mark.parametrize(
    "line",
    [
        "ping", "ping 10.0.0.1 10.0.0.2", "ping 10.0.0.1 -c 0", "ping 10.0.0.1 -c x",
        "ping 10.0.0.1 -s 65508", "ping 10.0.0.1 -i -1", "ping 10.0.0.1 -i 0", "ping 10.0.0.1 -W soon",
        "ping 10.0.0.1 -z", "ping 10.0.0.1 -c",
        "sniff eth0 eth1", "sniff -c 0", "sniff -t x", "ifconfig a b", "ifconfig -z", "idle 1 2", "idle soon",
    ],
)  # fmt: skip
def test_wrong_usage_is_status_2_with_usage_text(board: Board, line: str) -> None:
    guest = board.boot("")
    status, output = run(board, guest, line, 0.1)
    name = line.split(maxsplit=1)[0]
    assert status == 2
    assert output[0].startswith(f"{name}: ")
    assert output[1].startswith(f"usage: {name}")


@pytest.mark.parametrize("interval", ["0", "0.0", "1e-9", "0.0009"])
def test_ping_leaves_time_between_requests(board: Board, interval: str) -> None:
    guest = board.boot("")
    status, output = run(board, guest, f"ping 127.0.0.1 -c 100 -i {interval}", 0.1)
    assert status == 2
    assert output[0].splitlines()[0] == f"ping: -i {interval}: at least 0.001 seconds are needed"


def test_time_passes_under_the_fastest_ping_of_the_loopback(board: Board) -> None:
    guest = board.boot("")
    process = guest.spawn("ping", "127.0.0.1", "-i", "0.001", "-q")
    board.run(0.5)
    guest.scheduler.kill(process)
    assert "500 packets transmitted, 500 received, 0% packet loss" in "\n".join(guest.log.output)


# -- the others ----------------------------------------------------------------------------------------------------


def test_sniff_prints_a_line_for_each_frame(board: Board, host: tuple[Guest, Peer]) -> None:
    guest, peer = host
    guest.log.output.clear()
    process = guest.spawn("sniff", "eth0", "-c", "3")
    board.run(0.1)
    me = bytes([10, 0, 0, 2])
    peer.send(
        arp(1, peer.mac, bytes([10, 0, 0, 1]), bytes(6), me),
        echo(8, peer.mac, guest.fes[0].mac, bytes([10, 0, 0, 1]), me, b"\0\7", b"\0\1", b"abc"),
        frame(1),
        frame(2),
    )
    board.run(0.1)
    assert process.exit_status == 0
    assert guest.log.output == [
        "eth0 < ARP who-has 10.0.0.2 tell 10.0.0.1",
        "eth0 < IP 10.0.0.1 > 10.0.0.2 ICMP echo request id 7 seq 1, 11 bytes",
        "eth0 < 02:00:00:00:00:99 > ff:ff:ff:ff:ff:ff type 0x88b5, 64 bytes",
        "4 frames received, 0 dropped",
    ]


def test_sniff_stops_when_its_time_is_up(board: Board, host: tuple[Guest, Peer]) -> None:
    status, output = run(board, host[0], "sniff -t 2", 1.9)
    assert status is None
    board.run(0.2)
    assert output == ["0 frames received, 0 dropped"]


def test_sniff_on_an_unknown_front_end_is_status_1(board: Board, host: tuple[Guest, Peer]) -> None:
    status, output = run(board, host[0], "sniff eth5")
    assert status == 1
    assert output == ["sniff: einval: there is no eth5; the guest has 1 front ends"]


def test_ifconfig_shows_the_loopback_first_and_addresses_of_eth0_alone(board: Board) -> None:
    guest = board.boot(STATIC, board.peer()[0], board.peer()[0])
    status, output = run(board, guest, "ifconfig")
    text = "\n".join(output)
    assert status == 0
    heads = [line.split(":")[0] for line in output if line[0] != " "]
    assert heads == ["lo", "eth0", "eth1"]
    assert output[0] == "lo: flags=73<UP,LOOPBACK,RUNNING>  mtu 65536"
    assert output[1].strip() == "inet 127.0.0.1/8"
    assert text.count("inet ") == 2
    assert output[2].strip() == "inet6 ::1/128"
    assert "        inet 10.0.0.2/24" in output
    assert f"        ether {guest.fes[1].mac.hex(':')}" in output
    assert run(board, guest, "ifconfig eth9") == (1, ["ifconfig: there is no eth9; there are lo, eth0, eth1"])


def test_idle_ends_after_its_time(board: Board) -> None:
    guest = board.boot("-s idle 2.5")
    board.run(2.4)
    assert guest.halted is False
    board.run(0.2)
    assert (guest.halted, guest.exit_status) == (True, 0)


def test_each_guest_has_a_table_of_programs_of_its_own() -> None:
    table = programs()
    table["mine"] = table["ping"]
    assert sorted(programs()) == [
        "cat", "dhclient", "discard", "echo", "echoclient", "ethtool", "guard", "halt", "httpd", "idle", "ifconfig",
        "ip", "ls", "nc", "nslookup", "ping", "sh", "sniff", "ss", "traceroute", "udpecho", "wget",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        ("", "runt of 0 bytes"),
        ("ff" * 13, "runt of 13 bytes"),
        ("ffffffffffff02000000000108060001", "ARP, short: 2 bytes"),
        ("ffffffffffff020000000001080045", "IP, short: 1 bytes"),
        (
            "ffffffffffff0200000000010806000108000604000202000000000a0a000001ffffffffffff0a000002",
            "ARP 10.0.0.1 is-at 02:00:00:00:00:0a",
        ),
        (
            "ffffffffffff020000000001810000640800"
            "450000240000000040110000010203040506070800350035001000000000000000000000",
            "VLAN 100 IP 1.2.3.4 > 5.6.7.8 UDP 53 > 53, 16 bytes",
        ),
        (
            "ffffffffffff0200000000010800" "45000024000020b94011000001020304050607080035003500100000",
            "IP 1.2.3.4 > 5.6.7.8 fragment at 1480, 36 bytes",
        ),
    ],
)
def test_decode_gives_a_line_for_any_frame(raw: str, line: str) -> None:
    assert decode(bytes.fromhex(raw)) == line


def test_decode_survives_every_truncation() -> None:
    whole = echo(8, Peer.mac, Peer.mac, bytes(4), bytes(4), b"\0\1", b"\0\1", b"abc")
    for kind in (b"\x08\x00", b"\x08\x06", b"\x86\xdd", b"\x81\x00"):
        raw = whole[:12] + kind + whole[14:]
        for length in range(len(raw)):
            assert "\n" not in decode(raw[:length])
