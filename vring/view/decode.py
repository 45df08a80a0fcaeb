"""A split virtqueue read from a raw dump of guest memory, by the offsets of the standard and nothing else.

Source: virtio 1.4 §2.7.5 (descriptors), §2.7.6 (available ring), §2.7.8 (used ring). This file knows neither the
driver's half nor the device's: it is the third witness, against which both are compared.

Promises: decoding reads and never writes, tells no hook, and takes any content; a ring that makes no sense decodes to
values that make no sense.

Sections: `Descriptor`, `SplitRingState`, `decode_split_ring`.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeAlias

from hw.abi import virtio_ring as abi

Owner: TypeAlias = Literal["driver", "device"]

_DESC = struct.Struct("<QIHH")
_USED = struct.Struct("<II")
_FLAG_NAMES = (
    (abi.VRING_DESC_F_NEXT, "NEXT"),
    (abi.VRING_DESC_F_WRITE, "WRITE"),
    (abi.VRING_DESC_F_INDIRECT, "INDIRECT"),
)


class Spans(Protocol):
    """Guest RAM that hands out its bytes (`hw.memory.GuestMemory` is one)."""

    def span(self, addr: int, length: int, /) -> memoryview: ...


class RingAddresses(NamedTuple):
    """Guest-physical addresses of the three areas: descriptor table, available ring, used ring."""

    desc: int
    driver: int
    device: int


class Descriptor(NamedTuple):
    """One entry of the descriptor table, §2.7.5."""

    addr: int
    len: int
    flags: int
    next: int

    @property
    def flag_names(self) -> str:
        """The flags as words, such as "NEXT WRITE"; bits without a name in hex."""
        words = [name for bit, name in _FLAG_NAMES if self.flags & bit]
        rest = self.flags & ~7
        return " ".join([*words, *([f"{rest:#x}"] if rest else [])])


class UsedElem(NamedTuple):
    """One entry of the used ring, §2.7.8: the chain's head, and the bytes that the device wrote."""

    id: int
    len: int


@dataclass(frozen=True, slots=True)
class SplitRingState:
    """What lies in the three areas of a queue with `size` entries. Indices run from 0 to 65535 and wrap."""

    size: int
    addresses: RingAddresses
    desc: tuple[Descriptor, ...]
    avail_flags: int
    avail_idx: int
    avail_ring: tuple[int, ...]
    used_event: int
    used_flags: int
    used_idx: int
    used_ring: tuple[UsedElem, ...]
    avail_event: int

    @property
    def pending(self) -> int:
        """How many chains the driver has made available and the device has not returned."""
        return (self.avail_idx - self.used_idx) & 0xFFFF

    def chain(self, head: int) -> list[int]:
        """The descriptors of the chain that starts at `head`, in order; it ends where the chain breaks or loops."""
        chain: list[int] = []
        while 0 <= head < self.size and head not in chain:
            chain.append(head)
            descriptor = self.desc[head]
            if not descriptor.flags & abi.VRING_DESC_F_NEXT:
                break
            head = descriptor.next
        return chain

    def in_flight(self) -> list[int]:
        """Heads of the chains that the device holds, in the order in which they were made available.

        Exact for a device that returns chains in order, and for any device until the ring has gone round once; after
        that a dump alone cannot tell, because the slots of the available ring are used again.
        """
        pending = self.pending
        if pending > self.size:
            return []
        window = min(self.size, self.avail_idx) if self.avail_idx >= self.used_idx else self.size
        window = max(window, pending)
        heads = [self.avail_ring[(self.avail_idx - back) % self.size] for back in range(window, 0, -1)]
        returned = Counter(
            self.used_ring[(self.used_idx - back) % self.size].id for back in range(window - pending, 0, -1)
        )
        held: list[int] = []
        for head in heads:
            if returned[head] > 0:
                returned[head] -= 1
            else:
                held.append(head)
        return held

    def owners(self) -> list[Owner]:
        """Who may touch each descriptor now: the device from being made available until it is used."""
        owners: list[Owner] = ["driver"] * self.size
        for head in self.in_flight():
            for index in self.chain(head):
                owners[index] = "device"
        return owners


def area_of(memory: bytes | bytearray | memoryview | Spans, base: int, addr: int, length: int) -> bytes:
    """A copy of the bytes at `addr` in RAM, or in a dump that begins at `base`. Raises ValueError, MemoryFault."""
    if not isinstance(memory, bytes | bytearray | memoryview):
        return bytes(memory.span(addr, length))
    start = addr - base
    if start < 0 or start + length > len(memory):
        raise ValueError(f"{length} bytes at {addr:#x} are not all in the dump")
    return bytes(memory[start : start + length])


def decode_split_ring(
    memory: bytes | bytearray | memoryview | Spans, addresses: tuple[int, int, int], size: int, *, base: int = 0
) -> SplitRingState:
    """Decode the queue of `size` entries whose areas lie at `addresses` (descriptor table, available ring, used ring).

    Args:
        memory: a dump of guest RAM, or guest RAM itself.
        base: guest-physical address of the dump's first byte.

    Raises ValueError for a size that no queue has or an area that is not all in the dump, `MemoryFault` for an area
    outside guest RAM.
    """
    if not 0 < size <= abi.QUEUE_SIZE_MAX:
        raise ValueError(f"a queue has 1 to {abi.QUEUE_SIZE_MAX} entries, not {size}")
    places = RingAddresses(*addresses)
    desc = area_of(memory, base, places.desc, abi.desc_area_size(size))
    driver = area_of(memory, base, places.driver, abi.driver_area_size(size))
    device = area_of(memory, base, places.device, abi.device_area_size(size))
    avail = struct.unpack(f"<{3 + size}H", driver)
    used_flags, used_idx = struct.unpack_from("<HH", device)
    used = device[abi.RING_ENTRIES : abi.avail_event_offset(size)]
    (avail_event,) = struct.unpack_from("<H", device, abi.avail_event_offset(size))
    return SplitRingState(
        size=size,
        addresses=places,
        desc=tuple(Descriptor(*entry) for entry in _DESC.iter_unpack(desc)),
        avail_flags=avail[0],
        avail_idx=avail[1],
        avail_ring=avail[2 : 2 + size],
        used_event=avail[-1],
        used_flags=used_flags,
        used_idx=used_idx,
        used_ring=tuple(UsedElem(*entry) for entry in _USED.iter_unpack(used)),
        avail_event=avail_event,
    )
