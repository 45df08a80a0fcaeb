"""Clocks, the loop, interrupt lines and the bus: the order of things, and that nothing is lost or goes on for ever."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw.bus import Bus
from hw.clock import SECOND, Clock, RealClock, Timer, VirtualClock
from hw.irq import InterruptController
from hw.loop import Loop
from hw.memory import AccessHook


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def loop(clock: VirtualClock) -> Iterator[Loop]:
    loop = Loop(clock)
    yield loop
    loop.close()


@pytest.fixture
def real() -> Iterator[Loop]:
    loop = Loop(RealClock())
    yield loop
    loop.close()


class Guest:
    """A CPU with a list of the work it gets."""

    def __init__(self, clock: Clock, *deadlines: int) -> None:
        self.halted = False
        self.deadlines = sorted(deadlines)
        self.clock = clock
        self.ran_at: list[int] = []
        self.slices = 0  # runs that say there is more
        self.lines: list[int] = []

    def interrupt(self, line: int) -> None:
        self.lines.append(line)

    def run(self) -> bool:
        now = self.clock.now()
        self.ran_at.append(now)
        self.deadlines = [deadline for deadline in self.deadlines if deadline > now]
        self.slices -= 1
        return self.slices > 0

    def next_deadline(self) -> int | None:
        return self.deadlines[0] if self.deadlines else None


# -- clocks ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=30))
def test_timers_fire_by_time_and_then_in_the_order_of_setting(timers: list[tuple[int, bool]]) -> None:
    clock = VirtualClock()
    fired: list[tuple[int, int]] = []
    made = [clock.at(when, partial(fired.append, (when, number))) for number, (when, _) in enumerate(timers)]
    for timer, (_, cancelled) in zip(made, timers, strict=True):
        if cancelled:
            timer.cancel()

    clock.jump(10)
    clock.run_due()

    assert fired == sorted((when, number) for number, (when, cancelled) in enumerate(timers) if not cancelled)


def test_a_timer_fires_at_its_time_and_not_before(clock: VirtualClock) -> None:
    fired: list[str] = []
    clock.after(100, lambda: fired.append("now"))

    clock.jump(99)
    assert not clock.run_due()
    clock.jump(100)
    assert clock.run_due()
    assert fired == ["now"]
    assert not clock.run_due()


def test_a_timer_may_cancel_its_neighbour(clock: VirtualClock) -> None:
    fired: list[str] = []
    timers: list[Timer] = []

    def cancel_the_second() -> None:
        timers[0].cancel()

    clock.at(1, cancel_the_second)
    timers.append(clock.at(1, lambda: fired.append("cancelled")))
    clock.at(1, lambda: fired.append("third"))

    clock.jump(1)
    clock.run_due()

    assert fired == ["third"]


def test_a_timer_that_sets_itself_without_delay_ends_the_call(clock: VirtualClock) -> None:
    fired: list[int] = []

    def again() -> None:
        fired.append(clock.now())
        assert len(fired) < 10, "the call would go on for ever"
        clock.after(0, again)

    clock.after(0, again)
    clock.run_due()

    assert fired == [0]


def test_a_cancelled_timer_is_no_deadline(clock: VirtualClock) -> None:
    early = clock.at(5, lambda: None)
    clock.at(9, lambda: None)

    early.cancel()
    early.cancel()

    assert clock.next_deadline() == 9


def test_virtual_time_moves_when_told_and_never_back() -> None:
    clock = VirtualClock(start=7, epoch=1_000)
    assert (clock.now(), clock.wall()) == (7, 1_007)

    clock.jump(9)
    with pytest.raises(ValueError, match="cannot go back"):
        clock.jump(8)

    assert clock.now() == 9


def test_real_time_never_goes_back() -> None:
    clock = RealClock()
    times = [clock.now() for _ in range(1000)]

    assert times == sorted(times)
    assert clock.wall() > 1_700_000_000 * SECOND


# -- the loop on the virtual clock -------------------------------------------------------------------------------------


def test_what_is_asked_for_runs_in_order_and_what_it_asks_for_next_turn(loop: Loop) -> None:
    ran: list[str] = []

    def first() -> None:
        ran.append("first")
        loop.call_soon(lambda: ran.append("third"))

    loop.call_soon(first)
    loop.call_soon(lambda: ran.append("second"))

    assert loop.turn()
    assert ran == ["first", "second"]
    assert loop.turn()
    assert ran == ["first", "second", "third"]
    assert not loop.turn()


def test_time_jumps_straight_to_the_next_deadline(loop: Loop, clock: VirtualClock) -> None:
    seen: list[int] = []
    clock.at(7200 * SECOND, lambda: seen.append(clock.now()))
    clock.at(3, lambda: seen.append(clock.now()))

    assert loop.run() is False, "nothing can happen any more"

    assert seen == [3, 7200 * SECOND]


def test_time_stands_while_there_is_work(loop: Loop, clock: VirtualClock) -> None:
    times: list[int] = []

    def work(left: int) -> None:
        times.append(clock.now())
        if left:
            loop.call_soon(partial(work, left - 1))

    clock.at(50, lambda: None)
    loop.call_soon(partial(work, 20))
    loop.run()

    assert times == [0] * 21
    assert clock.now() == 50


def test_time_never_passes_the_limit_of_the_run(loop: Loop, clock: VirtualClock) -> None:
    fired: list[int] = []
    for when in (10, 100, 101):
        clock.at(when, lambda: fired.append(clock.now()))

    assert loop.run(deadline=100) is False
    assert (clock.now(), fired) == (100, [10])
    loop.run(deadline=101)
    assert (clock.now(), fired) == (101, [10, 100])
    loop.run(deadline=500)
    assert (clock.now(), fired) == (500, [10, 100, 101])
    loop.run(deadline=400)
    assert clock.now() == 500


def test_until_ends_the_run_without_another_turn(loop: Loop, clock: VirtualClock) -> None:
    fired: list[int] = []
    for when in (1, 2, 3):
        clock.at(when, lambda: fired.append(clock.now()))

    assert loop.run(until=lambda: len(fired) == 2) is True

    assert fired == [1, 2]
    assert clock.now() == 2


def test_a_guest_runs_at_once_then_at_its_deadlines_and_not_when_halted(loop: Loop, clock: VirtualClock) -> None:
    guest = Guest(clock, 40, 70, 90)
    loop.add_cpu(guest)

    loop.run(deadline=80)
    guest.halted = True
    loop.run()

    assert guest.ran_at == [0, 40, 70]
    assert clock.now() == 80


def test_a_guest_with_more_to_do_shares_the_turns(loop: Loop, clock: VirtualClock) -> None:
    order: list[str] = []
    guests = [Guest(clock), Guest(clock)]
    for name, guest in zip("ab", guests, strict=True):
        guest.slices = 3
        run = guest.run

        def noted(run: Callable[[], bool] = run, name: str = name) -> bool:
            order.append(name)
            return run()

        guest.run = noted  # type: ignore[method-assign]
        loop.add_cpu(guest)

    loop.run()

    assert "".join(order) == "ababab"


def test_many_kicks_are_one_run(loop: Loop, clock: VirtualClock) -> None:
    guest = Guest(clock)
    loop.add_cpu(guest)
    for _ in range(10):
        loop.kick_cpu(guest)

    loop.run()

    assert guest.ran_at == [0]


def test_stop_ends_the_run_after_the_turn_and_only_that_run(loop: Loop, clock: VirtualClock) -> None:
    ran: list[str] = []
    clock.at(5, lambda: ran.append("later"))
    loop.call_soon(loop.stop)
    loop.call_soon(lambda: ran.append("same turn"))

    assert loop.run() is False
    assert ran == ["same turn"]
    loop.run()
    assert ran == ["same turn", "later"]


def test_a_stop_before_the_run_is_not_lost(loop: Loop) -> None:
    ran: list[str] = []
    loop.call_soon(lambda: ran.append("ran"))

    loop.stop()
    loop.run()
    assert ran == []

    loop.run()
    assert ran == ["ran"]


def test_host_descriptors_are_refused_on_the_virtual_clock(loop: Loop) -> None:
    with pytest.raises(RuntimeError, match="--clock real"):
        loop.set_reader(0, lambda: None)
    loop.set_reader(0, None)


# -- the loop on the real clock ----------------------------------------------------------------------------------------


def test_a_signal_handler_stops_a_sleeping_loop(real: Loop) -> None:
    before = signal.signal(signal.SIGALRM, lambda *_: real.stop())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        stopped = real.run(until=lambda: False, deadline=real.clock.now() + 60 * SECOND)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert stopped is False
    assert real.clock.now() < 30 * SECOND


def test_another_thread_stops_a_sleeping_loop(real: Loop) -> None:
    thread = threading.Thread(target=real.stop)
    real.call_soon(thread.start)

    real.run(deadline=real.clock.now() + 60 * SECOND)
    thread.join()

    assert real.clock.now() < 30 * SECOND


def test_wake_ends_a_wait_so_that_until_is_asked_again(real: Loop) -> None:
    done: list[bool] = []

    def elsewhere() -> None:
        done.append(True)
        real.wake()

    thread = threading.Thread(target=elsewhere)
    real.call_soon(thread.start)

    assert real.run(until=lambda: bool(done), deadline=real.clock.now() + 60 * SECOND) is True
    thread.join()
    assert real.clock.now() < 30 * SECOND


def test_a_loop_that_was_woken_rests_again(real: Loop) -> None:
    asked = 0

    def count() -> bool:
        nonlocal asked
        asked += 1
        return False

    real.wake()
    real.run(until=count, deadline=real.clock.now() + 20_000)

    assert asked < 10


def test_a_real_timer_is_waited_for(real: Loop) -> None:
    fired: list[int] = []
    due = real.clock.now() + 2_000
    real.clock.at(due, lambda: fired.append(real.clock.now()))

    real.run(until=lambda: bool(fired), deadline=60 * SECOND)

    assert fired[0] >= due


def test_a_readable_descriptor_is_served_while_the_loop_is_busy(real: Loop) -> None:
    reader, writer = os.pipe()
    got: list[bytes] = []

    def busy() -> None:
        real.call_soon(busy)

    real.call_soon(busy)
    real.set_reader(reader, lambda: got.append(os.read(reader, 100)))
    os.write(writer, b"hello")

    assert real.run(until=lambda: bool(got), deadline=60 * SECOND)

    assert got == [b"hello"]
    real.set_reader(reader, None)
    os.close(reader)
    os.close(writer)


def test_reader_and_writer_of_one_descriptor_come_and_go_apart(real: Loop) -> None:
    one, other = (part.detach() for part in socket.socketpair())
    seen: list[str] = []

    def read() -> None:
        seen.append("read")
        os.read(one, 10)

    def write() -> None:
        seen.append("write")
        real.set_writer(one, None)

    real.set_reader(one, read)
    real.set_writer(one, write)

    real.run(until=lambda: bool(seen), deadline=60 * SECOND)
    assert seen == ["write"]
    os.write(other, b"x")
    real.run(until=lambda: len(seen) > 1, deadline=60 * SECOND)
    assert seen == ["write", "read"]

    os.close(other)
    hung_up = len(seen)
    real.run(until=lambda: len(seen) > hung_up, deadline=60 * SECOND)
    assert seen[-1] == "read", "a hang-up is for the reader to find"
    real.set_reader(one, None)
    os.close(one)


def test_a_plain_file_cannot_be_watched_and_leaves_no_trace(real: Loop, tmp_path: Path) -> None:
    fd = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
    got: list[bytes] = []
    with pytest.raises(OSError, match="permitted"):
        real.set_reader(fd, lambda: None)

    reader, writer = os.pipe()
    os.dup2(reader, fd)  # the number gets another meaning
    os.write(writer, b"hello")
    real.set_reader(fd, lambda: got.append(os.read(fd, 100)))
    real.run(until=lambda: bool(got), deadline=real.clock.now() + 60 * SECOND)

    assert got == [b"hello"]
    real.set_reader(fd, None)
    for one in (fd, reader, writer):
        os.close(one)


def test_a_descriptor_that_was_closed_first_can_be_let_go(real: Loop) -> None:
    reader, writer = os.pipe()
    real.set_reader(reader, lambda: None)
    os.close(reader)

    real.set_reader(reader, None)

    os.close(writer)


def test_a_closed_loop_may_be_woken_and_closed_again() -> None:
    loop = Loop(RealClock())
    loop.close()

    loop.wake()
    loop.stop()
    loop.close()

    assert loop.turn() is False


# -- interrupts --------------------------------------------------------------------------------------------------------


class Lines(AccessHook):
    """Notes what the lines do."""

    def __init__(self) -> None:
        self.levels: list[tuple[int, bool]] = []

    def interrupt(self, line: int, level: bool) -> None:
        self.levels.append((line, level))


@pytest.fixture
def controller(loop: Loop) -> InterruptController:
    return InterruptController(loop.call_soon)


def test_raising_a_line_calls_nobody_before_the_next_turn(loop: Loop, controller: InterruptController) -> None:
    got: list[int] = []
    controller.cpu = got.append

    controller.line(5).set_level(True)
    assert got == []

    loop.turn()
    assert got == [5]


def test_a_high_line_comes_again_each_turn_until_it_is_lowered(loop: Loop, controller: InterruptController) -> None:
    got: list[int] = []
    controller.cpu = got.append
    line = controller.line(5)
    line.set_level(True)

    for _ in range(3):
        loop.turn()
    line.set_level(False)
    loop.run()

    assert got == [5, 5, 5]
    assert (line.asserts, controller.delivered) == (1, 3)


def test_lines_come_lowest_first_and_a_repeated_level_is_nothing(loop: Loop, controller: InterruptController) -> None:
    got: list[int] = []
    hook = controller.hook = Lines()
    controller.cpu = got.append
    for number in (9, 2, 5):
        controller.line(number).set_level(True)
        controller.line(number).set_level(True)

    loop.turn()

    assert got == [2, 5, 9]
    assert hook.levels == [(9, True), (2, True), (5, True)]


def test_a_masked_line_waits_for_unmask(loop: Loop, controller: InterruptController) -> None:
    got: list[int] = []
    controller.cpu = got.append
    controller.mask(5)
    controller.line(5).set_level(True)
    loop.run()
    assert got == []

    controller.unmask(5)
    loop.turn()
    assert got == [5]


def test_unmasking_a_low_line_delivers_nothing(loop: Loop, controller: InterruptController) -> None:
    got: list[int] = []
    controller.cpu = got.append
    controller.mask(5)
    controller.line(5).set_level(True)
    controller.line(5).set_level(False)

    controller.unmask(5)
    loop.run()

    assert got == []


def test_a_handler_may_mask_or_lower_a_line_that_is_next(loop: Loop, controller: InterruptController) -> None:
    got: list[int] = []

    def handler(line: int) -> None:
        got.append(line)
        controller.line(1).set_level(False)
        controller.line(2).set_level(False)
        controller.mask(3)

    controller.cpu = handler
    for number in (1, 2, 3):
        controller.line(number).set_level(True)
    loop.run()

    assert got == [1]


def test_a_cpu_that_comes_late_gets_what_is_pending(loop: Loop, controller: InterruptController) -> None:
    controller.line(5).set_level(True)
    loop.run()

    got: list[int] = []
    controller.cpu = got.append
    loop.turn()

    assert got == [5]


def test_a_high_line_without_a_cpu_does_not_keep_the_loop_busy(loop: Loop, controller: InterruptController) -> None:
    got: list[int] = []
    controller.cpu = got.append
    controller.line(5).set_level(True)
    loop.turn()

    controller.cpu = None
    loop.run()

    assert got == [5]


# -- the bus -----------------------------------------------------------------------------------------------------------


class Registers:
    """A device that remembers what it was asked."""

    def __init__(self, value: int = 0) -> None:
        self.value = value
        self.asked: list[tuple[str, int, int, int]] = []

    def mmio_read(self, offset: int, size: int) -> int:
        self.asked.append(("read", offset, size, self.value))
        return self.value

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        self.asked.append(("write", offset, size, value))


def test_a_device_sees_offsets_from_its_own_base() -> None:
    bus, low, high = Bus(), Registers(0x11), Registers(0x22)
    bus.map(0xD0001000, 0x1000, high)
    bus.map(0xD0000000, 0x1000, low)

    assert bus.read(0xD0000FFC, 4) == 0x11
    assert bus.read(0xD0001000, 4) == 0x22
    bus.write(0xD0001070, 1, 0x1FF)

    assert low.asked == [("read", 0xFFC, 4, 0x11)]
    assert high.asked == [("read", 0, 4, 0x22), ("write", 0x70, 1, 0xFF)]


@pytest.mark.parametrize("addr", [0, 0xCFFFFFFF, 0xD0000FFD, 0xD0001000, -4, 1 << 64])
def test_where_there_is_no_device_reads_are_ones_and_writes_nothing(addr: int) -> None:
    bus, device = Bus(), Registers()
    bus.map(0xD0000000, 0x1000, device)

    assert bus.read(addr, 4) == 0xFFFFFFFF
    bus.write(addr, 4, 1)

    assert device.asked == []
    assert bus.unmapped == 2


@pytest.mark.parametrize(("base", "size"), [(0x1000, 0x1000), (0xFFF, 2), (0x1FFF, 1), (0x1800, 4), (0, 0x10000)])
def test_overlapping_windows_are_refused(base: int, size: int) -> None:
    bus = Bus()
    bus.map(0x1000, 0x1000, Registers())

    with pytest.raises(ValueError, match="overlaps"):
        bus.map(base, size, Registers())
    bus.map(0x2000, 1, Registers())
    bus.map(0xFFF, 1, Registers())


@pytest.mark.parametrize(("base", "size"), [(0x1000, 0), (0x1000, -1), (-1, 2)])
def test_an_empty_window_is_refused(base: int, size: int) -> None:
    with pytest.raises(ValueError, match="not a window"):
        Bus().map(base, size, Registers())


def test_the_hook_hears_every_access() -> None:
    class Heard(AccessHook):
        def __init__(self) -> None:
            self.all: list[tuple[str, str, int, int, int]] = []

        def register(self, who: str, op: str, addr: int, size: int, value: int) -> None:
            self.all.append((who, op, addr, size, value))

    bus = Bus()
    hook = bus.hook = Heard()
    bus.map(0x1000, 0x100, Registers(0x74))

    bus.read(0x1000, 4)
    bus.write(0x1070, 4, 15)
    bus.read(0, 2)

    assert hook.all == [
        ("driver", "read", 0x1000, 4, 0x74),
        ("driver", "write", 0x1070, 4, 15),
        ("driver", "read", 0, 2, 0xFFFF),
    ]
