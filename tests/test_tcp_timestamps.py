"""Timestamps: RFC 7323 §3 (the option), §4 (round trips), §5 (PAWS: protection against wrapped sequence numbers)."""

from __future__ import annotations

from guest.net.tcp.config import TcpConfig
from tests.tcp_world import MS, SECOND, World
from tests.test_tcp_data import body

DAY = 24 * 3600 * SECOND


def test_rfc7323_3_2_once_agreed_every_segment_has_them() -> None:
    world = World()
    peer, end = world.established(ts=True)
    world.passes(30 * MS)

    end.writes(b"hello")
    peer.expects("P.", data=b"hello", ts=(30, peer.TS_START))
    peer.sends("P.", data=b"hi")
    peer.expects(".", ts=(70, peer.TS_START + 30), after=40 * MS)
    end.shuts()
    got = peer.expects("F.", seq=6)

    assert got.ts is not None


def test_rfc7323_3_2_they_count_in_the_size_of_a_segment() -> None:
    """The MSS is the one without options (RFC 6691): 1460 - 12."""
    peer, end = World().established(ts=True)

    end.writes(body(2896))

    peer.expects_data(body(2896), size=1448)


def test_rfc7323_3_2_without_the_peers_offer_there_are_none() -> None:
    program, peer = World().connects()
    peer.expects("S", ts=(0, 0))

    peer.sends("S.")

    peer.expects(".", ts=None)
    program.writes(b"x")
    peer.expects("P.", ts=None)


def test_rfc7323_3_2_a_setting_turns_them_off() -> None:
    world = World(tcp=TcpConfig(timestamps=False))
    program, peer = world.connects()
    peer.expects("S", ts=None)
    program.closes()

    world.listens(80)
    peer = world.peer(80)
    peer.stamps = True
    peer.sends("S")
    peer.expects("S.", ts=None)


def test_rfc7323_3_2_a_segment_without_them_is_dropped() -> None:
    peer, end = World().established(ts=True)

    peer.sends("P.", data=b"no stamp", ts=None)

    end.reads_nothing()
    peer.expects_nothing(during=SECOND)


def test_rfc7323_3_2_a_reset_needs_none() -> None:
    peer, end = World().established(ts=True)

    peer.sends("R", ts=None)

    end.is_in("CLOSED")
    end.reads_fail("ECONNRESET")


def test_rfc7323_4_3_a_delayed_acknowledgement_echoes_the_first_of_its_segments() -> None:
    """So that the peer's sample has the delay in it."""
    world = World()
    peer, _ = world.established(ts=True)
    world.passes(100 * MS)
    peer.sends("P.", data=b"one")
    first = peer.clock
    world.passes(20 * MS)
    peer.sends("P.", data=b"two")

    peer.expects(".", ack=7, ts=(140, first), within=(0, 40 * MS))


def test_rfc7323_4_3_a_segment_before_its_turn_is_not_echoed() -> None:
    """The echo stays at the last one in order, so that the peer does not measure its own loss."""
    world = World()
    peer, _ = world.established(ts=True)
    world.passes(100 * MS)
    peer.sends(".", seq=1, data=b"abc")
    in_order = peer.clock
    peer.drains()
    world.passes(100 * MS)
    peer.drains()
    world.passes(100 * MS)

    peer.sends(".", seq=7, data=b"ghi")

    got = peer.expects(".", ack=4)
    assert got.ts is not None
    assert got.ts[1] == in_order


def test_rfc7323_4_3_what_fills_the_hole_is_echoed() -> None:
    world = World()
    peer, _ = world.established(ts=True)
    world.passes(100 * MS)
    peer.sends(".", seq=4, data=b"def")
    peer.drains()
    world.passes(100 * MS)

    peer.sends(".", seq=1, data=b"abc")

    got = peer.expects(".", ack=7)
    assert got.ts is not None
    assert got.ts[1] == peer.clock


def test_rfc7323_4_1_a_segment_sent_twice_gives_a_sample_all_the_same() -> None:
    """The echo says which of the two was acknowledged: the second, 30 ms ago."""
    world = World(tcp=TcpConfig(rack=False, tail_probe=False))
    peer, end = world.established(ts=True)
    end.writes(b"hello")
    peer.expects("P.")
    peer.expects("P.", after=end.rto)
    world.passes(30 * MS)

    peer.sends(".")

    assert 0 < end.end.info().rtt <= 30 * MS
    assert end.end.info().min_rtt <= 30 * MS


def test_h58_paws_drops_what_has_an_older_timestamp() -> None:
    """RFC 7323 §5.3 R1: acknowledged, and dropped."""
    world = World()
    peer, end = world.established(ts=True)
    world.passes(SECOND)
    peer.sends("P.", data=b"new", ts=(peer.clock, peer.ts_seen))
    end.reads(b"new")
    peer.drains()

    peer.sends("P.", seq=4, data=b"old", ts=(peer.clock - 900, peer.ts_seen))

    got = peer.expects(".", ack=4)
    assert got.ts is not None
    assert got.ts[1] == peer.clock, "the old one is not echoed"
    end.reads_nothing()


def test_h58_paws_takes_what_has_the_same_timestamp() -> None:
    world = World()
    peer, end = world.established(ts=True)

    peer.sends("P.", data=b"one")
    peer.sends("P.", data=b"two")

    end.reads(b"onetwo")


def test_rfc7323_5_2_timestamps_wrap() -> None:
    world = World()
    server = world.listens(80)
    peer = world.peer(80)
    peer.sends("S", ts=(0xFFFF_FFF0, 0))
    peer.expects("S.", ts=(0, 0xFFFF_FFF0))
    peer.sends(".", ts=(0xFFFF_FFF8, 0))
    end = server.accepts()

    peer.sends("P.", data=b"wrapped", ts=(5, 0))
    end.reads(b"wrapped")
    got = peer.expects(".", ack=8, within=(0, 40 * MS))

    assert got.ts is not None
    assert got.ts[1] == 5


def test_rfc7323_5_5_after_24_days_of_silence_a_timestamp_says_nothing() -> None:
    """A clock of 1 ms wraps its sign bit in 24.8 days: then anything looks old."""
    world = World()
    peer, end = world.established(ts=True)
    world.passes(25 * DAY)

    peer.sends("P.", data=b"still here", ts=(peer.TS_START - 100, peer.ts_seen))

    end.reads(b"still here")


def test_rfc7323_5_4_a_timestamp_from_outside_of_the_window_is_not_taken() -> None:
    """What somebody who guesses sends must not make the peer's own segments look old."""
    world = World()
    peer, end = world.established(ts=True)

    peer.sends("P.", seq=1 << 30, data=b"guess", ts=(peer.clock + (1 << 30), peer.ts_seen))
    peer.drains()
    peer.sends("P.", data=b"mine", seq=1)

    end.reads(b"mine")


def test_h63_the_first_timestamp_of_a_connection_cannot_be_foreseen() -> None:
    """RFC 7323 §7.1: each connection's clock is shifted by itself."""
    world = World()
    for port in range(7, 17):
        world.opens().connects(port)

    stamps = [segment.ts[0] for segment in world.strays if segment.ts is not None]
    assert len(stamps) == 10
    assert len({stamp >> 16 for stamp in stamps}) > 5
