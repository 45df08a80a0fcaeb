"""A cable: two links joined back to back in memory; and `MemoryLink`, the half that the hub's ports share with it.

Promises:
- A frame goes to the other end's receiver within the sender's call, as the very views that were handed in. Only what
  the receiver does not take at once is copied.
- What is copied waits in a backlog, bounded in frames and bytes, until the receiver calls `resume`; beyond that it is
  dropped and counted. Order is kept.
- A receiver is never entered twice: frames for one that is inside its own `transmit` or `receive` wait for the loop's
  next turn. So two ends that answer each other take turns for ever, and never deepen the stack.

Read first: `link.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence

from hw.loop import Loop
from hw.wire.link import Frame, Link, Receiver, frame_length, keep

BACKLOG_FRAMES = 1024
BACKLOG_BYTES = 4 << 20
_BATCH = 64


class MemoryLink(Link, ABC):
    """One end of a wire inside this process; a subclass says where `_send` takes the frames.

    Args:
        loop: gives the turn in which deferred frames are delivered.
        name: for people.
        backlog_frames, backlog_bytes: what is kept for a receiver that has no room.

    Counters: `tx_frames`, `rx_frames` (taken by the receiver), `rx_deferred` (copied to the backlog),
    `rx_dropped_backlog_frames`, `rx_dropped_backlog_bytes`, `rx_dropped_no_receiver`, `tx_dropped_closed`.
    """

    def __init__(
        self, loop: Loop, name: str, *, backlog_frames: int = BACKLOG_FRAMES, backlog_bytes: int = BACKLOG_BYTES
    ) -> None:
        super().__init__(name)
        self.closed = False
        self._loop = loop
        self._backlog: deque[tuple[int, Frame]] = deque()  # with each frame its bytes
        self._backlog_bytes = 0
        self._offered = 0  # frames of the backlog that are at the receiver just now
        self._frames_max = backlog_frames
        self._bytes_max = backlog_bytes
        self._busy = False  # the receiver is inside its transmit or receive
        self._paused = False
        self._scheduled = False

    @property
    def backlog(self) -> int:
        """Frames that wait for the receiver."""
        return len(self._backlog)

    @abstractmethod
    def _send(self, frames: Sequence[Frame]) -> None:
        """Take the frames to where they go, and count those that go nowhere."""

    def transmit(self, frames: Sequence[Frame]) -> int:
        """Send frames; a wire in memory takes all of them."""
        if self.closed:
            self.counters["tx_dropped_closed"] += len(frames)
        elif frames:
            self.counters["tx_frames"] += len(frames)
            outer, self._busy = self._busy, True
            try:
                self._send(frames)
            finally:
                self._busy = outer
        return len(frames)

    def deliver(self, frames: Sequence[Frame]) -> None:
        """Hand frames that came over the wire to this end's receiver, or keep them for it."""
        receiver = self.receiver
        if receiver is None:
            self.counters["rx_dropped_no_receiver"] += len(frames)
            return
        taken = 0
        if not (self._busy or self._paused or self._backlog):
            taken = self._offer(receiver, frames)
        if taken < len(frames):
            self._keep(frames[taken:])

    def _offer(self, receiver: Receiver, frames: Sequence[Frame]) -> int:
        """Call the receiver; one that takes fewer is not called again before it says `resume`."""
        self._busy = True
        try:
            taken = receiver.receive(frames)
        finally:
            self._busy = False
        if taken < len(frames):
            self._paused = True
        self.counters["rx_frames"] += taken
        return taken

    def _keep(self, frames: Sequence[Frame]) -> None:
        counters, backlog = self.counters, self._backlog
        if self.receiver is None:  # it left during the call
            counters["rx_dropped_no_receiver"] += len(frames)
            return
        for frame in frames:
            length = frame_length(frame)
            if len(backlog) + self._offered >= self._frames_max:
                counters["rx_dropped_backlog_frames"] += 1
            elif self._backlog_bytes + length > self._bytes_max:
                counters["rx_dropped_backlog_bytes"] += 1
            else:
                counters["rx_deferred"] += 1
                self._backlog_bytes += length
                backlog.append((length, keep(frame)))
        if not self._paused:
            self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled and self._backlog:
            self._scheduled = True
            self._loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._scheduled = False
        self._drain()

    def _drain(self) -> None:
        """Offer what is in the backlog now; what comes in meanwhile waits for the next turn."""
        backlog = self._backlog
        left = len(backlog)
        while left and backlog and not self._paused and self.receiver is not None:
            batch = [backlog.popleft() for _ in range(min(left, _BATCH, len(backlog)))]
            left -= len(batch)
            self._offered = len(batch)  # these still count, for they come back to the front when they are refused
            try:
                taken = self._offer(self.receiver, [frame for _, frame in batch])
            finally:
                self._offered = 0
            self._backlog_bytes -= sum(length for length, _ in batch[:taken])
            if taken < len(batch):
                backlog.extendleft(reversed(batch[taken:]))
        if self.receiver is None:
            self._forget()
        elif not self._paused:
            self._schedule()

    def pause(self) -> None:
        """Keep frames until `resume`."""
        self._paused = True

    def resume(self) -> None:
        """The receiver has room: it gets the backlog now, or in the next turn if it is just being served."""
        self._paused = False
        if self._busy:
            self._schedule()
        else:
            self._drain()

    def detach(self) -> None:
        """Pull the plug; the backlog is dropped and counted, as are frames that arrive from now on."""
        super().detach()
        self._paused = False
        self._forget()

    def _forget(self) -> None:
        self.counters["rx_dropped_no_receiver"] += len(self._backlog)
        self._backlog_bytes -= sum(length for length, _ in self._backlog)
        self._backlog.clear()

    def close(self) -> None:
        """Nothing goes in or out any more."""
        self.closed = True
        self.detach()
        self.set_carrier(False)


class CableEnd(MemoryLink):
    """One end of a cable. It has carrier while somebody is attached to the other end.

    Counts `tx_dropped_no_peer` for frames that find nobody there.
    """

    _peer: CableEnd
    carrier = False

    def _send(self, frames: Sequence[Frame]) -> None:
        if self._peer.receiver is None:
            self.counters["tx_dropped_no_peer"] += len(frames)
        else:
            self._peer.deliver(frames)

    def attach(self, receiver: Receiver) -> None:
        """Plug `receiver` in; the other end gets carrier. Raises WireError when the end is taken."""
        super().attach(receiver)
        self._peer.set_carrier(not self.closed and not self._peer.closed)

    def detach(self) -> None:
        """Pull the plug; the other end loses carrier."""
        super().detach()
        self._peer.set_carrier(False)

    def take_offloads(self, features: int) -> None:
        """Tell whoever is at the other end."""
        if self._peer.receiver is not None:
            self._peer.receiver.peer_takes(features)


def cable(
    loop: Loop,
    name: str = "cable",
    *,
    backlog_frames: int = BACKLOG_FRAMES,
    backlog_bytes: int = BACKLOG_BYTES,
) -> tuple[CableEnd, CableEnd]:
    """The two ends of a new cable."""
    a = CableEnd(loop, f"{name}:a", backlog_frames=backlog_frames, backlog_bytes=backlog_bytes)
    b = CableEnd(loop, f"{name}:b", backlog_frames=backlog_frames, backlog_bytes=backlog_bytes)
    a._peer, b._peer = b, a
    return a, b
