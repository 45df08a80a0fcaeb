"""Guest RAM: one shared mapping, reached only through views that this file hands out.

Promises:
- An access outside RAM raises `MemoryFault` before anything is touched.
- Ring fields come from `fields()`: item access on 16-, 32- or 64-bit cells, each load and store a single one. Without a
  hook that is a plain cast memoryview (about 25 ns an access); with a hook it is an `ObservedView` with the same item
  access, which tells the hook of every load and store.
- Payload comes from `dma()` (device) or `span()` (guest): always a real memoryview, so that `readv`, `writev` and slice
  assignment take it.
- Setting or clearing `hook` makes every ring that asked for it (`on_reopen`) fetch its views again. That one seam
  serves recorder, debugger, protocol checker and fault injection, and costs nothing while it is off.
- The mapping is never closed by hand: the last view unmaps it.

A value is published with one item store through a cast view. `struct.pack_into` clears its target first, and a polling
peer would see the zero.
"""

from __future__ import annotations

import mmap
import os
import sys
import weakref
from collections.abc import Callable
from typing import Literal, Protocol

Format = Literal["B", "H", "I", "Q"]
Direction = Literal["to-device", "from-device"]

_SIZES = {"B": 1, "H": 2, "I": 4, "Q": 8}


class MemoryFault(Exception):
    """An access outside guest RAM: `addr` and `length` in bytes."""

    def __init__(self, addr: int, length: int, what: str) -> None:
        super().__init__(f"{what}: {length} bytes at {addr:#x} are not inside guest RAM")
        self.addr = addr
        self.length = length


class AccessHook:
    """What a hook may listen to; every method does nothing until it is overridden.

    `who` names the side ("driver", "device"), addresses are guest-physical, sizes are bytes.
    """

    def before_load(self, who: str, addr: int, size: int) -> None:
        """A field is about to be read; whatever is written now is what the reader sees."""

    def loaded(self, who: str, addr: int, size: int, value: int) -> None:
        """A field was read."""

    def stored(self, who: str, addr: int, size: int, old: int, new: int) -> None:
        """A field was written."""

    def dma(self, who: str, addr: int, length: int, direction: Direction) -> None:
        """A span of payload was opened for the device to read ("to-device") or write ("from-device")."""

    def register(self, who: str, op: str, addr: int, size: int, value: int) -> None:
        """A device register was read (`op` "read") or written ("write")."""

    def interrupt(self, line: int, level: bool) -> None:
        """An interrupt line changed its level."""

    def hypercall(self, who: str, name: str, argument: int, result: int) -> None:
        """A guest on Xen called its hypervisor; a result below 0 is an errno."""


class FieldView(Protocol):
    """Item access to cells of one width; both memoryview and `ObservedView` are one."""

    def __getitem__(self, index: int, /) -> int: ...
    def __setitem__(self, index: int, value: int, /) -> None: ...
    def __len__(self) -> int: ...


class ObservedView:
    """The cells of a cast memoryview, with every load and store told to a hook."""

    __slots__ = ("_addr", "_hook", "_size", "_view", "_who")

    def __init__(self, view: memoryview, addr: int, size: int, who: str, hook: AccessHook) -> None:
        self._view = view
        self._addr = addr
        self._size = size
        self._who = who
        self._hook = hook

    def __getitem__(self, index: int, /) -> int:
        addr = self._addr + index * self._size
        self._hook.before_load(self._who, addr, self._size)
        value: int = self._view[index]
        self._hook.loaded(self._who, addr, self._size, value)
        return value

    def __setitem__(self, index: int, value: int, /) -> None:
        old: int = self._view[index]
        self._view[index] = value
        self._hook.stored(self._who, self._addr + index * self._size, self._size, old, value)

    def __len__(self) -> int:
        return len(self._view)


