"""The link protocol: what a NIC and a wire say to each other.

A **frame** is `(header, views)`: `views` are the pieces of one Ethernet frame without FCS, in order; `header` is None
or the 12 bytes of its `virtio_net_hdr_v1` (offload metadata; `num_buffers` means nothing on a wire). Both are **valid
only during the call that hands them over**: whoever keeps a frame (delay, backlog, capture) copies it with `keep()`.

A `Link` is one end of a wire; a `Receiver` is what sits there: a NIC, a hub's port, a tool. No link enters its receiver
a second time: what arrives during the receiver's own `transmit` or `receive` waits until the loop's next turn.

- receiver → wire: `link.transmit(frames)` says how many were taken. Fewer means full: keep the rest, and send it again
  when the link calls `receiver.writable()`. A frame that the wire drops (no peer, too long, link down) counts as taken,
  and the wire counts it with its reason.
- wire → receiver: `receiver.receive(frames)` says how many were taken. Fewer means no room: an in-memory wire keeps
  what it must (bounded), or drops and counts.
- Links with a host descriptor call `receiver.pull(self)` when there is something to read. The receiver calls
  `link.read_into(views)` until it says 0, its budget is spent, or it has no room; with no room it calls `link.pause()`,
  and `link.resume()` later. So a frame goes from the descriptor straight into guest RAM.

Counters are plain dicts, name → number; a drop's name says its reason (`tx_dropped_no_peer`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview
Views: TypeAlias = list[Buffer]
Frame: TypeAlias = tuple[Buffer | None, Views]

HEADER_SIZE = 12
FRAME_MAX = 65535 + 14  # the largest super-frame: an IP packet of 64 KB behind an Ethernet header


class WireError(Exception):
    """A wire cannot be made or used; the text is one line that says what is wrong and what to do instead."""


def frame_length(frame: Frame) -> int:
    """Bytes of the frame, its header not counted."""
    return sum(len(view) for view in frame[1])


def frame_bytes(frame: Frame) -> bytes:
    """The frame as one bytes object, its header left out."""
    return b"".join(frame[1])


def keep(frame: Frame) -> Frame:
    """A copy of the frame that may be kept."""
    header, views = frame
    return (None if header is None else bytes(header)), [b"".join(views)]


class Receiver:
    """What sits at the end of a wire. Override `receive`; the others have defaults."""

    def receive(self, frames: Sequence[Frame]) -> int:
        """Take frames, first to last; how many were taken. Never raises for what a frame contains."""
        raise NotImplementedError

    def writable(self) -> None:
        """The link can take frames again after it took fewer than offered."""

    def carrier_changed(self) -> None:
        """The link's `carrier` is not what it was."""

    def peer_takes(self, features: int) -> None:
        """What the other end takes unfinished, a mask of VIRTIO_NET_F_GUEST_*; nothing until it says so."""

    def pull(self, link: Link) -> None:
        """Read frames from a link with a descriptor. The default reads into a buffer of its own and calls `receive`."""
        scratch = memoryview(bytearray(link.header_size + FRAME_MAX))
        for _ in range(64):
            length = link.read_into([scratch])
            if length == 0:
                return
            header = scratch[: link.header_size] if link.header_size else None
            if self.receive([(header, [scratch[link.header_size : length]])]) == 0:
                link.counters["rx_dropped_no_room"] += 1


class Link:
    """One end of a wire.

    Attributes:
        name: for people, such as "tap:t0".
        header_size: bytes of virtio header that `read_into` puts before each frame (0 or 12).
        carrier: whether the other end is there.
        counters: what went through and what was dropped, with reasons.
    """

    header_size = 0
    carrier = True

    def __init__(self, name: str) -> None:
        self.name = name
        self.receiver: Receiver | None = None
        self.counters: Counter[str] = Counter()

    def attach(self, receiver: Receiver) -> None:
        """Plug `receiver` in. Raises WireError when something is plugged in already."""
        if self.receiver is not None:
            raise WireError(f"{self.name}: something is plugged in already")
        self.receiver = receiver

    def detach(self) -> None:
        """Pull the plug; frames that arrive now are dropped and counted."""
        self.receiver = None

    def set_carrier(self, up: bool) -> None:
        """The other end came or went; called by the wire."""
        if up != self.carrier:
            self.carrier = up
            if self.receiver is not None:
                self.receiver.carrier_changed()

    def transmit(self, frames: Sequence[Frame]) -> int:
        """Send frames, first to last; how many were taken."""
        raise NotImplementedError

    def read_into(self, views: Views) -> int:
        """Read the next frame, its `header_size` bytes of header first, into `views` as far as they reach.

        Returns the bytes read, 0 when nothing is there. A frame that does not fit is cut off: offer room for
        `header_size + FRAME_MAX`, or compare the result with the room offered.
        """
        raise NotImplementedError

    def take_offloads(self, features: int) -> None:
        """What the receiver takes unfinished: VIRTIO_NET_F_GUEST_* as a mask. A link may make use of that or not."""

    def pause(self) -> None:
        """Do not call `pull` until `resume`; the receiver has no room."""

    def resume(self) -> None:
        """The receiver has room again."""

    def close(self) -> None:
        """Release what the link holds of the host."""
