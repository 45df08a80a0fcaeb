"""What the receive and the transmit side of a network card have in common: the terms, and when to interrupt.

Read first: virtio 1.4 §5.1.9.5.10 (notification coalescing), §5.1.9.5.11 (statistics).

Promises:
- A batch costs one used index and one interrupt at most.
- With coalescing, used buffers are published at once and announced when `max_packets` of them are there or the first is
  `max_usecs` old; where either is 0, at once.

Sections: `Terms`, `Side`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from hw.abi import virtio_net as net
from hw.clock import Timer
from hw.virtio.device import VirtioDevice
from hw.virtio.queue import DeviceQueue, QueueError
from hw.wire.link import FRAME_MAX


@dataclass(frozen=True, slots=True)
class Terms:
    """What was negotiated, as the data path needs it.

    Attributes:
        features: the negotiated mask.
        offloads: the same, less the receive offloads that the driver switched off (§5.1.9.5.9).
        header_length: bytes of the packet header.
        frame_max: bytes of the longest frame that is not a super-frame.
        receive_max: bytes of the longest frame that may have to be received.
        receive_flags: header flags that the driver understands.
    """

    features: int = 0
    offloads: int = 0
    header_length: int = net.header_length(0)
    frame_max: int = FRAME_MAX
    receive_max: int = FRAME_MAX
    receive_flags: int = 0

    @property
    def mergeable(self) -> bool:
        """Whether a frame may take several buffers."""
        return bool(self.features >> net.VIRTIO_NET_F_MRG_RXBUF & 1)

    @property
    def hash_report(self) -> bool:
        """Whether headers say a frame's hash."""
        return bool(self.features >> net.VIRTIO_NET_F_HASH_REPORT & 1)


class Coalescing(NamedTuple):
    """When to interrupt (§5.1.9.5.10)."""

    max_packets: int = 0
    max_usecs: int = 0

    @property
    def delays(self) -> bool:
        """Whether an interrupt is ever put off."""
        return bool(self.max_packets and self.max_usecs)


class Side:
    """One receive or transmit queue of a card, in the terms of the driver that runs.

    Args:
        card: the device, which has the transport.
        index: the queue's number.

    Attributes:
        queue: the queue, None while it is not ready.
        stats: what went through this queue: packets, bytes, drops, malformed, overruns, interrupts, and what the
            headers asked for.
    """

    way = ""  # "rx" or "tx", as counters begin

    def __init__(self, card: VirtioDevice, index: int) -> None:
        self.index = index
        self.queue: DeviceQueue | None = None
        self.terms = Terms()
        self.stats: Counter[str] = Counter()
        self.coalescing = Coalescing()
        self._card = card
        self._counters = card.counters
        self._unannounced = 0  # frames whose interrupt is put off
        self._timer: Timer | None = None

    def open(self, queue: DeviceQueue | None) -> None:
        """The queue became ready, or stopped (None)."""
        self.queue = queue
        self._unannounced = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def drop(self, reason: str, count: int = 1) -> None:
        """Count frames that go nowhere."""
        self._counters[f"{self.way}_dropped_{reason}"] += count
        self.stats["drops"] += count

    def again(self) -> None:
        """Ask for another turn with this queue."""
        if self._card.transport is not None:
            self._card.transport.again(self.index)

    def fail(self, error: QueueError) -> None:
        """The driver broke a rule of the ring: what is done already is announced, and the queue is stopped."""
        if self.queue is not None:
            self.publish(self.queue)
        if self._card.transport is not None:
            self._card.transport.fail(self.index, str(error))

    # -- interrupts ------------------------------------------------------------------------------------------------

    def publish(self, queue: DeviceQueue, frames: int = 0) -> None:
        """Show the driver what was used, `frames` of it, and interrupt it now or later."""
        if not queue.flush():
            return
        if self.coalescing.delays:
            self._unannounced += frames
            self._consider()
        else:
            self._interrupt()

    def coalesce(self, coalescing: Coalescing) -> None:
        """Other rules from now on; what waits is judged by them at once."""
        self.coalescing = coalescing
        if self._unannounced:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._consider()

    def _consider(self) -> None:
        rule = self.coalescing
        if not rule.delays or self._unannounced >= rule.max_packets:
            self._interrupt()
        elif self._timer is None and self._card.transport is not None:
            self._timer = self._card.transport.after(rule.max_usecs, self._interrupt)

    def _interrupt(self) -> None:
        self._unannounced = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._card.transport is not None:
            self.stats["interrupts"] += 1
            self._card.transport.notify_used(self.index)
