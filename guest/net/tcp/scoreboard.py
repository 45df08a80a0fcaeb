"""What was sent and is not acknowledged yet, segment by segment: RFC 6675 §3, RFC 8985 §5.

`in_flight` counts the bytes that are believed to be on their way: sent, not acknowledged in either form, and not lost
unless sent again. A segment that was lost waits in `lost` until it is sent again.

Segments lie side by side from snd_una to snd_nxt. SYN and FIN take one sequence number each, as RFC 9293 §3.4 counts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator


class Sent:
    """One segment.

    Attributes:
        start, end: sequence numbers; flags: SYN, FIN, of those that take one.
        sent_at: when last. tries: how often. delivered: what had been delivered in all when it was sent last.
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
        "_head", "_segments", "highest_sacked", "in_flight", "lost", "order", "sacked_bytes", "sacked_count", "timed",
    )  # fmt: skip

    def __init__(self, timed: bool = False) -> None:
        self.timed = timed
        self._segments: list[Sent] = []
        self._head = 0
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
        self._head = at
        if at > 64 and at * 2 > count:
            del segments[:at]
            self._head = 0
        return gone

    def sack(self, left: int, right: int) -> list[Sent]:
        """Mark what lies between as received; the segments for which that is new."""
        segments = self._segments
        found: list[Sent] = []
        for at in range(self._index(left), len(segments)):
            segment = segments[at]
            if segment.end > right:
                break
            if segment.sacked:
                continue
            size = segment.end - segment.start
            if segment.flying:
                self.in_flight -= size
            segment.flying = segment.lost = False
            segment.sacked = True
            self.sacked_bytes += size
            self.sacked_count += 1
            found.append(segment)
        if found and found[-1].end > self.highest_sacked:
            self.highest_sacked = found[-1].end
        return found

    def believe(self) -> None:
        """Nothing was lost after all: what was marked is on its way."""
        self.lost.clear()
        for segment in self:
            if segment.lost:
                segment.lost = False
                segment.flying = True
                self.in_flight += segment.end - segment.start

    def forget_sacks(self) -> None:
        """The receiver has thrown away what it had acknowledged out of order (RFC 2018 §8)."""
        for segment in self:
            segment.sacked = False
        self.sacked_bytes = self.sacked_count = 0

    def _index(self, start: int) -> int:
        """Of the first segment that does not begin before `start`."""
        return bisect_left(self._segments, start, self._head, key=_start)

    def clear(self) -> None:
        """Forget everything."""
        self._segments = []
        self._head = self.in_flight = self.sacked_bytes = self.sacked_count = 0
        self.lost.clear()
        self.order.clear()


def _start(segment: Sent) -> int:
    return segment.start
