"""The virtio network device: a card with one pair of queues or up to eight, and a control queue where it is offered.

    wire ── filter ── steering ── Receiving 1 … N ── receive queues
    wire ── Transmitter 1 … N ── transmit queues
    filter, steering, offloads, coalescing, statistics ── ControlQueue ── control queue

Read first: virtio 1.4 §5.1.2 (queues), §5.1.3 (features), §5.1.4 (configuration), §5.1.9 (operation). What happens to a
frame is in net_tx.py and net_rx.py, what the driver may ask for in net_ctrl.py.

Promises:
- A batch costs one used index, one interrupt and one call of the wire, for each queue that it touches.
- A chain that breaks a rule of the ring stops its queue with DEVICE_NEEDS_RESET; a frame that cannot be sent or
  received is dropped and counted, and its buffer returned or kept for the next frame.
- One pair without filter and hash costs nothing for what it does not use: frames are read straight into its buffers.
- STANDBY is not offered: there is no primary device here to stand by for.

Sections: configuration, negotiation, queues, receive, what the control queue changes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

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
from hw.virtio.net_ctrl import Card, ControlQueue, Refused
from hw.virtio.net_rx import PULL_BUDGET, Receiving
from hw.virtio.net_side import Side, Terms
from hw.virtio.net_tx import Transmitter
from hw.virtio.offload import ETHERNET_HEADER, TO_DRIVER
from hw.virtio.queue import DeviceQueue, QueueError
from hw.virtio.steering import HASH_TYPES, KEY_MAX, NOT_HASHED, TABLE_MAX, Rss, peek
from hw.wire.link import FRAME_MAX, Frame, Link, Receiver

PAIRS_MAX = 8
CONTROL_SIZE = 64
VLAN_TAG = 4
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
# Checksums and segmentation left to the other side, both ways.
OFFLOADED = features(
    net.VIRTIO_NET_F_CSUM,
    net.VIRTIO_NET_F_GUEST_CSUM,
    net.VIRTIO_NET_F_GUEST_TSO4,
    net.VIRTIO_NET_F_GUEST_TSO6,
    net.VIRTIO_NET_F_GUEST_ECN,
    net.VIRTIO_NET_F_HOST_TSO4,
    net.VIRTIO_NET_F_HOST_TSO6,
    net.VIRTIO_NET_F_HOST_ECN,
)
# The same of a card with a control queue.
CONTROLLED = features(
    net.VIRTIO_NET_F_CTRL_VQ,
    net.VIRTIO_NET_F_CTRL_RX,
    net.VIRTIO_NET_F_CTRL_RX_EXTRA,
    net.VIRTIO_NET_F_CTRL_VLAN,
    net.VIRTIO_NET_F_CTRL_MAC_ADDR,
    net.VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
    net.VIRTIO_NET_F_GUEST_ANNOUNCE,
    net.VIRTIO_NET_F_NOTF_COAL,
    net.VIRTIO_NET_F_VQ_NOTF_COAL,
    net.VIRTIO_NET_F_DEVICE_STATS,
    net.VIRTIO_NET_F_HASH_REPORT,
    net.VIRTIO_NET_F_SPEED_DUPLEX,
)
STEERED = features(net.VIRTIO_NET_F_MQ, net.VIRTIO_NET_F_RSS)  # and of one with several pairs


class VirtioNet(Card, Receiver):
    """A network card plugged into `link`.

    Args:
        link: one end of a wire.
        mac: 6 bytes.
        mtu: the largest IP packet, offered as MTU; None offers no MTU.
        queue_sizes: largest sizes of each receive and each transmit queue.
        pairs: queue pairs, 1 to 8.
        control: whether there is a control queue. Without one, several pairs are those of a front end elsewhere, which
            has the control queue and says here which pairs it enabled (vhost-user).
        speed, duplex: Mbit/s and DUPLEX_*, as the configuration says them.
        withhold: features that are not offered (a mask).

    Attributes:
        receivers, transmitters: the sides of each pair.
        control: the control queue, which no driver has where there is none.
    """

    device_id = 1

    def __init__(
        self,
        link: Link,
        *,
        mac: bytes,
        mtu: int | None = 1500,
        queue_sizes: tuple[int, int] = (256, 128),
        pairs: int = 1,
        control: bool = False,
        speed: int = net.SPEED_UNKNOWN,
        duplex: int = net.DUPLEX_UNKNOWN,
        withhold: int = 0,
    ) -> None:
        offered = OFFERED | OFFLOADED
        if control:
            offered |= CONTROLLED | (STEERED if pairs > 1 else 0)
        elif pairs > 1:
            offered |= 1 << net.VIRTIO_NET_F_MQ
        if mtu is None:
            offered &= ~(1 << net.VIRTIO_NET_F_MTU)
        super().__init__(offered & ~withhold, queue_sizes * pairs + (CONTROL_SIZE,) * control, pairs, mac)
        self.link = link
        self.mtu = mtu
        self.speed, self.duplex = speed, duplex
        self.control = ControlQueue(self)
        self.receivers = [Receiving(self, 2 * pair, link, self.filter) for pair in range(pairs)]
        self.transmitters = [Transmitter(self, 2 * pair + 1, link) for pair in range(pairs)]
        self.link_up = link.carrier
        self._controlled = control
        self._announce = False
        self._running = False
        link.attach(self)

    @property
    def mac(self) -> bytes:
        """The address that it goes by, 6 bytes."""
        return self.filter.mac

    @property
    def sides(self) -> list[Side]:
        """Receive and transmit sides, by queue number."""
        return [side for pair in zip(self.receivers, self.transmitters, strict=True) for side in pair]

    # -- configuration (§5.1.4) --------------------------------------------------------------------------------------

    def config(self) -> bytes:
        """struct virtio_net_config."""
        status = net.VIRTIO_NET_S_LINK_UP if self.link_up else 0
        if self._announce:
            status |= net.VIRTIO_NET_S_ANNOUNCE
        return struct.pack(
            "<6sHHHIBBHI", self.filter.mac, status, self.pairs, self.mtu or 0, self.speed, self.duplex, KEY_MAX,
            TABLE_MAX, HASH_TYPES,
        )  # fmt: skip

    def carrier_changed(self) -> None:
        """Somebody was plugged in or out at the far end of the wire."""
        self.set_link(self.link.carrier)

    def set_link(self, up: bool) -> None:
        """Plug or unplug the cable, as the guest sees it."""
        if up != self.link_up:
            self.link_up = up
            self._tell()

    def announce(self) -> bool:
        """Ask the driver to tell its neighbours where it is (§5.1.9.5.4), as after a migration; whether it can."""
        if not self.negotiated >> net.VIRTIO_NET_F_GUEST_ANNOUNCE & 1:
            return False
        self._announce = True
        self._tell()
        return True

    def _tell(self) -> None:
        if self.transport is not None:
            self.transport.notify_config()

    def unplug(self) -> None:
        """Let go of the wire."""
        self.link.detach()

    # -- negotiation -------------------------------------------------------------------------------------------------

    def refuses(self, features: int) -> str | None:
        """A feature without what it needs (§5.1.3.1)."""
        if not self._controlled and self.pairs > 1:
            features |= 1 << net.VIRTIO_NET_F_CTRL_VQ  # the front end has it
        for bit, alternatives in net.FEATURE_REQUIRES.items():
            if features >> bit & 1 and not any(
                all(features >> need & 1 for need in needs) for needs in alternatives
            ):
                names = " or ".join("+".join(net.FEATURE_NAMES[need] for need in needs) for needs in alternatives)
                return f"{net.FEATURE_NAMES[bit]} was accepted without {names}"
        return None

    def start(self, features: int) -> None:
        """DRIVER_OK."""
        self._terms(features)
        self.steering.reset()
        if not self._controlled:
            self._count_pairs()
        self._running = True
        if self.transport is not None:
            for index, queue in enumerate(self.queues):
                if queue is not None:
                    self.transport.again(index)

    def _terms(self, features: int) -> None:
        """What was negotiated decides the header's length, what may be sent, and which queue is for control."""
        self.negotiated = features
        limit = FRAME_MAX
        if features >> net.VIRTIO_NET_F_MTU & 1 and self.mtu is not None:
            limit = self.mtu + ETHERNET_HEADER + VLAN_TAG
        self.filter.reset(features)
        if features >> net.VIRTIO_NET_F_CTRL_VQ & 1 and self._controlled:
            steered = features >> net.VIRTIO_NET_F_MQ & 1 or features >> net.VIRTIO_NET_F_RSS & 1
            self.control.index = net.control_queue(self.pairs if steered else 1)  # §5.1.2
            self.control.queue = self.queues[self.control.index]
        terms = Terms(features, features, net.header_length(features), limit)
        for side in self.sides:
            side.terms = terms
        self._set_offloads(features)

    def _set_offloads(self, offloads: int) -> None:
        # The largest frame that posted buffers must be able to take at once is of §5.1.9.3.1.
        flags = RECEIVE_FLAGS if offloads >> net.VIRTIO_NET_F_GUEST_CSUM & 1 else 0
        for side in self.receivers:
            most = FRAME_MAX if offloads & TO_DRIVER.segmentation else side.terms.frame_max
            side.terms = replace(side.terms, offloads=offloads, receive_max=most, receive_flags=flags)
        self.link.take_offloads(offloads)

    def reset(self) -> None:
        """Forget the driver and every buffer of its."""
        self._running = False
        self.control.reset()
        for index in range(len(self.queues)):
            self.set_queue(index, None)
        self.steering.reset()
        self._announce = False
        self._terms(0)
        self._teach()
        for side in self.receivers:
            side.let_go()

    # -- queues (§5.1.2) ---------------------------------------------------------------------------------------------

    def set_queue(self, index: int, queue: DeviceQueue | None) -> None:
        """A queue became ready or stopped."""
        super().set_queue(index, queue)
        if index == self.control.index:
            self.control.queue = queue
        elif index < 2 * self.pairs:
            side = (self.transmitters if index % 2 else self.receivers)[index // 2]
            side.open(queue)
            side.coalescing = self.control.coalescing_of(index)
            if not self._controlled and self._running:
                self._count_pairs()

    def _count_pairs(self) -> None:
        """Without a control queue of its own the card uses the pairs that are ready, from the first."""
        ready = [side.queue is not None for side in self.receivers]
        self.use_pairs(max(1, ready.index(False) if False in ready else self.pairs))

    def kick(self, index: int) -> None:
        """Buffers are available on a queue."""
        if not self._running:
            return
        if index == self.control.index:
            self.control.run()
        elif index < 2 * self.pairs:
            (self.transmitters if index % 2 else self.receivers)[index // 2].run()

    def writable(self) -> None:
        """The wire has room again."""
        for side in self.transmitters:
            side.writable()

    # -- receive -----------------------------------------------------------------------------------------------------

    @property
    def _looks(self) -> bool:
        """Whether a frame has to be looked at before it is known where it goes, or with what header."""
        return self.steering.looks or self.receivers[0].terms.hash_report

    def receive(self, frames: Sequence[Frame]) -> int:
        """Copy frames into posted buffers; how many were taken. Without a driver they are dropped and counted."""
        if not self._running or not self.link_up:
            self.receivers[0].drop("link_down" if self._running else "no_driver", len(frames))
            return len(frames)
        return self._receive_steered(frames) if self._looks else self.receivers[0].receive(frames)

    def _receive_steered(self, frames: Sequence[Frame]) -> int:
        taken = 0
        touched: dict[Receiving, int] = {}
        for frame in frames:
            side, hashed = self._choose(frame)
            if side is None or side.queue is None:
                taken += 1
                continue
            try:
                before = side.stats["packets"]
                if not side.receive_one(side.queue, frame, hashed):
                    side.wait()
                    break
                touched[side] = touched.get(side, 0) + side.stats["packets"] - before
            except QueueError as error:
                side.fail(error)
                side.drop("no_driver")
            taken += 1
        for side, count in touched.items():
            if side.queue is not None:
                side.publish(side.queue, count)
        return taken

    def _choose(self, frame: Frame) -> tuple[Receiving | None, tuple[int, int]]:
        """The receive side for a frame, and its hash; None where it is dropped, which is counted."""
        first = self.receivers[0]
        views = frame[1]
        why = first.refuses(views) if self.filter.active else ""
        if why:
            first.drop(why)
            return None, NOT_HASHED
        head = peek(views)
        hashed = self.steering.hash_of(head)
        side = self.receivers[self.steering.pair_of(head, hashed)]
        if side.queue is None and self.steering.rss is None:  # being reset: another will do (§5.1.9.5.6.2)
            side = next((other for other in self.receivers[: self.steering.pairs] if other.queue is not None), side)
        if side.queue is None:
            side.drop("queue_stopped")
            return None, NOT_HASHED
        return side, hashed

    def pull(self, link: Link) -> None:
        """Read frames from the link: straight into posted buffers where it is known beforehand which ones."""
        if not self._running or not self.link_up:
            super().pull(link)
        elif self._looks:
            self._pull_steered(link)
        elif self.receivers[0].queue is None:
            super().pull(link)
        else:
            self.receivers[0].pull()

    def _pull_steered(self, link: Link) -> None:
        """Frames are read before it is known where they go, so every queue must have room first."""
        scratch = memoryview(bytearray(link.header_size + FRAME_MAX))
        for _ in range(PULL_BUDGET):
            for side in self.receivers[: self.steering.pairs]:
                try:
                    if side.queue is not None and not side.has_buffer():
                        link.pause()
                        side.wait()
                        return
                except QueueError as error:
                    side.fail(error)
            length = link.read_into([scratch])
            if length == 0:
                return
            header = scratch[: link.header_size] if link.header_size else None
            if not self._receive_steered([(header, [scratch[link.header_size : length]])]):
                self.receivers[0].drop("no_room")

    # -- what the control queue changes ------------------------------------------------------------------------------

    def use_pairs(self, pairs: int) -> None:
        """Steer automatically over the first `pairs` (§5.1.9.5.6)."""
        self.steering.use_pairs(pairs)
        self._teach()

    def use_rss(self, rss: Rss, transmit: int) -> None:
        """Steer by a table (§5.1.9.5.7); the driver sends on `transmit` queues."""
        self.steering.use_rss(rss, max(*rss.table, rss.unclassified, transmit - 1) + 1)
        self._teach()

    def _teach(self) -> None:
        """Have what is sent teach the steering, as long as it steers by that."""
        learns = self.steering.pairs > 1 and self.steering.rss is None
        for pair, side in enumerate(self.transmitters):
            side.learn = partial(self.steering.learn, pair) if learns else None

    def set_offloads(self, offloads: int) -> None:
        """Receive offloads in force from now on (§5.1.9.5.9). Raises Refused for those that were not negotiated."""
        mask = TO_DRIVER.segmentation | TO_DRIVER.checksum | 1 << net.VIRTIO_NET_F_GUEST_ECN
        if offloads & ~(self.negotiated & mask):
            raise Refused(f"offloads {offloads & ~(self.negotiated & mask):#x} were not negotiated")
        self._set_offloads(self.negotiated & ~mask | offloads)

    def acknowledge_announce(self) -> None:
        """The driver has seen that it is to announce itself."""
        self._announce = False
