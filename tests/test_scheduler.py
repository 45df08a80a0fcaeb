"""Guest processes: turns, mailboxes, timeouts, ends."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from guest.sys.scheduler import EX_KILLED, EX_SOFTWARE, Process, WaitQueue
from tests.fakes import ProcessRun


@pytest.fixture
def kernel() -> ProcessRun:
    return ProcessRun()


def test_processes_take_turns_first_in_first_out(kernel: ProcessRun) -> None:
    trace: list[str] = []

    def worker(name: str) -> Callable[[], int]:
        def main() -> int:
            for step in range(3):
                trace.append(f"{name}{step}")
                kernel.scheduler.sleep(0)
            return 0

        return main

    for name in "abc":
        kernel.scheduler.spawn(worker(name), name)
    kernel.scheduler.run()
    assert trace == ["a0", "b0", "c0"], "one slice a process a turn"
    kernel.settle()
    assert trace == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2"]
    assert len(kernel.scheduler) == 0, "all have ended"


def test_messages_arrive_in_order_and_a_match_leaves_the_others(kernel: ProcessRun) -> None:
    got: list[object] = []

    def main() -> int:
        got.append(kernel.scheduler.receive(match=lambda message: message == "go"))
        got.append(kernel.scheduler.receive())
        got.append(kernel.scheduler.receive())
        return 0

    process = kernel.scheduler.spawn(main)
    kernel.settle()
    for message in (1, 2, "go"):
        assert kernel.scheduler.send(process, message) is True
    kernel.settle()
    assert got == ["go", 1, 2]
    assert process.exit_status == 0


def test_receive_times_out_at_its_deadline_although_other_messages_come(kernel: ProcessRun) -> None:
    ended: list[tuple[object, int]] = []

    def main() -> int:
        message = kernel.scheduler.receive(1000, match=lambda message: message == "never")
        ended.append((message, kernel.clock.time))
        return 0

    process = kernel.scheduler.spawn(main)
    for when in range(0, 2000, 300):
        kernel.run_until(when)
        kernel.scheduler.send(process, "noise")
    kernel.settle()
    assert ended == [(None, 1000)]


def test_a_message_to_an_ended_process_is_counted(kernel: ProcessRun) -> None:
    process = kernel.scheduler.spawn(lambda: 5)
    kernel.settle()
    assert process.exit_status == 5
    assert kernel.scheduler.send(process, "hello") is False
    assert kernel.scheduler.counters["sent_to_nobody"] == 1
    with pytest.raises(ValueError, match="None is not a message"):
        kernel.scheduler.send(process, None)


def test_sleepers_wake_in_the_order_of_their_deadlines(kernel: ProcessRun) -> None:
    woke: list[tuple[int, int]] = []

    def sleeper(duration: int) -> Callable[[], None]:
        def main() -> None:
            kernel.scheduler.sleep(duration)
            woke.append((duration, kernel.clock.time))

        return main

    for duration in (30, 10, 20):
        kernel.scheduler.spawn(sleeper(duration))
    kernel.run_until(100)
    assert woke == [(10, 10), (20, 20), (30, 30)]


def test_a_wait_queue_wakes_the_longest_waiting_first(kernel: ProcessRun) -> None:
    queue = WaitQueue(kernel.scheduler)
    results: list[tuple[str, bool]] = []

    def waiter(name: str, timeout: int | None) -> Callable[[], None]:
        return lambda: results.append((name, queue.wait(timeout)))

    for name, timeout in (("a", None), ("b", 50), ("c", None)):
        kernel.scheduler.spawn(waiter(name, timeout), name)
    kernel.settle()
    assert queue.wake(1) == 1
    kernel.run_until(60)
    assert results == [("a", True), ("b", False)], "a was woken, b timed out and left the queue"
    assert len(queue) == 1
    queue.wake()
    kernel.settle()
    assert results[-1] == ("c", True)


def test_a_wake_and_a_timeout_at_the_same_instant_give_one_slice(kernel: ProcessRun) -> None:
    queue = WaitQueue(kernel.scheduler)
    results: list[bool] = []
    kernel.scheduler.spawn(lambda: results.append(queue.wait(10)))
    kernel.settle()
    kernel.clock.time = 10
    queue.wake()
    kernel.settle()
    assert results == [True]


def test_a_wait_that_ended_early_does_not_end_a_later_one(kernel: ProcessRun) -> None:
    queue = WaitQueue(kernel.scheduler)
    ends: list[int] = []

    def main() -> None:
        queue.wait(100)
        ends.append(kernel.clock.time)
        kernel.scheduler.sleep(500)
        ends.append(kernel.clock.time)

    kernel.scheduler.spawn(main)
    kernel.run_until(10)
    queue.wake()
    kernel.run_until(1000)
    assert ends == [10, 510]


def test_an_exception_ends_its_process_alone_and_is_logged_in_one_line(kernel: ProcessRun) -> None:
    def broken() -> int:
        raise ValueError("one\ntwo")

    process = kernel.scheduler.spawn(broken, "broken")
    other = kernel.scheduler.spawn(lambda: 0)
    kernel.settle()
    assert process.exit_status == EX_SOFTWARE
    assert other.exit_status == 0
    assert len(kernel.lines) == 1
    assert kernel.lines[0].startswith("broken[1]: ValueError: one two (test_scheduler.py:")
    assert kernel.scheduler.counters["crashed"] == 1


def test_sys_exit_is_an_exit_status(kernel: ProcessRun) -> None:
    def leave() -> int:
        raise SystemExit(3)

    process = kernel.scheduler.spawn(leave)
    kernel.settle()
    assert process.exit_status == 3
    assert kernel.lines == []


def test_join_returns_the_status_or_none_at_its_timeout(kernel: ProcessRun) -> None:
    seen: list[int | None] = []

    def child() -> int:
        kernel.scheduler.sleep(100)
        return 9

    def parent() -> None:
        process = kernel.scheduler.spawn(child)
        seen.append(process.join(50))
        seen.append(process.join())
        seen.append(process.join())

    kernel.scheduler.spawn(parent)
    kernel.run_until(200)
    assert seen == [None, 9, 9]


def test_on_exit_runs_every_callback_although_one_fails(kernel: ProcessRun) -> None:
    told: list[int | None] = []

    def fail(_process: Process) -> None:
        raise RuntimeError("no")

    process = kernel.scheduler.spawn(lambda: 4, "child")
    process.on_exit += [fail, lambda ended: told.append(ended.exit_status)]
    kernel.settle()
    assert told == [4]
    assert kernel.lines[0].startswith("child[1]: at its end: RuntimeError: no")


def test_killing_unwinds_a_blocked_process(kernel: ProcessRun) -> None:
    steps: list[str] = []

    def main() -> int:
        try:
            kernel.scheduler.receive()
        finally:
            steps.append("unwound")
            kernel.scheduler.sleep(10)
            steps.append("never: a killed process cannot block")
        return 0

    process = kernel.scheduler.spawn(main)
    kernel.settle()
    kernel.scheduler.kill(process)
    assert steps == ["unwound"]
    assert process.exit_status == EX_KILLED


def test_a_process_can_kill_another_and_itself(kernel: ProcessRun) -> None:
    steps: list[str] = []

    def victim() -> int:
        try:
            kernel.scheduler.receive()
        finally:
            steps.append("victim")
        return 0

    def killer() -> int:
        kernel.scheduler.kill(sleeper)
        steps.append("killer goes on")
        kernel.scheduler.kill(kernel.scheduler.this())
        steps.append("never")
        return 0

    sleeper = kernel.scheduler.spawn(victim)
    murderer = kernel.scheduler.spawn(killer)
    kernel.settle()
    assert steps == ["killer goes on", "victim"]
    assert (sleeper.exit_status, murderer.exit_status) == (EX_KILLED, EX_KILLED)


def test_close_unwinds_all_started_or_not(kernel: ProcessRun) -> None:
    unwound: list[int] = []

    def main() -> int:
        try:
            kernel.scheduler.sleep(1_000_000)
        finally:
            unwound.append(kernel.scheduler.this().pid)
        return 0

    started = [kernel.scheduler.spawn(main) for _ in range(3)]
    kernel.settle()
    fresh = kernel.scheduler.spawn(main)
    kernel.scheduler.close()
    assert unwound == [3, 2, 1], "youngest first; the fresh one had nothing to unwind"
    assert {process.exit_status for process in [*started, fresh]} == {EX_KILLED}
    assert len(kernel.scheduler) == 0
    with pytest.raises(RuntimeError, match="halted"):
        kernel.scheduler.spawn(main)


def test_blocking_outside_a_process_is_refused(kernel: ProcessRun) -> None:
    with pytest.raises(RuntimeError, match="only a guest process can block"):
        kernel.scheduler.sleep(5)


def test_another_thread_is_refused(kernel: ProcessRun) -> None:
    process = kernel.scheduler.spawn(lambda: 0)
    calls: list[Callable[[], object]] = [
        lambda: kernel.scheduler.spawn(lambda: 0),
        lambda: kernel.scheduler.send(process, "x"),
        kernel.scheduler.run,
        kernel.scheduler.receive,
        kernel.scheduler.close,
        lambda: kernel.scheduler.kill(process),
    ]
    refused: list[str] = []

    def elsewhere() -> None:
        for call in calls:
            try:
                call()
            except RuntimeError as error:
                refused.append(str(error))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert len(refused) == len(calls)
    assert all("another thread" in text for text in refused)
    kernel.settle()
    assert process.exit_status == 0, "the home thread goes on"


def test_a_name_finds_its_process_until_the_end(kernel: ProcessRun) -> None:
    process = kernel.scheduler.spawn(lambda: 0)
    kernel.scheduler.register("init", process)
    assert kernel.scheduler.whereis("init") is process
    kernel.settle()
    assert kernel.scheduler.whereis("init") is None


def test_a_message_wakes_the_platform(kernel: ProcessRun) -> None:
    process = kernel.scheduler.spawn(lambda: 0 if kernel.scheduler.receive() else 1)
    kernel.settle()
    before = kernel.wakes
    kernel.scheduler.send(process, "x")
    assert kernel.wakes == before + 1
    assert kernel.scheduler.runnable == 1


def test_a_thousand_processes_leave_nothing_behind(kernel: ProcessRun) -> None:
    for _ in range(1000):
        kernel.scheduler.spawn(lambda: kernel.scheduler.sleep(10))
    kernel.run_until(20)
    assert len(kernel.scheduler) == 0
    assert kernel.timers.next_deadline() is None
    assert kernel.scheduler.counters["ended"] == 1000
