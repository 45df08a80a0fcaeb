"""Fragments of both families: cut on the way out, put together on the way in, and everything that can be wrong."""

from __future__ import annotations

import errno
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop, defragment6
from scapy.packet import Raw

from guest.net.address import parse_address, to_prefix
from guest.net.checksum import checksum
from guest.net.config import SECOND, NetConfig
from guest.net.fragment import slices
from guest.net.pbuf import CAST_MULTICAST, Lease, PacketBuffer
from tests.ip_bench import FAMILIES, UDP_NUMBER, V4, V6, Bench, Family, content
from tests.net_world import OUR_IP, PEER_IP, fragments

both = pytest.mark.parametrize("family", FAMILIES)
OVERLAP = "rx_dropped_fragment_overlap"


def pattern(size: int, seed: int = 5) -> bytes:
    return random.Random(seed).randbytes(size)


# -- out and in again ------------------------------------------------------------------------------------------------


@both
def test_e17_a_datagram_of_60000_bytes_goes_out_in_fragments_and_comes_in_whole(family: Family) -> None:
    data = pattern(60_000)
    sender = Bench()
    assert sender.send(family.peer, data) == 0
    pieces = [raw for raw, _, _ in sender.eth0.sent]
    assert len(pieces) == -(-60_000 // ((1500 - family.header - (0 if family is V4 else 8)) & ~7))
    assert max(map(len, pieces)) <= 1500
    parts = [content(raw) for raw in pieces]
    assert [more for _, _, _, _, more, _ in parts] == [True] * (len(parts) - 1) + [False]
    assert b"".join(chunk for _, _, chunk, _, _, _ in parts) == data
    assert [offset for _, _, _, offset, _, _ in parts] == [sum(len(p[2]) for p in parts[:n]) for n in range(len(parts))]
    assert len({ident for _, _, _, _, _, ident in parts}) == 1, "one identification"
    receiver = Bench()
    receiver.eth0.addresses = [to_prefix(family.peer, 24)]
    receiver.refresh()
    order = list(pieces)
    random.Random(1).shuffle(order)
    for raw in order:
        receiver.receive(raw)
    header, whole, _ = receiver.got[0]
    assert whole == data
    assert (header.fragment, header.protocol, header.size) == (0, UDP_NUMBER, family.header)
    assert receiver.engine.reassembler.bytes == 0
    assert receiver.balance() == 0


def test_scapy_puts_our_ipv6_fragments_together() -> None:
    bench = Bench()
    data = pattern(5000)
    bench.send(V6.peer, data)
    whole = defragment6([IPv6(raw) for raw, _, _ in bench.eth0.sent])
    assert bytes(whole)[40:] == data


@both
@pytest.mark.parametrize("size", [1, 7, 8, 9, 1480, 3001])
def test_scapys_fragments_are_put_together(family: Family, size: int) -> None:
    data = pattern(4000)
    bench = Bench()
    pieces = family.split(data, max(8, size & ~7))
    for raw in pieces:
        bench.receive(raw)
    assert bench.got[0][1] == data
    assert bench.count("rx_fragments") == len(pieces)


@both
def test_nothing_is_copied_on_the_way_out(family: Family) -> None:
    area = memoryview(bytearray(pattern(4000)))
    head = PacketBuffer.from_bytes(b"8 bytes!")
    head.frags = [area]
    bench = Bench()
    assert bench.engine.output(head, parse_address(family.peer), UDP_NUMBER) == 0
    area[3999] ^= 0xFF
    area[0] ^= 0xFF
    sent = b"".join(content(packet.tobytes())[2] for packet in bench.eth0.packets)
    assert sent == b"8 bytes!" + bytes(area)
    assert len(bench.eth0.packets) == 3


def test_a_piece_of_many_views_is_copied_together_for_the_drivers_sake() -> None:
    views = [memoryview(bytes((n,)) * 3) for n in range(100)]
    pieces = list(slices(views, 96))
    assert b"".join(b"".join(piece) for _, _, piece in pieces) == b"".join(views)
    assert [len(piece) for _, _, piece in pieces] == [1, 1, 1, 4]
    assert [(offset, more) for offset, more, _ in pieces] == [(0, True), (96, True), (192, True), (288, False)]


@both
def test_what_may_not_be_fragmented_is_refused(family: Family) -> None:
    bench = Bench()
    room = 1500 - family.header
    assert bench.send(family.peer, bytes(room + 1), dont_fragment=True) == errno.EMSGSIZE
    assert bench.send(family.peer, bytes(room), dont_fragment=True) == 0
    assert bench.send(family.peer, bytes(room)) == 0
    assert bench.send(family.peer, bytes(room), dont_fragment=False) == 0
    if family is V4:
        assert ["DF" in str(IP(raw).flags) for raw, _, _ in bench.eth0.sent] == [True, True, False]
        assert bench.send(family.peer, bytes(65_515)) == 0
        assert bench.send(family.peer, bytes(65_516)) == errno.EMSGSIZE, "beyond 65,535 there is no IPv4"
    else:
        assert bench.send(family.peer, bytes(65_535)) == 0
        assert bench.send(family.peer, bytes(65_536)) == errno.EMSGSIZE
    assert bench.drops() == {"tx_dropped_too_big": 2}


@both
def test_identifications_of_fragmented_packets_differ(family: Family) -> None:
    bench = Bench()
    for _ in range(50):
        bench.send(family.peer, bytes(2000))
    idents = {content(raw)[5] for raw, _, _ in bench.eth0.sent}
    assert len(idents) == 50


# -- any order, duplicates -------------------------------------------------------------------------------------------


@given(
    family=st.sampled_from(FAMILIES),
    size=st.integers(9, 900),
    cuts=st.sets(st.integers(1, 112), max_size=12),
    seed=st.integers(0, 2**16),
    repeats=st.integers(0, 6),
    in_pieces=st.booleans(),
)
def test_e17_any_split_in_any_order_with_duplicates_is_the_packet(
    family: Family, size: int, cuts: set[int], seed: int, repeats: int, in_pieces: bool
) -> None:
    data = pattern(size)
    edges = [0, *sorted(cut * 8 for cut in cuts if cut * 8 < size), size]
    pieces = [family.part(a, data[a:b], b < size) for a, b in pairwise(edges)]
    if len(pieces) == 1:
        return
    rng = random.Random(seed)
    last = pieces.pop(rng.randrange(len(pieces)))
    arrivals = pieces + [rng.choice(pieces) for _ in range(repeats)]
    rng.shuffle(arrivals)
    bench = Bench()
    for raw in arrivals:
        bench.receive(fragments(raw, {40, 44, 50, 60}) if in_pieces else raw)
    assert bench.got == []
    bench.receive(last)
    assert [whole for _, whole, _ in bench.got] == [data]
    assert bench.drops() == ({"rx_dropped_fragment_duplicate": repeats} if repeats else {})
    assert (bench.engine.reassembler.bytes, len(bench.engine.reassembler)) == (0, 0)
    assert bench.balance() == 0


@both
def test_packets_are_told_apart_by_source_identification_and_protocol(family: Family) -> None:
    bench = Bench()
    other = "10.0.0.3" if family is V4 else "2001:db8::3"
    bench.receive(family.part(0, b"A" * 8, True, ident=1))
    bench.receive(family.part(8, b"B" * 8, False, ident=2))
    bench.receive(family.part(8, b"B" * 8, False, ident=1, src=other))
    assert (bench.got, len(bench.engine.reassembler)) == ([], 3)
    if family is V4:
        bench.receive(bytes(IP(src=PEER_IP, dst=OUR_IP, proto=99, id=1, frag=1) / Raw(b"B" * 8)))
        assert bench.got == []
    bench.receive(family.part(8, b"C" * 8, False, ident=1))
    assert bench.got[0][1] == b"A" * 8 + b"C" * 8


@both
def test_the_same_link_local_names_on_two_links_are_two_packets(family: Family) -> None:
    bench = Bench()
    group, src = ("224.0.0.1", "10.0.0.2") if family is V4 else ("ff02::1", "fe80::9")
    first = family.part(0, b"A" * 8, True, src=src, dst=group)
    last = family.part(8, b"B" * 8, False, src=src, dst=group)
    bench.receive(first, cast=CAST_MULTICAST)
    bench.receive(last, interface=bench.eth1, cast=CAST_MULTICAST)
    assert bench.got == []
    bench.receive(first, interface=bench.eth1, cast=CAST_MULTICAST)
    assert [(header.interface, whole) for header, whole, _ in bench.got] == [(bench.eth1, b"A" * 8 + b"B" * 8)]


@both
def test_a_congestion_mark_on_one_fragment_marks_the_packet(family: Family) -> None:
    bench = Bench()
    bench.receive(family.part(0, bytes(8), True, tos=0x2A))
    bench.receive(family.part(8, bytes(8), False, tos=0x2B))
    assert bench.got[0][0].tos == 0x2B


# -- overlap and other lies ------------------------------------------------------------------------------------------

GOOD = b"abcdefgh" * 4


def parts(family: Family, *pieces: tuple[int, bytes, bool]) -> Bench:
    bench = Bench()
    for offset, data, more in pieces:
        bench.receive(family.part(offset, data, more))
    return bench


LIES = {
    "overlap from behind": [(0, GOOD[:16], True), (8, GOOD[8:32], False)],
    "overlap from before": [(8, GOOD[8:32], False), (0, GOOD[:16], True)],
    "teardrop: inside another": [(0, GOOD[:24], True), (8, GOOD[8:16], True)],
    "around another": [(8, GOOD[8:16], True), (0, GOOD[:24], True)],
    "other bytes at the same place": [(8, GOOD[8:16], True), (8, b"evilevil", True)],
    "the same place, longer": [(0, GOOD[:8], True), (0, GOOD[:16], True)],
    "data behind the end": [(8, GOOD[8:16], False), (16, GOOD[16:24], True)],
    "two ends": [(8, GOOD[8:16], False), (16, GOOD[16:24], False)],
    "an end before other data": [(16, GOOD[16:24], True), (8, GOOD[8:16], False)],
    "an end that is none": [(8, GOOD[8:16], False), (8, GOOD[8:16], True)],
}


@both
@pytest.mark.parametrize("name", LIES)
def test_h53_overlaps_discard_all_that_came_and_all_that_comes(family: Family, name: str) -> None:
    pieces = LIES[name]
    if name == "an end that is none":
        pieces = [*pieces[:1], (0, GOOD[:16], True)]
    bench = parts(family, *pieces)
    assert bench.drops() == {OVERLAP: 2}
    for offset in range(0, 32, 8):
        bench.receive(family.part(offset, GOOD[offset : offset + 8], offset < 24))
    assert bench.got == []
    assert bench.drops() == {OVERLAP: 6}, "also what follows"
    assert bench.balance() == 0
    bench.wait(61 * SECOND)
    assert len(bench.engine.reassembler) == 0
    for offset in range(0, 32, 8):
        bench.receive(family.part(offset, GOOD[offset : offset + 8], offset < 24))
    assert bench.got[0][1] == GOOD, "until its time is over"


@both
@pytest.mark.parametrize(
    ("offset", "size", "more", "reason", "pointer"),
    [
        (0, 1, True, "rx_dropped_fragment_length", 4),
        (0, 7, True, "rx_dropped_fragment_length", 4),
        (16, 9, True, "rx_dropped_fragment_length", 4),
        (8, 0, False, "rx_dropped_fragment_empty", None),
        (0, 0, True, "rx_dropped_fragment_empty", None),
        (65_528, 8, False, "rx_dropped_fragment_beyond", 42),
        (65_528, 1400, False, "rx_dropped_fragment_beyond", 42),
    ],
)
def test_h53_impossible_fragments_are_dropped(
    family: Family, offset: int, size: int, more: bool, reason: str, pointer: int | None
) -> None:
    bench = parts(family, (offset, bytes(size), more))
    if family is V6 and not offset:
        reason, pointer = "rx_dropped_header_chain", 0  # RFC 7112: no room for a transport's header
    assert bench.drops() == {reason: 1}
    told = [value for _, value, _ in bench.errors]
    assert told == ([] if family is V4 or pointer is None else [pointer])
    assert len(bench.engine.reassembler) == 0


def with_options(raw: bytes, options: bytes) -> bytes:
    """An IPv4 packet with these options put in, four bytes at a time."""
    packet = bytearray(raw[:20] + options + raw[20:])
    packet[0] = 0x45 + len(options) // 4
    packet[2:4] = len(packet).to_bytes(2, "big")
    packet[10:12] = bytes(2)
    packet[10:12] = checksum((packet[: 20 + len(options)],)).to_bytes(2, "big")
    return bytes(packet)


def test_h53_a_longer_first_header_cannot_push_the_whole_beyond_its_length() -> None:
    bench = Bench()
    bench.receive(V4.part(8, bytes(65_504), False))
    bench.receive(with_options(V4.part(0, bytes(8), True), b"\x01" * 24))
    assert bench.got == []
    assert bench.drops() == {"rx_dropped_fragment_beyond": 2}
    assert bench.balance() == 0


@given(
    st.sampled_from(FAMILIES),
    st.lists(
        st.tuples(st.integers(0, 8191), st.integers(0, 64), st.booleans(), st.integers(0, 3), st.booleans()),
        max_size=40,
    ),
)
def test_h53_no_fragments_raise_or_get_lost(family: Family, pieces: list[tuple[int, int, bool, int, bool]]) -> None:
    config = NetConfig(reassembly_bytes=20_000, reassembly_sets=3)
    bench = Bench(config=config)
    for offset, size, more, ident, near in pieces:
        place = (offset % 8 if near else offset) * 8
        bench.receive(family.part(place, pattern(size, place), more, ident=ident))
        assert bench.engine.reassembler.bytes <= 20_000
        assert len(bench.engine.reassembler) <= 3
        assert bench.balance() == 0
    bench.wait(61 * SECOND)
    assert (bench.engine.reassembler.bytes, bench.engine.reassembler.held) == (0, 0)
    assert bench.balance() == 0


# -- memory and time -------------------------------------------------------------------------------------------------


@both
def test_h53_ten_thousand_incomplete_packets_leave_a_bounded_trace(family: Family) -> None:
    bench = Bench()
    for ident in range(10_000):
        bench.receive(family.part(0, bytes(8), True, ident=ident))
    reassembler = bench.engine.reassembler
    assert len(reassembler) == 256
    assert bench.drops() == {"rx_dropped_fragment_evicted": 10_000 - 256}
    assert bench.errors == []
    bench.receive(family.part(8, b"Z" * 8, False, ident=9_999))
    assert bench.got[0][1] == bytes(8) + b"Z" * 8, "the newest are still there"
    bench.wait(61 * SECOND)
    assert (len(reassembler), reassembler.bytes, bench.balance()) == (0, 0, 0)


@both
def test_h53_large_fragments_are_capped_by_what_they_pin(family: Family) -> None:
    bench = Bench(config=NetConfig(reassembly_bytes=100_000))
    for number in range(200):
        bench.receive(family.part(8 * 100 * number % 60_000, bytes(800), True, ident=number % 20))
        assert bench.engine.reassembler.bytes <= 100_000
    assert bench.count("rx_dropped_fragment_evicted") > 50


@both
def test_e17_after_60_seconds_the_sender_of_the_first_fragment_is_told(family: Family) -> None:
    bench = Bench()
    first = family.part(0, b"A" * 16, True, ident=1)
    bench.receive(first)
    bench.receive(family.part(32, b"C" * 8, False, ident=1))
    bench.wait(10 * SECOND)
    bench.receive(family.part(8, b"B" * 8, True, ident=2))
    assert bench.engine.poll_at() == bench.clock.now + 50 * SECOND
    bench.wait(50 * SECOND - 1)
    assert bench.errors == []
    bench.wait(1)
    assert bench.errors == [("reassembly", 0, first)]
    assert bench.drops() == {"rx_dropped_fragment_timeout": 2}
    bench.wait(10 * SECOND)
    assert len(bench.errors) == 1, "nobody is told of a packet whose first fragment never came"
    assert bench.drops() == {"rx_dropped_fragment_timeout": 3}
    assert (bench.engine.reassembler.bytes, bench.engine.poll_at()) == (0, None)
    bench.receive(family.part(16, b"B" * 16, True, ident=1))
    assert bench.got == [], "what comes too late starts anew"


@both
def test_lent_memory_is_kept_until_the_packet_is_gone_or_copied_when_it_is_scarce(family: Family) -> None:
    returned: list[str] = []
    scarce = False

    def lent(raw: bytes, name: str) -> PacketBuffer:
        packet = PacketBuffer.from_bytes(raw)
        packet.lease = Lease(lambda: returned.append(name), lambda: scarce)
        return packet

    bench = Bench()
    kept: list[PacketBuffer] = []
    bench.engine.handlers[UDP_NUMBER] = lambda packet, header: kept.append(packet.clone())
    bench.receive(lent(family.part(0, b"A" * 256, True), "first"))
    assert returned == []
    scarce = True
    bench.receive(lent(family.part(256, b"B" * 256, True), "second"))
    assert returned == ["second"], "copied, since the driver is short of buffers"
    scarce = False
    bench.receive(lent(family.part(512, b"C" * 256, False), "third"))
    assert returned == ["second"]
    assert kept[0].tobytes() == b"A" * 256 + b"B" * 256 + b"C" * 256
    scarce = True
    assert kept[0].keep() is not kept[0], "the whole packet is lent as its parts are"
    kept.clear()
    assert sorted(returned) == ["first", "second", "third"]


@both
@pytest.mark.parametrize(
    ("step", "count", "copied"), [(16, 200, True), (248, 3, True), (256, 3, False), (512, 64, False), (512, 65, True)]
)
def test_e28_many_or_tiny_fragments_are_copied_to_one_area(family: Family, step: int, count: int, copied: bool) -> None:
    data = pattern(step * count)
    returned: list[int] = []
    kept: list[PacketBuffer] = []
    bench = Bench()
    bench.engine.handlers[UDP_NUMBER] = lambda packet, header: kept.append(packet)
    for at in range(0, len(data), step):
        packet = PacketBuffer.from_bytes(family.part(at, data[at : at + step], at + step < len(data)))
        packet.lease = Lease(lambda at=at: returned.append(at), lambda: False)  # type: ignore[misc]
        bench.receive(packet)
    del packet
    assert kept[0].tobytes() == data
    assert len(kept[0].views()) == (1 if copied else count)
    assert len(returned) == (count if copied else 0), "what is copied is given back"


# -- headers ---------------------------------------------------------------------------------------------------------


def test_options_of_the_first_fragment_are_the_packets() -> None:
    bench = Bench()
    bench.receive(V4.part(16, b"B" * 8, False))
    seen: list[bytes] = []
    bench.engine.handlers[UDP_NUMBER] = lambda packet, header: seen.append(
        bytes(packet.area[packet.network : packet.data]) + packet.tobytes()
    )
    bench.receive(with_options(V4.part(0, b"A" * 16, True), b"\x01\x01\x01\x00"))
    whole = IP(seen[0])
    assert (whole.ihl, whole.len, whole.frag, str(whole.flags)) == (6, 48, 0, "")
    assert checksum((seen[0][:24],)) == 0, "a header that can be quoted"
    assert seen[0][24:] == b"A" * 16 + b"B" * 8


def six(*layers: object, src: str = V6.peer) -> bytes:
    packet = IPv6(src=src, dst=V6.ours)
    for layer in layers:
        packet = packet / layer
    return bytes(packet)


def test_headers_before_the_fragment_header_stay_those_behind_it_are_walked_afterwards() -> None:
    bench = Bench()
    seen: list[bytes] = []
    bench.engine.handlers[UDP_NUMBER] = lambda packet, header: seen.append(
        bytes(packet.area[packet.network : packet.data]) + packet.tobytes()
    )
    behind = bytes(IPv6ExtHdrDestOpt(nh=UDP_NUMBER)) + b"01234567" + b"89abcdef"
    for offset, more in ((0, 1), (16, 0)):
        piece = IPv6ExtHdrFragment(nh=60, offset=offset // 8, m=more, id=3)
        bench.receive(six(IPv6ExtHdrHopByHop(), piece, Raw(behind[offset : offset + 16])))
    assert bench.drops() == {}
    whole = IPv6(seen[0])
    assert (whole.nh, whole.plen, whole[IPv6ExtHdrHopByHop].nh) == (0, 32, 60)
    assert seen[0][48:] == behind
    assert not whole.haslayer(IPv6ExtHdrFragment)


def test_an_atomic_fragment_is_a_packet_by_itself() -> None:
    bench = Bench()
    bench.receive(V6.part(0, b"A" * 8, True, ident=5))
    bench.receive(V6.part(0, b"alone", False, ident=5))
    assert [whole for _, whole, _ in bench.got] == [b"alone"], "RFC 6946 §4: neither waits nor overlaps"
    bench.receive(V6.part(8, b"B" * 8, False, ident=5))
    assert bench.got[1][1] == b"A" * 8 + b"B" * 8


def test_rfc_7112_the_first_fragment_holds_all_headers() -> None:
    bench = Bench()
    piece = IPv6ExtHdrFragment(nh=60, m=1, id=3)
    bench.receive(six(piece, Raw(bytes(IPv6ExtHdrDestOpt(nh=UDP_NUMBER)))))
    bench.receive(six(piece, Raw(bytes((UDP_NUMBER, 2)) + bytes(14))))
    assert bench.drops() == {"rx_dropped_header_chain": 2}
    assert [(kind, value) for kind, value, _ in bench.errors] == [("header_chain", 0)] * 2
    bench.receive(six(piece, Raw(bytes(IPv6ExtHdrDestOpt(nh=59)))))
    assert bench.engine.reassembler.held == 1, "where no header follows none is missing"


def test_fragments_in_fragments_are_dropped() -> None:
    bench = Bench()
    twice = six(IPv6ExtHdrFragment(id=1), IPv6ExtHdrFragment(nh=UDP_NUMBER, id=2), Raw(b"payload!"))
    bench.receive(twice)
    inner = bytes(IPv6ExtHdrFragment(nh=UDP_NUMBER, id=2)) + b"payload!"
    bench.receive(six(IPv6ExtHdrFragment(nh=44, m=1, id=1), Raw(inner)))
    assert bench.drops() == {"rx_dropped_nested_fragment": 2}
    assert bench.balance() == 0


def test_a_routing_header_hidden_in_fragments_is_found() -> None:
    bench = Bench()
    behind = bytes((UDP_NUMBER, 0, 0, 1)) + bytes(12)
    bench.receive(six(IPv6ExtHdrFragment(nh=43, m=1, id=1), Raw(behind)))
    assert bench.errors[0][:2] == ("parameter", 50), "seen in the first fragment already"
