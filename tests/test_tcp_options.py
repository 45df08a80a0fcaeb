"""Row H58: options that a peer may send. RFC 9293 §3.2 (walking them), RFC 6691, RFC 7323, RFC 2018."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tcp_wire import parse
from tests.tcp_world import World
from tests.test_tcp_data import body

NOP, END = b"\x01", b"\x00"
MSS = b"\x02\x04\x05\xb4"

BROKEN = {
    "length 0": b"\x02\x00\x05\xb4",
    "length 1": b"\x02\x01\x05\xb4",
    "past the end": MSS + b"\x08\x0a\x00\x00",
    "kind alone at the end": b"\x01\x01\x01\x08",
    "unknown, length 0": b"\xfd\x00" + MSS + b"\x01\x01",
    "unknown, length 255": b"\xfd\xff" + MSS + b"\x01\x01",
    "forty times unknown, length 1": b"\xfd\x01" * 20,
    "timestamps of length 2": b"\x08\x02\x01\x01",
    "SACK of length 3": b"\x05\x03\x01\x01",
    "window scale of length 2": b"\x03\x02\x01\x01",
    "MSS of length 3": b"\x02\x03\x05\x01",
    "ends at once": END * 40,
    "forty NOPs": NOP * 40,
}


@pytest.mark.parametrize("name", BROKEN)
def test_h58_a_syn_with_broken_options_is_answered_all_the_same(name: str) -> None:
    world = World()
    server = world.listens(80)
    peer = world.peer(80)

    peer.sends("S", raw_options=BROKEN[name])
    peer.expects("S.", seq=0, ack=1, ts=None, ws=None, sack_ok=False)
    peer.sends(".")

    server.accepts()


@pytest.mark.parametrize("name", BROKEN)
def test_h58_data_with_broken_options_is_taken_all_the_same(name: str) -> None:
    peer, end = World().established(sack=True)

    peer.sends("P.", data=b"hello", raw_options=BROKEN[name])

    end.reads(b"hello")


def test_h58_an_unknown_option_is_passed_over() -> None:
    """MUST-6, MUST-68."""
    world = World()
    server = world.listens(80)
    peer = world.peer(80)

    peer.sends("S", raw_options=b"\xfd\x06abcd" + b"\x02\x04\x03\xe8" + b"\x01\x03\x03\x02")
    peer.expects("S.", ws=7)
    peer.sends(".")
    server.accepts().writes(body(2000))

    peer.expects_data(body(2000), size=1000)


def test_h58_options_stop_at_the_end_of_the_list() -> None:
    world = World()
    world.listens(80)
    peer = world.peer(80)

    peer.sends("S", raw_options=END + b"\x03\x03\x02" + b"\x04\x02" + b"\x01\x01")

    peer.expects("S.", ws=None, sack_ok=False)


@pytest.mark.parametrize("mss", [0, 1, 47])
def test_h58_an_mss_of_nothing_does_not_make_us_send_headers_alone(mss: int) -> None:
    """CVE-2019-11477 and its kin: at least 48 bytes a segment, or more."""
    world = World()
    server = world.listens(80)
    peer = world.peer(80)
    peer.sends("S", mss=mss)
    peer.expects("S.")
    peer.sends(".")

    server.accepts().writes(body(10_000))

    got = peer.drains()
    assert min(len(segment.data) for segment in got[:-1]) >= 48


def test_h58_options_that_come_after_the_syn_change_nothing() -> None:
    """MSS, window scale and SACK-permitted are for SYNs alone (RFC 9293 §3.2, RFC 7323 §2.2)."""
    peer, end = World().established()

    peer.sends("P.", data=b"x", mss=100, ws=14, sack_ok=True, win=1000)
    end.writes(body(1000))

    got = peer.drains()
    assert [len(segment.data) for segment in got if segment.data] == [1000]
    assert all(segment.sack == () for segment in got)


def test_h58_timestamps_that_were_not_agreed_are_ignored() -> None:
    peer, end = World().established(ts=False)

    peer.sends("P.", data=b"abc", ts=(7, 7))
    peer.sends("P.", data=b"def", ts=(3, 7))

    end.reads(b"abcdef")
    assert all(segment.ts is None for segment in peer.drains())


@pytest.mark.parametrize("offset", [0, 1, 4, 7, 15])
def test_h58_a_data_offset_that_is_wrong_drops_the_segment(offset: int) -> None:
    """Less than five words, or past the end of the packet."""
    world = World()
    peer, end = world.established()

    peer.sends("P.", data=b"x", offset=offset)

    end.reads_nothing()
    peer.expects_nothing()
    assert world.stack.tcp.counters["rx_dropped_header_length"] == 1


def test_h58_a_header_that_is_cut_drops_the_segment() -> None:
    world = World()
    peer, end = world.established()
    whole = bytearray(parse_and_cut(peer.segment("P.", data=b"x"), 19))

    world.delivers(bytes(whole))

    assert world.stack.tcp.counters["rx_dropped_short"] == 1
    end.is_in("ESTABLISHED")


def parse_and_cut(segment: object, size: int) -> bytes:
    """An IPv4 packet with only `size` bytes of its TCP header."""
    from tests.tcp_wire import build, ip_packet

    packet = build(segment)  # type: ignore[arg-type]
    return ip_packet(packet[12:16], packet[16:20], 6, packet[20 : 20 + size])


def checksum_of_what_is_sent(family: int, data: bytes) -> int:
    """By a connection that is each time the same but for its data."""
    world = World(family)
    peer, end = world.established()
    end.writes(data)
    packet = peer.expects("P.", data=data).packet
    start = 20 if family == 4 else 40
    return int.from_bytes(packet[start + 16 : start + 18], "big")


@pytest.mark.parametrize("family", [4, 6])
def test_a_sum_of_all_ones_is_sent_as_a_checksum_of_zero(family: int) -> None:
    """It is the inverted sum; 65535 would say the same to whoever adds up, but no other host writes it."""
    check = checksum_of_what_is_sent(family, bytes(2))

    assert checksum_of_what_is_sent(family, check.to_bytes(2, "big")) == 0


def test_h58_a_wrong_checksum_drops_the_segment() -> None:
    world = World()
    peer, end = world.established()

    peer.sends("P.", data=b"x", seq=1, spoil=True)

    end.reads_nothing()
    peer.expects_nothing()
    assert world.stack.tcp.counters["rx_dropped_checksum"] == 1


@given(raw=st.binary(max_size=40), flags=st.sampled_from(["S", "S.", ".", "P.", "F."]))
def test_h58_whatever_the_options_are_nothing_breaks(raw: bytes, flags: str) -> None:
    raw += b"\0" * (-len(raw) % 4)
    world = World()
    world.listens(80)
    fresh = world.peer(80, 1000)
    peer, end = world.established_on(81)

    fresh.sends("S", raw_options=raw)
    answer = fresh.drains()
    assert [segment.flags for segment in answer] == ["S."]
    peer.sends(flags, data=b"abc", raw_options=raw)

    for segment in peer.drains():
        parse(segment.packet)
    assert end.state in ("ESTABLISHED", "CLOSE_WAIT")
