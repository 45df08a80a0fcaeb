"""A packed virtqueue read from a raw dump of guest memory, by the offsets of the standard and nothing else.

Source: virtio 1.4 §2.8.13 (descriptors), §2.8.14 (event suppression), §2.8.1 (what the marks mean). As decode.py does
for the split ring, this file knows neither the driver's half nor the device's.

A packed ring does not say where either side stands: that is in their heads. Whoever knows a place and its wrap counter
asks `lists_from` or `used_from` what lies there and beyond.

Promises: decoding reads and never writes, tells no hook, and takes any content.

Sections: `PackedDescriptor`, `Event`, `PackedRingState`, `decode_packed_ring`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from hw.abi import virtio_packed as abi
from hw.abi.virtio_ring import VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE
from vring.view.decode import RingAddresses, Spans, area_of

_DESC = struct.Struct("<QIHH")
_EVENT = struct.Struct("<HH")
_FLAG_NAMES = (
    (VRING_DESC_F_NEXT, "NEXT"),
    (VRING_DESC_F_WRITE, "WRITE"),
    (VRING_DESC_F_INDIRECT, "INDIRECT"),
    (1 << abi.VRING_PACKED_DESC_F_AVAIL, "AVAIL"),
    (1 << abi.VRING_PACKED_DESC_F_USED, "USED"),
)
_KNOWN = sum(bit for bit, _ in _FLAG_NAMES)
_EVENT_NAMES = ("ENABLE", "DISABLE", "DESC", "reserved")


class PackedDescriptor(NamedTuple):
    """One entry of the ring, §2.8.13."""

    addr: int
    len: int
    id: int
    flags: int

    @property
    def flag_names(self) -> str:
        """The flags as words, such as "NEXT AVAIL"; bits without a name in hex."""
        words = [name for bit, name in _FLAG_NAMES if self.flags & bit]
        rest = self.flags & ~_KNOWN
        return " ".join([*words, *([f"{rest:#x}"] if rest else [])])

    @property
    def marks(self) -> tuple[bool, bool]:
        """The bits AVAIL and USED: different when the driver wrote last, equal when the device did, or nobody yet."""
        return (
            bool(self.flags >> abi.VRING_PACKED_DESC_F_AVAIL & 1), bool(self.flags >> abi.VRING_PACKED_DESC_F_USED & 1),
        )  # fmt: skip


class Event(NamedTuple):
    """An event suppression structure, §2.8.14: `place` and `wrap` mean something with the flags DESC only."""

    place: int
    wrap: bool
    flags: int

    def __str__(self) -> str:
        name = _EVENT_NAMES[self.flags & 3]
        return f"{name} {self.place}/{int(self.wrap)}" if name == "DESC" else name


@dataclass(frozen=True, slots=True)
class PackedRingState:
    """What lies in the three areas of a queue with `size` entries."""

    size: int
    addresses: RingAddresses
    desc: tuple[PackedDescriptor, ...]
    driver_event: Event
    device_event: Event

    def is_available(self, at: int, wrap: bool) -> bool:
        """Whether entry `at` is marked as made available in a round with this wrap counter."""
        return self.desc[at].marks == (wrap, not wrap)

    def is_used(self, at: int, wrap: bool) -> bool:
        """Whether entry `at` is marked as used in a round with this wrap counter."""
        return self.desc[at].marks == (wrap, wrap)

    def step(self, at: int, wrap: bool, count: int) -> tuple[int, bool]:
        """The place and wrap counter `count` entries on."""
        at += count
        return (at - self.size, not wrap) if at >= self.size else (at, wrap)

    def lists_from(self, at: int, wrap: bool) -> list[list[int]]:
        """The lists that were made available from this place on, each as its entries; an unfinished one is left out."""
        lists: list[list[int]] = []
        entries: list[int] = []
        for _ in range(self.size):
            if not self.is_available(at, wrap):
                break
            entries.append(at)
            if not self.desc[at].flags & VRING_DESC_F_NEXT:
                lists.append(entries)
                entries = []
            at, wrap = self.step(at, wrap, 1)
        return lists

    def used_from(self, at: int, wrap: bool, counts: Mapping[int, int]) -> list[PackedDescriptor]:
        """What was used from this place on; `counts` says how many entries the list of each buffer id takes."""
        found = []
        seen = 0
        while seen < self.size and self.is_used(at, wrap):
            entry = self.desc[at]
            found.append(entry)
            count = max(1, counts.get(entry.id, 1))
            seen += count
            at, wrap = self.step(at, wrap, count)
        return found


def decode_packed_ring(
    memory: bytes | bytearray | memoryview | Spans, addresses: tuple[int, int, int], size: int, *, base: int = 0
) -> PackedRingState:
    """Decode the queue of `size` entries whose areas lie at `addresses` (ring, driver's event, device's event).

    Args:
        memory: a dump of guest RAM, or guest RAM itself.
        base: guest-physical address of the dump's first byte.

    Raises ValueError for a size that no queue has or an area that is not all in the dump, `MemoryFault` for an area
    outside guest RAM.
    """
    if not 0 < size <= abi.PACKED_QUEUE_SIZE_MAX:
        raise ValueError(f"a queue has 1 to {abi.PACKED_QUEUE_SIZE_MAX} entries, not {size}")
    places = RingAddresses(*addresses)
    ring = area_of(memory, base, places.desc, abi.packed_ring_size(size))
    events = []
    for addr in (places.driver, places.device):
        off_wrap, flags = _EVENT.unpack(area_of(memory, base, addr, abi.PACKED_EVENT_SIZE))
        wrap = bool(off_wrap >> abi.VRING_PACKED_EVENT_F_WRAP_CTR)
        events.append(Event(off_wrap & ~(1 << abi.VRING_PACKED_EVENT_F_WRAP_CTR), wrap, flags))
    return PackedRingState(
        size, places, tuple(PackedDescriptor(*entry) for entry in _DESC.iter_unpack(ring)), events[0], events[1]
    )


