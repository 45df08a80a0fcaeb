"""The MMIO bus: decodes a physical address to a device's register.

Promises: an access that hits no device reads as all ones and writes nothing, and is counted, as on real buses. Devices
see offsets from their own base.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Protocol

from hw.memory import AccessHook


class MmioDevice(Protocol):
    """Something with registers. `size` of an access is 1, 2, 4 or 8 bytes."""

    def mmio_read(self, offset: int, size: int) -> int: ...
    def mmio_write(self, offset: int, size: int, value: int) -> None: ...


class Bus:
    """Windows of physical addresses, each with the device behind it."""

    def __init__(self) -> None:
        self._bases: list[int] = []
        self._windows: list[tuple[int, int, MmioDevice]] = []
        self.unmapped = 0
        self.hook: AccessHook | None = None

    def map(self, base: int, size: int, device: MmioDevice) -> None:
        """Put `device` at [base, base+size). Raises ValueError when another device is in the way or `size` is 0."""
        if base < 0 or size <= 0:
            raise ValueError(f"{base:#x}+{size:#x} is not a window")
        for other, length, _ in self._windows:
            if base < other + length and other < base + size:
                raise ValueError(f"the window {base:#x}+{size:#x} overlaps the one at {other:#x}")
        at = bisect_right(self._bases, base)
        self._bases.insert(at, base)
        self._windows.insert(at, (base, size, device))

    def _decode(self, addr: int, size: int) -> tuple[MmioDevice, int] | None:
        at = bisect_right(self._bases, addr) - 1
        if at >= 0:
            base, length, device = self._windows[at]
            if addr + size <= base + length:
                return device, addr - base
        self.unmapped += 1
        return None

    def read(self, addr: int, size: int) -> int:
        """The register at `addr`; all ones where there is no device."""
        target = self._decode(addr, size)
        value = (1 << 8 * size) - 1 if target is None else target[0].mmio_read(target[1], size)
        if self.hook is not None:
            self.hook.register("driver", "read", addr, size, value)
        return value

    def write(self, addr: int, size: int, value: int) -> None:
        """Write the low `size` bytes of `value` to the register at `addr`."""
        value &= (1 << 8 * size) - 1
        if self.hook is not None:
            self.hook.register("driver", "write", addr, size, value)
        target = self._decode(addr, size)
        if target is not None:
            target[0].mmio_write(target[1], size, value)
