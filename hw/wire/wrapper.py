"""What wraps a link and is one: the receiver of the inner link, and a link for the receiver outside.

Everything passes through until a subclass says otherwise. The wrapper counts into the inner link's counters, so that
one table shows the whole wire. Read first: `link.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from hw.wire.link import Frame, Link, Receiver, Views


class Wrapper(Link, Receiver):
    """`inner` under another's control. Whoever plugs into the wrapper is plugged into `inner` through it."""

    def __init__(self, inner: Link) -> None:
        super().__init__(inner.name)
        self.inner = inner
        self.header_size = inner.header_size
        self.carrier = inner.carrier
        self.counters = inner.counters

    # -- as a link -------------------------------------------------------------------------------------------------

    def attach(self, receiver: Receiver) -> None:
        """Plug `receiver` in. Raises WireError when something is plugged in already."""
        self.inner.attach(self)
        super().attach(receiver)

    def detach(self) -> None:
        """Pull the plug, here and inside."""
        super().detach()
        self.inner.detach()

    def transmit(self, frames: Sequence[Frame]) -> int:
        """Send frames through the inner link."""
        return self.inner.transmit(frames)

    def read_into(self, views: Views) -> int:
        """The inner link's next frame."""
        return self.inner.read_into(views)

    def take_offloads(self, features: int) -> None:
        """What the receiver takes unfinished."""
        self.inner.take_offloads(features)

    def pause(self) -> None:
        """The receiver has no room."""
        self.inner.pause()

    def resume(self) -> None:
        """The receiver has room again."""
        self.inner.resume()

    def close(self) -> None:
        """Close the inner link."""
        self.inner.close()

    # -- as a receiver ---------------------------------------------------------------------------------------------

    def receive(self, frames: Sequence[Frame]) -> int:
        """Frames of the inner link, for the receiver."""
        if self.receiver is None:
            self.counters["rx_dropped_no_receiver"] += len(frames)
            return len(frames)
        return self.receiver.receive(frames)

    def writable(self) -> None:
        """The inner link takes frames again."""
        if self.receiver is not None:
            self.receiver.writable()

    def carrier_changed(self) -> None:
        """The inner link's carrier came or went."""
        self.set_carrier(self.inner.carrier)

    def peer_takes(self, features: int) -> None:
        """What the other end takes unfinished."""
        if self.receiver is not None:
            self.receiver.peer_takes(features)

    def pull(self, link: Link) -> None:
        """The inner link has something to read: the receiver reads it through this one."""
        if self.receiver is not None:
            self.receiver.pull(self)
