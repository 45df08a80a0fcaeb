"""Memory that devices may reach: pages of guest RAM, and what is mapped for which direction.

Promises:
- Pages handed out are zeroed: a device never sees what was there before.
- A device may reach a span only between `map` and `unmap`, and only in the direction mapped; `allows` answers for it,
  so that a checker can catch a device (or a driver that told a wrong address).
- Pages are freed only when nothing in them is mapped.

Addresses are guest-physical; there is no translation between them and the device's (ACCESS_PLATFORM is not offered).
"""

from __future__ import annotations

from typing import Literal

from guest.platform import Memory

PAGE = 4096

DmaDirection = Literal["to-device", "from-device", "both"]


class DmaError(Exception):
    """The pool has no such room, or a mapping was used wrongly; the text says which and where."""


class DmaPool:
    """Pages between `start` and `end` of guest RAM, first fit, whole pages.

    Args:
        memory: guest RAM.
        start, end: guest-physical bounds, page-aligned.
    """

    def __init__(self, memory: Memory, start: int, end: int) -> None:
        if start % PAGE or end % PAGE or start >= end:
            raise DmaError(f"the pool from {start:#x} to {end:#x} is not made of whole pages")
        self.memory = memory
        self._free: list[tuple[int, int]] = [(start, end - start)]  # sorted by address, never adjacent
        self._allocated: dict[int, int] = {}
        self._mapped: dict[int, tuple[int, DmaDirection]] = {}
        self.size = end - start

    def alloc(self, length: int) -> int:
        """Zeroed pages for `length` bytes; their address. Raises DmaError when no such run of pages is free."""
        need = -(-length // PAGE) * PAGE
        for at, (addr, size) in enumerate(self._free):
            if size >= need > 0:
                if size == need:
                    del self._free[at]
                else:
                    self._free[at] = (addr + need, size - need)
                self._allocated[addr] = need
                self.memory.span(addr, need)[:] = bytes(need)
                return addr
        raise DmaError(f"no {need // PAGE} free pages in a row; {self.free_bytes // PAGE} pages are free in all")

    def free(self, addr: int) -> None:
        """Give back what `alloc` returned. Raises DmaError for another address, or while part of it is mapped."""
        size = self._allocated.get(addr)
        if size is None:
            raise DmaError(f"{addr:#x} was not allocated here")
        for mapped, (length, _) in self._mapped.items():
            if mapped < addr + size and addr < mapped + length:
                raise DmaError(f"{addr:#x} is freed while {mapped:#x}+{length:#x} is mapped for a device")
        del self._allocated[addr]
        spans = sorted([*self._free, (addr, size)])
        merged: list[tuple[int, int]] = []
        for start, length in spans:
            if merged and merged[-1][0] + merged[-1][1] == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + length)
            else:
                merged.append((start, length))
        self._free = merged

    def map(self, addr: int, length: int, direction: DmaDirection) -> int:
        """Let devices reach `length` bytes at `addr`; the address to tell them. Raises DmaError if mapped already."""
        if addr in self._mapped:
            raise DmaError(f"{addr:#x} is mapped already")
        self.memory.span(addr, length)  # it must be RAM
        self._mapped[addr] = (length, direction)
        return addr

    def unmap(self, addr: int, length: int, direction: DmaDirection) -> None:
        """End a mapping. Raises DmaError unless address, length and direction are those of the `map`."""
        if self._mapped.get(addr) != (length, direction):
            raise DmaError(f"{addr:#x}+{length:#x} {direction} is not what was mapped: {self._mapped.get(addr)}")
        del self._mapped[addr]

    def allows(self, addr: int, length: int, direction: Literal["to-device", "from-device"]) -> bool:
        """Whether a device may now transfer these bytes in this direction."""
        return any(
            start <= addr and addr + length <= start + size and way in (direction, "both")
            for start, (size, way) in self._mapped.items()
        )

    @property
    def free_bytes(self) -> int:
        """Bytes not handed out."""
        return sum(size for _, size in self._free)

    @property
    def mapped_bytes(self) -> int:
        """Bytes that devices may reach now."""
        return sum(length for length, _ in self._mapped.values())
