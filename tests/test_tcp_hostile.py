"""Rows H59, H61: what a hostile peer, or somebody who pretends to be one, may send."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guest.net.tcp.config import TcpConfig
from tests.tcp_wire import Segment, build, parse
from tests.tcp_world import MS, SECOND, WRAP, World
from tests.test_tcp_data import body

NONSENSE = ["SF", "SF.", "none", "FPU", "FSRPU.EW", "SFP", "SU", "P", "U", "EW"]


@pytest.mark.parametrize("flags", NONSENSE)
def test_h59_nonsense_for_a_listening_end_opens_nothing(flags: str) -> None:
    world = World()
    server = world.listens(80)
    peer = world.peer(80)
    peer.irs = 0

    peer.sends("" if flags == "none" else flags, seq=0, ack=0 if "." in flags else None)

    got = peer.drains()
    assert all(segment.flags in ("R", "R.", "S.") for segment in got)
    assert world.stack.tcp.half_open <= (flags in ("SF", "SFP", "SU"))
    world.passes(200 * SECOND)
    server.accepts_none()
    server.is_in("LISTEN")


@pytest.mark.parametrize("flags", [flags for flags in NONSENSE if "R" not in flags])
@pytest.mark.parametrize("seq", [1, 5, 100_000])
def test_h59_nonsense_on_a_connection_moves_nothing(flags: str, seq: int) -> None:
    world = World()
    peer, end = world.established()

    peer.sends("" if flags == "none" else flags, seq=seq, ack=1 if "." in flags else None)

    end.is_in("ESTABLISHED")
    assert all(segment.flags == "." for segment in peer.drains())
    peer.nxt = 1
    peer.sends("P.", data=b"fine")
    end.reads(b"fine")


def test_h59_data_without_an_acknowledgement_is_dropped() -> None:
    """RFC 9293 §3.10.7.4, fifth."""
    peer, end = World().established()

    peer.sends("P", data=b"x", seq=1)

    end.reads_nothing()


@pytest.mark.parametrize("seq", [-70_000, 65_600, 1 << 30, -(1 << 30)])
def test_h59_data_outside_of_the_window_is_answered_and_dropped(seq: int) -> None:
    peer, end = World().established()

    peer.sends("P.", seq=seq, data=b"blind", ack=1)

    peer.expects(".", seq=1, ack=1)
    end.reads_nothing()


def test_h61_of_bytes_that_come_twice_the_first_ones_count() -> None:
    """As Linux: a retransmission with other bytes changes nothing, in order or not."""
    peer, end = World().established(sack=True)
    peer.sends(".", seq=4, data=b"DEF")
    peer.sends(".", seq=4, data=b"xxx")
    peer.sends(".", seq=3, data=b"yyyyy")
    peer.sends(".", seq=1, data=b"ABzz")

    end.reads(b"AByDEFy")


def test_h61_overlaps_of_every_kind_give_the_first_bytes() -> None:
    """Against the naive model: a byte is what came first at its place."""
    rng = random.Random(61)
    for _ in range(30):
        world = World()
        peer, end = world.established(sack=True)
        model: dict[int, int] = {}
        for _ in range(40):
            start = rng.randrange(60)
            data = rng.randbytes(rng.randrange(1, 20))
            if 0 in model and start < first_gap(model):
                keep = first_gap(model) - start  # what was taken in order is past discussion
                for offset in range(keep, len(data)):
                    model.setdefault(start + offset, data[offset])
            else:
                for offset, byte in enumerate(data):
                    model.setdefault(start + offset, byte)
            peer.sends(".", seq=1 + start, data=data, ack=1)
        ready = bytes(model[at] for at in range(first_gap(model)))
        if ready:
            end.reads(ready)
        else:
            end.reads_nothing()


def first_gap(model: dict[int, int]) -> int:
    """How far the stream is without a hole."""
    at = 0
    while at in model:
        at += 1
    return at


def test_h61_a_fin_that_stands_where_data_is_ends_nothing() -> None:
    world = World()
    peer, end = world.established()
    peer.sends("P.", seq=1, data=b"abcdef")
    peer.sends("P.", seq=20, data=b"later")

    peer.sends("F.", seq=6)
    peer.sends("F.", seq=22)

    end.is_in("ESTABLISHED")
    peer.drains()
    peer.sends("P.", seq=7, data=b"ghijklmnopqrs")
    peer.sends("F.", seq=25)
    end.reads(b"abcdefghijklmnopqrslater")
    end.reads_end()


def test_h61_data_before_its_turn_does_not_reach_behind_a_fin_before_its_turn() -> None:
    world = World()
    peer, end = world.established()
    peer.sends("FP.", seq=4, data=b"def")

    peer.sends("P.", seq=1, data=b"abcdefghi")

    end.reads(b"abcdef")
    end.reads_end()
    end.is_in("CLOSE_WAIT")


def test_h61_an_acknowledgement_of_what_was_never_sent_changes_nothing() -> None:
    peer, end = World().established()
    end.writes(b"abc")
    peer.expects("P.")

    peer.sends(".", ack=1000)

    peer.expects(".", seq=4, ack=1)
    assert end.end.unacked == 3


def test_h61_a_flood_out_of_order_is_bounded() -> None:
    """CVE-2018-5390: every other byte; what is held stays within the window, and the work is linear."""
    world = World()
    peer, end = world.established(sack=True)

    for number in range(3000):
        peer.sends(".", seq=3 + 2 * number, data=b"x", ack=1)

    connection = next(iter(world.stack.tcp.connections))
    assert connection.rcv.held <= 65535
    assert world.stack.tcp.counters["rx_dropped_out_of_order_full"] > 0
    assert all(len(segment.sack) <= 4 for segment in peer.drains())
    peer.sends(".", seq=1, data=b"ab")
    end.reads(b"abx")


def test_h61_one_byte_segments_cost_bytes_and_no_more() -> None:
    """The memory that a stream of single bytes holds is near its size, not a packet for each."""
    world = World()
    peer, end = world.established()

    for number in range(5000):
        peer.sends(".", seq=1 + number, data=b"x")

    assert end.end.unread == 5000
    assert sum(len(view.obj) for view in held(end)) < 40_000
    end.reads(b"x" * 5000)


def held(end: object) -> list[memoryview]:
    """The memory that the receive buffer holds, each piece once."""
    buffer = end.end.connection.rcv  # type: ignore[attr-defined]
    return list({id(view.obj): view for view, _ in buffer._queue}.values())


def test_h61_sequence_numbers_wrap_under_attack_too() -> None:
    peer, end = World().established(iss=WRAP - 2)
    peer.sends(".", seq=-100, data=b"old" * 30, ack=1)
    peer.sends(".", seq=2, data=b"b")

    peer.sends(".", seq=1, data=b"a")

    end.reads(b"ab")


def test_h52_a_segment_from_ourselves_is_dropped() -> None:
    """The land attack: our own address as the source, on the wire."""
    world = World()
    world.listens(80)
    peer = world.peer(80, port=80, src=world.us)

    peer.sends("S", seq=0)

    peer.expects_nothing(during=SECOND)
    assert world.stack.tcp.half_open == 0


def test_h52_a_segment_to_a_group_or_broadcast_is_dropped() -> None:
    world = World()
    world.listens(80)
    for dst in ("224.0.0.1", "255.255.255.255", "10.0.0.255"):
        segment = Segment("S", src=world.them, dst=dst, sport=1, dport=80)
        world.delivers(build(segment))

    assert world.strays == []
    assert world.stack.tcp.half_open == 0


@pytest.mark.parametrize(("sport", "dport", "answer"), [(0, 80, "S."), (40_000, 0, "R.")])
def test_h57_port_0_does_no_harm(sport: int, dport: int, answer: str) -> None:
    """As on Linux: nobody can listen there, and who comes from there is answered there."""
    world = World()
    world.listens(80)
    peer = world.peer(dport, sport)

    peer.sends("S")

    peer.expects(answer)


def test_h61_optimistic_acknowledgements_do_not_run_ahead() -> None:
    """A receiver that acknowledges what it has not got yet gets no more than what was sent."""
    peer, end = World().established()
    end.writes(body(60_000))
    sent = peer.heard

    for step in range(1, 100):
        peer.sends(".", ack=1 + step * 10_000)

    assert max(segment.end for segment in peer.drains()) <= sent + 65_536 + 60_001
    end.is_in("ESTABLISHED")


def test_h61_tiny_windows_do_not_make_tiny_segments() -> None:
    """A peer that opens its window byte by byte."""
    peer, end = World().established(win=4000)
    end.writes(body(20_000))
    taken = len(peer.drains())

    for step in range(200):
        peer.sends(".", ack=2921, win=step)

    assert len(peer.drains()) <= 3 + taken


SEGMENTS = st.fixed_dictionaries(
    {
        "flags": st.sets(st.sampled_from("SFRPU.EW"), max_size=8).map("".join),
        "seq": st.one_of(st.integers(-3, 70), st.integers(-(1 << 31), 1 << 31)),
        "ack": st.one_of(st.integers(-3, 70), st.integers(0, 1 << 32)),
        "win": st.integers(0, 65535),
        "urg": st.integers(0, 65535),
        "data": st.binary(max_size=60),
        "ts": st.one_of(st.none(), st.tuples(st.integers(0, 1 << 32), st.integers(0, 1 << 32))),
        "sack": st.lists(st.tuples(st.integers(-5, 200), st.integers(-5, 200)), max_size=2),
        "ecn": st.sampled_from(["", "CE", "ECT0"]),
    }
)
CALLS = st.sampled_from(["read", "write", "shut", "oob", "wait", "long wait"])


@settings(max_examples=120)
@given(st.booleans(), st.booleans(), st.lists(st.one_of(SEGMENTS, CALLS), max_size=30), st.booleans())
def test_h59_h61_whatever_comes_the_invariants_hold(
    sack: bool, ts: bool, events: list[dict[str, object] | str], client: bool
) -> None:
    """TcpConfig.check looks at every connection after each segment; nothing raises, and resets are not answered."""
    world = World()
    peer, end = world.established(sack=sack, ts=ts, client=client)
    for event in events:
        if isinstance(event, dict):
            peer.drains()
            peer.sends(**event)  # type: ignore[arg-type]
            if "R" in str(event["flags"]):
                assert not any("R" in segment.flags for segment in peer.drains())
        elif event == "read":
            end.end.read_into(memoryview(bytearray(50)))
        elif event == "write":
            end.end.write([memoryview(body(3000))])
        elif event == "oob":
            end.end.write([memoryview(b"!")], oob=True)
        elif event == "shut":
            end.end.shutdown(1)
        else:
            world.passes(10 * MS if event == "wait" else 20 * SECOND)
    end.end.close()
    world.passes(300 * SECOND)
    for segment in peer.drains():
        parse(segment.packet)
    world.passes(600 * SECOND)
    assert list(world.stack.tcp.connections) == [], "everything ends"


@settings(max_examples=60)
@given(st.lists(SEGMENTS, max_size=12))
def test_h59_whatever_comes_to_a_listening_end_it_goes_on_listening(events: list[dict[str, object]]) -> None:
    world = World()
    server = world.listens(80)
    peer = world.peer(80)
    for event in events:
        peer.sends(**event)  # type: ignore[arg-type]
    peer.drains()

    other = world.peer(80, 777)
    other.sends("S")
    other.expects("S.")
    other.sends(".")

    while True:
        assert server.end.readable, "the new connection is there"
        end = server.end.accept()
        if end.remote[1] == 777:
            break


def test_h63_a_reset_at_a_guess_needs_the_very_number() -> None:
    """One in 2^32, not one in a window: RFC 5961 §1.2."""
    world = World(tcp=TcpConfig(challenge_rate=1 << 30))
    peer, end = world.established()
    rng = random.Random(1)

    for _ in range(500):
        peer.sends("R", seq=rng.randrange(2, 1 << 32))

    end.is_in("ESTABLISHED")
