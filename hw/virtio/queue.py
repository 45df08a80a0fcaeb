"""What both formats of a virtqueue have in common in the device: chains, their checks, and use in order.

A device works with a `DeviceQueue` and does not see its format: `split.py` and `packed.py` each fill in how a chain is
found, how it is given back, and who wants to be notified.

Promises, whatever the driver writes into a ring:
- `pop` either returns a chain whose every view lies in guest RAM, or raises `QueueError` with the rule that was broken.
  It never loops, and touches nothing else.
- Each field that the driver can change is read once, checked, then used.
- `push` becomes visible only with `flush`: one store and one interrupt decision for a batch.
- With IN_ORDER chains are given back in the order in which they were taken, in whatever order the device pushes them:
  one that is early waits in here. Runs of chains without a device-writable part become one used entry (§2.7.9, §2.8.8);
  of others the driver has to be told the length.

Sections: `QueueError`, `Chain`, `DeviceQueue`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque

from hw.abi.virtio import (
    VIRTIO_F_IN_ORDER,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
)
from hw.abi.virtio_ring import DESC_SIZE
from hw.fence import make_fence
from hw.memory import FieldView, GuestMemory, MemoryFault

# A direct chain is as long as the queue at most. An indirect table may be longer: Linux makes such tables for small
# queues although §2.7.5.3.1 forbids it, so the device's own limit (§2.7.4.1) applies there.
INDIRECT_MAX = 1024
CHAIN_BYTES_MAX = 1 << 32


class QueueError(Exception):
    """The driver broke a rule of the ring; the text names the rule and the value."""


class Chain:
    """One buffer taken from the queue: views of its device-readable part, then of its device-writable part.

    Attributes:
        head: what the queue knows it by, to be given back with `push`: the index of its first descriptor, or in a
            packed queue its buffer id.
        readable, writable: views into guest RAM, in order, none of them empty.
        readable_length, writable_length: bytes in each part.
        descriptors: how many of the queue's own descriptors it takes; an indirect table is one.
    """

    __slots__ = ("descriptors", "head", "readable", "readable_length", "writable", "writable_length")

    def __init__(self, head: int) -> None:
        self.head = head
        self.readable: list[memoryview] = []
        self.writable: list[memoryview] = []
        self.readable_length = 0
        self.writable_length = 0
        self.descriptors = 0


class DeviceQueue(ABC):
    """The device's view of one virtqueue.

    Args:
        memory: guest RAM.
        index: the queue's number.
        size: entries.
        areas: guest-physical address and length of the descriptor, driver and device area, which have been checked.
        features: what was negotiated (a mask); INDIRECT_DESC, EVENT_IDX and IN_ORDER matter here.

    Attributes:
        desc, driver, device: addresses of the areas.
        in_flight: chains taken and not yet given back.
    """

    def __init__(
        self, memory: GuestMemory, index: int, size: int, areas: tuple[tuple[int, int], ...], features: int
    ) -> None:
        self.memory = memory
        self.index = index
        self.size = size
        (self.desc, _), (self.driver, _), (self.device, _) = areas
        self.indirect = bool(features >> VIRTIO_RING_F_INDIRECT_DESC & 1)
        self.event_idx = bool(features >> VIRTIO_RING_F_EVENT_IDX & 1)
        self.in_order = bool(features >> VIRTIO_F_IN_ORDER & 1)
        self.in_flight = 0
        self._order: deque[Chain] = deque()  # with IN_ORDER: taken and not yet given back, in order
        self._early: dict[int, int] = {}  # by head: pushed before its turn, and the bytes written
        self._areas = tuple((addr, addr + length) for addr, length in areas)
        self._low = min(low for low, _ in self._areas)
        self._high = max(high for _, high in self._areas)
        self._dma = memory.dma
        self._fence = make_fence()  # the driver may run in another process

    # -- what a format fills in --------------------------------------------------------------------------------------

    @abstractmethod
    def available(self) -> int:
        """How many chains can be taken at least. Raises QueueError when the driver offers more than it has."""

    @abstractmethod
    def pop(self) -> Chain | None:
        """Take the next available chain, or None. Raises QueueError for a chain that breaks a rule."""

    @abstractmethod
    def push(self, head: int, written: int) -> None:
        """Give a chain back: `written` is how many bytes of its writable part were written."""

    @abstractmethod
    def flush(self) -> bool:
        """Publish what was pushed; whether the driver wants an interrupt for it."""

    @abstractmethod
    def disable_kicks(self) -> None:
        """Tell the driver that no notification is needed."""

    @abstractmethod
    def enable_kicks(self) -> bool:
        """Ask for a notification with the next buffer; whether one came in the meantime, unannounced.

        Raises QueueError as `available` does.
        """

    @abstractmethod
    def resume(self, base: int) -> None:
        """Go on where another device left off, as vhost-user says it (SET_VRING_BASE)."""

    @property
    @abstractmethod
    def base(self) -> int:
        """Where another device would go on (GET_VRING_BASE)."""

    # -- use in order (§2.7.9, §2.8.8) -------------------------------------------------------------------------------

    def _due(self, head: int, written: int) -> list[tuple[Chain, int]]:
        """The chains that may be given back now that `head` was pushed, in order, with their lengths."""
        early, order = self._early, self._order
        early[head] = written
        due = []
        while order and order[0].head in early:
            chain = order.popleft()
            due.append((chain, early.pop(chain.head)))
        return due

    # -- buffers of a chain ------------------------------------------------------------------------------------------

    def _open_table(self, addr: int, length: int) -> tuple[FieldView, int]:
        """The indirect table at `addr`, and its number of entries (§2.7.5.3, §2.8.7)."""
        if not self.indirect:
            raise QueueError(
                "an indirect descriptor although INDIRECT_DESC was not negotiated (virtio 1.4 §2.7.5.3.1, §2.8.19)"
            )
        if not length or length % DESC_SIZE or length > INDIRECT_MAX * DESC_SIZE:
            raise QueueError(f"an indirect table of {length} bytes (virtio 1.4 §2.7.5.3, §2.8.7)")
        try:
            return self.memory.fields(addr, length, "Q", "device"), length // DESC_SIZE
        except MemoryFault as fault:
            raise QueueError(f"indirect table: {fault}") from None

    def _add(self, chain: Chain, addr: int, length: int, write: bool) -> None:
        """Append the buffer of one descriptor to its part of `chain`."""
        try:
            if write:
                end = addr + length
                if addr < self._high and end > self._low and self._hits_ring(addr, end):
                    raise QueueError(f"a device-writable buffer at {addr:#x} lies over the ring itself")
                chain.writable.append(self._dma(addr, length, "from-device"))
                chain.writable_length += length
            elif chain.writable_length:
                raise QueueError(
                    "a device-readable descriptor behind a device-writable one (virtio 1.4 §2.7.4.2, §2.8.17)"
                )
            else:
                chain.readable.append(self._dma(addr, length, "to-device"))
                chain.readable_length += length
        except MemoryFault as fault:
            raise QueueError(str(fault)) from None

    def _hits_ring(self, addr: int, end: int) -> bool:
        return any(addr < high and end > low for low, high in self._areas)


def why_not(memory: GuestMemory, areas: list[tuple[str, int, int, int]]) -> str | None:
    """Why a queue cannot have these areas, each a name, address, length and alignment; or None."""
    for name, addr, length, align in areas:
        if addr % align:
            return f"{name} at {addr:#x} is not aligned to {align} bytes"
        if not memory.contains(addr, length):
            return f"{name} at {addr:#x} does not lie in RAM"
    for at, (name, addr, length, _) in enumerate(areas):
        for other, other_addr, other_length, _ in areas[at + 1 :]:
            if addr < other_addr + other_length and other_addr < addr + length:
                return f"{name} at {addr:#x} overlaps the {other} at {other_addr:#x}"
    return None
