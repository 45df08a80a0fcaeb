"""Grant tables: which pages a domain lets others reach, and what is in use of them. Version 1.

Promises:
- An entry of the table, which its owner may rewrite at any time, is loaded once as one 64-bit cell, checked, then used.
- Mapped stays mapped: as long as a mapping lives, the page it was made for is reached, whatever the entry says by then,
  and GTF_reading (and GTF_writing) stand in the entry.
- A use that is not allowed ends with a status and touches nothing.

Read first: Xen's public `grant_table.h`; XSA-396 and XSA-362 for what owners and users get wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from hw.abi import xen_grant as g
from hw.abi.xen import XEN_PAGE_SIZE
from hw.memory import Direction, FieldView, Format, GuestMemory, MemoryFault
from hw.xen.ports import GrantCopy, GrantError


class _Active:
    """A reference in use: the page it was for when its use began."""

    __slots__ = ("addr", "readers", "writers")

    def __init__(self, addr: int) -> None:
        self.addr = addr
        self.readers = 0
        self.writers = 0


class GrantTable:
    """The table of one domain: entries in its RAM, uses in the hypervisor's.

    Args:
        memory: the domain's RAM.
        frames: addresses of the table's pages, in order.
    """

    def __init__(self, memory: GuestMemory, frames: Sequence[int]) -> None:
        self.memory = memory
        self.frames = tuple(frames)
        self.size = len(self.frames) * g.GRANTS_PER_FRAME
        self._active: dict[int, _Active] = {}
        self._open()
        memory.on_reopen(self._open)

    def _open(self) -> None:
        fields = self.memory.fields
        self._entries: list[FieldView] = [fields(addr, XEN_PAGE_SIZE, "Q", "xen") for addr in self.frames]
        self._flags: list[FieldView] = [fields(addr, XEN_PAGE_SIZE, "H", "xen") for addr in self.frames]

    @property
    def in_use(self) -> int:
        """References that are mapped by somebody."""
        return len(self._active)

    def check(self, user: int, ref: int, *, write: bool) -> tuple[int, int]:
        """Whether domain `user` may reach the page behind `ref` now: a status and, if it may, the page's address."""
        if not 0 <= ref < self.size:
            return g.GNTST_bad_gntref, 0
        entry = self._entries[ref // g.GRANTS_PER_FRAME][ref % g.GRANTS_PER_FRAME]
        flags, domid, frame = entry & 0xFFFF, entry >> 16 & 0xFFFF, entry >> 32
        if flags & g.GTF_type_mask != g.GTF_permit_access or domid != user:
            return g.GNTST_general_error, 0
        if write and flags & g.GTF_readonly:
            return g.GNTST_general_error, 0
        active = self._active.get(ref)
        addr = frame * XEN_PAGE_SIZE if active is None else active.addr
        if not self.memory.contains(addr, XEN_PAGE_SIZE):
            return g.GNTST_bad_page, 0
        return g.GNTST_okay, addr

    def pin(self, user: int, ref: int, *, write: bool) -> int:
        """Begin a use of `ref`; the page's address. Raises GrantError."""
        status, addr = self.check(user, ref, write=write)
        if status != g.GNTST_okay:
            raise GrantError(status, f"grant {ref} to domain {user}")
        active = self._active.setdefault(ref, _Active(addr))
        active.readers += 1
        active.writers += write
        self._mark(ref, active)
        return addr

    def unpin(self, ref: int, *, write: bool) -> None:
        """End a use."""
        active = self._active[ref]
        active.readers -= 1
        active.writers -= write
        self._mark(ref, active)
        if not active.readers:
            del self._active[ref]

    def _mark(self, ref: int, active: _Active) -> None:
        """Let the entry say whether the page is read or written; the owner's own bits stay."""
        page, cell = ref // g.GRANTS_PER_FRAME, ref % g.GRANTS_PER_FRAME * (g.GRANT_ENTRY_SIZE // 2)
        flags = self._flags[page][cell]
        wanted = (g.GTF_reading if active.readers else 0) | (g.GTF_writing if active.writers else 0)
        wanted |= flags & ~(g.GTF_reading | g.GTF_writing)
        if wanted != flags:
            self._flags[page][cell] = wanted


class _MappedPage:
    """A page of another domain (`hw.xen.ports.GrantedPage`); `addr` is where it lies there."""

    __slots__ = ("_release", "_table", "addr", "ref")

    def __init__(self, table: GrantTable, ref: int, addr: int) -> None:
        self._table = table
        self.addr = addr
        self._release = False
        self.ref = ref

    def fields(self, fmt: Format) -> FieldView:
        return self._table.memory.fields(self.addr, XEN_PAGE_SIZE, fmt, "device")

    def span(self, offset: int, length: int, direction: Direction) -> memoryview:
        return self._table.memory.dma(self.addr + offset, length, direction)

    def on_reopen(self, reopen: Callable[[], None]) -> None:
        self._table.memory.on_reopen(reopen)

    def unmap(self) -> None:
        if not self._release:
            self._release = True
            self._table.unpin(self.ref, write=True)


class DomainGrants:
    """Grants as one domain uses them: those that other domains gave to it (`hw.xen.ports.GrantPort`).

    Args:
        user: the domain that uses them.
        tables: the tables of all domains, by domain; one that leaves is taken out.
    """

    def __init__(self, user: int, tables: dict[int, GrantTable]) -> None:
        self.user = user
        self._tables = tables
        self.counters: Counter[str] = Counter()

    def map(self, domid: int, ref: int) -> _MappedPage:
        """Map a page for reading and writing. Raises GrantError."""
        table = self._tables.get(domid)
        if table is None:
            raise GrantError(g.GNTST_bad_domain, f"grant {ref} of domain {domid}")
        addr = table.pin(self.user, ref, write=True)
        self.counters["maps"] += 1
        return _MappedPage(table, ref, addr)

    def copy(self, domid: int, copies: Sequence[GrantCopy]) -> list[int]:
        """GNTTABOP_copy between own memory and pages of `domid`; a status for each."""
        self.counters["copies"] += len(copies)
        table = self._tables.get(domid)
        if table is None:
            return [g.GNTST_bad_domain] * len(copies)
        return [self._copy(table, each) for each in copies]

    def _copy(self, table: GrantTable, copy: GrantCopy) -> int:
        length = len(copy.view)
        if copy.offset < 0 or copy.offset + length > XEN_PAGE_SIZE:
            return g.GNTST_bad_copy_arg
        status, addr = table.check(self.user, copy.ref, write=copy.to_guest)
        if status != g.GNTST_okay:
            self.counters["copies_refused"] += 1
            return status
        try:
            page = table.memory.dma(
                addr + copy.offset, length, "from-device" if copy.to_guest else "to-device", "xen"
            )
        except MemoryFault:
            return g.GNTST_bad_page
        if copy.to_guest:
            page[:] = copy.view
        else:
            copy.view[:] = page
        return g.GNTST_okay
