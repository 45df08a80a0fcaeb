"""The packet-socket wire on one end of a veth pair, in a namespace of the test's own."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator

import pytest

from hw.clock import SECOND, RealClock, VirtualClock
from hw.loop import Loop
from hw.wire.link import Views, WireError
from hw.wire.packet import PacketLink, insert
from tests.netns import Namespace, namespace
from tests.wire_ends import BROADCAST, Station, frame, mac

A, B = mac(1), mac(2)
ETH_P_ALL = 3
SO_RCVBUFFORCE = 33


@pytest.fixture
def ns() -> Iterator[Namespace]:
    with namespace() as made:
        made.need("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
        made.run("ip", "link", "set", "v0", "up")
        made.run("ip", "link", "set", "v1", "up")
        yield made


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop(RealClock())
    yield loop
    loop.close()


@pytest.fixture
def link(ns: Namespace, loop: Loop) -> Iterator[PacketLink]:
    with ns.entered():
        made = PacketLink(loop, "v0")
    yield made
    made.close()


def peer_socket(ns: Namespace, name: str) -> socket.socket:
    with ns.entered():
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        made.bind((name, ETH_P_ALL))
    made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 20)  # room for all that a test sends
    made.settimeout(10)
    return made


@pytest.fixture
def peer(ns: Namespace) -> Iterator[socket.socket]:
    """Who sits at the other end of the pair."""
    made = peer_socket(ns, "v1")
    yield made
    made.close()


def run_until(loop: Loop, station: Station, count: int) -> None:
    arrived = loop.run(until=lambda: len(station.got) >= count, deadline=loop.clock.now() + 20 * SECOND)
    assert arrived, f"only {len(station.got)} of {count} frames came"


@pytest.mark.root
def test_frames_go_both_ways_and_to_any_address(loop: Loop, link: PacketLink, peer: socket.socket) -> None:
    station = Station(link)

    link.transmit([(None, [BROADCAST + A, memoryview(b"\x88\xb5out"), bytearray(43)])])
    assert peer.recv(2000)[14:17] == b"out"

    peer.send(frame(A, B, b"for a guest's address")[1][0])
    peer.send(frame(BROADCAST, B, b"for all", size=1514)[1][0])
    run_until(loop, station, 2)

    assert station.texts() == [b"for a guest's address", b"for all"]
    assert [len(data) for data in station.got] == [60, 1514]
    assert (link.counters["tx_frames"], link.counters["tx_bytes"]) == (1, 60)
    assert (link.counters["rx_frames"], link.counters["rx_bytes"]) == (2, 1574)


@pytest.mark.root
def test_what_we_or_the_host_send_there_does_not_come_back(
    ns: Namespace, loop: Loop, link: PacketLink, peer: socket.socket
) -> None:
    station = Station(link)
    host = peer_socket(ns, "v0")

    link.transmit([frame(BROADCAST, A, b"ours")])
    host.send(frame(BROADCAST, mac(7), b"the host's")[1][0])
    peer.send(frame(A, B, b"the peer's")[1][0])
    run_until(loop, station, 1)
    loop.run(deadline=loop.clock.now() + 5_000)

    assert station.texts() == [b"the peer's"]
    host.close()


@pytest.mark.root
def test_the_interface_is_promiscuous_while_the_link_is_open(ns: Namespace, loop: Loop) -> None:
    def promiscuity() -> str:
        return ns.run("ip", "-d", "link", "show", "v0").stdout.partition("promiscuity ")[2].split()[0]

    with ns.entered():
        link = PacketLink(loop, "v0")
    assert promiscuity() == "1"
    link.close()
    link.close()

    assert promiscuity() == "0"
    assert link.transmit([frame(B, A)]) == 1
    assert link.counters["tx_dropped_interface_gone"] == 1


@pytest.mark.root
@pytest.mark.parametrize("tpid", [0x8100, 0x88A8])
def test_a_vlan_tag_that_the_kernel_takes_out_is_put_back(
    loop: Loop, link: PacketLink, peer: socket.socket, tpid: int
) -> None:
    station = Station(link)
    tagged = A + B + struct.pack(">HHH", tpid, 0x6005, 0x88B5) + b"tagged".ljust(46, b"\0")

    peer.send(tagged)
    run_until(loop, station, 1)

    assert station.got == [tagged]


def test_a_tag_is_put_between_scattered_views_and_what_does_not_fit_is_cut() -> None:
    views: Views = [bytearray(b"abcdef"), bytearray(b"gh"), bytearray(b"ijklmnop....")]
    assert insert(views, 16, 12, b"TAG!") == 20
    assert b"".join(views) == b"abcdefghijklTAG!mnop"

    views = [bytearray(b"abcdefghijkl"), bytearray(b"mn")]
    assert insert(views, 14, 12, b"TAG!") == 14
    assert b"".join(views) == b"abcdefghijklTA"


@pytest.mark.root
def test_an_unfinished_checksum_of_a_local_sender_is_counted(ns: Namespace, loop: Loop, link: PacketLink) -> None:
    ns.run("ip", "addr", "add", "10.9.1.1/24", "dev", "v1")
    ns.run("ip", "neigh", "add", "10.9.1.2", "lladdr", "02:00:00:00:00:02", "dev", "v1")
    station = Station(link)
    with ns.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.sendto(b"x" * 100, ("10.9.1.2", 9))

    run_until(loop, station, 1)

    assert link.counters["rx_checksum_not_ready"] == 1


@pytest.mark.root
def test_frames_that_the_interface_cannot_send_are_counted_by_reason(
    ns: Namespace, loop: Loop, link: PacketLink
) -> None:
    Station(link)

    assert link.transmit([(None, [b"\2" * 13]), frame(B, A, size=9000), frame(B, A)]) == 3
    assert link.transmit([frame(B, A, header=bytes([1]) + bytes(11))]) == 1
    ns.run("ip", "link", "set", "v0", "down")
    link.transmit([frame(B, A)])

    reasons = {name: count for name, count in link.counters.items() if name.startswith("tx_dropped")}
    assert reasons == {
        "tx_dropped_refused": 1,
        "tx_dropped_too_long": 1,
        "tx_dropped_offload": 1,
        "tx_dropped_link_down": 1,
    }


@pytest.mark.root
def test_an_interface_that_goes_down_and_up_again_works_on(
    ns: Namespace, loop: Loop, link: PacketLink, peer: socket.socket
) -> None:
    station = Station(link)
    ns.run("ip", "link", "set", "v0", "down")
    loop.run(until=lambda: link.counters["rx_error_link_down"] == 1, deadline=loop.clock.now() + 20 * SECOND)
    ns.run("ip", "link", "set", "v0", "up")

    peer.send(frame(A, B, b"again")[1][0])
    run_until(loop, station, 1)

    assert station.texts() == [b"again"]


@pytest.mark.root
def test_an_interface_that_is_deleted_is_found_out_by_sending(ns: Namespace, loop: Loop, link: PacketLink) -> None:
    station = Station(link)
    ns.run("ip", "link", "del", "v0")
    loop.run(deadline=loop.clock.now() + 5_000)

    assert link.transmit([frame(B, A)]) == 1

    assert link.counters["tx_dropped_interface_gone"] == 1
    assert station.carriers == [False]


@pytest.mark.root
def test_a_full_host_holds_the_sender_back_until_there_is_room(
    ns: Namespace, loop: Loop, link: PacketLink, peer: socket.socket
) -> None:
    ns.need("tc", "qdisc", "add", "dev", "v0", "root", "tbf", "rate", "8mbit", "burst", "2000", "limit", "1000000")
    small = socket.socket(fileno=link.fileno())
    small.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10_000)
    small.detach()
    station = Station(link)
    left = [frame(BROADCAST, A, b"%d" % number, size=1500) for number in range(100)]

    def push() -> None:
        del left[: link.transmit(left)]

    push()
    assert len(left) > 50
    station.writable = push  # type: ignore[method-assign]
    assert loop.run(until=lambda: not left, deadline=loop.clock.now() + 20 * SECOND)

    assert [peer.recv(2000)[14:].rstrip(b"\0") for _ in range(100)] == [b"%d" % number for number in range(100)]
    assert link.counters["tx_blocked"] >= 2


@pytest.mark.root
@pytest.mark.parametrize("name", ["nothing0", "", "x" * 40])
def test_no_such_interface_is_one_clear_line(ns: Namespace, loop: Loop, name: str) -> None:
    with ns.entered(), pytest.raises(WireError, match=rf"^packet:{name}: the host has no interface {name}$"):
        PacketLink(loop, name)


def test_a_name_with_a_zero_byte_is_one_clear_line(loop: Loop) -> None:
    with pytest.raises(WireError, match="not a name for an interface"):
        PacketLink(loop, "a\0b")


OPEN_AS_NOBODY = """
import os
from hw.clock import RealClock
from hw.loop import Loop
from hw.wire.packet import PacketLink
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    PacketLink(Loop(RealClock()), "v0")
except Exception as error:
    print(error)
"""


@pytest.mark.root
def test_without_the_right_one_line_names_it_and_the_ways_out(ns: Namespace) -> None:
    said = ns.run(sys.executable, "-c", OPEN_AS_NOBODY).stdout

    assert said == "packet:v0: needs CAP_NET_RAW; --wire user, to reach the outside, and --wire hub need no right\n"


def test_the_virtual_clock_is_refused() -> None:
    loop = Loop(VirtualClock())

    with pytest.raises(WireError, match="--clock real"):
        PacketLink(loop, "lo")
    loop.close()
