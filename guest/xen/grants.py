"""The grant table: which pages of this domain another domain may reach.

Promises:
- An entry grants one whole page, which its caller has zeroed and shares with nothing else: what another domain may see
  of a page is all of it.
- An entry is ended only after a look whether it is in use. A page that the other domain still has mapped is
  **quarantined**: it is nobody's until its entry could be ended, which is tried again ever less often.
- The table is written and only its in-use bits are read; the list of free references is private.

Sections: `GrantPort` (what drivers use; a test can serve it from a real domain's devices), `GrantTable`,
`GrantedPages`.

Read: Xen's public `grant_table.h`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from guest.dma import PAGE, DmaError, DmaPool
from guest.platform import Cells, Memory
from guest.services import Timer, Timers
from hw.abi import xen_grant as abi

RETRY_FIRST = 100_000  # microseconds until a quarantined page is looked at again; each time twice as long
RETRY_MAX = 64_000_000

_IN_USE = abi.GTF_reading | abi.GTF_writing


class GrantError(Exception):
    """No reference is free."""


class GrantPort(Protocol):
    """Granting pages, wherever the table is."""

    def grant(self, domid: int, addr: int, readonly: bool = False) -> int:
        """Let `domid` reach the page at `addr`; the reference to tell it. Raises GrantError."""

    def retire(self, ref: int, release: Callable[[], None]) -> bool:
        """End a grant, now or once the other domain has let go; then call `release`. Whether it was now."""


class GrantTable:
    """The table of this domain.

    Args:
        memory: where its pages are.
        frames: their addresses, in order.
        timers: look after quarantined pages.

    Attributes:
        granted: references that are in use, those of quarantined pages included.
    """

    _cells: list[Cells]

    def __init__(self, memory: Memory, frames: Sequence[int], timers: Timers) -> None:
        self._memory = memory
        self._timers = timers
        self._frames: tuple[int, ...] = ()
        self._free: list[int] = []
        self._quarantine: dict[int, Callable[[], None]] = {}
        self._timer: Timer | None = None
        self._delay = RETRY_FIRST
        self.granted = 0
        self._use(frames)
        memory.on_reopen(self._reopen)

    def _use(self, frames: Sequence[int]) -> None:
        self._frames = tuple(frames)
        self._free = list(range(abi.GRANTS_PER_FRAME * len(frames) - 1, abi.GNTTAB_NR_RESERVED_ENTRIES - 1, -1))
        self._reopen()

    def _reopen(self) -> None:
        """Fetch the views again: the hook of guest RAM changed."""
        self._cells = [self._memory.fields(frame, PAGE, "I") for frame in self._frames]

    def grant(self, domid: int, addr: int, readonly: bool = False) -> int:
        """As `GrantPort.grant`; `domid` may write to the page unless `readonly`."""
        if not self._free:
            raise GrantError(f"all {abi.GRANTS_PER_FRAME * len(self._frames)} grant references are in use")
        ref = self._free.pop()
        frame, entry = divmod(ref, abi.GRANTS_PER_FRAME)
        cells = self._cells[frame]
        cells[2 * entry + 1] = addr // PAGE
        # The flags make the entry valid, and come last; they share a word with the domain.
        flags = abi.GTF_permit_access | (abi.GTF_readonly if readonly else 0)
        cells[2 * entry] = flags | domid << 16
        self.granted += 1
        return ref

    def end(self, ref: int) -> bool:
        """Take a grant back; False when the other domain has the page mapped, and nothing was changed.

        On another CPU Xen could map the page between the look and the store; there it takes a compare-and-exchange.
        """
        frame, entry = divmod(ref, abi.GRANTS_PER_FRAME)
        cells = self._cells[frame]
        if cells[2 * entry] & _IN_USE:
            return False
        cells[2 * entry] = 0
        cells[2 * entry + 1] = 0
        self._free.append(ref)
        self.granted -= 1
        return True

    @property
    def quarantined(self) -> int:
        """Pages that wait for the other domain to let go."""
        return len(self._quarantine)

    def retire(self, ref: int, release: Callable[[], None]) -> bool:
        """As `GrantPort.retire`."""
        if self.end(ref):
            release()
            return True
        self._quarantine[ref] = release
        if self._timer is None:
            self._delay = RETRY_FIRST
            self._timer = self._timers.after(self._delay, self._again)
        return False

    def retry(self) -> int:
        """Look again after all quarantined pages; how many remain."""
        for ref, release in list(self._quarantine.items()):
            if self.end(ref):
                del self._quarantine[ref]
                release()
        return len(self._quarantine)

    def _again(self) -> None:
        self._timer = None
        if self.retry():
            self._delay = min(2 * self._delay, RETRY_MAX)
            self._timer = self._timers.after(self._delay, self._again)

    def reset(self, frames: Sequence[int]) -> None:
        """After a resume: the table is empty, perhaps elsewhere, and no other domain has anything mapped."""
        self._use(frames)
        self.granted = 0
        quarantine, self._quarantine = self._quarantine, {}
        for release in quarantine.values():
            release()
        self.close()

    def close(self) -> None:
        """Look one last time after quarantined pages; those that stay are never used again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.retry()


class GrantedPages:
    """`count` zeroed pages, each granted to `domid`, from now until `close`.

    Attributes:
        addresses, views, refs: of each page, by its number.

    Raises DmaError when there is no memory, GrantError when no reference is free; nothing is kept then.
    """

    def __init__(self, grants: GrantPort, dma: DmaPool, count: int, domid: int, *, readonly: bool = False) -> None:
        self._grants = grants
        self._dma = dma
        self.addresses: list[int] = []
        self.views: list[memoryview] = []
        self.refs: list[int] = []
        try:
            for _ in range(count):
                addr = dma.alloc(PAGE)
                self.addresses.append(addr)
                self.views.append(dma.memory.span(addr, PAGE))
                self.refs.append(grants.grant(domid, addr, readonly))
        except (DmaError, GrantError):
            self.close()
            raise

    def close(self) -> int:
        """End all grants and free the pages; how many are quarantined."""
        addresses, refs = self.addresses, self.refs
        kept = 0
        for ref, addr in zip(refs, addresses, strict=False):
            kept += not self._grants.retire(ref, _Release(self._dma, addr))
        for addr in addresses[len(refs) :]:  # the one that could not be granted
            self._dma.free(addr)
        self.addresses, self.views, self.refs = [], [], []
        return kept

    def forget(self) -> None:
        """After a resume: the grants are gone; free the pages."""
        for addr in self.addresses:
            self._dma.free(addr)
        self.addresses, self.views, self.refs = [], [], []


class _Release:
    """Frees a page, once called."""

    __slots__ = ("_addr", "_dma")

    def __init__(self, dma: DmaPool, addr: int) -> None:
        self._dma = dma
        self._addr = addr

    def __call__(self) -> None:
        self._dma.free(self._addr)
