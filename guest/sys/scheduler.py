"""Guest processes: greenlets with a mailbox, which take turns in the machine's home thread.

Promises:
- A process runs until it blocks (`receive`, `sleep`, `WaitQueue.wait`, `join`) or ends; nothing interrupts it.
- Ready processes run first in, first out, one slice each a turn, so the same inputs give the same order.
- Whatever a process raises ends that process alone: it is logged in one line, and the exit status is 70.
- Killing a process unwinds it: `finally` blocks run, and a killed process cannot block again.
- Only the thread that made the scheduler may use it; any other gets RuntimeError. (A greenlet cannot be switched from
  another thread, and every thread has a root greenlet of its own, by which threads are told apart here.)

Times are microseconds of the guest's clock. Sections: `Process`, `WaitQueue`, `Scheduler`.
"""

from __future__ import annotations

import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

from guest.log import describe
from guest.services import Timers

EX_KILLED = 137  # as a shell reports a process that was killed
EX_SOFTWARE = 70  # sysexits.h: an internal error


class Process:
    """One guest process.

    Attributes:
        pid: 1 is init.
        name: for people and logs.
        mailbox: messages not received yet, oldest first.
        exit_status: None while it lives.
        on_exit: called with the process when it has ended, in order.
    """

    __slots__ = (
        "_exited", "_greenlet", "_killed", "_main", "_parked", "_receiving", "_woken", "exit_status", "mailbox",
        "name", "on_exit", "pid",
    )

    def __init__(self, pid: int, name: str, main: Callable[[], int | None], exited: WaitQueue) -> None:
        self.pid = pid
        self.name = name
        self.mailbox: deque[object] = deque()
        self.exit_status: int | None = None
        self.on_exit: list[Callable[[Process], None]] = []
        self._main = main
        self._greenlet: Any = None
        self._exited = exited
        self._parked = False
        self._receiving = False
        self._woken = False
        self._killed = False

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet."""
        return self.exit_status is None

    def join(self, timeout: int | None = None) -> int | None:
        """Block the current process until this one has ended; its exit status, or None when `timeout` has passed."""
        if self.exit_status is None:
            self._exited.wait(timeout)
        return self.exit_status

    def __repr__(self) -> str:
        return f"<{self.name}[{self.pid}]>"


class WaitQueue:
    """Processes that wait for something to happen, in the order in which they came."""

    __slots__ = ("_scheduler", "_waiting")

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._waiting: deque[Process] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def wait(self, timeout: int | None = None) -> bool:
        """Block until `wake`, or for `timeout` microseconds; whether it was `wake` that ended the wait."""
        process = self._scheduler.this()
        self._waiting.append(process)
        try:
            return self._scheduler.park(timeout)
        finally:
            if process in self._waiting:
                self._waiting.remove(process)

    def wake(self, count: int | None = None) -> int:
        """Make the first `count` waiting processes ready (all without a count); how many there were."""
        woken = 0
        while self._waiting and (count is None or woken < count):
            self._scheduler.unpark(self._waiting.popleft())
            woken += 1
        return woken


class Scheduler:
    """The processes of one guest.

    Args:
        timers: the guest's timer service, for sleeps and timeouts.
        wake: asks the platform for a turn.
        log: writes one line to the log.
    """

    def __init__(self, timers: Timers, wake: Callable[[], None], log: Callable[[str], None]) -> None:
        self._timers = timers
        self._wake = wake
        self._log = log
        # Weak: a root greenlet that outlives its thread crashes the interpreter's garbage collector.
        self._home = weakref.ref(_root())
        self._ready: deque[Process] = deque()
        self._processes: dict[int, Process] = {}
        self._names: dict[str, Process] = {}
        self._current: Process | None = None
        self._last_pid = 0
        self._stopped = False
        self.counters: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._processes)

    def __iter__(self) -> Iterator[Process]:
        return iter(list(self._processes.values()))

    @property
    def runnable(self) -> int:
        """How many processes wait for their slice."""
        return len(self._ready)

    # -- making and finding processes ----------------------------------------------------------------------------

    def spawn(self, main: Callable[[], int | None], name: str = "process") -> Process:
        """A new process that calls `main` in one of the next turns; what it returns is the exit status, None is 0."""
        self._check_home()
        if self._stopped:
            raise RuntimeError("the guest has halted")
        self._last_pid += 1
        process = Process(self._last_pid, name, main, WaitQueue(self))
        process._greenlet = greenlet(lambda: self._live(process))
        self._processes[process.pid] = process
        self._ready.append(process)
        self.counters["spawned"] += 1
        self._wake()
        return process

    def register(self, name: str, process: Process) -> None:
        """Let `whereis(name)` find `process` for as long as it lives."""
        self._names[name] = process

    def whereis(self, name: str) -> Process | None:
        """The process registered under `name`, or None."""
        return self._names.get(name)

    @property
    def current(self) -> Process | None:
        """The process that runs now; None outside of processes."""
        return self._current

    def this(self) -> Process:
        """The process that runs now. Raises RuntimeError outside of processes and in other threads."""
        process = self._current
        if process is None or process._greenlet is not getcurrent():
            self._check_home()
            if process is None:
                raise RuntimeError("only a guest process can block, and none is running")
        return process

    # -- what processes call -------------------------------------------------------------------------------------

    def send(self, process: Process, message: object) -> bool:
        """Put `message` (anything but None) into the mailbox of `process`; False, and counted, when it has ended."""
        self._check_home()
        if message is None:
            raise ValueError("None is not a message: `receive` returns it at a timeout")
        if process.exit_status is not None:
            self.counters["sent_to_nobody"] += 1
            return False
        process.mailbox.append(message)
        if process._receiving:
            self.unpark(process)
        return True

    def receive(self, timeout: int | None = None, match: Callable[[object], bool] | None = None) -> object | None:
        """The oldest message (that `match` accepts) in the current process's mailbox, taken out; blocks until there is
        one. None when `timeout` microseconds have passed.
        """
        process = self.this()
        deadline = None if timeout is None else self._timers.now() + timeout
        mailbox = process.mailbox
        while True:
            if match is None:
                if mailbox:
                    return mailbox.popleft()
            else:
                for at, message in enumerate(mailbox):
                    if match(message):
                        del mailbox[at]
                        return message
            left = None if deadline is None else deadline - self._timers.now()
            if left is not None and left <= 0:
                return None
            process._receiving = True
            try:
                self.park(left)
            finally:
                process._receiving = False

    def sleep(self, duration: int) -> None:
        """Block the current process for `duration` microseconds; 0 lets the others have a slice first."""
        if duration > 0:
            self.park(duration)
            return
        process = self.this()
        if process._killed:
            raise GreenletExit
        process._parked = True
        self.unpark(process)
        process._greenlet.parent.switch()

    def park(self, timeout: int | None = None) -> bool:
        """Block the current process until `unpark`, or for `timeout` microseconds; whether it was `unpark`."""
        process = self.this()
        if process._killed:
            raise GreenletExit
        if timeout is not None and timeout <= 0:
            return False
        process._parked = True
        process._woken = False
        timer = None if timeout is None else self._timers.after(timeout, lambda: self._unpark(process, False))
        try:
            process._greenlet.parent.switch()  # back to whoever called `run`
        finally:
            if timer is not None:
                timer.cancel()
        return process._woken

    def unpark(self, process: Process) -> None:
        """Make a parked process ready; harmless for one that is not parked."""
        self._unpark(process, True)

    def _unpark(self, process: Process, woken: bool) -> None:
        if process._parked:
            process._parked = False
            process._woken = woken
            self._ready.append(process)
            self._wake()

    # -- running -------------------------------------------------------------------------------------------------

    def run(self) -> bool:
        """Give each process that is ready now one slice; whether more are ready."""
        self._check_home()
        ready = self._ready
        for _ in range(len(ready)):
            if self._stopped:
                return False
            process = ready.popleft()
            if process.exit_status is None:
                self._slice(process)
        return bool(ready)

    def kill(self, process: Process) -> None:
        """End `process`: it unwinds in its next slice, or at once when it is the current one or none runs."""
        self._check_home()
        if process.exit_status is not None:
            return
        process._killed = True
        if process is self._current:
            raise GreenletExit
        if self._current is None:
            self._slice(process)
        else:
            process._parked = True
            self.unpark(process)

    def stop(self) -> None:
        """Give no slices any more, and refuse new processes; what runs now ends its slice."""
        self._stopped = True

    def close(self) -> None:
        """Unwind every process, youngest first. Raises RuntimeError when a process calls it."""
        self._check_home()
        if self._current is not None:
            raise RuntimeError("a process cannot close the scheduler that runs it")
        self._stopped = True
        for process in reversed(list(self._processes.values())):
            self.kill(process)
        self._ready.clear()
        self._names.clear()

    def _slice(self, process: Process) -> None:
        """Switch to `process` until it blocks or ends."""
        glet = process._greenlet
        process._parked = False
        self._current = process
        try:
            if glet.parent is not getcurrent():
                glet.parent = getcurrent()
            if not process._killed:
                glet.switch()
            elif glet:
                glet.throw(GreenletExit)
            else:
                self._ended(process, EX_KILLED)  # it never had a slice: there is nothing to unwind
        finally:
            self._current = None
            if process.exit_status is not None:
                process._greenlet = None  # it refers back to the process

    def _live(self, process: Process) -> None:
        status = EX_SOFTWARE
        try:
            status = process._main() or 0
        except GreenletExit:
            status = EX_KILLED
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        except Exception as error:
            self.counters["crashed"] += 1
            self._log(f"{process.name}[{process.pid}]: {describe(error)}")
        finally:
            self._ended(process, status)

    def _ended(self, process: Process, status: int) -> None:
        process.exit_status = status
        del self._processes[process.pid]
        for name in [name for name, owner in self._names.items() if owner is process]:
            del self._names[name]
        process.mailbox.clear()
        self.counters["ended"] += 1
        process._exited.wake()
        for callback in list(process.on_exit):
            try:
                callback(process)
            except Exception as error:
                self._log(f"{process.name}[{process.pid}]: at its end: {describe(error)}")
        process.on_exit.clear()

    def _check_home(self) -> None:
        here = getcurrent()
        home = self._home()
        if here is home or (self._current is not None and here is self._current._greenlet):
            return
        if _root() is not home:
            raise RuntimeError("this guest runs in another thread; only that thread may use its processes")


def _root() -> greenlet:
    """The root greenlet of the current thread."""
    here = getcurrent()
    while here.parent is not None:
        here = here.parent
    return here
