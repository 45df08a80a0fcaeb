"""The virtio network device: moves frames between a wire and the guest's two queues.

Read first: virtio 1.4 §5.1.9.2 (transmission), §5.1.9.3 and §5.1.9.4 (reception), §5.1.4 (configuration).

Promises:
- A frame is never copied on its way out: the wire is handed views of guest RAM. On its way in it is read or copied
  once, straight into the posted buffers.
- A batch costs one used index, one interrupt and one call of the wire.
- `used.len` is the number of bytes written: 0 for transmitted buffers.
- A chain that breaks a rule of the ring stops its queue with DEVICE_NEEDS_RESET; a frame that cannot be sent or
  received is dropped and counted, and its buffer returned or kept for the next frame.
- While the wire is full, transmitted chains wait in the device; while the guest has no buffers, the wire keeps its
  frames (bounded there).

Sections: configuration, transmit, receive (frames that are handed over), receive (frames read from a descriptor).
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence

from hw.abi import virtio_net as net
from hw.abi.virtio import (
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_NOTIFICATION_DATA,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_RING_RESET,
    VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
    features,
)
from hw.virtio.device import VirtioDevice
from hw.virtio.offload import ETHERNET_HEADER, FROM_DRIVER, TO_DRIVER
from hw.virtio.queue import Chain, DeviceQueue, QueueError
from hw.virtio.vectors import gather, scatter, split_header
from hw.wire.finish import finished
from hw.wire.link import FRAME_MAX, HEADER_SIZE, Buffer, Frame, Link, Receiver, Views

RX, TX = net.RECEIVEQ1, net.TRANSMITQ1
VLAN_TAG = 4
TX_BATCH = 64  # frames handed to the wire at once
PULL_BUDGET = 64  # frames read from a descriptor before others get a turn
_NOT_NEGOTIATED = ("csum_not_negotiated", "gso_not_negotiated")
RECEIVE_FLAGS = net.VIRTIO_NET_HDR_F_NEEDS_CSUM | net.VIRTIO_NET_HDR_F_DATA_VALID

# What the device can do; all of it is offered unless options say otherwise.
OFFERED = features(
    net.VIRTIO_NET_F_MTU,
    net.VIRTIO_NET_F_MAC,
    net.VIRTIO_NET_F_MRG_RXBUF,
    net.VIRTIO_NET_F_STATUS,
    VIRTIO_RING_F_INDIRECT_DESC,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_F_VERSION_1,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_NOTIFICATION_DATA,
    VIRTIO_F_RING_RESET,
)


class VirtioNet(VirtioDevice, Receiver):
    """A network card plugged into `link`.

    Args:
        link: one end of a wire.
        mac: 6 bytes.
        mtu: the largest IP packet, offered as MTU; None offers no MTU.
        queue_sizes: largest sizes of the receive and the transmit queue.
        withhold: features of `OFFERED` that are not offered (a mask).
    """

    device_id = 1

    def __init__(
        self,
        link: Link,
        *,
        mac: bytes,
        mtu: int | None = 1500,
        queue_sizes: tuple[int, int] = (256, 128),
        withhold: int = 0,
    ) -> None:
        offered = OFFERED & ~withhold
        if mtu is None:
            offered &= ~(1 << net.VIRTIO_NET_F_MTU)
        super().__init__(offered, queue_sizes)
        self.link = link
        self.mac = mac
        self.mtu = mtu
        self.negotiated = 0
        self.header_length = net.header_length(0)
        self._mergeable = False
        self._frame_max = FRAME_MAX
        self._receive_max = FRAME_MAX
        self._receive_flags = 0
        self._running = False
        self._posted: deque[Chain] = deque()  # taken from the receive queue, not yet filled
        self._paused = False  # the wire holds frames back until buffers are posted
        self._stalled: tuple[list[Frame], list[Chain]] | None = None  # taken from the transmit queue; the wire is full
        self._overflow = memoryview(bytearray(FRAME_MAX))  # where the rest of a frame goes that no buffer can hold
        self._wire_header = memoryview(bytearray(HEADER_SIZE))  # the wire's header, when the driver's is longer
        self.link_up = link.carrier
        link.attach(self)

    # -- configuration (§5.1.4) --------------------------------------------------------------------------------------

    def config(self) -> bytes:
        """struct virtio_net_config."""
        status = net.VIRTIO_NET_S_LINK_UP if self.link_up else 0
        return struct.pack("<6sHHHIBBHI", self.mac, status, 1, self.mtu or 0, 0xFFFFFFFF, 0xFF, 0, 0, 0)

    def carrier_changed(self) -> None:
        """Somebody was plugged in or out at the far end of the wire."""
        self.set_link(self.link.carrier)

    def set_link(self, up: bool) -> None:
        """Plug or unplug the cable, as the guest sees it."""
        if up != self.link_up:
            self.link_up = up
            if self.transport is not None:
                self.transport.notify_config()

    def unplug(self) -> None:
        """Let go of the wire."""
        self.link.detach()

    def refuses(self, features: int) -> str | None:
        """A feature without what it needs (§5.1.3.1)."""
        for bit, alternatives in net.FEATURE_REQUIRES.items():
            if features >> bit & 1 and not any(
                all(features >> need & 1 for need in needs) for needs in alternatives
            ):
                names = " or ".join("+".join(net.FEATURE_NAMES[need] for need in needs) for needs in alternatives)
                return f"{net.FEATURE_NAMES[bit]} was accepted without {names}"
        return None

    def start(self, features: int) -> None:
        """DRIVER_OK."""
        self.negotiated = features
        self.header_length = net.header_length(features)
        self._mergeable = bool(features >> net.VIRTIO_NET_F_MRG_RXBUF & 1)
        limit = FRAME_MAX
        if features >> net.VIRTIO_NET_F_MTU & 1 and self.mtu is not None:
            limit = self.mtu + ETHERNET_HEADER + VLAN_TAG
        self._frame_max = limit
        # The largest frame that posted buffers must be able to take at once (§5.1.9.3.1).
        guest_csum = features >> net.VIRTIO_NET_F_GUEST_CSUM & 1
        self._receive_flags = RECEIVE_FLAGS if guest_csum else 0
        self._receive_max = FRAME_MAX if features & TO_DRIVER.segmentation else min(limit, FRAME_MAX)
        self._running = True
        for index in (RX, TX):
            if self.queues[index] is not None and self.transport is not None:
                self.transport.again(index)

    def reset(self) -> None:
        """Forget the driver and every buffer of its."""
        self._running = False
        self.negotiated = 0
        for index in (RX, TX):
            self.set_queue(index, None)
        if self._paused:
            # What the wire holds back was for this driver: let it come now, to be dropped, not to the next one.
            self._paused = False
            self.link.resume()

    def set_queue(self, index: int, queue: DeviceQueue | None) -> None:
        """A queue became ready or stopped."""
        super().set_queue(index, queue)
        if index == RX:
            self._posted.clear()
        elif self._stalled is not None:
            self.counters["tx_dropped_queue_stopped"] += len(self._stalled[0])
            self._stalled = None

    def kick(self, index: int) -> None:
        """Buffers are available on a queue."""
        if not self._running:
            return
        if index == TX:
            self._transmit()
        else:
            self._refilled()

    def _fail(self, index: int, error: QueueError) -> None:
        if self.transport is not None:
            self.transport.fail(index, str(error))

    def _interrupt(self, queue: DeviceQueue) -> None:
        if queue.flush() and self.transport is not None:
            self.transport.notify_used(queue.index)

    # -- transmit (§5.1.9.2) -----------------------------------------------------------------------------------------

    def _transmit(self) -> None:
        """Send what the driver offers, until the queue is empty, the wire is full or others deserve a turn."""
        queue = self.queues[TX]
        if queue is None or self._stalled is not None:
            return
        try:
            queue.disable_kicks()
            for _ in range(max(1, queue.size // TX_BATCH)):
                if not self._transmit_batch(queue):
                    break
            if self._stalled is None and queue.enable_kicks() and self.transport is not None:
                self.transport.again(TX)
        except QueueError as error:
            self._interrupt(queue)
            self._fail(TX, error)

    def _transmit_batch(self, queue: DeviceQueue) -> bool:
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
            if frames:
                self._send(queue, frames, chains)
        self._interrupt(queue)
        return len(frames) == TX_BATCH and self._stalled is None

    def _outgoing(self, chain: Chain) -> Frame | None:
        """Header and frame of a transmitted chain, or None when it must be dropped, which is counted."""
        length = chain.readable_length - self.header_length
        if length < 0:
            self.counters["tx_dropped_short_header"] += 1
            return None
        if length < ETHERNET_HEADER:
            self.counters["tx_dropped_runt"] += 1
            return None
        header, views = split_header(chain.readable, self.header_length)
        flags, gso_type = header[0], header[1]
        why = FROM_DRIVER.refuses(self.negotiated, header, length) if flags or gso_type else ""
        if not why and length > (FRAME_MAX if gso_type else self._frame_max):
            why = "too_long"
        if why:
            self.counters["tx_dropped_" + why] += 1
            return None
        if not flags & net.VIRTIO_NET_HDR_F_NEEDS_CSUM:
            return None, views
        # Of the flags only this one is the driver's to set (§5.1.9.2.1); what else it says vouches for nothing.
        return bytes((net.VIRTIO_NET_HDR_F_NEEDS_CSUM,)) + header[1 : net.NET_HEADER.size], views

    def _send(self, queue: DeviceQueue, frames: list[Frame], chains: list[Chain]) -> None:
        """Hand frames to the wire and their chains back to the driver; keep those that the wire has no room for."""
        taken = self.link.transmit(frames)
        counters = self.counters
        push = queue.push
        sent = 0
        for chain in chains[:taken]:
            sent += chain.readable_length
            push(chain.head, 0)
        counters["tx_packets"] += taken
        counters["tx_bytes"] += sent - taken * self.header_length
        if taken < len(frames):
            self._stalled = (frames[taken:], chains[taken:])
            counters["tx_stalls"] += 1

    def writable(self) -> None:
        """The wire has room again."""
        queue, stalled = self.queues[TX], self._stalled
        if queue is None or stalled is None:
            return
        self._stalled = None
        self._send(queue, *stalled)
        self._interrupt(queue)
        if self._stalled is None and self.transport is not None:
            self.transport.again(TX)

    # -- receive: frames that are handed over (§5.1.9.4) -------------------------------------------------------------

    def receive(self, frames: Sequence[Frame]) -> int:
        """Copy frames into posted buffers; how many were taken. Without a driver they are dropped and counted."""
        queue = self.queues[RX]
        if queue is None or not self._running:
            self.counters["rx_dropped_no_driver"] += len(frames)
            return len(frames)
        if not self.link_up:
            self.counters["rx_dropped_link_down"] += len(frames)
            return len(frames)
        taken = 0
        try:
            for header, views in frames:
                if not self._receive_one(queue, header, views):
                    self._wait_for_buffers(queue)
                    break
                taken += 1
        except QueueError as error:
            self._interrupt(queue)
            self._fail(RX, error)
            self.counters["rx_dropped_no_driver"] += len(frames) - taken
            return len(frames)
        self._interrupt(queue)
        return taken

    def _wait_for_buffers(self, queue: DeviceQueue) -> None:
        """Ask for a kick with the next buffers. If some came in the meantime, act as if kicked."""
        self._paused = True
        self.counters["rx_no_buffers"] += 1
        if queue.enable_kicks() and self.transport is not None:
            self.transport.again(RX)

    def _refilled(self) -> None:
        """Buffers were posted: let the wire go on if it was held back."""
        queue = self.queues[RX]
        if queue is None:
            return
        try:
            if not self._paused:
                queue.disable_kicks()
            elif queue.available():
                queue.disable_kicks()
                self._paused = False
                self.link.resume()
            # Otherwise the kick announced nothing: the next one is still needed.
        except QueueError as error:
            self._fail(RX, error)

    def _take(self, queue: DeviceQueue) -> Chain | None:
        """The next posted chain that can hold a header. Smaller ones go back unused."""
        while True:
            chain = self._posted.popleft() if self._posted else queue.pop()
            if chain is None:
                return None
            if not chain.writable:
                raise QueueError("a receive buffer without device-writable descriptors (virtio 1.4 §5.1.9.3)")
            if chain.writable_length >= self.header_length:
                return chain
            self.counters["rx_buffer_too_small"] += 1
            queue.push(chain.head, 0)

    def _gather(self, queue: DeviceQueue, need: int) -> list[Chain]:
        """Posted chains with room for `need` bytes, or for less when no more are there; several only if mergeable."""
        first = self._take(queue)
        if first is None:
            return []
        chains = [first]
        room = first.writable_length
        while self._mergeable and room < need:
            chain = self._take(queue)
            if chain is None:
                break
            chains.append(chain)
            room += chain.writable_length
        return chains

    def _receive_one(self, queue: DeviceQueue, header: Buffer | None, views: Views) -> bool:
        """Copy one frame into the guest; False when it has to wait for buffers."""
        length = 0
        for view in views:
            length += len(view)
        why = self._refuses_frame(header, length)
        if why in _NOT_NEGOTIATED:
            return self._receive_finished(queue, (header, views), why)
        if why:
            self.counters["rx_dropped_" + why] += 1
            return True
        need = self.header_length + length
        chains = self._gather(queue, need)
        if not chains:
            return False
        room = 0
        for chain in chains:
            room += chain.writable_length
        if room < need:
            self._posted.extendleft(reversed(chains))
            # With mergeable buffers more may come, unless all descriptors of the queue are here already.
            if self._mergeable and sum(chain.descriptors for chain in self._posted) < queue.size:
                return False
            self.counters["rx_dropped_too_long"] += 1
            return True
        source = [self._header(header, len(chains)), *views]
        if len(chains) == 1 and len(chains[0].writable) == 1:
            target, at = chains[0].writable[0], 0
            for view in source:
                target[at : at + len(view)] = view
                at += len(view)
        else:
            scatter(source, [view for chain in chains for view in chain.writable])
        self._complete(queue, chains, need)
        return True

    def _receive_finished(self, queue: DeviceQueue, frame: Frame, why: str) -> bool:
        """A frame that asks for more than the driver negotiated: what it asks for is done here."""
        frames = finished(frame)
        if not frames:
            self.counters["rx_dropped_" + why] += 1
            return True
        for count, (header, views) in enumerate(frames):
            if not self._receive_one(queue, header, views):
                if not count:
                    return False
                self.counters["rx_dropped_no_room"] += len(frames) - count
                break
        self.counters["rx_finished"] += 1
        return True

    def _refuses_frame(self, header: Buffer | None, length: int) -> str:
        """Why a frame from the wire cannot be given to this driver, or an empty string."""
        if length < ETHERNET_HEADER:
            return "runt"
        if header is None:
            return "too_long" if length > self._frame_max else ""
        if not header[1] and length > self._frame_max:
            return "too_long"
        return TO_DRIVER.refuses(self.negotiated, header, length)

    def _header(self, header: Buffer | None, num_buffers: int) -> bytes:
        """The header as the driver reads it: the wire's with `num_buffers`, as long as negotiated.

        Flags that the driver does not know of are zero, all of them without GUEST_CSUM (§5.1.9.4.1).
        """
        fields = net.ZERO_HEADER if header is None else bytes((header[0] & self._receive_flags,)) + header[1:]
        return (fields[: net.NUM_BUFFERS_OFFSET] + struct.pack("<H", num_buffers)).ljust(self.header_length, b"\0")

    def _complete(self, queue: DeviceQueue, chains: list[Chain], written: int) -> None:
        """Give filled chains back; `written` bytes, header included, were spread over them in order."""
        self.counters["rx_packets"] += 1
        self.counters["rx_bytes"] += written - self.header_length
        for chain in chains:
            part = min(written, chain.writable_length)
            queue.push(chain.head, part)
            written -= part

    # -- receive: frames read from a descriptor ----------------------------------------------------------------------

    def pull(self, link: Link) -> None:
        """Read frames straight into posted buffers: all there are, as far as buffers and the budget reach."""
        queue = self.queues[RX]
        if queue is None or not self._running or not self.link_up:
            super().pull(link)
            return
        try:
            for _ in range(PULL_BUDGET):
                chains = self._gather(queue, self.header_length + self._receive_max)
                if not chains:
                    link.pause()
                    self._wait_for_buffers(queue)
                    break
                if not self._pull_one(queue, link, chains):
                    break
        except QueueError as error:
            self._interrupt(queue)
            self._fail(RX, error)
            return
        self._interrupt(queue)

    def _pull_one(self, queue: DeviceQueue, link: Link, chains: list[Chain]) -> bool:
        """Read one frame into `chains`; False when the link has none. Chains that were not filled stay posted."""
        views: list[memoryview] = []
        room = 0
        for chain in chains:
            views += chain.writable
            room += chain.writable_length
        direct = link.header_size == self.header_length  # then the wire's header is read into its place, too
        target: Views = [*views] if direct else split_header(views, self.header_length)[1]
        if link.header_size and not direct:
            target.insert(0, self._wire_header)
        target.append(self._overflow)
        length = link.read_into(target)
        if length == 0:
            self._posted.extendleft(reversed(chains))
            return False
        written = length - link.header_size + self.header_length
        header = None if not link.header_size else gather(views if direct else [self._wire_header], HEADER_SIZE)
        why = "no_room" if written > room else self._refuses_frame(header, written - self.header_length)
        if why:
            self.counters["rx_dropped_" + why] += 1
            self._posted.extendleft(reversed(chains))
            return True
        filled, covered = 0, 0
        while covered < written:
            covered += chains[filled].writable_length
            filled += 1
        self._posted.extendleft(reversed(chains[filled:]))
        scatter([self._header(header, filled)], views)
        self._complete(queue, chains[:filled], written)
        return True
