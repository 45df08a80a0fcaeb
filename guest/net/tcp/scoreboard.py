"""What was sent and is not acknowledged yet, segment by segment: RFC 6675 §3, RFC 8985 §5.

`in_flight` counts the bytes that are believed to be on their way: sent, not acknowledged in either form, and not lost
unless sent again. A segment that was lost waits in `lost` until it is sent again.

Segments lie side by side from snd_una to snd_nxt. SYN and FIN take one sequence number each, as RFC 9293 §3.4 counts.
A peer reports the same blocks again and again, each longer than the last: runs of what is sacked are stepped over, so
that a report costs what is new in it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator


class Sent:
    """One segment.

    Attributes:
        start, end: sequence numbers; flags: SYN, FIN, of those that take one.
        sent_at: when last. tries: how often.
        flying: counted in flight. sacked: acknowledged out of order. lost: taken for lost, and not sent again since.
    """

    __slots__ = ("end", "flags", "flying", "lost", "sacked", "sent_at", "start", "tries")

    def __init__(self, start: int, end: int, flags: int, now: int) -> None:
        self.start = start
        self.end = end
        self.flags = flags
        self.sent_at = now
        self.tries = 1
        self.flying = True
        self.sacked = False
        self.lost = False

    def __repr__(self) -> str:
        marks = "".join(name[0] for name in ("flying", "sacked", "lost") if getattr(self, name))
        return f"<{self.start}-{self.end} x{self.tries} {marks}>"


class Scoreboard:
    """The segments of one connection that are not acknowledged.

    Attributes:
        timed: whether `order` is kept.
        in_flight, sacked_bytes: see above. sacked_count: segments that are sacked.
        lost: segments to be sent again, in the order in which that was found; skip those whose `lost` is not set.
        order: (segment, when it was sent), oldest first; entries whose time is no longer the segment's are stale.
        highest_sacked: behind the last byte that was acknowledged out of order.
    """

    __slots__ = (
        "_head", "_run_ends", "_run_starts", "_segments", "highest_sacked", "in_flight", "lost", "order",
        "sacked_bytes", "sacked_count", "timed",
    )  # fmt: skip

    def __init__(self, timed: bool = False) -> None:
        self.timed = timed
        self._segments: list[Sent] = []
        self._head = 0
        self._run_starts: list[int] = []  # of what is sacked: runs that do not touch, in order
        self._run_ends: list[int] = []
        self.in_flight = 0
        self.sacked_bytes = 0
        self.sacked_count = 0
        self.lost: deque[Sent] = deque()
        self.order: deque[tuple[Sent, int]] = deque()
        self.highest_sacked = 0

    def __len__(self) -> int:
        return len(self._segments) - self._head

    def __iter__(self) -> Iterator[Sent]:
        return iter(self._segments[self._head :])

    @property
    def first(self) -> Sent | None:
        """The oldest segment."""
        return self._segments[self._head] if self._head < len(self._segments) else None

    @property
    def last(self) -> Sent | None:
        """The newest segment."""
        return self._segments[-1] if self._head < len(self._segments) else None

    def add(self, segment: Sent) -> None:
        """A new segment was sent, behind all others."""
        self._segments.append(segment)
        if self.timed:
            self.order.append((segment, segment.sent_at))
        self.in_flight += segment.end - segment.start

    def resent(self, segment: Sent, now: int) -> None:
        """A segment was sent again."""
        segment.sent_at = now
        segment.tries += 1
        segment.lost = False
        if self.timed:
            self.order.append((segment, now))
        if not segment.flying:
            segment.flying = True
            self.in_flight += segment.end - segment.start

    def mark_lost(self, segment: Sent) -> None:
        """A segment is to be sent again."""
        if segment.lost or segment.sacked:
            return
        segment.lost = True
        self.lost.append(segment)
        if segment.flying:
            segment.flying = False
            self.in_flight -= segment.end - segment.start

    def split(self, segment: Sent, size: int) -> Sent:
        """Cut a segment after `size` bytes, because the path takes less now; the rest."""
        rest = Sent(segment.start + size, segment.end, segment.flags, segment.sent_at)
        rest.tries, rest.flying, rest.sacked = segment.tries, segment.flying, segment.sacked
        segment.end = rest.start
        segment.flags = 0
        self._segments.insert(self._index(segment.start) + 1, rest)
        if self.timed:
            self.order.append((rest, rest.sent_at))
        if segment.sacked:
            self.sacked_count += 1
        if segment.lost:
            rest.lost = True
            self.lost.append(rest)
        return rest

    def acknowledge(self, upto: int) -> list[Sent]:
        """Take out what `upto` covers; a segment that it covers in part is shortened."""
        segments, at = self._segments, self._head
        count = len(segments)
        gone: list[Sent] = []
        while at < count and segments[at].end <= upto:
            segment = segments[at]
            size = segment.end - segment.start
            if segment.flying:
                self.in_flight -= size
            if segment.sacked:
                self.sacked_bytes -= size
                self.sacked_count -= 1
            segment.flying = segment.lost = False
            gone.append(segment)
            at += 1
        if at < count and segments[at].start < upto:
            segment = segments[at]
            size = upto - segment.start
            segment.start = upto
            if segment.flying:
                self.in_flight -= size
            if segment.sacked:
                self.sacked_bytes -= size
        if self._run_starts and self._run_starts[0] < upto:
            done = bisect_right(self._run_ends, upto)
            del self._run_starts[:done], self._run_ends[:done]
            if self._run_starts:
                self._run_starts[0] = max(self._run_starts[0], upto)
        self._head = at
        if at > 64 and at * 2 > count:
            del segments[:at]
            self._head = 0
        return gone

    def sack(self, left: int, right: int) -> list[Sent]:
        """Mark what lies between as received; the segments for which that is new."""
        segments = self._segments
        found: list[Sent] = []
        at = self._index(left)
        while at < len(segments):
            segment = segments[at]
            if segment.end > right:
                break
            if segment.sacked:
                at = self._index(self._run_ends[bisect_right(self._run_starts, segment.start) - 1])
                continue
            at += 1
            size = segment.end - segment.start
            if segment.flying:
                self.in_flight -= size
            segment.flying = segment.lost = False
            segment.sacked = True
            self.sacked_bytes += size
            self.sacked_count += 1
            found.append(segment)
            self._join_run(segment.start, segment.end)
        if found and found[-1].end > self.highest_sacked:
            self.highest_sacked = found[-1].end
        return found

    def _join_run(self, start: int, end: int) -> None:
        """What lies between is sacked too."""
        starts, ends = self._run_starts, self._run_ends
        at = bisect_right(starts, start)
        if at and ends[at - 1] == start:
            ends[at - 1] = end
            if at < len(starts) and starts[at] == end:
                ends[at - 1] = ends.pop(at)
                del starts[at]
        elif at < len(starts) and starts[at] == end:
            starts[at] = start
        else:
            starts.insert(at, start)
            ends.insert(at, end)

    def believe(self) -> None:
        """Nothing was lost after all: what was marked is on its way."""
        self.lost.clear()
        for segment in self:
            if segment.lost:
                segment.lost = False
                segment.flying = True
                self.in_flight += segment.end - segment.start

    def forget_sacks(self) -> None:
        """The receiver has thrown away what it had acknowledged out of order (RFC 2018 §8): that is lost."""
        for segment in self:
            if segment.sacked:
                segment.sacked = False
                self.mark_lost(segment)
        self.sacked_bytes = self.sacked_count = self.highest_sacked = 0
        self._run_starts, self._run_ends = [], []

    def _index(self, start: int) -> int:
        """Of the first segment that does not begin before `start`."""
        return bisect_left(self._segments, start, self._head, key=_start)

    def check(self) -> None:
        """Raises AssertionError where the counts contradict the segments: `TcpConfig.check`."""
        flying = sum(one.end - one.start for one in self if one.flying)
        assert flying == self.in_flight, f"{flying} bytes are in flight, not {self.in_flight}"
        sacked = [one for one in self if one.sacked]
        assert self.sacked_count == len(sacked), f"{len(sacked)} segments are sacked, not {self.sacked_count}"
        assert self.sacked_bytes == sum(one.end - one.start for one in sacked), "other bytes are sacked"
        for one in self:
            assert one.flying + one.lost + one.sacked == 1, f"{one} is in no state, or in two"
        runs: list[list[int]] = []
        for one in sacked:
            if runs and runs[-1][1] == one.start:
                runs[-1][1] = one.end
            else:
                runs.append([one.start, one.end])
        known = [list(run) for run in zip(self._run_starts, self._run_ends, strict=True)]
        assert known == runs, f"the runs are {runs}, not {known}"

    def clear(self) -> None:
        """Forget everything."""
        self._segments = []
        self._run_starts, self._run_ends = [], []
        self._head = self.in_flight = self.sacked_bytes = self.sacked_count = 0
        self.lost.clear()
        self.order.clear()


def _start(segment: Sent) -> int:
    return segment.start
