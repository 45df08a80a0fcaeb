"""One timer queue for all connections: a heap with at most one live entry for each.

A connection's deadlines move all the time, mostly later: the retransmission timer with every acknowledgement. So an
entry is only pushed when a connection wants to be woken earlier than it already will be; one that fires too early finds
nothing due, and is pushed again for what is. Cost: O(log n) for those, nothing for the rest.

An entry that was overtaken by an earlier one, or whose connection has ended, stays until its time comes, which may be
hours (keepalive); when there are more of these than of the others all of them are swept out, so the heap is never more
than about twice as long as there are connections that wait.
"""

from __future__ import annotations

import heapq
from typing import Protocol

SMALL = 64  # entries that are not worth sweeping
NEVER = 1 << 62  # later than any time; an integer, so that `min` needs no special case


class Timed(Protocol):
    """Something with a deadline.

    Attributes:
        scheduled: when the queue will wake it; NEVER for not at all. The queue's to write.
    """

    scheduled: int

    def deadline(self) -> int:
        """When `poll` is due, or NEVER."""

    def poll(self, now: int) -> None:
        """Do what is due."""


class TimerQueue:
    """The deadlines of everything in one TCP."""

    __slots__ = ("_heap", "_live", "_serial")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Timed]] = []
        self._live = 0  # how many have an entry that will wake them
        self._serial = 0

    def __len__(self) -> int:
        return len(self._heap)

    def arm(self, timed: Timed) -> None:
        """See that `timed` is woken at its deadline."""
        when = timed.deadline()
        if when < timed.scheduled:
            if timed.scheduled == NEVER:
                self._live += 1
            timed.scheduled = when
            self._serial += 1
            heapq.heappush(self._heap, (when, self._serial, timed))
            if len(self._heap) > 2 * self._live + SMALL:
                self._sweep()

    def forget(self, timed: Timed) -> None:
        """`timed` has ended: it is to be woken no more."""
        if timed.scheduled != NEVER:
            timed.scheduled = NEVER
            self._live -= 1

    def _sweep(self) -> None:
        """Throw away the entries that wake nobody."""
        self._heap[:] = [entry for entry in self._heap if entry[2].scheduled == entry[0]]
        heapq.heapify(self._heap)

    def next_deadline(self) -> int | None:
        """When `run_due` has something to do, or None."""
        heap = self._heap
        while heap and heap[0][2].scheduled != heap[0][0]:
            heapq.heappop(heap)  # overtaken by an earlier entry, or forgotten
        return heap[0][0] if heap else None

    def run_due(self, now: int) -> bool:
        """Poll what is due; whether anything was."""
        heap = self._heap
        due: list[Timed] = []
        while heap and heap[0][0] <= now:
            when, _, timed = heapq.heappop(heap)
            if timed.scheduled == when:
                self.forget(timed)
                due.append(timed)
        for timed in due:
            if timed.deadline() <= now:
                timed.poll(now)
            self.arm(timed)
        return bool(due)
