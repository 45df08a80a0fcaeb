"""The transmit side of a network card: what the driver offers on one queue goes to the wire.

Read first: virtio 1.4 §5.1.9.2 (packet transmission).

Promises:
- A frame is never copied on its way out: the wire is handed views of guest RAM.
- A batch costs one used index, one interrupt and one call of the wire. `used.len` is 0.
- While the wire is full, what was taken from the queue waits here.
- A frame that cannot be sent is dropped and counted, and its buffer returned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hw.abi import virtio_net as net
from hw.virtio.device import VirtioDevice
from hw.virtio.net_side import Side
from hw.virtio.offload import ETHERNET_HEADER, FROM_DRIVER
from hw.virtio.queue import Chain, DeviceQueue, QueueError
from hw.virtio.vectors import split_header
from hw.wire.link import FRAME_MAX, Frame, Link

TX_BATCH = 64  # frames handed to the wire at once
_MALFORMED = ("short_header", "runt", "csum_outside", "gso_malformed")


class Transmitter(Side):
    """One transmit queue.

    Args:
        card: the device.
        index: the queue's number.
        link: where frames go.

    Attributes:
        learn: told of every batch of frames that is sent, where somebody steers by it.
    """

    way = "tx"

    def __init__(self, card: VirtioDevice, index: int, link: Link) -> None:
        super().__init__(card, index)
        self.learn: Callable[[Sequence[Frame]], None] | None = None
        self._link = link
        self._stalled: tuple[list[Frame], list[Chain]] | None = None  # taken from the queue; the wire is full

    def open(self, queue: DeviceQueue | None) -> None:
        super().open(queue)
        if self._stalled is not None:
            self.drop("queue_stopped", len(self._stalled[0]))
            self._stalled = None

    def run(self) -> None:
        """Send what the driver offers, until the queue is empty, the wire is full or others deserve a turn."""
        queue = self.queue
        if queue is None or self._stalled is not None:
            return
        try:
            queue.disable_kicks()
            for _ in range(max(1, queue.size // TX_BATCH)):
                if not self._send_batch(queue):
                    break
            if self._stalled is None and queue.enable_kicks():
                self.again()
        except QueueError as error:
            self.fail(error)

    def writable(self) -> None:
        """The wire has room again."""
        queue, stalled = self.queue, self._stalled
        if queue is None or stalled is None:
            return
        self._stalled = None
        self._send(queue, *stalled)
        if self._stalled is None:
            self.again()

    def _send_batch(self, queue: DeviceQueue) -> bool:
        """Send up to TX_BATCH frames; whether there may be more."""
        frames: list[Frame] = []
        chains: list[Chain] = []
        try:
            for _ in range(TX_BATCH):
                chain = queue.pop()
                if chain is None:
                    break
                if not chain.readable and chain.writable:
                    raise QueueError("a transmit buffer without device-readable descriptors (virtio 1.4 §5.1.9.2)")
                frame = self._outgoing(chain)
                if frame is None:
                    queue.push(chain.head, 0)
                else:
                    frames.append(frame)
                    chains.append(chain)
        finally:
            # What came before a broken chain is sent all the same.
            self._send(queue, frames, chains)
        return len(frames) == TX_BATCH and self._stalled is None

    def _outgoing(self, chain: Chain) -> Frame | None:
        """Header and frame of a transmitted chain, or None when it must be dropped, which is counted."""
        terms = self.terms
        length = chain.readable_length - terms.header_length
        if length < ETHERNET_HEADER:
            self._refuse("short_header" if length < 0 else "runt")
            return None
        header, views = split_header(chain.readable, terms.header_length)
        flags, gso_type = header[0], header[1]
        why = FROM_DRIVER.refuses(terms.features, header, length) if flags or gso_type else ""
        if not why and length > (FRAME_MAX if gso_type else terms.frame_max):
            why = "too_long"
        if why:
            self._refuse(why)
            return None
        if not flags & net.VIRTIO_NET_HDR_F_NEEDS_CSUM:
            return None, views
        # Of the flags only this one is the driver's to set (§5.1.9.2.1); what else it says vouches for nothing.
        return bytes((net.VIRTIO_NET_HDR_F_NEEDS_CSUM,)) + header[1 : net.NET_HEADER.size], views

    def _refuse(self, why: str) -> None:
        self.drop(why)
        if why in _MALFORMED:
            self.stats["malformed"] += 1

    def _send(self, queue: DeviceQueue, frames: list[Frame], chains: list[Chain]) -> None:
        """Hand frames to the wire and their chains back to the driver; keep those that the wire has no room for."""
        taken = 0
        if frames:
            if self.learn is not None:
                self.learn(frames)
            taken = self._link.transmit(frames)
            self._count(frames, chains, taken)
            for chain in chains[:taken]:
                queue.push(chain.head, 0)
            if taken < len(frames):
                self._stalled = (frames[taken:], chains[taken:])
                self._counters["tx_stalls"] += 1
        self.publish(queue, taken)

    def _count(self, frames: list[Frame], chains: list[Chain], taken: int) -> None:
        counters, stats = self._counters, self.stats
        sent = sum(chain.readable_length for chain in chains[:taken]) - taken * self.terms.header_length
        counters["tx_packets"] += taken
        counters["tx_bytes"] += sent
        stats["packets"] += taken
        stats["bytes"] += sent
        if self.terms.features & FROM_DRIVER.checksum:
            for (header, _), chain in zip(frames[:taken], chains, strict=False):
                if header is not None:
                    stats["needs_csum"] += 1
                    if header[1]:
                        stats["gso_packets"] += 1
                        stats["gso_bytes"] += chain.readable_length - self.terms.header_length
