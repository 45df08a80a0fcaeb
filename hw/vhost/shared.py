"""Guest RAM of another process, as a vhost-user front end shares it: regions, each a descriptor that is mapped here.

To the queues it is guest RAM like any other (`hw.memory.GuestMemory`): the same views, the same checks, the same hook.
A span that crosses from one region into another is no RAM.

Ring addresses come as addresses in the front end's process; `guest_address` makes guest-physical ones of them.
"""

from __future__ import annotations

import mmap
import os
from typing import NamedTuple

from hw.memory import Direction, FieldView, Format, GuestMemory, MemoryFault, ObservedView

ADDRESS_END = 1 << 64


class Region(NamedTuple):
    """What the front end says of one region; addresses and sizes in bytes."""

    guest: int
    size: int
    user: int
    offset: int  # of its first byte in the descriptor


class SharedMemory(GuestMemory):
    """The regions of a memory table.

    Args:
        regions: where they are.
        descriptors: one each; they stay the caller's.

    Raises ValueError for regions that cannot be, OSError where one cannot be mapped.
    """

    def __init__(self, regions: list[Region], descriptors: list[int]) -> None:
        if not regions or len(regions) != len(descriptors):
            raise ValueError(f"{len(regions)} regions came with {len(descriptors)} descriptors")
        self._init_hook()
        self._regions: list[tuple[int, int, memoryview]] = []
        self._users: list[tuple[int, int, int]] = []
        for region, fd in zip(regions, descriptors, strict=True):
            _check(region, os.fstat(fd).st_size)
            for start, end, _ in self._regions:
                if region.guest < end and start < region.guest + region.size:
                    raise ValueError(f"the region at {region.guest:#x} overlaps the one at {start:#x}")
            # The offset need not be one that mmap takes, so the descriptor is mapped from its beginning.
            whole = memoryview(mmap.mmap(fd, region.offset + region.size, mmap.MAP_SHARED))
            self._regions.append((region.guest, region.guest + region.size, whole[region.offset :]))
            self._users.append((region.user, region.user + region.size, region.guest - region.user))
        self.base = min(start for start, _, _ in self._regions)
        self.end = max(end for _, end, _ in self._regions)
        self.size = self.end - self.base

    def guest_address(self, user: int) -> int:
        """The guest-physical address of an address in the front end's process. Raises MemoryFault outside all."""
        for start, end, shift in self._users:
            if start <= user < end:
                return user + shift
        raise MemoryFault(user, 1, "a ring's user address")

    def contains(self, addr: int, length: int) -> bool:
        """Whether `length` bytes at `addr` all lie in one region."""
        return length >= 0 and any(start <= addr and addr + length <= end for start, end, _ in self._regions)

    def span(self, addr: int, length: int) -> memoryview:
        """The bytes at `addr`, writable. Raises MemoryFault when they do not all lie in one region."""
        return self._find(addr, length, "access")

    def _find(self, addr: int, length: int, what: str) -> memoryview:
        for start, end, view in self._regions:
            if start <= addr and addr + length <= end and length >= 0:
                return view[addr - start : addr - start + length]
        raise MemoryFault(addr, length, what)

    def dma(self, addr: int, length: int, direction: Direction, who: str = "device") -> memoryview:
        """The payload at `addr`, as `GuestMemory.dma`."""
        view = self._find(addr, length, "DMA " + direction)
        if self._hook is not None:
            self._hook.dma(who, addr, length, direction)
        return view

    def fields(self, addr: int, length: int, fmt: Format, who: str) -> FieldView:
        """`length` bytes at `addr` as cells, as `GuestMemory.fields`."""
        view = self.span(addr, length).cast(fmt)
        return view if self._hook is None else ObservedView(view, addr, view.itemsize, who, self._hook)


def _check(region: Region, there: int) -> None:
    """Raises ValueError for a region that wraps, has no bytes, or is longer than what its descriptor holds."""
    where = f"the region at {region.guest:#x}"
    if not region.size:
        raise ValueError(f"{where} has no bytes")
    if region.guest + region.size > ADDRESS_END or region.user + region.size > ADDRESS_END:
        raise ValueError(f"{where} of {region.size:#x} bytes wraps")
    if region.offset + region.size > there:
        raise ValueError(f"{where} ends at {region.offset + region.size:#x} of a descriptor of {there:#x} bytes")
