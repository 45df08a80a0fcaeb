"""What a connection holds of its two streams: bytes to be sent, and bytes that have come.

Positions are the connection's own sequence numbers, which count without end (segment.py).

`SendBuffer`: the writer's bytes, copied once, until they are acknowledged. Segments are views of it. Small writes share
a piece, so that a writer of single bytes costs no more memory than one of large blocks.

`ReceiveBuffer`: views of packets, in order, until the reader copies them out; and the runs that came before their turn.
Of bytes that come twice the first ones count. What a small payload would pin of a large buffer is copied instead, so
that the memory that is held never exceeds about twice the bytes that are carried.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque

PIECE = 16384  # bytes that small writes are collected in
SMALL = 1024  # shorter payloads and writes are joined with their neighbours


class SendBuffer:
    """Bytes from `start`, the first that is not acknowledged, to `end`."""

    __slots__ = ("_at", "_open", "_pieces", "_room", "_starts", "end", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        self.end = start
        self._pieces: list[memoryview] = []
        self._starts: list[int] = []  # where each piece starts
        self._at = 0  # pieces before this one are done with
        self._open: memoryview | None = None  # what the last piece may grow into
        self._room = 0

    def __len__(self) -> int:
        return self.end - self.start

    def append(self, data: memoryview) -> None:
        """Copy `data` behind what is there."""
        size = len(data)
        if size < SMALL or size <= self._room:
            while size:
                if not self._room:
                    self._open = memoryview(bytearray(PIECE))
                    self._room = PIECE
                    self._pieces.append(self._open[:0])
                    self._starts.append(self.end)
                part = min(size, self._room)
                at = PIECE - self._room
                self._open[at : at + part] = data[:part]  # type: ignore[index]  # open while there is room
                first = self._starts[-1] - (self.end - at)  # where in the open piece the last one starts
                self._pieces[-1] = self._open[first : at + part]  # type: ignore[index]  # likewise
                self._room -= part
                self.end += part
                data = data[part:]
                size -= part
            return
        self._pieces.append(memoryview(bytes(data)))
        self._starts.append(self.end)
        self._room = 0
        self.end += size

    def views(self, start: int, end: int) -> list[memoryview]:
        """The bytes from `start` to `end`, in place."""
        pieces, starts = self._pieces, self._starts
        index = bisect_right(starts, start, self._at) - 1
        found: list[memoryview] = []
        while start < end:
            piece = pieces[index]
            at = start - starts[index]
            view = piece[at : at + end - start]
            found.append(view)
            start += len(view)
            index += 1
        return found

    def release(self, upto: int) -> None:
        """Everything before `upto` is acknowledged."""
        self.start = upto
        starts, pieces = self._starts, self._pieces
        at = self._at
        while at < len(starts) and starts[at] + len(pieces[at]) <= upto:
            if at == len(starts) - 1 and self._room:
                break  # the last one may grow
            pieces[at] = _NOTHING
            at += 1
        self._at = at
        if at > 64 and at * 2 > len(starts):
            del pieces[:at], starts[:at]
            self._at = 0

    def clear(self) -> None:
        """Forget everything."""
        self._pieces, self._starts = [], []
        self._at = self._room = 0
        self._open = None
        self.start = self.end


_NOTHING = memoryview(b"")


class Block:
    """A run of bytes that came before its turn: views, or heap memory that small payloads are joined in."""

    __slots__ = ("end", "pieces", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        self.end = start
        self.pieces: deque[tuple[memoryview | bytearray, object]] = deque()  # and what each is lent by

    def add(self, view: memoryview, keep: object) -> None:
        """More bytes at the end."""
        self.end += len(view)
        if len(view) >= SMALL:
            self.pieces.append((view, keep))
        elif self.pieces and isinstance(last := self.pieces[-1][0], bytearray):
            last += view
        else:
            self.pieces.append((bytearray(view), None))

    def absorb(self, other: Block) -> None:
        """Take over the run that follows; the fewer pieces go to the more, so that no order of arrival is costly."""
        self.end = other.end
        first = other.pieces[0][0]
        if isinstance(first, bytearray) and len(first) < SMALL and isinstance(last := self.pieces[-1][0], bytearray):
            last += first
            other.pieces.popleft()
        if len(other.pieces) > len(self.pieces):
            other.pieces.extendleft(reversed(self.pieces))
            self.pieces = other.pieces
        else:
            self.pieces.extend(other.pieces)


class ReceiveBuffer:
    """Bytes from `start`, the reader's position, to `end`, the next one expected; and what lies beyond.

    Args:
        start: position of the first byte.
        blocks: runs beyond `end` that are held, at most.

    Attributes:
        held: bytes in those runs.
        latest: starts of the runs that grew last, latest first.
    """

    __slots__ = ("_blocks", "_limit", "_queue", "_starts", "_tail", "_tail_used", "end", "held", "latest", "start")

    def __init__(self, start: int, blocks: int) -> None:
        self.start = start
        self.end = start
        self.held = 0
        self.latest: list[int] = []
        self._limit = blocks
        self._queue: deque[tuple[memoryview, object]] = deque()  # and what each view is lent by
        self._tail: memoryview | None = None  # heap memory that small payloads are joined in; the last of the queue
        self._tail_used = 0
        self._blocks: list[Block] = []
        self._starts: list[int] = []

    def __len__(self) -> int:
        return self.end - self.start

    @property
    def count(self) -> int:
        """Runs that came before their turn."""
        return len(self._blocks)

    @property
    def has_gap(self) -> bool:
        """Whether something came before its turn."""
        return bool(self._blocks)

    @property
    def last(self) -> int:
        """Behind the last byte that is here, in order or before its turn."""
        return self._blocks[-1].end if self._blocks else self.end

    # -- writing -------------------------------------------------------------------------------------------------

    def append(self, view: memoryview, pinned: int, keep: object) -> None:
        """Bytes in order; `pinned` is how much memory holding on to `view` costs."""
        size = len(view)
        self.end += size
        if pinned > 2 * size or (self._tail is not None and size < SMALL // 4):
            self._join(view)
        else:
            self._tail = None
            self._queue.append((view, keep))

    def _join(self, view: memoryview) -> None:
        while len(view):
            tail = self._tail
            if tail is None or self._tail_used == len(tail):
                self._tail = tail = memoryview(bytearray(max(4 * len(view), SMALL)))
                self._tail_used = 0
                self._queue.append((tail[:0], None))
            at = self._tail_used
            part = view[: len(tail) - at]
            tail[at : at + len(part)] = part
            self._tail_used = used = at + len(part)
            shown, _ = self._queue[-1]
            self._queue[-1] = (tail[at - len(shown) : used], None)
            view = view[len(part) :]

    def insert(self, start: int, view: memoryview, keep: object) -> bool:
        """Bytes from `start` on, beyond `end`, before their turn; of what is here already the old bytes stay.

        False where there is no room for another run; nothing was kept then.
        """
        end = start + len(view)
        blocks, starts = self._blocks, self._starts
        index = bisect_right(starts, start) - 1
        if index >= 0 and blocks[index].end >= start:
            block = blocks[index]
            view = view[block.end - start :]
        else:
            if len(blocks) >= self._limit and start > self.end:
                return False
            block = Block(start)
            index += 1
            blocks.insert(index, block)
            starts.insert(index, start)
        # `view` follows `block` now: grow it, over the runs that it reaches.
        while block.end < end:
            following = blocks[index + 1] if index + 1 < len(blocks) else None
            part = view if following is None else view[: following.start - block.end]
            if len(part):
                block.add(part, keep)
                self.held += len(part)
                view = view[len(part) :]
            if following is None or following.start > block.end:
                break
            view = view[following.end - following.start :]
            block.absorb(following)
            del blocks[index + 1], starts[index + 1]
        self.latest = [block.start, *(other for other in self.latest if other != block.start)][:4]
        return True

    def join(self) -> None:
        """Move the run that starts at `end`, if there is one, into the stream."""
        if not self._starts or self._starts[0] != self.end:
            return
        block = self._blocks.pop(0)
        del self._starts[0]
        self.held -= block.end - block.start
        self.latest = [start for start in self.latest if start != block.start]
        for piece, keep in block.pieces:
            view = memoryview(piece)
            self.append(view, len(view), keep)

    def runs(self) -> list[tuple[int, int]]:
        """Four of the runs that came before their turn, those that grew last first (RFC 2018 §4)."""
        places = [bisect_right(self._starts, start) - 1 for start in self.latest]
        order = [self._blocks[place] for place in places if place >= 0] + self._blocks[:4]
        return [(block.start, block.end) for block in dict.fromkeys(order)][:4]

    # -- reading -------------------------------------------------------------------------------------------------

    def copy_out(self, target: memoryview, count: int, offset: int = 0) -> None:
        """Copy `count` bytes from `start + offset` on into `target`, and leave them: the one copy of received data."""
        at = 0
        for view, _ in self._queue:
            if offset >= len(view):
                offset -= len(view)
                continue
            part = view[offset : offset + count - at]
            offset = 0
            target[at : at + len(part)] = part
            at += len(part)
            if at == count:
                return

    def views(self, most: int) -> list[memoryview]:
        """The first `most` bytes or fewer, in place."""
        found = []
        for view, _ in self._queue:
            if len(view) >= most:
                found.append(view[:most])
                break
            found.append(view)
            most -= len(view)
        return found

    def take(self, target: memoryview | None, count: int) -> None:
        """Take `count` bytes out, into `target` where there is one."""
        self.start += count
        queue = self._queue
        at = 0
        while count:
            view, keep = queue[0]
            size = len(view)
            if size <= count:
                if target is not None:
                    target[at : at + size] = view
                queue.popleft()
                if not queue:
                    self._tail = None
                at += size
                count -= size
            else:
                if target is not None:
                    target[at : at + count] = view[:count]
                queue[0] = (view[count:], keep)
                return

    def byte_at(self, position: int) -> int:
        """One byte of the stream, for the urgent pointer."""
        target = memoryview(bytearray(1))
        self.copy_out(target, 1, position - self.start)
        return target[0]

    def clear(self) -> None:
        """Forget everything."""
        self._queue.clear()
        self._blocks, self._starts, self.latest = [], [], []
        self.held = 0
        self._tail = None
        self.start = self.end
