"""Time: one interface, two clocks. All times are integer microseconds.

Promises:
- `now()` never goes back.
- Timers due at the same instant fire in the order in which they were set.
- A `VirtualClock` moves only when it is told to (`jump`), so that every run with the same seed is the same run.

This file is one of the few that may import `time`.
"""

from __future__ import annotations

import heapq
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

MICROSECOND = 1
MILLISECOND = 1_000
SECOND = 1_000_000


class Timer:
    """A callback to be called once at `when`; `cancel()` it at any time before."""

    __slots__ = ("callback", "when")

    def __init__(self, when: int, callback: Callable[[], None] | None) -> None:
        self.when = when
        self.callback = callback

    def cancel(self) -> None:
        """Do not call it; harmless when it has fired or was cancelled."""
        self.callback = None


class Clock(ABC):
    """A source of time with timers. `virtual` says whether time can be moved."""

    virtual = False

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Timer]] = []
        self._serial = 0

    @abstractmethod
    def now(self) -> int:
        """Microseconds since the clock's own zero."""

    @abstractmethod
    def wall(self) -> int:
        """Microseconds since 1970-01-01 UTC, for captures and dates."""

    def at(self, when: int, callback: Callable[[], None]) -> Timer:
        """Call `callback` once `now()` has reached `when`."""
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
        """Fire every timer that is due now; whether one fired. Those that are set meanwhile wait for the next call."""
        fired = False
        now = self.now()
        heap = self._heap
        last = self._serial  # so that a timer that sets itself anew without delay ends the call
        while heap and heap[0][0] <= now and heap[0][1] <= last:
            timer = heapq.heappop(heap)[2]
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()
                fired = True
        return fired


class RealClock(Clock):
    """The host's monotonic clock, counted from when the object was made."""

    def __init__(self) -> None:
        super().__init__()
        self._zero = time.monotonic_ns()

    def now(self) -> int:
        return (time.monotonic_ns() - self._zero) // 1000

    def wall(self) -> int:
        return time.time_ns() // 1000


class VirtualClock(Clock):
    """A clock that stands still until it is moved.

    Args:
        start: first value of `now()`.
        epoch: what `wall()` is at `now()` zero; 2030-01-01 by default, so that dates in logs are the same in every run.
    """

    virtual = True

    def __init__(self, start: int = 0, epoch: int = 1_893_456_000 * SECOND) -> None:
        super().__init__()
        self._now = start
        self._epoch = epoch

    def now(self) -> int:
        return self._now

    def wall(self) -> int:
        return self._epoch + self._now

    def jump(self, when: int) -> None:
        """Move on to `when`. Raises ValueError for a time that has passed."""
        if when < self._now:
            raise ValueError(f"the clock stands at {self._now} and cannot go back to {when}")
        self._now = when
