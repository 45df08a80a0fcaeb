"""Offload done in software: against scapy's idea of a packet, and what the host's kernel makes of the same frame."""

from __future__ import annotations

import os
import random
import socket
import struct
from collections.abc import Callable, Iterator

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet

from hw.clock import RealClock
from hw.loop import Loop
from hw.wire.descriptor import DescriptorLink
from hw.wire.finish import finished
from hw.wire.link import Views, frame_bytes
from hw.wire.tap import TapLink
from tests.netns import Namespace, namespace
from tests.tap_world import make_tap
from tests.wire_ends import Station

A, B = "02:00:00:00:00:0a", "02:00:00:00:00:0b"
ETHER = Ether(src=A, dst=B)
FIN, PSH, ACK, CWR = 0x01, 0x08, 0x10, 0x80
NEEDS_CSUM, TCPV4, TCPV6, ECN = 1, 1, 4, 0x80
IPS = {4: IP(src="10.9.0.2", dst="10.9.0.1", id=0xFFFE), 6: IPv6(src="fd09::2", dst="fd09::1")}


def blank(packet: Packet, kind: type[Packet], offset: int, gso: int = 0, size: int = 0) -> tuple[bytes, bytes]:
    """The virtio header and the bytes of `packet`, its checksum that of the pseudo-header alone."""
    raw = bytearray(bytes(packet))
    start = len(raw) - len(bytes(packet[kind]))
    layer3 = IP if IP in packet else IPv6
    at = start - len(bytes(packet[layer3])) + len(bytes(packet[kind]))
    ends = raw[at + 12 : at + 20] if layer3 is IP else raw[at + 8 : at + 40]
    protocol = 6 if kind is TCP else 17
    total = sum(struct.unpack(f">{len(ends) // 2}H", ends)) + protocol + len(raw) - start
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    raw[start + offset : start + offset + 2] = total.to_bytes(2, "big")
    return struct.pack("<BBHHHHH", NEEDS_CSUM, gso, 0, size, start, offset, 0), bytes(raw)


def rebuilt(raw: bytes) -> bytes:
    """The frame as scapy writes it, all lengths and checksums its own."""
    packet = Ether(raw)
    for layer in (IP, TCP, UDP):
        if layer in packet:
            del packet[layer].chksum
    if IP in packet:
        del packet[IP].len
    if IPv6 in packet:
        del packet[IPv6].plen
    return bytes(packet)


def stream(version: int, size: int, flags: int = ACK, options: bool = True) -> Packet:
    said = [("NOP", None), ("NOP", None), ("Timestamp", (7, 9))] if options else []
    tcp = TCP(sport=1000, dport=2000, seq=0xFFFFFF00, ack=5, flags=flags, options=said)
    return ETHER / IPS[version] / tcp / random.Random(size).randbytes(size)


@pytest.mark.parametrize("version", [4, 6])
def test_a_blank_checksum_is_filled_in(version: int) -> None:
    packet = ETHER / IPS[version] / UDP(sport=7, dport=9) / b"a datagram of odd length."
    header, raw = blank(packet, UDP, 6)
    ((nothing, views),) = finished((header, [raw[:20], raw[20:]]))
    assert nothing is None
    assert b"".join(views) == rebuilt(raw) == bytes(packet)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("payload", [1, 1000, 1001, 2000, 60_000])
