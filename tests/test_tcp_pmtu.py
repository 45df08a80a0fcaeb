"""Paths that take less than the link: RFC 1191, RFC 8201, RFC 5927 §7 (forged errors), RFC 4821 §7.7 (black holes)."""

from __future__ import annotations

import pytest

from guest.net.tcp.config import TcpConfig
from tests.tcp_world import MS, SECOND, World
from tests.test_tcp_data import body

FAMILIES = pytest.mark.parametrize("family", [4, 6])
HEADERS = {4: 40, 6: 60}


@FAMILIES
def test_rfc1191_every_segment_forbids_fragmentation(family: int) -> None:
    peer, end = World(family).established()

    end.writes(body(1440))

    peer.expects("P.", df=True)


@FAMILIES
def test_rfc1191_what_was_too_big_comes_again_in_smaller_pieces(family: int) -> None:
    world = World(family)
    mss = 1500 - HEADERS[family]
    peer, end = world.established(mss=mss)
    end.writes(body(2 * mss))
    first = peer.expects(".", length=mss)
    peer.expects(".", length=mss)

    world.too_big(first, 1300)

    small = 1300 - HEADERS[family]
    got = peer.drains()
    assert got, "at once, without waiting for the timer"
    assert all(len(segment.packet) <= 1300 for segment in got)
    for _ in range(10):
        peer.sends(".")
        got += peer.drains()
    assert len(body(2 * mss)) == max(segment.end for segment in got) - 1
    data = bytearray(2 * mss)
    for segment in got:
        data[segment.seq - 1 : segment.end - 1] = segment.data
    assert bytes(data) == body(2 * mss)
    assert end.end.info().mss == small


@FAMILIES
def test_rfc1191_other_connections_to_the_same_peer_know_it_too(family: int) -> None:
    world = World(family)
    peer, end = world.established()
    end.writes(body(1400))
    world.too_big(peer.expects("P."), 1300)
    peer.drains()

    server = world.listens(81)
    other = world.peer(81)
    other.sends("S", mss=1460)
    other.expects("S.")
    other.sends(".")
    server.accepts().writes(body(3000))

    assert max(len(segment.packet) for segment in other.drains()) == 1300


def test_h55_an_error_about_a_segment_that_is_not_on_its_way_is_ignored() -> None:
    """RFC 5927 §4.1: SND.UNA <= SEQ < SND.NXT."""
    world = World()
    peer, end = world.established()
    end.writes(body(1460))
    old = peer.expects("P.", length=1460)
    peer.sends(".")

    world.too_big(old, 600)

    end.writes(body(1460))
    peer.expects("P.", length=1460)


@pytest.mark.parametrize("mtu", [0, 67, 1500, 9000])
def test_h55_an_mtu_that_makes_no_sense_is_survived(mtu: int) -> None:
    """0 is an old router's (RFC 1191 §5), less than 68 nobody's; what is not smaller changes nothing."""
    world = World()
    peer, end = world.established()
    end.writes(body(1460))
    segment = peer.expects("P.", length=1460)

    world.too_big(segment, mtu)

    world.passes(SECOND)
    got = peer.drains()
    assert all(len(segment.packet) >= 68 for segment in got)
    end.is_in("ESTABLISHED")
    if mtu >= 1500:
        assert end.end.info().mss == 1460


def test_h55_below_1280_ipv6_takes_no_word_for_it() -> None:
    """RFC 8201 §4: never below the IPv6 minimum."""
    world = World(6)
    peer, end = world.established()
    end.writes(body(1440))
    segment = peer.expects("P.", length=1440)

    world.too_big(segment, 500)

    assert end.end.info().mss >= 1220


def test_h55_the_same_error_again_costs_nothing() -> None:
    world = World()
    peer, end = world.established()
    end.writes(body(5840))
    segments = peer.drains()
    world.too_big(segments[0], 1000)
    first = len(peer.drains())

    for number in range(1000):
        world.too_big(segments[number % 4], 1000)

    assert first > 0
    assert peer.drains() == []
    assert end.end.info().mss == 960


def test_rfc4821_7_7_a_path_that_loses_full_segments_without_a_word_is_found_out() -> None:
    """A black hole: what is longer than 1200 bytes never arrives, and no router says so."""
    world = World()
    peer, end = world.established(sack=True, ts=True)
    data = body(10_000)
    end.writes(data)
    end.shuts()
    have = bytearray(len(data))
    missing = set(range(len(data)))

    for _ in range(400):
        world.passes(50 * MS)
        heard = peer.heard
        for segment in peer.drains():
            if len(segment.packet) <= 1200:
                at = segment.seq - 1
                have[at : at + len(segment.data)] = segment.data
                missing -= set(range(at, at + len(segment.data)))
        peer.heard = heard
        ack = 1 + min(missing, default=len(data) + 1)
        if ack > peer.heard:
            peer.heard = ack
            peer.sends(".")
        if not missing:
            break

    assert bytes(have) == data, f"at {world.now / SECOND} s"
    assert world.stack.tcp.counters["black_holes"] >= 1


def test_rfc4821_7_7_ordinary_loss_is_no_black_hole() -> None:
    """A peer that is away for a while takes full segments again when it is back."""
    world = World()
    peer, end = world.established()
    end.writes(body(1460))
    peer.expects("P.", length=1460)
    peer.expects("P.", length=1460, within=(0, 2 * SECOND))
    peer.sends(".")

    end.writes(body(1460))

    peer.expects("P.", length=1460)


def test_c23_a_smaller_link_makes_smaller_segments() -> None:
    """The MTU is a setting, and the MSS follows (C22 to C26)."""
    world = World(mtu=600)
    server = world.listens(80)
    peer = world.peer(80)
    peer.sends("S", mss=1460)
    peer.expects("S.", mss=560)
    peer.sends(".")

    server.accepts().writes(body(1680))

    peer.expects_data(body(1680), size=560)


def test_c23_black_hole_detection_can_be_switched_off() -> None:
    world = World(tcp=TcpConfig(black_hole_after=0, retries=6))
    peer, end = world.established()
    end.writes(body(1460))

    world.passes(60 * SECOND)

    assert {len(segment.data) for segment in peer.drains()} == {1460}
