"""Silence: keepalive (row C26; RFC 9293 §3.8.4) and the user timeout (RFC 5482, TCP_USER_TIMEOUT)."""

from __future__ import annotations

import pytest

from guest.net.tcp.config import TcpConfig
from tests.tcp_world import MS, SECOND, Peer, Program, World

HOURS = 3600 * SECOND


def kept(world: World, **settings: int) -> tuple[Peer, Program]:
    """A connection with SO_KEEPALIVE."""
    peer, end = world.established()
    end.end.options.keepalive = True
    end.sets(**settings)
    return peer, end


def test_c26_the_first_probe_comes_after_exactly_7200_seconds_of_silence() -> None:
    peer, _ = kept(World())

    peer.expects(".", seq=0, ack=1, length=0, after=7200 * SECOND)


def test_c26_nothing_comes_unless_it_was_asked_for() -> None:
    """RFC 9293, MUST-24: keepalives default to off."""
    peer, end = World().established()

    peer.expects_nothing(during=100 * HOURS)

    end.is_in("ESTABLISHED")


@pytest.mark.parametrize("where", ["stack", "end"])
def test_c26_the_time_is_a_setting(where: str) -> None:
    if where == "stack":
        peer, _ = kept(World(tcp=TcpConfig(keepalive_idle=60 * SECOND)))
    else:
        peer, _ = kept(World(), keepidle=60 * SECOND)

    peer.expects(".", seq=0, after=60 * SECOND)


def test_c26_a_peer_that_answers_is_left_alone_for_as_long_again() -> None:
    peer, end = kept(World())
    for _ in range(3):
        peer.expects(".", seq=0, after=7200 * SECOND)
        peer.sends(".")

    end.is_in("ESTABLISHED")


def test_c26_a_peer_that_is_gone_is_found_out() -> None:
    """Nine probes, 75 s apart; then the connection is reset."""
    peer, end = kept(World())
    peer.expects(".", seq=0, after=7200 * SECOND)
    for _ in range(8):
        peer.expects(".", seq=0, after=75 * SECOND)

    peer.expects("R.", seq=1, after=75 * SECOND)

    end.is_in("CLOSED")
    assert end.end.readable
    end.reads_fail("ETIMEDOUT")


def test_c26_number_and_distance_of_the_probes_are_settings() -> None:
    peer, end = kept(World(), keepidle=10 * SECOND, keepintvl=SECOND, keepcnt=2)
    peer.expects(".", seq=0, after=10 * SECOND)
    peer.expects(".", seq=0, after=SECOND)

    peer.expects("R.", after=SECOND)

    end.is_in("CLOSED")


def test_c26_whatever_is_heard_starts_the_time_anew() -> None:
    world = World()
    peer, end = kept(world)
    world.passes(7199 * SECOND)

    peer.sends("P.", data=b"here")
    end.reads(b"here")
    peer.expects(".", ack=5, after=40 * MS)

    peer.expects(".", seq=0, within=(7200 * SECOND - 40 * MS, 7200 * SECOND - 40 * MS))


def test_c26_a_peer_that_rebooted_answers_with_a_reset() -> None:
    peer, end = kept(World())
    peer.expects(".", seq=0, after=7200 * SECOND)

    peer.sends("R", seq=1)

    end.is_in("CLOSED")
    end.reads_fail("ECONNRESET")


def test_rfc9293_3_8_4_we_answer_the_peers_probes() -> None:
    """With and without a byte in them (MUST-25 is about the probe, and old peers need the byte)."""
    peer, _ = World().established()

    peer.sends(".", seq=0)
    peer.expects(".", ack=1)
    peer.sends(".", seq=0, data=b"\0")

    peer.expects(".", ack=1)


def test_rfc9293_3_8_4_what_is_unacknowledged_is_sent_again_instead() -> None:
    world = World(tcp=TcpConfig(retries=20))
    peer, end = kept(world, keepidle=5 * SECOND)
    end.writes(b"x")
    peer.expects("P.", seq=1)

    world.passes(20 * SECOND)

    assert {segment.seq for segment in peer.drains()} == {1}


def test_rfc5482_the_user_timeout_gives_up_earlier() -> None:
    """A second after it was sent first, whatever the retransmission timer says then."""
    world = World()
    peer, end = world.established()
    end.sets(user_timeout=SECOND)
    end.writes(b"x")
    peer.expects("P.")

    world.passes(SECOND - 1)
    end.is_in("ESTABLISHED")
    world.passes(1)

    end.is_in("CLOSED")
    end.reads_fail("ETIMEDOUT")


def test_rfc5482_the_user_timeout_may_be_longer_than_the_retries() -> None:
    """TCP_USER_TIMEOUT takes their place, as on Linux."""
    world = World(tcp=TcpConfig(retries=2))
    peer, end = world.established()
    end.sets(user_timeout=60 * SECOND)
    end.writes(b"x")
    peer.expects("P.")

    world.passes(60 * SECOND - 1)
    end.is_in("ESTABLISHED")
    world.passes(1)

    end.is_in("CLOSED")
