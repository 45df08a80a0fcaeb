"""What the guest's kernel offers its drivers: timers, deferred work, interrupt handlers, a log.

Promises:
- Timers due at the same instant fire in the order in which they were set.
- Deferred work runs after the interrupt handler that asked for it, in the order in which it was asked for, one slice a
  turn; a slice that says it has more to do goes to the end of the line, so no device starves another.
- An interrupt that nobody handles is counted; after `SPURIOUS_LIMIT` in a row the line is masked, so that a storm
  cannot take the machine. A timer opens it again, so that a storm which ends leaves nobody deaf; the pauses double from
  `PAUSE_FIRST` to `PAUSE_MAX` until an interrupt is handled.

Sections: `Timers`, `DeferredWork`, `IrqTable`, `Services`.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from guest.dma import DmaPool
from guest.platform import Irq, Platform

SPURIOUS_LIMIT = 1000
PAUSE_FIRST = 10_000  # microseconds that a line is masked after its first storm
PAUSE_MAX = 10_000_000


def _silent(_line: str) -> None:
    """The log of a kernel that nobody listens to."""


class Timer:
    """A callback to be called once at `when` (microseconds); `cancel()` it at any time before."""

    __slots__ = ("callback", "when")

    def __init__(self, when: int, callback: Callable[[], None] | None) -> None:
        self.when = when
        self.callback = callback

    def cancel(self) -> None:
        """Do not call it; harmless when it has fired or was cancelled."""
        self.callback = None


class Timers:
    """The guest's one timer service.

    Args:
        now: the platform's time, in microseconds.
    """

    def __init__(self, now: Callable[[], int]) -> None:
        self.now = now
        self._heap: list[tuple[int, int, Timer]] = []
        self._serial = 0

    def at(self, when: int, callback: Callable[[], None]) -> Timer:
        """Call `callback` once the time has reached `when`."""
        timer = Timer(when, callback)
        self._serial += 1
        heapq.heappush(self._heap, (when, self._serial, timer))
        return timer

    def after(self, delay: int, callback: Callable[[], None]) -> Timer:
        """Call `callback` `delay` microseconds from now."""
        return self.at(self.now() + delay, callback)

    def next_deadline(self) -> int | None:
        """When the next timer is due, or None."""
        heap = self._heap
        while heap and heap[0][2].callback is None:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def run_due(self) -> bool:
        """Fire every timer that is due; whether one fired."""
        heap = self._heap
        if not heap:
            return False
        now = self.now()
        due: list[Timer] = []
        while heap and heap[0][0] <= now:
            due.append(heapq.heappop(heap)[2])
        fired = False
        for timer in due:  # one that a callback sets for this very instant waits for the next call
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()
                fired = True
        return fired


class DeferredWork:
    """Work that interrupt handlers put off: slices, run in turn.

    Args:
        wake: asks the platform for a turn.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._queue: deque[Callable[[], bool]] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, work: Callable[[], bool]) -> None:
        """Run `work` soon; it returns True when it wants another slice."""
        self._queue.append(work)
        self._wake()

    def run(self) -> bool:
        """Run one slice of everything that waits now; whether there was anything."""
        queue = self._queue
        count = len(queue)
        for _ in range(count):
            work = queue.popleft()
            if work():
                queue.append(work)
        return count > 0


class IrqTable:
    """Which handler serves which line. A handler returns whether the interrupt was its device's.

    Args:
        irq: the interrupt controller.
        timers: open a line again that a storm had closed; without them only `rearm` and `request` do.
        log: is told of each storm.
    """

    def __init__(self, irq: Irq, timers: Timers | None = None, log: Callable[[str], None] = _silent) -> None:
        self._irq = irq
        self._timers = timers
        self._log = log
        self._handlers: dict[int, list[Callable[[], bool]]] = {}
        self._unhandled: Counter[int] = Counter()
        self._pauses: dict[int, int] = {}  # by line: how long its last storm had it masked
        self._rearms: dict[int, Timer] = {}
        self.counters: Counter[str] = Counter()

    def request(self, line: int, handler: Callable[[], bool]) -> None:
        """Call `handler` when `line` interrupts, after those that asked before; a storm's count starts anew."""
        self._handlers.setdefault(line, []).append(handler)
        self.rearm(line)

    def release(self, line: int, handler: Callable[[], bool]) -> None:
        """Do not call `handler` any more; the line is masked with its last handler."""
        handlers = self._handlers.get(line, [])
        if handler in handlers:
            handlers.remove(handler)
        if not handlers:
            self._stop_rearm(line)
            self._irq.mask(line)

    def dispatch(self, line: int) -> None:
        """An interrupt arrived on `line`."""
        self.counters[f"irq{line}"] += 1
        handled = False
        for handler in tuple(self._handlers.get(line, ())):  # a handler may release its line
            handled = handler() or handled
        if handled:
            self._unhandled[line] = 0
            if self._pauses:
                self._pauses.pop(line, None)
            return
        self.counters["spurious"] += 1
        self._unhandled[line] += 1
        if self._unhandled[line] >= SPURIOUS_LIMIT:
            self._close(line)

    def _close(self, line: int) -> None:
        """Mask a line that storms; for a while, when somebody listens to it."""
        self._unhandled[line] = 0
        self.counters["masked"] += 1
        self._irq.mask(line)
        self._stop_rearm(line)
        how_long = ""
        if self._timers is not None and self._handlers.get(line):
            pause = min(2 * self._pauses[line], PAUSE_MAX) if line in self._pauses else PAUSE_FIRST
            self._pauses[line] = pause
            self._rearms[line] = self._timers.after(pause, partial(self.rearm, line))
            how_long = f" for {pause // 1000} ms"
        self._log(f"irq {line}: {SPURIOUS_LIMIT} interrupts that nobody wanted; masked{how_long}")

    def rearm(self, line: int) -> None:
        """Listen to a line again that a storm had closed."""
        self._stop_rearm(line)
        self._unhandled[line] = 0
        self._irq.unmask(line)

    def _stop_rearm(self, line: int) -> None:
        timer = self._rearms.pop(line, None)
        if timer is not None:
            timer.cancel()


@dataclass
class Services:
    """All of it, as a driver is handed it.

    Attributes:
        platform: the machine.
        dma: pages that devices may reach.
        timers, deferred, irqs: as above.
        log: writes one line to the boot log.
    """

    platform: Platform
    dma: DmaPool
    timers: Timers
    deferred: DeferredWork
    irqs: IrqTable
    log: Callable[[str], None] = field(default=_silent)

    @classmethod
    def of(cls, platform: Platform, dma: DmaPool, log: Callable[[str], None] = _silent) -> Services:
        """The usual set for `platform`."""
        timers = Timers(platform.now)
        irqs = IrqTable(platform.irq, timers, log)
        return cls(platform, dma, timers, DeferredWork(platform.wake), irqs, log)
