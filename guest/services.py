"""What the guest's kernel offers its drivers: timers, deferred work, interrupt handlers, a log.

Promises:
- Timers due at the same instant fire in the order in which they were set.
- Deferred work runs after the interrupt handler that asked for it, in the order in which it was asked for, one slice a
  turn; a slice that says it has more to do goes to the end of the line, so no device starves another.
- An interrupt that nobody handles is counted; after `SPURIOUS_LIMIT` in a row the line is masked, so that a storm
  cannot take the machine. `IrqTable.rearm` opens it again.

Sections: `Timers`, `DeferredWork`, `IrqTable`, `Services`.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from guest.dma import DmaPool
from guest.platform import Irq, Platform

SPURIOUS_LIMIT = 1000


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
    """Which handler serves which line. A handler returns whether the interrupt was its device's."""

    def __init__(self, irq: Irq) -> None:
        self._irq = irq
        self._handlers: dict[int, list[Callable[[], bool]]] = {}
        self._unhandled: Counter[int] = Counter()
        self.counters: Counter[str] = Counter()

    def request(self, line: int, handler: Callable[[], bool]) -> None:
        """Call `handler` when `line` interrupts, after those that asked before."""
        self._handlers.setdefault(line, []).append(handler)
        self._irq.unmask(line)

    def release(self, line: int, handler: Callable[[], bool]) -> None:
        """Do not call `handler` any more; the line is masked with its last handler."""
        handlers = self._handlers.get(line, [])
        if handler in handlers:
            handlers.remove(handler)
        if not handlers:
            self._irq.mask(line)

    def dispatch(self, line: int) -> None:
        """An interrupt arrived on `line`."""
        self.counters[f"irq{line}"] += 1
        handled = False
        for handler in tuple(self._handlers.get(line, ())):  # a handler may release its line
            handled = handler() or handled
        if handled:
            self._unhandled[line] = 0
            return
        self.counters["spurious"] += 1
        self._unhandled[line] += 1
        if self._unhandled[line] >= SPURIOUS_LIMIT:
            self.counters["masked"] += 1
            self._irq.mask(line)

    def rearm(self, line: int) -> None:
        """Listen to a line again that a storm had closed."""
        self._unhandled[line] = 0
        self._irq.unmask(line)


def _silent(_line: str) -> None:
    """The log of a kernel that nobody listens to."""


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
        return cls(
            platform,
            dma,
            Timers(platform.now),
            DeferredWork(platform.wake),
            IrqTable(platform.irq),
            log,
        )
