"""The driver half of the packed virtqueue (virtio 1.4 §2.8).

Promises:
- What the driver posted is remembered in private shadows (buffer ids, tokens, lengths, descriptors of each buffer);
  nothing of it is ever read back from memory that a device could have changed.
- A used descriptor's flags are read first, alone; its id and length once, and checked against the shadows before its
  token is handed back. What does not fit sets `broken` and is refused: no method raises for what a device wrote.
- A batch becomes visible with one store, of the flags of its first descriptor, when all others are complete (§2.8.6).

Descriptors are counted without end, those made available in `_next`, those seen used in `_used`: the place of number n
is n modulo the size, and its wrap counter says whether the number of rounds before it is even. The place and the wrap
counter that devices are told of, and tell, repeat after two rounds.

A device may run in another process: a fence stands before the store in `publish`, between it and the question whether
to kick, behind the load of flags that show a used descriptor, and inside `enable_interrupts` (§2.8.21.1.1, §2.8.21.3.1,
§2.8.22).

Read: §2.8.1 (wrap counters), §2.8.6 and §2.8.7 (lists), §2.8.8 (in order), §2.8.10 (suppression), §2.8.21, §2.8.22.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic

from guest.dma import DmaDirection, DmaPool
from guest.platform import Cells
from guest.ring.fence import make_fence
from guest.ring.ring import Element, Token, aligned
from hw.abi import virtio_packed as abi
from hw.abi.virtio import VIRTIO_F_IN_ORDER, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC
from hw.abi.virtio_ring import VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE

_WRITE = VRING_DESC_F_WRITE
_MARKS = (1 << abi.VRING_PACKED_DESC_F_AVAIL, 1 << abi.VRING_PACKED_DESC_F_USED)  # available, in even and odd rounds
_BOTH = _MARKS[0] | _MARKS[1]  # used: both bits in even rounds, none in odd ones

_ENABLE = abi.VRING_PACKED_EVENT_FLAG_ENABLE << 16
_DISABLE = abi.VRING_PACKED_EVENT_FLAG_DISABLE << 16
_AT_DESC = abi.VRING_PACKED_EVENT_FLAG_DESC << 16


class PackedRing(Generic[Token]):
    """One queue, as its driver sees it.

    Args:
        dma: where the areas come from; they are mapped for the device until `close`.
        index: the queue's number on its device, for messages.
        size: entries, up to 32768; need not be a power of two.
        features: the negotiated feature mask; EVENT_IDX, INDIRECT_DESC and IN_ORDER matter here.
        indirect_entries: longest chain that gets an indirect table of its own; 0 keeps no tables.

    Attributes:
        addresses: of the descriptor ring, the driver's and the device's event structure, to tell the device.
        broken: why the device is not believed any more, or None.

    Raises ValueError for a size that no packed queue can have, DmaError when there is no memory.
    """

    __slots__ = (
        "__weakref__", "_base", "_born", "_counts", "_device_event", "_dma", "_driver_event", "_event_idx", "_fence",
        "_first", "_free", "_halves", "_in_flight", "_indirect_entries", "_interrupts", "_kicked", "_mappings",
        "_next", "_order", "_published", "_quads", "_ready", "_shown", "_table_addr", "_tables", "_tokens", "_used",
        "_words", "_writable", "addresses", "broken", "index", "size",
    )

    _device_event: Cells
    _driver_event: Cells
    _halves: Cells
    _quads: Cells
    _tables: Cells
    _words: Cells

    def __init__(self, dma: DmaPool, index: int, size: int, features: int, *, indirect_entries: int = 0) -> None:
        if not 0 < size <= abi.PACKED_QUEUE_SIZE_MAX:
            raise ValueError(f"a packed queue cannot have {size} entries: 1 to 32768 are possible")
        self.index = index
        self.size = size
        self.broken: str | None = None
        self._event_idx = bool(features >> VIRTIO_RING_F_EVENT_IDX & 1)
        self._fence = make_fence()
        # A list may not be longer than the queue, indirect or not (§2.8.17, §2.8.19).
        self._indirect_entries = min(indirect_entries, size) if features >> VIRTIO_RING_F_INDIRECT_DESC & 1 else 0

        driver = aligned(abi.packed_ring_size(size))
        device = driver + aligned(abi.PACKED_EVENT_SIZE)
        tables = device + aligned(abi.PACKED_EVENT_SIZE)
        table_bytes = abi.PACKED_DESC_SIZE * self._indirect_entries * size
        self._dma = dma
        self._base = base = dma.alloc(tables + table_bytes)
        self.addresses = (base, base + driver, base + device)
        self._table_addr = base + tables
        self._mappings: list[tuple[int, int, DmaDirection]] = [
            (base, abi.packed_ring_size(size), "both"),
            (base + driver, abi.PACKED_EVENT_SIZE, "to-device"),
            (base + device, abi.PACKED_EVENT_SIZE, "from-device"),
        ]
        if table_bytes:
            self._mappings.append((base + tables, table_bytes, "to-device"))
        for addr, length, direction in self._mappings:
            dma.map(addr, length, direction)

        self._free = list(range(size - 1, -1, -1))  # buffer ids
        self._tokens: list[Token | None] = [None] * size  # by id: None is not in flight
        self._writable = [0] * size  # by id: bytes that the device may write
        self._counts = [0] * size  # by id: descriptors on the ring
        self._born = [0] * size  # by id: number of the first of them
        in_order = features >> VIRTIO_F_IN_ORDER & 1
        self._order: deque[int] | None = deque() if in_order else None  # ids, as made available
        self._ready: deque[tuple[Token, int]] = deque()  # used in one batch, and more than a reap wanted
        self._next = self._published = self._kicked = self._used = 0
        self._first: tuple[int, int] | None = None  # the cell of the flags that show what was added, and their value
        self._shown = 0  # chains added so far and not counted in `_in_flight`
        self._in_flight = 0
        self._interrupts = True
        self._reopen()
        dma.memory.on_reopen(self._reopen)

    def _reopen(self) -> None:
        """Fetch the views again: the hook of guest RAM changed."""
        fields = self._dma.memory.fields
        desc, driver, device = self.addresses
        length = abi.packed_ring_size(self.size)
        self._quads = fields(desc, length, "Q")
        self._words = fields(desc, length, "I")
        self._halves = fields(desc, length, "H")
        self._driver_event = fields(driver, abi.PACKED_EVENT_SIZE, "I")
        self._device_event = fields(device, abi.PACKED_EVENT_SIZE, "I")
        self._tables = fields(self._table_addr, abi.PACKED_DESC_SIZE * self._indirect_entries * self.size, "Q")

    def close(self) -> None:
        """Unmap and free the areas; the device must have been reset. Nothing can be added any more."""
        self.broken = self.broken or "closed"
        for addr, length, direction in self._mappings:
            self._dma.unmap(addr, length, direction)
        if self._mappings:
            self._dma.free(self._base)
        self._mappings = []

    # -- supplying buffers, §2.8.21 ------------------------------------------------------------------------------

    def add(self, out: Sequence[Element], in_: Sequence[Element], token: Token) -> bool:
        """Add a chain: `out` is read by the device, then `in_` is written by it; whether there was room.

        The device sees it after `publish`; `reap` gives `token` back. Raises ValueError for a chain that is
        empty or longer than the queue.
        """
        count = len(out) + len(in_)
        if not 0 < count <= self.size:
            raise ValueError(f"a chain of {count} elements cannot be put on a queue of {self.size}")
        free = self.room
        if self.broken is not None or not free or not self._free:
            return False
        if 1 < count <= self._indirect_entries:
            ident = self._free.pop()
            addr = self._table_addr + abi.PACKED_DESC_SIZE * ident * self._indirect_entries
            cell = 2 * ident * self._indirect_entries
            for at, (where, length) in enumerate((*out, *in_)):
                self._tables[cell] = where
                self._tables[cell + 1] = length | (_WRITE << 48 if at >= len(out) else 0)
                cell += 2
            self._remember(ident, 1, sum(length for _, length in in_), token)
            self._describe(addr, abi.PACKED_DESC_SIZE * count, ident, VRING_DESC_F_INDIRECT)
            return True
        if count > free:
            return False
        ident = self._free.pop()
        self._remember(ident, count, sum(length for _, length in in_), token)
        for at, (where, length) in enumerate((*out, *in_), 1):
            flags = _WRITE if at > len(out) else 0
            self._describe(where, length, ident, flags | (VRING_DESC_F_NEXT if at < count else 0))
        return True

    def _remember(self, ident: int, count: int, writable: int, token: Token) -> None:
        """Keep what the device must not be asked about."""
        self._tokens[ident] = token
        self._writable[ident] = writable
        self._counts[ident] = count
        self._born[ident] = self._next
        self._shown += 1
        if self._order is not None:
            self._order.append(ident)

    def _describe(self, addr: int, length: int, ident: int, flags: int) -> None:
        """Write the next descriptor; the flags of the first since `publish` wait for the next one."""
        rounds, at = divmod(self._next, self.size)
        flags |= _MARKS[rounds & 1]
        self._quads[2 * at] = addr
        if self._first is None:
            self._words[4 * at + 2] = length
            self._halves[8 * at + 6] = ident
            self._first = (8 * at + 7, flags)
        else:
            self._quads[2 * at + 1] = length | ident << 32 | flags << 48
        self._next += 1

    def post(self, buffers: Sequence[tuple[int, int, Token]], writable: bool) -> int:
        """Add chains of one element each, given as (address, length, token); how many there was room for."""
        if self.broken is not None:
            return 0
        free = self._free
        count = min(len(buffers), self.room, len(free))
        if not count:
            return 0
        tokens, limits, counts, born, order = self._tokens, self._writable, self._counts, self._born, self._order
        quads, size, number = self._quads, self.size, self._next
        rounds, at = divmod(number, size)
        flags = _MARKS[rounds & 1] | (_WRITE if writable else 0)
        for addr, length, token in buffers if count == len(buffers) else buffers[:count]:
            ident = free.pop()
            tokens[ident] = token
            limits[ident] = length if writable else 0
            counts[ident] = 1
            born[ident] = number
            if order is not None:
                order.append(ident)
            quads[2 * at] = addr
            if self._first is None:
                self._words[4 * at + 2] = length
                self._halves[8 * at + 6] = ident
                self._first = (8 * at + 7, flags)
            else:
                quads[2 * at + 1] = length | ident << 32 | flags << 48
            number += 1
            at += 1
            if at == size:
                at = 0
                flags ^= _BOTH
        self._next = number
        self._shown += count
        return count

    def publish(self) -> bool:
        """Show the device everything added so far, with one store of flags; whether there was anything."""
        if self._first is None:
            return False
        cell, flags = self._first
        self._fence()
        self._halves[cell] = flags
        self._first = None
        self._published = self._next
        self._in_flight += self._shown
        self._shown = 0
        return True

    def kick_needed(self) -> bool:
        """Whether the device wants to be notified of what was published since this was last asked (§2.8.10)."""
        new, old = self._published, self._kicked
        if new == old:
            return False
        self._kicked = new
        self._fence()
        event = self._device_event[0]
        wanted = event & 3 << 16
        if wanted == _AT_DESC and self._event_idx:
            rounds = 2 * self.size
            place = event & 0x7FFF if event & 0x8000 else (event & 0x7FFF) + self.size
            return (place - old) % rounds < new - old
        return wanted != _DISABLE

    @property
    def position(self) -> int:
        """What a notification that carries data says: the next place, and its wrap counter in bit 15 (§2.9)."""
        rounds, at = divmod(self._published, self.size)
        return at | (rounds + 1 & 1) << 15

    # -- receiving used buffers, §2.8.22 -------------------------------------------------------------------------

    def _is_used(self) -> bool:
        """Whether the next descriptor is marked as used in this round (§2.8.1)."""
        rounds, at = divmod(self._used, self.size)
        return self._halves[8 * at + 7] & _BOTH == (0 if rounds & 1 else _BOTH)

    def reap(self, budget: int) -> list[tuple[Token, int]]:
        """Take up to `budget` used buffers: their tokens and the bytes written to each.

        A device that returns what it does not have sets `broken`; what it returned before that is still given.
        """
        reaped: list[tuple[Token, int]] = []
        ready, order = self._ready, self._order
        while ready and len(reaped) < budget:
            reaped.append(ready.popleft())
        if self.broken is not None:
            return reaped
        size, halves, words, fence = self.size, self._halves, self._words, self._fence
        tokens, limits, counts, free = self._tokens, self._writable, self._counts, self._free
        rounds, at = divmod(self._used, size)
        mark = 0 if rounds & 1 else _BOTH
        while len(reaped) < budget:
            flags = halves[8 * at + 7]
            if flags & _BOTH != mark:
                break
            fence()
            ident = halves[8 * at + 6]
            token = tokens[ident] if ident < size else None
            if token is None or self._born[ident] >= self._published:
                self.broken = f"used.id {ident} is not in flight"
                break
            # Without WRITE in the flags the length is reserved (§2.8.4). Yet some devices never set it, QEMU's
            # among them, so the length is looked at wherever something could have been written.
            written = words[4 * at + 2] if flags & _WRITE or limits[ident] else 0
            if written > limits[ident]:
                self.broken = f"used.len {written} for buffer {ident}, which has {limits[ident]} writable bytes"
                break
            if order is not None:
                # The device named the last of a batch; what it skipped was used completely (§2.8.8).
                while (first := order.popleft()) != ident:
                    self._take_back(first, limits[first], reaped, budget)
                    at += counts[first]
                self._take_back(ident, written, reaped, budget)
            else:
                self._used += counts[ident]
                self._in_flight -= 1
                tokens[ident] = None
                free.append(ident)
                reaped.append((token, written))
            at += counts[ident]
            if at >= size:
                at -= size
                mark ^= _BOTH
        return reaped

    def _take_back(self, ident: int, written: int, reaped: list[tuple[Token, int]], budget: int) -> None:
        """Free a buffer's descriptors, and hand its token out now or, above the budget, with the next `reap`."""
        token = self._tokens[ident]
        self._tokens[ident] = None
        self._used += self._counts[ident]
        self._in_flight -= 1
        self._free.append(ident)
        if token is not None:
            (reaped if len(reaped) < budget else self._ready).append((token, written))

    def pending(self) -> bool:
        """Whether the device has used more than was reaped."""
        return bool(self._ready) or (self.broken is None and self._is_used())

    def detach(self) -> list[Token]:
        """Take back the tokens of everything in flight, after the device was reset; the ring is of no more use."""
        self.broken = self.broken or "detached"
        tokens = [token for token, _ in self._ready] + [token for token in self._tokens if token is not None]
        self._tokens = [None] * self.size
        self._ready.clear()
        return tokens

    # -- interrupts, §2.8.10 -------------------------------------------------------------------------------------

    def enable_interrupts(self, after: int = 1) -> bool:
        """Ask for an interrupt once `after` more buffers are used at the latest; True when some are already.

        What can be named is a descriptor: with longer chains than one the interrupt comes earlier. Without EVENT_IDX
        every used buffer interrupts. The caller that gets True polls again: this is the re-check that keeps a wake-up
        from being lost (§2.8.22).
        """
        self._interrupts = True
        if self._event_idx:
            rounds, at = divmod(self._used + after - 1, self.size)
            self._driver_event[0] = _AT_DESC | at | (0 if rounds & 1 else 0x8000)
        else:
            self._driver_event[0] = _ENABLE
        self._fence()
        return self.pending()

    def disable_interrupts(self) -> None:
        """Ask for no interrupts; one that comes all the same is to be borne."""
        if self._interrupts:
            self._interrupts = False
            self._driver_event[0] = _DISABLE

    # -- for people ----------------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """Descriptors that are free."""
        return self.size - (self._next - self._used)

    @property
    def in_flight(self) -> int:
        """Chains that the device has been shown and has not returned."""
        return self._in_flight

    def snapshot(self) -> dict[str, object]:
        """The shadows, by name, for views; nothing is read from memory. Indices are places; wraps are 1 or 0."""
        desc, driver, device = self.addresses
        avail_round, avail = divmod(self._published, self.size)
        used_round, used = divmod(self._used, self.size)
        return {
            "index": self.index,
            "size": self.size,
            "desc": desc,
            "driver": driver,
            "device": device,
            "avail_idx": avail,
            "avail_wrap": avail_round + 1 & 1,
            "last_used": used,
            "used_wrap": used_round + 1 & 1,
            "in_flight": self.in_flight,
            "free": self.room,
            "heads": [ident for ident, token in enumerate(self._tokens) if token is not None],
            "event_idx": self._event_idx,
            "in_order": self._order is not None,
            "indirect_entries": self._indirect_entries,
            "interrupts": self._interrupts,
            "broken": self.broken,
        }

    def __repr__(self) -> str:
        state = self.broken or f"{self.in_flight} in flight, {self.room} free"
        return f"<PackedRing {self.index} of {self.size}: avail {self._published}, used {self._used}, {state}>"
