"""A guest without a machine for tests of the system calls: a stack, processes, timers and a clock that jumps."""

from __future__ import annotations

import random
from collections.abc import Callable

from guest.net.config import NetConfig
from guest.net.stack import Stack
from guest.services import Timers
from guest.sys.calls import Calls
from guest.sys.scheduler import Process, Scheduler
from tests.fakes import FakeClock

SECOND = 1_000_000


class World:
    """One guest on the loopback; `lines` is its log."""

    def __init__(self, seed: int = 1, config: NetConfig | None = None) -> None:
        self.clock = FakeClock()
        self.lines: list[str] = []
        self.timers = Timers(self.clock.now)
        self.scheduler = Scheduler(self.timers, lambda: None, self.lines.append)
        self.stack = Stack(now=self.clock.now, rng=random.Random(seed), config=config)
        self.calls = Calls(self.scheduler, self.stack, now=self.clock.now)

    def settle(self) -> None:
        """Do all that can be done without moving time."""
        busy = True
        while busy:
            busy = self.timers.run_due()
            due = self.stack.poll_at()
            if due is not None and due <= self.clock.time:
                busy = self.stack.poll() or busy
            busy = self.scheduler.run() or self.scheduler.runnable > 0 or busy

    def pass_time(self, micros: int) -> None:
        """Let time pass, from deadline to deadline."""
        end = self.clock.time + micros
        self.settle()
        while True:
            due = [when for when in (self.timers.next_deadline(), self.stack.poll_at()) if when is not None]
            if not due or min(due) > end:
                break
            self.clock.time = max(min(due), self.clock.time)
            self.settle()
        self.clock.time = end

    def block(self, ready: Callable[[], bool], timeout: int | None) -> bool:
        """How a caller that is no process waits: time passes until `ready()`. For `Calls.block`."""
        end = None if timeout is None else self.clock.time + timeout
        self.settle()
        while not ready():
            due = [when for when in (self.timers.next_deadline(), self.stack.poll_at()) if when is not None]
            if not due or (end is not None and min(due) > end):
                if end is None:
                    raise AssertionError("nothing is left that could end this wait")
                self.clock.time = end
                return False
            self.clock.time = max(min(due), self.clock.time)
            self.settle()
        return True

    def start(self, main: Callable[[], object], name: str = "program") -> Process:
        """A process that runs `main`; it has not run yet."""

        def run() -> int:
            main()
            return 0

        return self.scheduler.spawn(run, name)

    def run(self, *mains: Callable[[], object], seconds: float = 3600) -> list[Process]:
        """Run processes until all have ended, at most for so long; each has to end well."""
        started = [self.start(main, f"program{place}") for place, main in enumerate(mains)]
        end = self.clock.time + round(seconds * SECOND)
        self.settle()
        while any(process.alive for process in started):
            due = [when for when in (self.timers.next_deadline(), self.stack.poll_at()) if when is not None]
            assert due, f"all wait and nothing will happen: {started} {self.lines}"
            assert min(due) <= end, f"not ended after {seconds} s: {started}"
            self.clock.time = max(min(due), self.clock.time)
            self.settle()
        assert self.lines == []
        assert [process.exit_status for process in started] == [0] * len(started)
        return started

    def close(self) -> None:
        """End everything: what is left over is a leak."""
        self.scheduler.close()
        self.calls.close_all()
        assert len(self.calls.fds) == 0
        assert self.leftovers() == []

    def leftovers(self) -> list[object]:
        """The ends that the stack still has."""
        return [*self.stack.udp, *self.stack.raw]