class GuestMemory:
    """`size` bytes of RAM at guest-physical address `base`, on a memfd or on a descriptor that is handed in.

    Args:
        size: bytes, a multiple of the page size.
        base: guest-physical address of the first byte.
        fd: map this descriptor (shared with another process) instead of a memfd of its own.

    Raises ValueError for a size or base that is not page-aligned, OSError when the host cannot map it.
    """

    def __init__(self, size: int, *, base: int = 0, fd: int | None = None) -> None:
        if sys.byteorder != "little":
            raise OSError("guest RAM is shared by native item access, which needs a little-endian host")
        if size <= 0 or size % mmap.PAGESIZE or base % mmap.PAGESIZE:
            raise ValueError(f"RAM of {size} bytes at {base:#x} is not made of whole pages of {mmap.PAGESIZE} bytes")
        self.size = size
        self.base = base
        self.end = base + size
        if fd is None:
            self.fd = os.memfd_create("guest-ram", os.MFD_CLOEXEC)
            os.ftruncate(self.fd, size)
        else:
            self.fd = os.dup(fd)
        weakref.finalize(self, os.close, self.fd)
        self._ram = memoryview(mmap.mmap(self.fd, size, mmap.MAP_SHARED))
        self._init_hook()

    def _init_hook(self) -> None:
        self._hook: AccessHook | None = None
        self._reopeners: list[weakref.WeakMethod[Callable[[], None]]] = []

    # -- the hook ------------------------------------------------------------------------------------------------

    @property
    def hook(self) -> AccessHook | None:
        """Who is told of every access, or None. Setting it makes every ring fetch its views again."""
        return self._hook

    @hook.setter
    def hook(self, hook: AccessHook | None) -> None:
        self._hook = hook
        for reference in list(self._reopeners):
            reopen = reference()
            if reopen is not None:
                reopen()

    def on_reopen(self, reopen: Callable[[], None]) -> None:
        """Call the bound method `reopen` whenever the hook changes, for as long as its object lives."""
        self._reopeners.append(weakref.WeakMethod(reopen, self._reopeners.remove))

    # -- views ---------------------------------------------------------------------------------------------------

    def contains(self, addr: int, length: int) -> bool:
        """Whether `length` bytes at `addr` all lie in RAM."""
        return self.base <= addr and length >= 0 and addr + length <= self.end

    def span(self, addr: int, length: int) -> memoryview:
        """The bytes at `addr`, writable. Raises MemoryFault when they are not all RAM."""
        if addr < self.base or length < 0 or addr + length > self.end:
            raise MemoryFault(addr, length, "access")
        start = addr - self.base
        return self._ram[start : start + length]

    def dma(self, addr: int, length: int, direction: Direction, who: str = "device") -> memoryview:
        """The payload at `addr`, opened by `who` for a transfer in `direction`; told to the hook.

        Raises MemoryFault when the bytes are not all RAM.
        """
        if addr < self.base or length < 0 or addr + length > self.end:
            raise MemoryFault(addr, length, "DMA " + direction)
        if self._hook is not None:
            self._hook.dma(who, addr, length, direction)
        start = addr - self.base
        return self._ram[start : start + length]

    def fields(self, addr: int, length: int, fmt: Format, who: str) -> FieldView:
        """`length` bytes at `addr` as cells of format `fmt`, accessed by `who`.

        A cell is loaded and stored as one only where `addr` is a multiple of its size. Raises MemoryFault when the
        bytes are not all RAM, ValueError when `length` is not a multiple of the cell.
        """
        size = _SIZES[fmt]
        if length % size:
            raise ValueError(f"{length} bytes at {addr:#x} are no whole cells of {size} bytes")
        view = self.span(addr, length).cast(fmt)
        if self._hook is None:
            return view
        return ObservedView(view, addr, size, who, self._hook)

    def port(self, who: str, size: int | None = None) -> MemoryPort:
        """This RAM as one side sees it: `who` is told to the hook with every access.

        A `size` smaller than RAM leaves out the end of it, which can still be reached by who knows of it.
        """
        return MemoryPort(self, who, self.size if size is None else size)


class MemoryPort:
    """Guest RAM with the name of the accessing side filled in; what a guest's platform is handed."""

    __slots__ = ("_memory", "base", "on_reopen", "size", "span", "who")

    def __init__(self, memory: GuestMemory, who: str, size: int) -> None:
        self._memory = memory
        self.who = who
        self.base = memory.base
        self.size = size
        self.span = memory.span
        self.on_reopen = memory.on_reopen

    def fields(self, addr: int, length: int, fmt: Format) -> FieldView:
        """As `GuestMemory.fields`, for this side."""
        return self._memory.fields(addr, length, fmt, self.who)
