"""The stage of a demo: one machine with one small NIC on a cable, on the virtual clock, and a peer at the other end.

The queues have 8 entries, so that every one can be shown. The guest boots without an IP stack on its NIC: the only
frame that moves is the demo's.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from guest.drivers.virtio_net import VirtioNetDriver
from guest.kernel import Guest
from hw.abi.virtio_net import RECEIVEQ1, TRANSMITQ1
from hw.clock import MILLISECOND, VirtualClock
from hw.loop import Loop
from hw.machine import SLOT_BASE, Machine
from hw.wire.cable import cable
from hw.wire.link import Frame, Receiver, frame_bytes
from vring.demos.recorder import Recorder, Step, cut
from vring.view.names import FieldNames
from vring.view.rings import QueueSnapshot
from vring.view.snapshot import machine_queues

QUEUE_SIZE = 8
QUEUE_NAMES = {RECEIVEQ1: "rx", TRANSMITQ1: "tx"}


@dataclass(frozen=True, slots=True)
class Recording:
    """A demo that has been recorded.

    Attributes:
        title, intro: what it is about.
        first: the queue before the first step.
        steps: what happened.
        words: for each step key a title and a sentence.
    """

    title: str
    intro: str
    first: QueueSnapshot
    steps: list[Step]
    words: dict[str, tuple[str, str]]


class _Peer(Receiver):
    """The other end of the cable."""

    def __init__(self) -> None:
        self.heard: Callable[[bytes], None] | None = None

    def receive(self, frames: Sequence[Frame]) -> int:
        for frame in frames:
            if self.heard is not None:
                self.heard(frame_bytes(frame))
        return len(frames)


class Stage:
    """A booted guest and its peer.

    Args:
        queue: which queue is watched.
        seed: decides addresses.
    """

    def __init__(self, queue: int, seed: int) -> None:
        self.loop = Loop(VirtualClock())
        self.machine = Machine(self.loop, name="guest", memory_size=16 << 20, seed=seed)
        self._near, self._far = cable(self.loop)
        self._peer = _Peer()
        self._far.attach(self._peer)
        self.machine.add_virtio_net(self._near, options={"queue_size": QUEUE_SIZE})
        self.guest = Guest(self.machine.platform)
        self.machine.power_on(self.guest)
        self._queue = QUEUE_NAMES[queue]
        self.rng = random.Random(f"{seed}/demo")
        self.settle()

    def settle(self) -> None:
        """Run until nothing is left to do but timers that are far away."""
        self.loop.run(deadline=self.loop.clock.now() + MILLISECOND)

    def snapshot(self) -> QueueSnapshot:
        """The watched queue as it is now."""
        found = [each for each in machine_queues(self.machine, self.guest) if each.queue == self._queue]
        return next(each for each in found if isinstance(each, QueueSnapshot))

    def frame(self, source: bytes, target: bytes) -> bytes:
        """A frame of an EtherType for experiments (IEEE 802, 0x88B5) with a text in it."""
        text = f"frame {self.rng.randrange(1000):03d} on its way through a virtqueue"
        return target + source + b"\x88\xb5" + text.encode()

    def peer_mac(self) -> bytes:
        """The peer's address."""
        return b"\x02" + self.rng.randbytes(5)

    def send_from_peer(self, frame: bytes) -> None:
        """The peer puts `frame` on the cable."""
        self._far.transmit([(None, [frame])])

    @property
    def driver(self) -> VirtioNetDriver:
        """The guest's driver of the card."""
        (driver,) = self.guest.devices
        if not isinstance(driver, VirtioNetDriver):
            raise TypeError(f"the stage has a virtio card, not {driver!r}")
        return driver

    def record(self, action: Callable[[Recorder], None]) -> tuple[QueueSnapshot, list[Step]]:
        """Do `action` and run until it is over; the queue as it was before, and what happened."""
        first = self.snapshot()
        names = FieldNames()
        for each in machine_queues(self.machine, self.guest):
            prefix = "" if each.queue == self._queue else f"{each.queue} "
            names.add_split_ring(each.ring.addresses, each.ring.size, prefix)
        names.add_virtio_mmio(SLOT_BASE)
        recorder = Recorder(self.machine.memory, names, self.snapshot)
        self._peer.heard = lambda frame: recorder.note("wire", "the frame is on the wire", frame)
        self.machine.set_hook(recorder)
        try:
            action(recorder)
            self.settle()
        finally:
            self.machine.set_hook(None)
            self._peer.heard = None
        return first, cut(recorder.accesses)

    def close(self) -> None:
        """Switch everything off."""
        self.guest.close()
        self.machine.power_off()
        self.loop.close()
