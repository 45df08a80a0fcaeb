"""The cable: frames pass as they are, wait while there is no room, and are counted when they cannot wait."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw.clock import VirtualClock
from hw.loop import Loop
from hw.wire.cable import cable
from hw.wire.link import WireError
from tests.wire_ends import Station, frame, mac

A, B = mac(1), mac(2)


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop(VirtualClock())
    yield loop
    loop.close()


def test_a_frame_arrives_within_the_call_as_the_very_views(loop: Loop) -> None:
    a, b = cable(loop)
    Station(a)
    receiver = Station(b)
    sent = frame(B, A, b"hello", header=bytes(range(12)))

    assert a.transmit([sent]) == 1

    assert receiver.seen[0] is sent
    assert receiver.headers == [bytes(range(12))]


def test_both_directions_are_one_wire(loop: Loop) -> None:
    a, b = cable(loop)
    left, right = Station(a), Station(b)

    a.transmit([frame(B, A, b"ping")])
    b.transmit([frame(A, B, b"pong")])

    assert right.texts() == [b"ping"]
    assert left.texts() == [b"pong"]


def test_what_finds_no_room_is_copied_and_comes_with_resume_in_order(loop: Loop) -> None:
    a, b = cable(loop)
    Station(a)
    receiver = Station(b, room=1)
    buffer = bytearray(frame(B, A, b"2")[1][0])

    assert a.transmit([frame(B, A, b"1"), (None, [buffer])]) == 2
    buffer[:] = b"\xa5" * len(buffer)  # the sender uses its buffer again
    a.transmit([frame(B, A, b"3")])
    assert receiver.texts() == [b"1"]

    receiver.room = 10
    b.resume()

    assert receiver.texts() == [b"1", b"2", b"3"]
    assert b.counters["rx_deferred"] == 2


def test_a_receiver_that_took_fewer_is_not_asked_again_before_resume(loop: Loop) -> None:
    a, b = cable(loop)
    Station(a)
    receiver = Station(b, room=0)

    for _ in range(5):
        a.transmit([frame(B, A)])
        loop.turn()

    assert receiver.batches == [0]


def test_a_long_backlog_that_is_taken_bit_by_bit_stays_in_order(loop: Loop) -> None:
    a, b = cable(loop)
    Station(a)
    receiver = Station(b, room=0)
    a.transmit([frame(B, A, b"%d" % number) for number in range(300)])

    while b.backlog:
        receiver.room = 7
        b.resume()

    assert [int(text) for text in receiver.texts()] == list(range(300))


def test_room_in_the_backlog_comes_back(loop: Loop) -> None:
    a, b = cable(loop, backlog_frames=3, backlog_bytes=180)
    Station(a)
    receiver = Station(b)

    for _ in range(5):
        b.pause()
        a.transmit([frame(B, A)] * 3)
        b.resume()

    assert len(receiver.got) == 15


def test_pause_holds_frames_back(loop: Loop) -> None:
    a, b = cable(loop)
    Station(a)
    receiver = Station(b)

    b.pause()
    a.transmit([frame(B, A, b"later")])
    assert receiver.got == []

    b.resume()
    assert receiver.texts() == [b"later"]


@pytest.mark.parametrize(
    ("limits", "why"),
    [({"backlog_frames": 3}, "rx_dropped_backlog_frames"), ({"backlog_bytes": 180}, "rx_dropped_backlog_bytes")],
)
def test_the_backlog_is_bounded(loop: Loop, limits: dict[str, int], why: str) -> None:
    a, b = cable(loop, **limits)
    Station(a)
    receiver = Station(b, room=0)

    a.transmit([frame(B, A, b"%d" % number) for number in range(5)])
    receiver.room = None
    b.resume()

    assert receiver.texts() == [b"0", b"1", b"2"]
    assert b.counters[why] == 2


def test_carrier_follows_who_is_at_the_other_end(loop: Loop) -> None:
    a, b = cable(loop)
    left = Station(a)
    assert not a.carrier

    Station(b)
    assert a.carrier
    assert b.carrier

    b.detach()
    assert not a.carrier
    assert left.carriers == [True, False]


def test_nobody_at_the_other_end_is_counted(loop: Loop) -> None:
    a, _ = cable(loop)
    Station(a)

    assert a.transmit([frame(B, A), frame(B, A)]) == 2

    assert a.counters["tx_dropped_no_peer"] == 2


def test_unplugging_drops_what_waits(loop: Loop) -> None:
    a, b = cable(loop)
    Station(a)
    Station(b, room=0)
    a.transmit([frame(B, A), frame(B, A)])

    b.detach()
    again = Station(b)
    a.transmit([frame(B, A, b"new")])

    assert again.texts() == [b"new"]
    assert b.counters["rx_dropped_no_receiver"] == 2


def test_a_closed_end_takes_and_gives_nothing(loop: Loop) -> None:
    a, b = cable(loop)
    Station(a)
    receiver = Station(b)

    a.close()
    assert a.transmit([frame(B, A)]) == 1
    b.transmit([frame(A, B)])

    assert receiver.got == []
    assert a.counters["tx_dropped_closed"] == 1
    assert b.counters["tx_dropped_no_peer"] == 1
    assert (a.carrier, b.carrier) == (False, False)


def test_a_second_plug_is_refused(loop: Loop) -> None:
    a, _ = cable(loop)
    Station(a)

    with pytest.raises(WireError, match="plugged in already"):
        Station(a)


def test_an_answer_waits_until_the_sender_is_out_of_its_call(loop: Loop) -> None:
    a, b = cable(loop)
    left, right = Station(a), Station(b)
    right.on_receive = lambda _: b.transmit([frame(A, B, b"answer")])

    a.transmit([frame(B, A, b"question")])
    assert left.got == []

    loop.run()
    assert left.texts() == [b"answer"]


def test_what_comes_after_a_waiting_frame_waits_behind_it(loop: Loop) -> None:
    a, b = cable(loop)
    left, right = Station(a), Station(b)
    right.on_receive = lambda _: b.transmit([frame(A, B, b"first")])

    a.transmit([frame(B, A)])
    b.transmit([frame(A, B, b"second")])
    loop.run()

    assert left.texts() == [b"first", b"second"]


def test_two_ends_that_answer_each_other_take_turns_and_no_stack(loop: Loop) -> None:
    a, b = cable(loop)
    left, right = Station(a), Station(b)
    left.on_receive = lambda _: a.transmit([frame(B, A)])
    right.on_receive = lambda _: b.transmit([frame(A, B)])

    a.transmit([frame(B, A)])
    loop.run(until=lambda: len(left.got) >= 5000)

    assert len(left.got) == 5000
    assert (left.deepest, right.deepest) == (1, 1)


def test_a_receiver_that_leaves_in_the_middle_loses_the_rest_counted(loop: Loop) -> None:
    a, b = cable(loop)
    Station(a)
    receiver = Station(b, room=1)
    receiver.on_receive = lambda _: b.detach()

    a.transmit([frame(B, A), frame(B, A), frame(B, A)])

    assert len(receiver.got) == 1
    assert b.counters["rx_dropped_no_receiver"] == 2
    assert b.backlog == 0


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("send"), st.integers(1, 12)),
            st.tuples(st.just("room"), st.integers(0, 20)),
            st.tuples(st.just("resume"), st.just(0)),
            st.tuples(st.just("pause"), st.just(0)),
            st.tuples(st.just("turn"), st.just(0)),
        ),
        max_size=40,
    ),
    st.integers(0, 20),
    st.integers(0, 1500),
)
def test_every_frame_is_taken_waits_or_is_counted_and_order_is_kept(
    steps: list[tuple[str, int]], backlog_frames: int, backlog_bytes: int
) -> None:
    loop = Loop(VirtualClock())
    a, b = cable(loop, backlog_frames=backlog_frames, backlog_bytes=backlog_bytes)
    Station(a)
    receiver = Station(b, room=5)
    sent = 0
    for what, count in steps:
        if what == "send":
            a.transmit([frame(B, A, b"%d" % (sent + one)) for one in range(count)])
            sent += count
        elif what == "room":
            receiver.room = count
        elif what == "turn":
            loop.turn()
        else:
            getattr(b, what)()
        numbers = [int(text) for text in receiver.texts()]
        dropped = b.counters["rx_dropped_backlog_frames"] + b.counters["rx_dropped_backlog_bytes"]
        assert numbers == sorted(set(numbers)), "in order, and none twice"
        assert sent == len(numbers) + b.backlog + dropped
        assert b.backlog <= backlog_frames
        assert b.backlog * 60 <= backlog_bytes
    loop.close()
