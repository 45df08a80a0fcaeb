"""Buffers of one size in memory that a device may reach, mapped for the life of their driver.

Promises:
- A buffer is in exactly one place: `free`, or with whoever took it (a ring, a packet).
- Pages go back to the DMA pool after `close` only when the last buffer has come back, so a packet that outlives its
  driver never shows somebody else's bytes.
"""

from __future__ import annotations

from typing import Literal

from guest.dma import PAGE, DmaPool


class BufferPool:
    """`count` buffers of `size` bytes, mapped in `direction`.

    Attributes:
        free: the indices of the buffers that nobody has, the last returned last.
        addresses, views: by index, the guest-physical address and the bytes of each buffer.

    Raises DmaError when there is no memory.
    """

    def __init__(self, dma: DmaPool, count: int, size: int, direction: Literal["to-device", "from-device"]) -> None:
        self.count = count
        self.size = size
        self._dma = dma
        self._direction = direction
        self._length = -(-count * size // PAGE) * PAGE
        self._base = dma.map(dma.alloc(self._length), self._length, direction)
        self._closed = False
        self.addresses = [self._base + at * size for at in range(count)]
        self.views = [dma.memory.span(addr, size) for addr in self.addresses]
        self.free = list(range(count - 1, -1, -1))

    def give_back(self, index: int) -> None:
        """Put buffer `index` back."""
        self.free.append(index)
        if self._closed and len(self.free) == self.count:
            self._dma.free(self._base)

    def close(self) -> None:
        """Let no device reach the buffers any more, and free their pages once all are back."""
        if not self._closed:
            self._closed = True
            self._dma.unmap(self._base, self._length, self._direction)
            if len(self.free) == self.count:
                self._dma.free(self._base)
