"""Blocking: how a call waits until files are ready, a time has passed, or somebody interrupts it.

A guest process waits through the scheduler. A caller that is no guest process (a host thread) waits through `block`,
which whoever lets such callers in has to set.

Signals exist only as far as blocking calls need them: `interrupt` ends the blocked call of a process with EINTR,
unless the process has that signal masked; then it stays pending until the mask lets it through, as with pselect and
ppoll. A signal that finds the process not blocked and not masking it has no handler to run, and is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from guest.sys.constants import SIG_BLOCK, SIG_SETMASK, SIG_UNBLOCK, SIGINT
from guest.sys.fault import fault
from guest.sys.files import File
from guest.sys.scheduler import Process, Scheduler

# (is it so?, microseconds or None for ever) → whether it became so
Block: TypeAlias = Callable[[Callable[[], bool], int | None], bool]


class _Signals:
    """Of one process: what is masked, what is pending, and whether its blocked call was interrupted."""

    __slots__ = ("interrupted", "mask", "pending")

    def __init__(self) -> None:
        self.mask: frozenset[int] = frozenset()
        self.pending: set[int] = set()
        self.interrupted = False


class Waits:
    """The waits of one guest.

    Args:
        scheduler: of the guest's processes.
        now: the time in microseconds.

    Attributes:
        block: waits for callers that are no guest process; None refuses them.
    """

    def __init__(self, scheduler: Scheduler, now: Callable[[], int]) -> None:
        self.block: Block | None = None
        self._scheduler = scheduler
        self._now = now
        self._signals: dict[Process, _Signals] = {}
        self._blocked: dict[Process, None] = {}

    @property
    def able(self) -> bool:
        """Whether the caller may wait at all."""
        return self._scheduler.current is not None or self.block is not None

    def until(self, ready: Callable[[], bool], timeout: int | None, files: Sequence[tuple[File, int]]) -> bool:
        """Block until `ready()`, which is asked again after each change of a file; whether that came in time.

        Args:
            ready: whether to go on.
            timeout: microseconds; 0 only looks, None is for ever.
            files: what to watch, each with the POLL* events that matter.

        Raises:
            OSError: EINTR.
            RuntimeError: the caller is no guest process, and nobody has set `block`.
        """
        if ready():
            return True
        if timeout is not None and timeout <= 0:
            return False
        process = self._scheduler.current
        if process is None:
            if self.block is None:
                raise RuntimeError("only a guest process can block here: no door for host threads is open")
            return self.block(ready, timeout)
        return self._park(process, ready, timeout, files)

    def _park(
        self, process: Process, ready: Callable[[], bool], timeout: int | None, files: Sequence[tuple[File, int]]
    ) -> bool:
        scheduler = self._scheduler
        signals = self._signals.get(process)
        if signals is not None and signals.pending - signals.mask:
            signals.pending &= signals.mask
            raise fault("EINTR")
        deadline = None if timeout is None else self._now() + timeout
        left = timeout

        def watcher() -> None:
            scheduler.unpark(process)

        self._blocked[process] = None
        try:
            for file, events in files:
                file.watch(watcher, events)
            while not ready():  # once more before the first wait: to watch a file may be what shows it ready
                scheduler.park(left)
                if ready():
                    break
                signals = self._signals.get(process)
                if signals is not None and signals.interrupted:
                    raise fault("EINTR")
                if deadline is not None:
                    left = deadline - self._now()
                    if left <= 0:
                        return False
            return True
        finally:
            del self._blocked[process]
            if process in self._signals:
                self._signals[process].interrupted = False
            for file, _ in files:
                file.unwatch(watcher)

    # -- signals -------------------------------------------------------------------------------------------------

    def interrupt(self, process: Process, signal: int = SIGINT) -> None:
        """A signal for `process`: see above."""
        if not process.alive:
            return
        signals = self._of(process)
        if signal in signals.mask:
            signals.pending.add(signal)
        elif process in self._blocked:
            signals.interrupted = True
            self._scheduler.unpark(process)

    def sigmask(self, how: int, mask: Iterable[int]) -> frozenset[int]:
        """Change the mask of the current process, as pthread_sigmask does; the one before.

        Raises OSError: EINVAL. Raises RuntimeError outside of processes.
        """
        signals = self._of(self._scheduler.this())
        before = signals.mask
        if how == SIG_BLOCK:
            signals.mask = before | frozenset(mask)
        elif how == SIG_UNBLOCK:
            signals.mask = before - frozenset(mask)
        elif how == SIG_SETMASK:
            signals.mask = frozenset(mask)
        else:
            raise fault("EINVAL")
        signals.pending &= signals.mask  # those let through have no handler
        return before

    @contextmanager
    def masked(self, mask: Iterable[int] | None) -> Iterator[None]:
        """During this block the current process has this mask; None leaves it."""
        process = self._scheduler.current
        if mask is None or process is None:
            yield
            return
        signals = self._of(process)
        before, signals.mask = signals.mask, frozenset(mask)
        try:
            yield
        finally:
            signals.mask = before
            signals.pending &= before

    def _of(self, process: Process) -> _Signals:
        signals = self._signals.get(process)
        if signals is None:
            signals = self._signals[process] = _Signals()
            process.on_exit.append(self._forget)
        return signals

    def _forget(self, process: Process) -> None:
        self._signals.pop(process, None)