def test_a_large_segment_is_cut_into_good_ones(version: int, payload: int) -> None:
    packet = stream(version, payload, FIN | PSH | ACK | CWR)
    header, raw = blank(packet, TCP, 16, (TCPV4 if version == 4 else TCPV6) | ECN, 1000)
    cut = [b"".join(views) for _, views in finished((header, [raw]))]
    assert [each for each in cut if each != rebuilt(each)] == [], "lengths and checksums are as scapy makes them"
    parts = [Ether(each) for each in cut]
    assert b"".join(bytes(part[TCP].payload) for part in parts) == bytes(packet[TCP].payload)
    assert [len(part[TCP].payload) for part in parts[:-1]] == [1000] * (-(-payload // 1000) - 1)
    assert [part[TCP].seq for part in parts] == [0xFFFFFF00 + 1000 * at & 0xFFFFFFFF for at in range(len(parts))]
    assert [int(part[TCP].flags) & (FIN | PSH) for part in parts] == [0] * (len(parts) - 1) + [FIN | PSH]
    assert [int(part[TCP].flags) & CWR for part in parts] == [CWR] + [0] * (len(parts) - 1)
    if version == 4:
        assert [part[IP].id for part in parts] == [0xFFFE + at & 0xFFFF for at in range(len(parts))]


def test_a_tagged_frame_is_cut_behind_its_tag() -> None:
    packet = Ether(src=A, dst=B) / Dot1Q(vlan=5) / IPS[4] / TCP(sport=1, dport=2, seq=3, flags=ACK) / bytes(2500)
    header, raw = blank(packet, TCP, 16, TCPV4, 1200)
    cut = [frame_bytes(each) for each in finished((header, [raw]))]
    assert [len(each) for each in cut] == [58 + 1200, 58 + 1200, 58 + 100]
    assert [each for each in cut if each != rebuilt(each)] == []


def test_what_needs_nothing_is_passed_on_as_it_is() -> None:
    views: Views = [b"frame"]
    assert finished((None, views)) == [(None, views)]
    assert finished((bytes(12), views)) == [(None, views)]


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ((0, TCPV4, 0, 1000, 34, 16), "segments without NEEDS_CSUM"),
        ((1, TCPV4, 0, 0, 34, 16), "segments of no bytes"),
        ((1, TCPV4, 0, 1000, 34, 6), "a checksum that is not TCP's"),
        ((1, TCPV4, 0, 1000, 20, 16), "a TCP header inside IP's"),
        ((1, TCPV6, 0, 1000, 54, 16), "IPv6 that is IPv4"),
        ((1, 3, 0, 1000, 34, 6), "UDP fragments, which nobody here makes"),
        ((1, TCPV4, 0, 1000, 2060, 16), "a TCP header that is cut off"),
        ((1, 0, 0, 0, 34, 3000), "a checksum behind the end"),
        ((1, 0, 0, 0, 2, 16), "a checksum from inside the Ethernet header"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_headers_that_cannot_be_give_no_frames(header: tuple[int, ...], why: str) -> None:
    raw = bytes(stream(4, 2000, options=False))
    assert finished((struct.pack("<BBHHHHH", *header, 0), [raw])) == [], why


@pytest.mark.parametrize("offset", [0, 1, 15])
def test_a_tcp_header_whose_length_is_a_lie_gives_no_frames(offset: int) -> None:
    header, raw = blank(stream(4, 20, options=False), TCP, 16, TCPV4, 10)
    assert finished((header, [raw[:46] + bytes([offset << 4]) + raw[47:]])) == []


# -- links with a descriptor ------------------------------------------------------------------------------------------


class PipeLink(DescriptorLink):
    """A link whose host is the other end of a pair of sockets."""

    def __init__(self, loop: Loop, sock: socket.socket) -> None:
        super().__init__(loop, "pipe")

        def send(views: Views) -> int:
            return os.writev(self.fileno(), views)

        self._start(os.dup(sock.fileno()), send)

    def read_into(self, views: Views) -> int:
        return 0


def test_segments_that_the_host_has_no_room_for_wait_for_it() -> None:
    loop = Loop(RealClock())
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    here.setblocking(False)
    here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10_000)
    link = PipeLink(loop, here)
    station = Station(link)
    header, raw = blank(stream(4, 60_000), TCP, 16, TCPV4, 1000)
    assert link.transmit([(header, [raw]), (None, [raw[:60]])]) == 1, "the first is taken, the second has to wait"
    assert link.transmit([(None, [raw[:60]])]) == 0
    got: list[bytes] = []
    there.setblocking(False)

    loop.set_reader(there.fileno(), lambda: got.append(there.recv(2000)))
    loop.run(until=lambda: len(got) == 60, deadline=loop.clock.now() + 10_000_000)
    assert got == [frame_bytes(each) for each in finished((header, [raw]))]
    loop.run(until=lambda: station.writable_calls > 0, deadline=loop.clock.now() + 10_000_000)
    assert link.transmit([(None, [raw[:60]])]) == 1
    assert link.counters["tx_finished"] == 1
    loop.set_reader(there.fileno(), None)
    link.close()
    here.close()
    there.close()
    loop.close()


@pytest.fixture
def bridge() -> Iterator[tuple[Namespace, Loop]]:
    """A namespace in which what comes in at t0 leaves at t1."""
    with namespace() as ns:
        ns.run("ip", "link", "add", "br0", "type", "bridge")
        for name in ("t0", "t1"):
            make_tap(ns, name)
            ns.run("ip", "link", "set", name, "master", "br0")
        ns.run("ip", "link", "set", "br0", "up")
        loop = Loop(RealClock())
        yield ns, loop
        loop.close()


@pytest.mark.root
@pytest.mark.parametrize("version", [4, 6])
def test_the_kernel_cuts_the_same_frame_into_the_same_bytes(bridge: tuple[Namespace, Loop], version: int) -> None:
    ns, loop = bridge
    with ns.entered():
        entry, exit_ = TapLink(loop, "t0", vnet_hdr=True), TapLink(loop, "t1")
    Station(entry)
    station = Station(exit_)
    until(loop, lambda: True, 0.2)  # the kernel notices the carriers
    packet = stream(version, 30_000, PSH | ACK)
    header, raw = blank(packet, TCP, 16, TCPV4 if version == 4 else TCPV6, 1388)
    ours = [frame_bytes(each) for each in finished((header, [raw]))]
    # The kernel's cutter does not look at hdr_len either, but wants to see one that is not beyond the headers.
    header = header[:2] + struct.pack("<H", len(raw) - 30_000) + header[4:]

    def passed() -> list[bytes]:
        return [each for each in station.got if each[:12] == raw[:12]]

    for _ in range(50):
        entry.transmit([(header, [raw])])
        until(loop, lambda: len(passed()) >= len(ours), 0.2)
        if passed():
            break
    assert passed()[: len(ours)] == ours
    entry.close()
    exit_.close()


def until(loop: Loop, ready: Callable[[], bool], seconds: float) -> None:
    loop.run(until=ready, deadline=loop.clock.now() + round(seconds * 1_000_000))
