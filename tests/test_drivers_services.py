"""The loopback device, and what the kernel offers to drivers: timers, deferred work, interrupt handlers."""

from __future__ import annotations

import pytest

from guest.drivers.loopback import Loopback
from guest.net.device import IFF_LOOPBACK, IFF_UP
from guest.net.pbuf import Lease, PacketBuffer
from guest.services import PAUSE_MAX, SPURIOUS_LIMIT, DeferredWork, IrqTable, Timers
from tests.scripted_device import ScriptedMachine

# -- loopback ----------------------------------------------------------------------------------------------------


def packet(text: bytes) -> PacketBuffer:
    return PacketBuffer.from_bytes(text)


@pytest.fixture
def machine() -> ScriptedMachine:
    return ScriptedMachine(devices=0)


def test_what_is_sent_comes_back_in_order_and_later(machine: ScriptedMachine) -> None:
    lo = Loopback(machine.services)
    inbox: list[PacketBuffer] = []
    lo.receiver = inbox.extend
    assert (lo.name, lo.mtu, lo.flags & (IFF_UP | IFF_LOOPBACK)) == ("lo", 65536, IFF_UP | IFF_LOOPBACK)
    assert lo.transmit([packet(b"one"), packet(b"two")]) == 2
    assert lo.transmit([packet(b"three")]) == 1
    assert inbox == [], "nothing is delivered inside transmit"
    machine.settle()
    assert [got.tobytes() for got in inbox] == [b"one", b"two", b"three"]
    assert inbox[0].device is lo
    assert lo.counters["rx_packets"] == lo.counters["tx_packets"] == 3
    assert lo.counters["rx_bytes"] == lo.counters["tx_bytes"] == 11


def test_an_answer_to_an_answer_does_not_recurse(machine: ScriptedMachine) -> None:
    lo = Loopback(machine.services)
    depth = deepest = seen = 0

    def answer(packets: object) -> None:
        nonlocal depth, deepest, seen
        depth += 1
        deepest = max(deepest, depth)
        seen += 1
        if seen < 5000:
            lo.transmit([packet(b"again")])
        depth -= 1

    lo.receiver = answer
    lo.transmit([packet(b"first")])
    machine.settle()
    assert (seen, deepest) == (5000, 1)


def test_a_full_queue_drops_with_its_reason(machine: ScriptedMachine) -> None:
    lo = Loopback(machine.services, limit=3)
    inbox: list[PacketBuffer] = []
    lo.receiver = inbox.extend
    assert lo.transmit([packet(bytes([number])) for number in range(5)]) == 3
    assert lo.counters["tx_dropped_queue_full"] == 2
    machine.settle()
    assert [got.tobytes() for got in inbox] == [b"\0", b"\1", b"\2"]
    assert lo.transmit([packet(bytes(65537))]) == 0
    assert lo.counters["tx_dropped_too_long"] == 1
    lo.transmit([packet(b"x")])
    lo.close()
    machine.settle()
    assert len(inbox) == 3
    assert lo.counters["rx_dropped_closed"] == 1


def test_the_sender_keeps_its_own_ends(machine: ScriptedMachine) -> None:
    lo = Loopback(machine.services)
    lo.receiver = lambda packets: [got.pull(4) for got in packets] and None
    sent = packet(b"headdata")
    lo.transmit([sent])
    machine.settle()
    assert sent.tobytes() == b"headdata"


def test_lent_memory_that_is_scarce_is_copied(machine: ScriptedMachine) -> None:
    lo = Loopback(machine.services)
    inbox: list[PacketBuffer] = []
    lo.receiver = inbox.extend
    back: list[str] = []
    lo.transmit([PacketBuffer(memoryview(bytearray(b"lent")), lease=Lease(lambda: back.append("back"), lambda: True))])
    assert back == ["back"], "the queue holds a copy"
    machine.settle()
    assert inbox[0].tobytes() == b"lent"


# -- timers ------------------------------------------------------------------------------------------------------


class Time:
    now = 0


def test_timers_fire_in_order_of_time_and_then_of_setting() -> None:
    time, fired = Time(), list[str]()
    timers = Timers(lambda: time.now)
    for when, name in ((20, "c"), (10, "a"), (10, "b"), (30, "d")):
        timers.at(when, lambda name=name: fired.append(name))  # type: ignore[misc]
    assert timers.next_deadline() == 10
    assert timers.run_due() is False
    time.now = 20
    assert timers.run_due() is True
    assert fired == ["a", "b", "c"]
    assert timers.next_deadline() == 30


def test_a_timer_cancelled_by_another_at_the_same_instant_does_not_fire() -> None:
    time, fired = Time(), list[str]()
    timers = Timers(lambda: time.now)

    def first() -> None:
        second.cancel()

    timers.at(5, first)
    second = timers.at(5, lambda: fired.append("second"))
    time.now = 5
    timers.run_due()
    assert fired == []
    assert timers.next_deadline() is None


