"""A driver that does what a test tells it, field by field: the guest's side of a ring without the guest's code.

It writes descriptors and indices straight into guest RAM with `struct`, from the layouts of virtio 1.4 §2.7, so it can
break every rule. It is for the device half; the guest's own driver has a scripted device of the same kind.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from hw.abi import virtio_mmio as reg
from hw.abi.virtio import VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED
from hw.abi.virtio_ring import VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE
from hw.machine import SLOT_BASE, SLOT_SIZE, Machine
from hw.memory import GuestMemory
from hw.virtio.split import SplitQueue
from tests.scripted_packed import ScriptedPackedRing

NEXT, WRITE, INDIRECT = VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_DESC_F_INDIRECT


class ScriptedRing:
    """The three areas of one queue at `base`, and a cursor for buffers behind them."""

    def __init__(self, memory: GuestMemory, base: int, size: int, start: int = 0) -> None:
        self.memory, self.size = memory, size
        self.desc = base
        self.driver = base + 16 * size
        self.device = -(-(self.driver + 6 + 2 * size) // 4) * 4
        self.end = -(-(self.device + 6 + 8 * size) // 4096) * 4096
        self.idx = start
        self.seen = start
        self.in_order = False
        self.order: list[int] = []  # heads that were offered and not seen used
        memory.span(base, self.end - base)[:] = bytes(self.end - base)
        self.put16(self.driver + 2, start)
        self.put16(self.device + 2, start)

    def put16(self, addr: int, value: int) -> None:
        self.memory.span(addr, 2)[:] = struct.pack("<H", value & 0xFFFF)

    def get16(self, addr: int) -> int:
        return int(struct.unpack("<H", self.memory.span(addr, 2))[0])

    def descriptor(self, index: int, addr: int, length: int, flags: int = 0, next: int = 0) -> None:
        """desc[index]"""
        self.memory.span(self.desc + 16 * index, 16)[:] = struct.pack("<QIHH", addr, length, flags, next)

    def chain(self, head: int, parts: Sequence[tuple[int, int, int]]) -> None:
        """Descriptors head, head+1, … for parts of (addr, length, flags), joined with NEXT."""
        for at, (addr, length, flags) in enumerate(parts):
            more = NEXT if at + 1 < len(parts) else 0
            self.descriptor(head + at, addr, length, flags | more, head + at + 1)

    def offer(self, *heads: int) -> None:
        """Put heads into the available ring and publish them with one index store."""
        self.order += heads
        for head in heads:
            self.put16(self.driver + 4 + 2 * (self.idx % self.size), head)
            self.idx = (self.idx + 1) & 0xFFFF
        self.put16(self.driver + 2, self.idx)

    @property
    def used_idx(self) -> int:
        return self.get16(self.device + 2)

    def used(self) -> list[tuple[int, int]]:
        """The used entries (id, len) that were not looked at before."""
        out = []
        while self.seen != self.used_idx:
            at = self.device + 4 + 8 * (self.seen % self.size)
            ident, length = struct.unpack("<II", self.memory.span(at, 8))
            batch = self.order.index(ident) if self.in_order else 0
            out += [(head, 0) for head in self.order[:batch]]  # whose last one stands for all
            out.append((ident, length))
            del self.order[: batch + 1]
            self.seen = (self.seen + batch + 1) & 0xFFFF
        return out

    def wants_kick(self, event_idx: int) -> bool:
        """Whether the device wants to be told of the next buffer."""
        if event_idx:
            return self.get16(self.device + 4 + 8 * self.size) == self.idx
        return self.get16(self.device) == 0

    def queue(self, features: int = 0, start: int = 0) -> SplitQueue:
        """The device half over this memory."""
        return SplitQueue(self.memory, 0, self.size, self.desc, self.driver, self.device, features, start)


class ScriptedDriver:
    """Drives slot `slot` of a machine through its registers; interrupts are counted, not handled."""

    halted = False

    def __init__(self, machine: Machine, slot: int = 0) -> None:
        self.machine, self.base = machine, SLOT_BASE + slot * SLOT_SIZE
        self.rings: dict[int, ScriptedRing | ScriptedPackedRing] = {}
        self.features = 0
        self.interrupts = 0
        if machine.cpu is None:
            machine.power_on(self)

    def interrupt(self, line: int) -> None:
        self.interrupts += 1
        self.write(reg.VIRTIO_MMIO_INTERRUPT_ACK, self.read(reg.VIRTIO_MMIO_INTERRUPT_STATUS))

    def run(self) -> bool:
        return False

    def next_deadline(self) -> int | None:
        return None

    def read(self, offset: int, size: int = 4) -> int:
        return self.machine.bus.read(self.base + offset, size)

    def write(self, offset: int, value: int, size: int = 4) -> None:
        self.machine.bus.write(self.base + offset, size, value)

    @property
    def status(self) -> int:
        return self.read(reg.VIRTIO_MMIO_STATUS)

    @status.setter
    def status(self, value: int) -> None:
        self.write(reg.VIRTIO_MMIO_STATUS, value)

    def offered(self) -> int:
        mask = 0
        for word in range(4):
            self.write(reg.VIRTIO_MMIO_DEVICE_FEATURES_SEL, word)
            mask |= self.read(reg.VIRTIO_MMIO_DEVICE_FEATURES) << 32 * word
        return mask

    def accept(self, features: int) -> bool:
        """Steps 1 to 6 of §3.1.1; whether FEATURES_OK stayed."""
        self.status = 0
        self.status = 1
        self.status = 3
        for word in range(max(2, (features.bit_length() + 31) // 32)):
            self.write(reg.VIRTIO_MMIO_DRIVER_FEATURES_SEL, word)
            self.write(reg.VIRTIO_MMIO_DRIVER_FEATURES, features >> 32 * word & 0xFFFFFFFF)
        self.status = 11
        self.features = features
        return bool(self.status & 8)

    def set_up(self, index: int, base: int, size: int) -> ScriptedRing | ScriptedPackedRing:
        """Make queue `index` ready at `base`, in the format that was accepted."""
        kind = ScriptedPackedRing if self.features >> VIRTIO_F_RING_PACKED & 1 else ScriptedRing
        ring = self.rings[index] = kind(self.machine.memory, base, size)
        ring.in_order = bool(self.features >> VIRTIO_F_IN_ORDER & 1)
        self.configure(index, size, ring.desc, ring.driver, ring.device)
        return ring

    def configure(self, index: int, size: int, desc: int, driver: int, device: int) -> bool:
        """Write the queue's registers; whether it became ready."""
        self.write(reg.VIRTIO_MMIO_QUEUE_SEL, index)
        self.write(reg.VIRTIO_MMIO_QUEUE_NUM, size)
        for low, addr in (
            (reg.VIRTIO_MMIO_QUEUE_DESC_LOW, desc),
            (reg.VIRTIO_MMIO_QUEUE_AVAIL_LOW, driver),
            (reg.VIRTIO_MMIO_QUEUE_USED_LOW, device),
        ):
            self.write(low, addr & 0xFFFFFFFF)
            self.write(low + 4, addr >> 32)
        self.write(reg.VIRTIO_MMIO_QUEUE_READY, 1)
        return bool(self.read(reg.VIRTIO_MMIO_QUEUE_READY))

    def start(self, features: int, size: int = 8) -> tuple[ScriptedRing | ScriptedPackedRing, ...]:
        """Negotiate, make both queues ready with `size` entries each, set DRIVER_OK; the rings."""
        if not self.accept(features):
            raise AssertionError(f"FEATURES_OK refused: {self.machine.nics[0].refusal}")
        rx, tx = self.set_up(0, 0x10000, size), self.set_up(1, 0x40000, size)
        self.status = 15
        self.settle()
        return rx, tx

    def kick(self, index: int) -> None:
        self.write(reg.VIRTIO_MMIO_QUEUE_NOTIFY, index)
        self.settle()

    def settle(self) -> None:
        """Let the machine do all that is due now."""
        for _ in range(1000):
            if not self.machine.loop.turn():
                return
        raise AssertionError("the machine is still busy after 1000 turns")
