"""Explicit congestion notification: RFC 3168 §6.1."""

from __future__ import annotations

import pytest

from guest.net.tcp.config import TcpConfig
from tests.tcp_world import MS, SECOND, World
from tests.test_tcp_data import body

ASKS = TcpConfig(ecn=1, congestion="reno")
NEVER = TcpConfig(ecn=0)
FAMILIES = pytest.mark.parametrize("family", [4, 6])


@FAMILIES
def test_rfc3168_6_1_1_it_is_done_when_the_peer_asks(family: int) -> None:
    peer, end = World(family).established(ecn=True, mss=1440)

    end.writes(b"hello")

    peer.expects("P.", data=b"hello", ecn="ECT0")
    assert end.end.info().ecn


def test_rfc3168_6_1_1_it_is_not_asked_for_by_itself() -> None:
    """As on Linux: answered, and not asked for, since some paths drop such SYNs."""
    _, peer = World().connects()

    peer.expects("S")


@FAMILIES
def test_rfc3168_6_1_1_a_setting_asks_for_it(family: int) -> None:
    peer, end = World(family, tcp=ASKS).established(client=True, ecn=True)

    end.writes(b"hello")

    peer.expects("P.", data=b"hello", ecn="ECT0")


def test_rfc3168_6_1_1_a_setting_refuses_it() -> None:
    world = World(tcp=NEVER)
    world.listens(80)
    peer = world.peer(80)

    peer.sends("SEW")

    peer.expects("S.")


@pytest.mark.parametrize("flags", ["S.", "S.EW", "S.W"], ids=["not", "reflected", "nonsense"])
def test_rfc3168_6_1_1_a_peer_that_does_not_agree_is_left_in_peace(flags: str) -> None:
    """Both flags back are a broken peer's, which sends everything back."""
    program, peer = World(tcp=ASKS).connects()
    peer.expects("SEW")
    peer.sends(flags)
    peer.expects(".", ecn="")

    program.writes(b"x")

    peer.expects("P.", ecn="")


def test_rfc3168_6_1_1_1_a_syn_that_is_repeated_asks_no_more() -> None:
    _, peer = World(tcp=ASKS).connects()
    peer.expects("SEW")

    peer.expects("S", after=SECOND)


def test_rfc3168_6_1_1_syns_and_bare_acknowledgements_carry_no_ect() -> None:
    """§6.1.1, §6.1.4."""
    world = World()
    world.listens(80)
    peer = world.peer(80)
    peer.sends("SEW")
    peer.expects("S.E", ecn="")
    peer.sends(".")

    peer.sends("P.", data=b"x")

    peer.expects(".", ecn="", after=40 * MS)


def test_rfc3168_6_1_5_what_is_sent_again_carries_no_ect() -> None:
    peer, end = World().established(ecn=True)
    end.writes(b"x")
    peer.expects("P.", ecn="ECT0")

    peer.expects("P.", ecn="", after=end.rto)


def test_rfc3168_6_1_3_a_mark_is_echoed_until_the_peer_says_that_it_heard() -> None:
    peer, end = World().established(ecn=True)
    peer.sends("P.", data=b"a", ecn="CE")
    peer.expects("E.", ack=2)
    peer.sends("P.", data=b"b", ecn="ECT0")
    peer.expects("E.", ack=3, within=(0, 40 * MS))

    peer.sends("PW.", data=b"c", ecn="ECT0")
    peer.expects(".", ack=4, within=(0, 40 * MS))

    end.reads(b"abc")


def test_rfc3168_6_1_3_without_agreement_marks_mean_nothing() -> None:
    peer, _ = World().established(ecn=False)

    peer.sends("P.", data=b"a", ecn="CE")

    peer.expects(".", ack=2, within=(0, 40 * MS))


def test_rfc3168_6_1_2_an_echo_halves_the_window_once_a_round_trip() -> None:
    world = World(tcp=ASKS)
    peer, end = world.established(client=True, ecn=True, mss=1000)
    end.writes(body(10_000))
    segments = peer.drains()
    assert len(segments) == 10

    peer.sends("E.", ack=1001)
    reduced = end.end.info().cwnd
    assert reduced == 5000, "half of the ten that were under way"
    for number in range(2, 8):
        peer.sends("E.", ack=1000 * number + 1)
    assert end.end.info().cwnd <= reduced + 1000, "of the same window: no further cut"
    end.writes(body(10_000))

    fresh = peer.drains()
    assert "W" in fresh[0].flags, "the first new segment says that we heard"
    assert not any("W" in segment.flags for segment in fresh[1:])


def test_rfc3168_6_1_2_an_echo_of_the_next_window_counts_again() -> None:
    world = World(tcp=ASKS)
    peer, end = world.established(client=True, ecn=True, mss=1000)
    end.writes(body(30_000))
    peer.drains()
    peer.sends("E.", ack=1001)
    first = end.end.info().cwnd
    peer.sends(".", ack=peer.heard)
    got = peer.drains()
    assert got, "new data goes out"

    peer.sends("E.", ack=peer.heard)

    assert end.end.info().cwnd < first
