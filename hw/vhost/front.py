"""The vhost-user front end: a network card whose rings are served by somebody else's process.

    guest driver ── registers, interrupt ── VirtioMmio ── VhostUserNet ── Unix socket, eventfds ── back end
                 └─ rings and buffers ──────── guest RAM (a memfd that both map) ──────────────┘

The machine does what QEMU does: registers, status, the configuration space and the control queue are here, the other
queues there. Our guest's driver runs unchanged over any back end: ours (`vring device`), DPDK's, a virtual switch's.

Promises:
- Only what the back end offers and what is told here can be negotiated. The control queue says how many pairs of queues
  are in use, and nothing else: what frames are let in is the back end's business.
- No packet passes through this process: a doorbell is a write to an eventfd, an interrupt comes from another.
- A back end that goes away takes the link down; when somebody listens there again, the card asks its driver for a reset
  (DEVICE_NEEDS_RESET), because nobody can say what of the queues was sent: a frame may be lost, and none comes twice.
- A back end that answers wrongly, or not within `ANSWER_TIMEOUT`, is treated as gone. Nothing it says raises after
  construction.

Read: the vhost-user protocol as QEMU documents it (docs/interop/vhost-user: message format, starting and stopping
rings, multiple queues); virtio 1.4 §5.1.4.

Sections: configuration, starting and stopping, doorbells and interrupts, losing the back end.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

from hw.abi import virtio_net as net
from hw.abi.virtio import (
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
    features,
)
from hw.clock import Timer
from hw.fence import has_fence
from hw.loop import Loop
from hw.memory import GuestMemory
from hw.vhost.messages import BackEnd, BackEndLost
from hw.virtio.net import OFFLOADED
from hw.virtio.net_ctrl import Card, ControlQueue
from hw.virtio.queue import DeviceQueue
from hw.wire.link import WireError

RETRY_EVERY = 500_000  # microseconds between attempts to reach a back end that is gone

# Features that the back end serves, where it offers them.
THEIRS = features(
    VIRTIO_RING_F_INDIRECT_DESC,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_F_VERSION_1,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_IN_ORDER,
    net.VIRTIO_NET_F_MRG_RXBUF,
    net.VIRTIO_NET_F_MQ,
) | OFFLOADED
# Features that are served here, whatever the back end is.
OURS = features(net.VIRTIO_NET_F_MAC, net.VIRTIO_NET_F_STATUS, net.VIRTIO_NET_F_MTU, net.VIRTIO_NET_F_CTRL_VQ)
CONTROL_SIZE = 64


class _Vring:
    """One queue that the back end serves: its two eventfds."""

    __slots__ = ("call", "kick")

    def __init__(self) -> None:
        self.kick = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.call = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


class VhostUserNet(Card):
    """A network card that the back end at `path` serves.

    Args:
        loop: the thread's loop, on the real clock.
        memory: guest RAM, which the back end maps.
        path: the Unix socket where the back end listens.
        mac: 6 bytes.
        mtu: the largest IP packet, offered as MTU; None offers no MTU.
        queue_sizes: largest sizes of each receive and each transmit queue.
        pairs: queue pairs; more than one bring the control queue along.
        control: whether there is a control queue.
        withhold: features that are not offered although they could be (a mask).

    Raises WireError where nobody listens, or where what listens is no back end that can be used; RuntimeError on the
    virtual clock.
    """

    device_id = 1

    def __init__(
        self,
        loop: Loop,
        memory: GuestMemory,
        path: str | Path,
        *,
        mac: bytes,
        mtu: int | None = 1500,
        queue_sizes: tuple[int, int] = (256, 128),
        pairs: int = 1,
        control: bool = False,
        withhold: int = 0,
    ) -> None:
        if not has_fence():
            raise WireError("a back end in another process needs vring's C extension, for its memory fences: "
                            "install vring again with a C compiler there")  # fmt: skip
        self.path = str(path)
        self.mtu = mtu
        self._loop = loop
        self._memory = memory
        self._vrings: dict[int, _Vring] = {}
        self._running = False  # DRIVER_OK
        self._in_use = 1  # pairs that are enabled
        self._retry: Timer | None = None
        self._closed = False
        self._back = self._connect()
        theirs = self._back.features & THEIRS
        if not theirs >> VIRTIO_F_VERSION_1 & 1:
            self._back.close()
            raise WireError(f"the back end at {self.path} does not offer VERSION_1")
        if pairs > 1 and (self._back.pairs < pairs or not theirs >> net.VIRTIO_NET_F_MQ & 1):
            there = self._back.pairs if theirs >> net.VIRTIO_NET_F_MQ & 1 else 1
            self._back.close()
            raise WireError(f"the back end at {self.path} serves {there} pairs of queues; {pairs} are asked for")
        offered = (theirs | OURS) & ~withhold
        if mtu is None:
            offered &= ~(1 << net.VIRTIO_NET_F_MTU)
        if pairs == 1:
            offered &= ~(1 << net.VIRTIO_NET_F_MQ)
        if not control:
            offered &= ~(1 << net.VIRTIO_NET_F_CTRL_VQ)
        super().__init__(offered, queue_sizes * pairs + (CONTROL_SIZE,) * control, pairs, mac)
        self.control = ControlQueue(self)
        self._watch()

    def _connect(self) -> BackEnd:
        try:
            return BackEnd(self.path)
        except OSError as error:
            raise WireError(
                f"no vhost-user back end answers at {self.path}: {error.strerror or error}; "
                f"start one, such as: vring device --socket {self.path} --wire user"
            ) from None

    # -- configuration (virtio 1.4 §5.1.4) -------------------------------------------------------------------------

    @property
    def link_up(self) -> bool:
        """Whether there is a back end."""
        return self._back.alive

    @property
    def mac(self) -> bytes:
        """The card's address, 6 bytes."""
        return self.filter.mac

    def config(self) -> bytes:
        """struct virtio_net_config."""
        status = net.VIRTIO_NET_S_LINK_UP if self.link_up else 0
        rest = (net.SPEED_UNKNOWN, net.DUPLEX_UNKNOWN, 0, 0, 0)
        return struct.pack("<6sHHHIBBHI", self.mac, status, self.pairs, self.mtu or 0, *rest)

    # -- starting and stopping -------------------------------------------------------------------------------------

    def start(self, features: int) -> None:
        """DRIVER_OK: hand RAM and the ready queues to the back end."""
        self.negotiated = features
        self._running = True
        self._in_use = 1
        if features >> net.VIRTIO_NET_F_CTRL_VQ & 1:
            self.control.index = net.control_queue(self.pairs if features >> net.VIRTIO_NET_F_MQ & 1 else 1)
            self.control.queue = self.queues[self.control.index]
        self._guarded(self._hand_over)

    def _hand_over(self) -> None:
        back = self._back
        back.set_features(self.negotiated & THEIRS)
        back.set_memory(self._memory)
        for index, queue in enumerate(self.queues):
            if queue is not None and index != self.control.index:
                self._start_vring(index, queue)

    def use_pairs(self, pairs: int) -> None:
        """Have the back end serve the first `pairs` and no other (virtio 1.4 §5.1.9.5.6)."""
        self._in_use = pairs
        self._guarded(self._enable_vrings)

    def _enable_vrings(self) -> None:
        for index in self._vrings:
            self._back.enable_vring(index, index < 2 * self._in_use)

    def _start_vring(self, index: int, queue: DeviceQueue) -> None:
        vring = self._vrings[index] = _Vring()
        self._back.start_vring(
            index, queue.size, (queue.desc, queue.driver, queue.device), self.negotiated, vring.kick, vring.call
        )
        if index < 2 * self._in_use:
            self._back.enable_vring(index, True)
        self._loop.set_reader(vring.call, lambda: self._called(index, vring.call))
        os.eventfd_write(vring.kick, 1)  # what was made available before the back end looked

    def _stop_vring(self, index: int) -> None:
        """Take a queue back: when this returns, the back end touches nothing of it any more (virtio 1.4 §2.4)."""
        vring = self._vrings.pop(index, None)
        if vring is None:
            return
        if self._back.alive:
            self._guarded(lambda: self._back.stop_vring(index))
        self._loop.forget(vring.call)
        os.close(vring.call)
        os.close(vring.kick)

    def set_queue(self, index: int, queue: DeviceQueue | None) -> None:
        """A queue became ready or stopped."""
        self._stop_vring(index)
        super().set_queue(index, queue)
        if index == self.control.index:
            self.control.queue = queue
        elif queue is not None and self._running and self._back.alive:
            self._guarded(lambda: self._start_vring(index, queue))

    def reset(self) -> None:
        """Take all queues back."""
        self._running = False
        self.negotiated = 0
        self.control.reset()
        for index in range(len(self.queues)):
            self.set_queue(index, None)

    # -- doorbells and interrupts ----------------------------------------------------------------------------------

    def kick(self, index: int) -> None:
        """Buffers are available on a queue."""
        if index == self.control.index:
            self.control.run()
        vring = self._vrings.get(index)
        if vring is not None:
            os.eventfd_write(vring.kick, 1)

    def _called(self, queue: int, call: int) -> None:
        try:
            os.eventfd_read(call)
        except BlockingIOError:
            return
        if self.transport is not None:
            self.transport.notify_used(queue)

    # -- losing the back end, and finding it again -----------------------------------------------------------------

    def _watch(self) -> None:
        self._loop.set_reader(self._back.fileno(), self._heard)

    def _heard(self) -> None:
        """The back end says something unasked, which none has leave to, or is gone."""
        self._lost("the back end closed the connection")

    def _guarded(self, talk: Callable[[], None]) -> None:
        try:
            talk()
        except (BackEndLost, OSError) as error:
            self._lost(str(error))

    def _lost(self, why: str) -> None:
        if not self._back.alive:
            return
        self.counters["back_end_lost"] += 1
        self.lost_because = why
        self._loop.forget(self._back.fileno())
        self._back.close()
        for index in list(self._vrings):
            self._stop_vring(index)
        if self.transport is not None:
            self.transport.notify_config()  # the link is down
        self._try_later()

    def _try_later(self) -> None:
        if not self._closed:
            self._retry = self._loop.clock.after(RETRY_EVERY, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        try:
            back = self._connect()
        except WireError:
            self._try_later()
            return
        if self.features & ~OURS & ~back.features or back.pairs < self.pairs:
            back.close()
            self.counters["back_end_refused"] += 1  # it offers less than what the driver was promised
            self._try_later()
            return
        self._back = back
        self._watch()
        self.counters["back_end_found"] += 1
        if self.transport is None:
            return
        if self._running:
            self.transport.fail(0, "the back end was lost, and is there again")
        else:
            self.transport.notify_config()

    def unplug(self) -> None:
        """Take the queues back and hang up. Harmless when done."""
        if self._closed:
            return
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        self.reset()
        if self._back.alive:
            self._loop.forget(self._back.fileno())
            self._back.close()
