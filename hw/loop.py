"""The loop that everything in one thread takes turns in: devices, interrupts, guests, timers, host descriptors.

Promises:
- What is asked for with `call_soon` runs in the order in which it was asked for.
- On the virtual clock time moves only when nothing else is left to do, straight to the next deadline, and never past
  the limit of the run. So the same seed gives the same run.
- On the real clock a busy loop still looks at host descriptors and timers once a turn.
- `stop()` and `wake()` may be called from a signal handler or another thread; nothing else here may.

Sections: `Cpu` (what the loop knows of a guest), `Loop`.
"""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Callable
from typing import Protocol

from hw.clock import Clock, VirtualClock

_HANGUP = select.EPOLLERR | select.EPOLLHUP
DEADLINE_TURNS = 8  # turns of a busy loop between two looks at the guests' deadlines


class Cpu(Protocol):
    """A guest, as the machine sees it."""

    halted: bool

    def interrupt(self, line: int) -> None:
        """An interrupt line is high."""

    def run(self) -> bool:
        """Do all the work that is due now, within a budget; whether there was any (call again if so)."""

    def next_deadline(self) -> int | None:
        """When `run` has work again without being woken, in microseconds of the machine's clock, or None."""


class Loop:
    """One thread's turns over a clock.

    Args:
        clock: a `RealClock`, which waits for host descriptors, or a `VirtualClock`, which jumps.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._ready: deque[Callable[[], None]] = deque()
        self._turns = 0
        self._cpus: list[Cpu] = []
        self._awake: set[int] = set()
        self._readers: dict[int, Callable[[], None]] = {}
        self._writers: dict[int, Callable[[], None]] = {}
        self._hangups: dict[int, Callable[[], None]] = {}
        self._epoll = select.epoll()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._event, select.EPOLLIN)
        self._stopped = False
        self._closed = False

    # -- asking for turns ----------------------------------------------------------------------------------------

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call `callback` in this turn or the next."""
        self._ready.append(callback)

    def add_cpu(self, cpu: Cpu) -> None:
        """Give `cpu` a turn whenever it has work, and a first one now."""
        self._cpus.append(cpu)
        self.kick_cpu(cpu)

    def kick_cpu(self, cpu: Cpu) -> None:
        """`cpu` has work: run it in the next turn."""
        if id(cpu) not in self._awake:
            self._awake.add(id(cpu))
            self._ready.append(lambda: self._run_cpu(cpu))

    def _run_cpu(self, cpu: Cpu) -> None:
        self._awake.discard(id(cpu))
        if not cpu.halted and cpu.run():
            self.kick_cpu(cpu)

    # -- host descriptors ----------------------------------------------------------------------------------------

    def set_reader(self, fd: int, callback: Callable[[], None] | None) -> None:
        """Call `callback` while `fd` is readable; None stops that.

        Raises RuntimeError on the virtual clock, OSError for a descriptor that cannot be waited for.
        """
        self._watch(self._readers, fd, callback)

    def set_writer(self, fd: int, callback: Callable[[], None] | None) -> None:
        """Call `callback` while `fd` is writable; None stops that. Raises as `set_reader` does."""
        self._watch(self._writers, fd, callback)

    def set_hangup(self, fd: int, callback: Callable[[], None] | None) -> None:
        """Call `callback` while both directions of `fd` are at their end, or it has an error: for who reads and writes
        nothing just now. Raises as `set_reader` does.
        """
        self._watch(self._hangups, fd, callback)

    def forget(self, fd: int) -> None:
        """Watch `fd` for nothing any more; to be called before it is closed. Harmless when it is not watched."""
        known = [table for table in (self._readers, self._writers, self._hangups) if table.pop(fd, None) is not None]
        if known:
            self._epoll.unregister(fd)

    def _watch(self, table: dict[int, Callable[[], None]], fd: int, callback: Callable[[], None] | None) -> None:
        if self.clock.virtual and callback is not None:
            raise RuntimeError("a host descriptor cannot be waited for on the virtual clock; use --clock real")
        known = fd in self._readers or fd in self._writers or fd in self._hangups
        before = table.pop(fd, None)
        if callback is not None:
            table[fd] = callback
        events = (select.EPOLLIN if fd in self._readers else 0) | (select.EPOLLOUT if fd in self._writers else 0)
        try:
            if not events and fd not in self._hangups:
                if known:
                    self._epoll.unregister(fd)
            elif known:
                self._epoll.modify(fd, events)
            else:
                self._epoll.register(fd, events)
        except OSError:
            if callback is None:
                return  # the owner closed it first, and with that nothing is watched any more
            # Such as a plain file, which cannot be waited for: as if it had not been asked for.
            del table[fd]
            if before is not None:
                table[fd] = before
            raise

    def _poll(self, timeout: float) -> None:
        for fd, events in self._epoll.poll(timeout):
            if fd == self._event:
                os.eventfd_read(fd)
                continue
            if events & ~select.EPOLLOUT and fd in self._readers:
                self._readers[fd]()
            if events & ~select.EPOLLIN and fd in self._writers:
                self._writers[fd]()
            if events & _HANGUP and fd in self._hangups:
                self._hangups[fd]()

    # -- running -------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """End a wait for descriptors. Safe from signal handlers and other threads."""
        if not self._closed:
            os.eventfd_write(self._event, 1)

    def stop(self) -> None:
        """Make `run` return after the current turn, or the next `run` at once when none is under way.

        Safe from signal handlers and other threads.
        """
        self._stopped = True
        self.wake()

    def turn(self) -> bool:
        """Run what is due now: due timers, then what was asked for before this turn. Whether anything ran."""
        busy = self.clock.run_due()
        ready = self._ready
        self._turns += 1
        # A guest that runs looks at its own timers, so a busy loop need not ask for its deadline in every turn.
        if not ready or self._turns % DEADLINE_TURNS == 0:
            now = self.clock.now()
            for cpu in self._cpus:
                deadline = None if cpu.halted else cpu.next_deadline()
                if deadline is not None and deadline <= now:
                    self.kick_cpu(cpu)
        for _ in range(len(ready)):
            ready.popleft()()
            busy = True
        return busy

    def next_deadline(self) -> int | None:
        """The earliest deadline of the timers and the guests, or None."""
        deadlines = [cpu.next_deadline() for cpu in self._cpus if not cpu.halted]
        deadlines.append(self.clock.next_deadline())
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def run(self, until: Callable[[], bool] | None = None, deadline: int | None = None) -> bool:
        """Take turns until `until()` is true, `deadline` is reached or `stop()` is called; on the virtual clock also
        when nothing can ever happen again. What is due at `deadline` itself waits for the next run. Something that is
        always busy holds virtual time still, and with it the deadline; `stop` still ends the run.

        Returns whether `until()` was true at the end.
        """
        try:
            return self._run(until, deadline)
        finally:
            # Only now, so that a signal that came before the first turn is not lost.
            self._stopped = False

    def _run(self, until: Callable[[], bool] | None, deadline: int | None) -> bool:
        clock = self.clock
        while True:
            if until is not None and until():
                return True
            if self._stopped:
                return False
            if deadline is not None and clock.now() >= deadline:
                return False
            busy = self.turn() or bool(self._ready)
            if isinstance(clock, VirtualClock):
                if busy:
                    continue
                target = self.next_deadline()
                if target is None or (deadline is not None and target > deadline):
                    if deadline is None:
                        return False
                    target = deadline
                clock.jump(max(target, clock.now()))
            elif busy:
                self._poll(0)
            else:
                self._wait(deadline)

    def _wait(self, deadline: int | None) -> None:
        """Sleep until a descriptor is ready, the next deadline, or `deadline`."""
        targets = [target for target in (self.next_deadline(), deadline) if target is not None]
        timeout = -1.0 if not targets else max(0.0, (min(targets) - self.clock.now()) / 1_000_000)
        self._poll(timeout)

    def close(self) -> None:
        """Release the loop's own descriptors; those that were watched stay their owners'."""
        if not self._closed:
            self._closed = True
            self._epoll.close()
            os.close(self._event)