def test_a_timer_that_sets_itself_for_now_does_not_hang_the_kernel() -> None:
    time, fired = Time(), list[int]()
    timers = Timers(lambda: time.now)

    def again() -> None:
        fired.append(time.now)
        assert len(fired) < 100, "run_due never returns"
        timers.after(0, again)

    timers.after(0, again)
    timers.run_due()
    assert fired == [0]
    timers.run_due()
    assert fired == [0, 0]


# -- deferred work and interrupts --------------------------------------------------------------------------------


def test_deferred_work_takes_turns() -> None:
    woken, order = [], []
    work = DeferredWork(lambda: woken.append(True))
    left = {"a": 3, "b": 1}

    def slice_of(name: str) -> bool:
        order.append(name)
        left[name] -= 1
        return left[name] > 0

    work.add(lambda: slice_of("a"))
    work.add(lambda: slice_of("b"))
    while work.run():
        pass
    assert order == ["a", "b", "a", "a"]
    assert len(woken) == 2
    assert work.run() is False


class Controller:
    def __init__(self) -> None:
        self.masked: set[int] = set()

    def mask(self, line: int) -> None:
        self.masked.add(line)

    def unmask(self, line: int) -> None:
        self.masked.discard(line)


def test_a_storm_that_nobody_handles_is_masked_until_rearmed() -> None:
    controller = Controller()
    table = IrqTable(controller)
    table.request(5, lambda: False)
    for _ in range(SPURIOUS_LIMIT - 1):
        table.dispatch(5)
    assert 5 not in controller.masked
    table.dispatch(5)
    assert 5 in controller.masked
    assert table.counters["spurious"] == SPURIOUS_LIMIT
    table.rearm(5)
    assert 5 not in controller.masked


class StormyLine:
    """An interrupt table on a clock moved by hand, and line 5 with a handler that wants interrupts or does not."""

    def __init__(self) -> None:
        self.time = Time()
        self.controller = Controller()
        self.timers = Timers(lambda: self.time.now)
        self.lines: list[str] = []
        self.table = IrqTable(self.controller, self.timers, self.lines.append)
        self.wanted = False
        self.table.request(5, self.handler)

    def handler(self) -> bool:
        return self.wanted

    def storm(self, count: int = SPURIOUS_LIMIT) -> None:
        for _ in range(count):
            self.table.dispatch(5)

    def pause(self) -> int:
        """A storm; how long the line is masked after it."""
        self.storm()
        assert 5 in self.controller.masked
        due = self.timers.next_deadline()
        assert due is not None
        pause, self.time.now = due - self.time.now, due
        self.timers.run_due()
        assert 5 not in self.controller.masked
        return pause


def test_the_pauses_after_storms_double_until_an_interrupt_is_handled() -> None:
    line = StormyLine()
    assert [line.pause() // 1000 for _ in range(4)] == [10, 20, 40, 80]
    assert line.lines[1:2] == ["irq 5: 1000 interrupts that nobody wanted; masked for 20 ms"]
    assert [line.pause() for _ in range(10)][-3:] == [PAUSE_MAX] * 3
    line.wanted = True
    line.table.dispatch(5)
    line.wanted = False
    assert line.pause() == 10_000
    assert len(line.lines) == 15, "one line a storm"


def test_a_new_handler_opens_a_masked_line_and_starts_the_count_anew() -> None:
    line = StormyLine()
    line.storm(SPURIOUS_LIMIT - 1)
    line.table.request(5, lambda: False)
    line.storm(SPURIOUS_LIMIT - 1)
    assert 5 not in line.controller.masked
    line.storm(1)
    assert 5 in line.controller.masked
    line.table.request(5, lambda: False)
    assert 5 not in line.controller.masked
    assert line.timers.next_deadline() is None, "the timer is not needed any more"


def test_a_line_that_nobody_listens_to_stays_masked() -> None:
    line = StormyLine()
    line.storm()
    line.table.release(5, line.handler)
    assert line.timers.next_deadline() is None
    assert 5 in line.controller.masked
    line.table.rearm(6)
    for _ in range(SPURIOUS_LIMIT):
        line.table.dispatch(6)
    assert 6 in line.controller.masked
    assert line.timers.next_deadline() is None
    assert line.lines[-1] == "irq 6: 1000 interrupts that nobody wanted; masked"


def test_a_shared_line_calls_all_handlers_even_when_one_leaves() -> None:
    controller = Controller()
    table = IrqTable(controller)
    called: list[str] = []

    def leaves() -> bool:
        called.append("leaves")
        table.release(5, leaves)
        return True

    table.request(5, leaves)
    table.request(5, lambda: bool(called.append("stays")))
    table.dispatch(5)
    table.dispatch(5)
    assert called == ["leaves", "stays", "stays"]
    assert 5 not in controller.masked
