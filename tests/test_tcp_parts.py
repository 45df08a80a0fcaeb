"""The parts of TCP that stand alone, each against a naive model: buffers, scoreboard, timers, secrets, numbers."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guest.net.tcp.buffers import ReceiveBuffer, SendBuffer
from guest.net.tcp.scoreboard import Scoreboard, Sent
from guest.net.tcp.secrets import PERIOD, Secrets
from guest.net.tcp.segment import MASK, unwrap
from guest.net.tcp.timers import NEVER, TimerQueue

START = (1 << 32) - 3000  # streams wrap on the wire early on
ENDS = (1, 80, 2, 40000)


def stream(length: int, first: int = 0) -> bytes:
    """Bytes that say where they stand."""
    return bytes((first + at) * 7 & 0xFF for at in range(length))


# -- numbers ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 1 << 40), st.integers(-(1 << 31), (1 << 31) - 1))
def test_rfc9293_3_4_a_wire_number_means_the_one_that_is_near(near: int, off: int) -> None:
    assert unwrap(near, near + off & MASK) == near + off


# -- the send buffer -------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.data())
def test_what_was_written_is_there_until_it_is_acknowledged(data: st.DataObject) -> None:
    """Writes of any size, views of any range, releases in any steps, against one bytearray."""
    buffer, model, start = SendBuffer(START), bytearray(), START
    for _ in range(data.draw(st.integers(1, 30))):
        match data.draw(st.sampled_from(["write", "write", "look", "release"])):
            case "write":
                chunk = stream(data.draw(st.sampled_from([1, 2, 100, 1023, 1024, 5000, 20000])), len(model))
                buffer.append(memoryview(chunk))
                model += chunk
            case "look" if buffer.end > start:
                first = data.draw(st.integers(start, buffer.end - 1))
                last = data.draw(st.integers(first, min(buffer.end, first + 4000)))
                seen = b"".join(buffer.views(first, last))
                assert seen == model[first - START : last - START]
            case "release":
                start = data.draw(st.integers(start, buffer.end))
                buffer.release(start)
        assert (len(buffer), buffer.end) == (START + len(model) - start, START + len(model))


def test_single_bytes_share_memory() -> None:
    buffer = SendBuffer(0)
    for at in range(10_000):
        buffer.append(memoryview(stream(1, at)))
    views = buffer.views(0, 10_000)
    assert (len(views), b"".join(views)) == (1, stream(10_000))


# -- the receive buffer ----------------------------------------------------------------------------------------------


@settings(max_examples=80)
@given(st.data())
def test_h61_runs_in_any_order_with_any_overlap_give_the_first_bytes(data: st.DataObject) -> None:
    """Segments from a window of 3000 bytes, each with bytes of its own: of two for one place the first counts."""
    buffer = ReceiveBuffer(START, 64)
    model: dict[int, int] = {}
    read = bytearray()
    for number in range(data.draw(st.integers(1, 40))):
        first = START + data.draw(st.integers(0, 3000))
        chunk = bytes([number + 1]) * data.draw(st.sampled_from([1, 3, 200, 900, 1400]))
        if first < buffer.end:
            chunk = chunk[buffer.end - first :]
            first = buffer.end
        if not chunk:
            continue
        assert buffer.insert(first, memoryview(chunk), None)
        for at, byte in enumerate(chunk):
            model.setdefault(first + at, byte)
        if first == buffer.end:
            buffer.join()
        runs = buffer.runs()
        assert all(left > buffer.end and model.keys() >= set(range(left, right)) for left, right in runs)
        assert buffer.held == sum(place >= buffer.end for place in model)
        if data.draw(st.booleans()) and len(buffer):
            target = bytearray(data.draw(st.integers(1, len(buffer))))
            buffer.take(memoryview(target), len(target))
            read += target
    rest = bytearray(len(buffer))
    buffer.take(memoryview(rest), len(rest))
    read += rest
    assert bytes(read) == bytes(model[START + at] for at in range(len(read)))
    assert START + len(read) not in model


def test_what_pins_much_memory_for_few_bytes_is_copied() -> None:
    lent = memoryview(bytearray(2048))
    buffer = ReceiveBuffer(0, 4)
    for _ in range(100):
        buffer.append(lent[:10], 2048, lent)
    kept = {id(keep) for _, keep in buffer._queue}
    assert (kept, len(buffer)) == ({id(None)}, 1000)


def test_rfc2018_4_no_more_runs_are_held_than_allowed_but_what_is_next_always_is() -> None:
    buffer = ReceiveBuffer(0, 2)
    assert [buffer.insert(at, memoryview(b"x"), None) for at in (10, 20, 30)] == [True, True, False]
    assert buffer.insert(0, memoryview(b"x"), None)


def test_h61_single_bytes_from_the_last_to_the_first_cost_no_more_than_from_the_first_to_the_last() -> None:
    """Of a run that grows at its front nothing that is there already is touched again and again."""
    buffer = ReceiveBuffer(0, 4)
    whole = memoryview(random.Random(1).randbytes(5000))
    for at in range(4999, 0, -1):
        buffer.insert(at, whole[at : at + 1], None)
    (block,) = buffer._blocks
    assert len(block.pieces) < 20, f"{len(block.pieces)} pieces"
    buffer.insert(0, whole[:1], None)
    buffer.join()
    got = bytearray(5000)
    buffer.take(memoryview(got), 5000)
    assert got == whole


# -- the scoreboard --------------------------------------------------------------------------------------------------


@settings(max_examples=80)
@given(st.data())
def test_rfc6675_in_flight_is_what_was_sent_and_is_neither_here_nor_lost(data: st.DataObject) -> None:
    board = Scoreboard(timed=data.draw(st.booleans()))
    una = nxt = START
    for now in range(data.draw(st.integers(1, 60))):
        kind = data.draw(
            st.sampled_from(["send", "send", "ack", "sack", "sack", "lose", "resend", "split", "believe", "forget"])
        )
        segments = list(board)
        if kind == "send":
            size = data.draw(st.integers(1, 1460))
            board.add(Sent(nxt, nxt + size, 0, now))
            nxt += size
        elif kind == "ack":
            una = data.draw(st.integers(una, nxt))
            board.acknowledge(una)
        elif kind == "believe":
            board.believe()
        elif kind == "forget":
            board.forget_sacks()
        elif segments:
            one = data.draw(st.sampled_from(segments))
            if kind == "sack":
                board.sack(one.start, data.draw(st.sampled_from([other.end for other in segments])))
            elif kind == "lose":
                board.mark_lost(one)
            elif kind == "resend" and not one.sacked:
                board.resent(one, now)
            elif kind == "split" and one.end - one.start > 1:
                board.split(one, data.draw(st.integers(1, one.end - one.start - 1)))
        segments = list(board)
        edges = [una, *(one.end for one in segments)]
        assert [one.start for one in segments] == edges[:-1]
        assert edges[-1] == nxt
        assert board.in_flight == sum(one.end - one.start for one in segments if not one.sacked and not one.lost)
        assert board.sacked_bytes == sum(one.end - one.start for one in segments if one.sacked)
        assert board.sacked_count == sum(one.sacked for one in segments)
        board.check()
        assert {id(one) for one in board.lost if one.lost} >= {id(one) for one in segments if one.lost}


def test_h61_a_block_that_is_reported_again_and_again_is_not_walked_through_each_time() -> None:
    """Ten thousand segments behind a hole, and each is reported with all those before it."""
    board = Scoreboard(timed=True)
    looked = 0

    class Counted(Sent):
        __slots__ = ()

        def __getattribute__(self, name: str) -> object:
            nonlocal looked
            looked += name == "sacked"
            return super().__getattribute__(name)

    for at in range(10_000):
        board.add(Counted(START + at, START + at + 1, 0, 0))
    found = sum(len(board.sack(START + 1, START + at)) for at in range(2, 10_001))
    assert found == 9_999
    assert looked < 100_000, f"{looked} looks at {found} segments"


# -- timers ----------------------------------------------------------------------------------------------------------


class Alarm:
    """Something with a deadline that notes when it was polled."""

    def __init__(self, log: list[tuple[int, str]], name: str, when: int) -> None:
        self.scheduled = NEVER
        self.log, self.name, self.when = log, name, when

    def deadline(self) -> int:
        return self.when

    def poll(self, now: int) -> None:
        self.log.append((now, self.name))
        self.when = NEVER


def test_each_fires_at_its_deadline_wherever_that_has_moved() -> None:
    log: list[tuple[int, str]] = []
    queue = TimerQueue()
    early, late, never = (Alarm(log, name, when) for name, when in (("early", 10), ("late", 20), ("never", NEVER)))
    for alarm in (early, late, never):
        queue.arm(alarm)
    early.when = 30  # later: nothing is pushed, and it fires in its time all the same
    queue.arm(early)
    late.when = 5  # earlier
    queue.arm(late)
    fired = []
    while (due := queue.next_deadline()) is not None:
        fired.append(due)
        queue.run_due(due)
    assert log == [(5, "late"), (30, "early")]
    assert (fired, len(queue)) == ([5, 10, 30], 0)


def test_moving_a_deadline_back_ten_thousand_times_leaves_one_entry() -> None:
    queue, alarm = TimerQueue(), Alarm([], "rto", 100)
    for _ in range(10_000):
        queue.arm(alarm)
        alarm.when += 1
    assert len(queue) == 1


def test_h62_deadlines_that_were_overtaken_are_swept_out() -> None:
    """A far one (keepalive) is set again behind each near one (a delayed acknowledgement) that has fired."""
    queue, alarm = TimerQueue(), Alarm([], "ack", 0)
    for now in range(0, 100_000, 10):
        alarm.when = now + 7_200_000
        queue.arm(alarm)
        alarm.when = now + 5
        queue.arm(alarm)
        queue.run_due(now + 5)

    assert len(queue) < 100, f"{len(queue)} entries for one connection"


def test_e50_who_has_ended_is_not_kept_until_its_time_comes() -> None:
    queue = TimerQueue()
    for _ in range(1000):
        alarm = Alarm([], "alive", 7_200_000)
        queue.arm(alarm)
        queue.forget(alarm)

    assert len(queue) < 100, f"{len(queue)} connections are kept"
    assert queue.next_deadline() is None


# -- secrets ---------------------------------------------------------------------------------------------------------


def test_h63_numbers_grow_for_one_pair_of_ends_and_say_nothing_about_another() -> None:
    """RFC 6528 §3: a clock of 4 µs, and a keyed hash of the ends."""
    ours, others = Secrets(random.Random(1)), Secrets(random.Random(2))
    first, _ = ours.sequence(ENDS, 0)
    later, _ = ours.sequence(ENDS, 4_000_000)
    assert later - first & MASK == 1_000_000
    assert first != others.sequence(ENDS, 0)[0]
    near = [ours.sequence((1, 80, 2, port), 0)[0] for port in range(40000, 40200)]
    steps = {(one - other) & MASK for one, other in pairwise(near)}
    assert len(steps) == len(near) - 1


@pytest.mark.parametrize("age", [0, PERIOD, 2 * PERIOD + 1])
def test_rfc4987_3_6_a_cookie_is_good_for_a_while(age: int) -> None:
    secrets = Secrets(random.Random(1))
    cookie = secrets.cookie(ENDS, 7, 1460, 0)
    kept = secrets.check_cookie(ENDS, 7, cookie, None, age)
    assert (kept.mss if kept else None) == (None if age > 2 * PERIOD else 1460)


@given(st.integers(0, MASK), st.integers(0, MASK))
def test_h62_nobody_guesses_a_cookie(guess: int, irs: int) -> None:
    secrets = Secrets(random.Random(1))
    genuine = {secrets.cookie(ENDS, irs, mss, 0) for mss in (216, 536, 1220, 1300, 1440, 1460, 4312, 8960)}
    assert (secrets.check_cookie(ENDS, irs, guess, None, 0) is not None) == (guess in genuine)


@given(st.integers(0, MASK), st.sampled_from([None, *range(15)]), st.booleans(), st.booleans())
def test_rfc4987_a_stamp_carries_what_the_syn_said_and_is_never_from_the_future(
    stamp: int, scale: int | None, sack: bool, ecn: bool
) -> None:
    secrets = Secrets(random.Random(1))
    marked = secrets.cookie_stamp(stamp, scale, sack, ecn)
    kept = secrets.check_cookie(ENDS, 7, secrets.cookie(ENDS, 7, 1460, 0), marked, 0)
    assert kept is not None
    assert kept[1:] == (scale, sack, ecn)
    assert (stamp - marked) & MASK < 128
