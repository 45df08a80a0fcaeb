"""The driver half of the split virtqueue (virtio 1.4 §2.7).

Promises:
- What the driver posted is remembered in private shadows (free descriptors, tokens, lengths, indices); nothing of it is
  ever read back from memory that a device could have changed.
- `used.idx` is read once a batch and each used element once; an element is checked against the shadows before its
  token is handed back. What does not fit sets `broken` and is refused: no method raises for what a device wrote.
- With IN_ORDER descriptors are taken in the order of the table (§2.7.5.2), and an entry that names the last buffer of a
  batch stands for all of it: what the device skipped counts as used completely (§2.7.9).
- Each index is published with a single store, and its 16-bit wrap is arithmetic in `need_event` and `& 0xFFFF` here.

A device may run in another process: a fence stands before `avail.idx` is stored, between that and the question whether
to kick, behind the load of `used.idx`, and inside `enable_interrupts` (§2.7.13.3.1, §2.7.13.4.1, §2.7.14).

Read: §2.7.5 (descriptors), §2.7.6 and §2.7.8 (rings), §2.7.7 and §2.7.10 (suppression), §2.7.13 and §2.7.14.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic

from guest.dma import DmaDirection, DmaPool
from guest.platform import Cells
from guest.ring.fence import make_fence
from guest.ring.ring import Element, Token, aligned
from hw.abi import virtio_ring as abi
from hw.abi.virtio import VIRTIO_F_IN_ORDER, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC

_NEXT = abi.VRING_DESC_F_NEXT << 32
_WRITE = abi.VRING_DESC_F_WRITE << 32
_INDIRECT = abi.VRING_DESC_F_INDIRECT << 32


def need_event(event: int, new: int, old: int) -> bool:
    """Whether an index that moved from `old` to `new` passed `event`, all modulo 2**16 (§2.7.7, §2.7.10).

    That is: whether the entry with index `event` is among those from `old` up to, but not including, `new`.
    """
    return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF


class SplitRing(Generic[Token]):
    """One queue, as its driver sees it.

    Args:
        dma: where the areas come from; they are mapped for the device until `close`.
        index: the queue's number on its device, for messages.
        size: entries, a power of two up to 32768.
        features: the negotiated feature mask; EVENT_IDX, INDIRECT_DESC and IN_ORDER matter here.
        indirect_entries: longest chain that gets an indirect table of its own; 0 keeps no tables.
        start_index: value that the indices of both rings start at, for tests; a device starts at 0.

    Attributes:
        addresses: of the descriptor, driver and device area, to tell the device.
        broken: why the device is not believed any more, or None.

    Raises ValueError for a size that no split queue can have, DmaError when there is no memory.
    """

    __slots__ = (
        "__weakref__", "_avail", "_avail_event", "_base", "_chains", "_desc", "_dma", "_event_idx", "_fence", "_free",
        "_indirect_entries", "_interrupts", "_kicked", "_last_used", "_mappings", "_mask", "_next", "_order",
        "_published", "_ready", "_table_addr", "_tables", "_take", "_tokens", "_used", "_used_event", "_used_ring",
        "_writable", "addresses", "broken", "index", "size",
    )

    _avail: Cells
    _desc: Cells
    _tables: Cells
    _used: Cells
    _used_ring: Cells

    def __init__(
        self, dma: DmaPool, index: int, size: int, features: int, *, indirect_entries: int = 0, start_index: int = 0
    ) -> None:
        if not 0 < size <= abi.QUEUE_SIZE_MAX or size & (size - 1):
            raise ValueError(f"a split queue cannot have {size} entries: a power of two up to 32768 is needed")
        self.index = index
        self.size = size
        self.broken: str | None = None
        self._mask = size - 1
        self._fence = make_fence()
        self._event_idx = bool(features >> VIRTIO_RING_F_EVENT_IDX & 1)
        # A chain may not be longer than the queue, indirect or not (§2.7.5.3.1).
        self._indirect_entries = min(indirect_entries, size) if features >> VIRTIO_RING_F_INDIRECT_DESC & 1 else 0

        driver = aligned(abi.desc_area_size(size))
        device = driver + aligned(abi.driver_area_size(size))
        tables = device + aligned(abi.device_area_size(size))
        table_bytes = abi.DESC_SIZE * self._indirect_entries * size
        self._dma = dma
        self._base = base = dma.alloc(tables + table_bytes)
        self.addresses = (base, base + driver, base + device)
        self._table_addr = base + tables
        self._mappings: list[tuple[int, int, DmaDirection]] = [
            (base, device, "to-device"),
            (base + device, abi.device_area_size(size), "from-device"),
        ]
        if table_bytes:
            self._mappings.append((base + tables, table_bytes, "to-device"))
        for addr, length, direction in self._mappings:
            dma.map(addr, length, direction)

        # In order, what is freed first is taken first, and so the table is gone through round and round.
        in_order = features >> VIRTIO_F_IN_ORDER & 1
        self._free: list[int] | deque[int] = deque(range(size)) if in_order else list(range(size - 1, -1, -1))
        self._take = self._free.popleft if isinstance(self._free, deque) else self._free.pop
        self._order: deque[int] | None = deque() if in_order else None  # heads, as made available
        self._ready: deque[tuple[Token, int]] = deque()  # used in one batch, and more than a reap wanted
        self._tokens: list[Token | None] = [None] * size  # by head; None: not in flight
        self._writable = [0] * size  # by head: bytes that the device may write
        self._chains: list[list[int] | None] = [None] * size  # by head: the chain's further descriptors
        start = start_index & 0xFFFF
        self._next = self._published = self._kicked = self._last_used = start
        self._used_event = abi.used_event_offset(size) // 2
        self._avail_event = abi.avail_event_offset(size) // 2
        self._interrupts = True
        self._reopen()
        dma.memory.on_reopen(self._reopen)
        self._avail[1] = start
        self._used[1] = start
        self._avail[self._used_event] = start

    def _reopen(self) -> None:
        """Fetch the views again: the hook of guest RAM changed."""
        fields = self._dma.memory.fields
        desc, driver, device = self.addresses
        self._desc = fields(desc, abi.desc_area_size(self.size), "Q")
        self._avail = fields(driver, abi.driver_area_size(self.size), "H")
        self._used = fields(device, abi.device_area_size(self.size), "H")
        self._used_ring = fields(device + abi.RING_ENTRIES, abi.USED_ELEM_SIZE * self.size, "I")
        self._tables = fields(self._table_addr, abi.DESC_SIZE * self._indirect_entries * self.size, "Q")

    def close(self) -> None:
        """Unmap and free the areas; the device must have been reset. Nothing can be added any more."""
        self.broken = self.broken or "closed"
        for addr, length, direction in self._mappings:
            self._dma.unmap(addr, length, direction)
        if self._mappings:
            self._dma.free(self._base)
        self._mappings = []

    # -- supplying buffers, §2.7.13 ------------------------------------------------------------------------------

    def add(self, out: Sequence[Element], in_: Sequence[Element], token: Token) -> bool:
        """Add a chain: `out` is read by the device, then `in_` is written by it; whether there was room.

        The device sees it after `publish`; `reap` gives `token` back. Raises ValueError for a chain that is
        empty or longer than the queue.
        """
        count = len(out) + len(in_)
        if not 0 < count <= self.size:
            raise ValueError(f"a chain of {count} elements cannot be put on a queue of {self.size}")
        free = self._free
        if self.broken is not None or not free:
            return False
        if 1 < count <= self._indirect_entries:
            head = self._take()
            first = head * self._indirect_entries
            addr = self._table_addr + abi.DESC_SIZE * first
            self._write_chain(self._tables, first, range(count), out, in_)
            self._desc[2 * head] = addr
            self._desc[2 * head + 1] = abi.DESC_SIZE * count | _INDIRECT
        else:
            if count > len(free):
                return False
            chain = [self._take() for _ in range(count)]
            self._write_chain(self._desc, 0, chain, out, in_)
            head = chain.pop(0)
            self._chains[head] = chain or None
        self._tokens[head] = token
        self._writable[head] = sum(length for _, length in in_)
        if self._order is not None:
            self._order.append(head)
        self._avail[2 + (self._next & self._mask)] = head
        self._next = (self._next + 1) & 0xFFFF
        return True

    @staticmethod
    def _write_chain(
        cells: Cells, first: int, indices: Sequence[int], out: Sequence[Element], in_: Sequence[Element]
    ) -> None:
        """Write a chain's descriptors into the slots `first + indices[i]`; `next` counts from `first` (§2.7.5)."""
        last = len(indices) - 1
        readable = len(out)
        for at, (addr, length) in enumerate((*out, *in_)):
            word = length if at < readable else length | _WRITE
            if at < last:
                word |= _NEXT | indices[at + 1] << 48
            cell = 2 * (first + indices[at])
            cells[cell] = addr
            cells[cell + 1] = word

    def post(self, buffers: Sequence[tuple[int, int, Token]], writable: bool) -> int:
        """Add chains of one element each, given as (address, length, token); how many there was room for."""
        if self.broken is not None:
            return 0
        free = self._free
        count = min(len(buffers), len(free))
        desc, avail, tokens, limits = self._desc, self._avail, self._tokens, self._writable
        at, mask = self._next, self._mask
        flags, take, order = _WRITE if writable else 0, self._take, self._order
        for addr, length, token in buffers if count == len(buffers) else buffers[:count]:
            head = take()
            if order is not None:
                order.append(head)
            desc[2 * head] = addr
            desc[2 * head + 1] = length | flags
            tokens[head] = token
            limits[head] = length if writable else 0
            avail[2 + (at & mask)] = head
            at += 1
        self._next = at & 0xFFFF
        return count

    def publish(self) -> bool:
        """Show the device everything added so far, with one store of `avail.idx`; whether there was anything."""
        if self._next == self._published:
            return False
        self._fence()
        self._avail[1] = self._published = self._next
        return True

    def kick_needed(self) -> bool:
        """Whether the device wants to be notified of what was published since this was last asked (§2.7.10.1)."""
        new, old = self._published, self._kicked
        if new == old:
            return False
        self._kicked = new
        self._fence()
        if self._event_idx:
            return need_event(self._used[self._avail_event], new, old)
        return not self._used[0] & abi.VRING_USED_F_NO_NOTIFY

    @property
    def position(self) -> int:
        """What a notification that carries data says: the published index (§2.9)."""
        return self._published

    # -- receiving used buffers, §2.7.14 -------------------------------------------------------------------------

    def reap(self, budget: int) -> list[tuple[Token, int]]:
        """Take up to `budget` used buffers: their tokens and the bytes written to each.

        A device that returns what it does not have sets `broken`; what it returned before that is still given.
        """
        if self._order is not None:
            return self._reap_in_order(budget, self._order)
        if self.broken is not None:
            return []
        last = self._last_used
        ready = (self._used[1] - last) & 0xFFFF
        if not ready:
            return []
        if ready > (self._published - last) & 0xFFFF:
            self.broken = f"used.idx is {ready} ahead, with {(self._published - last) & 0xFFFF} buffers in flight"
            return []
        self._fence()
        reaped: list[tuple[Token, int]] = []
        ring, tokens, limits, chains, free = self._used_ring, self._tokens, self._writable, self._chains, self._free
        mask, size = self._mask, self.size
        for at in range(last, last + min(ready, budget)):
            slot = 2 * (at & mask)
            head = ring[slot]
            written = ring[slot + 1]
            token = tokens[head] if head < size else None
            if token is None:
                self.broken = f"used.id {head} is not in flight"
                break
            if written > limits[head]:
                self.broken = f"used.len {written} for buffer {head}, which has {limits[head]} writable bytes"
                break
            tokens[head] = None
            free.append(head)
            chain = chains[head]
            if chain is not None:
                free.extend(chain)
                chains[head] = None
            reaped.append((token, written))
        self._last_used = (last + len(reaped)) & 0xFFFF
        return reaped

    def _reap_in_order(self, budget: int, order: deque[int]) -> list[tuple[Token, int]]:
        """`reap` for IN_ORDER: each entry stands for the buffers up to the one that it names."""
        if not self._ready and self.broken is None:
            used, last = self._used[1], self._last_used
            left = (used - last) & 0xFFFF
            if left > (self._published - last) & 0xFFFF:
                self.broken = f"used.idx is {left} ahead, with {(self._published - last) & 0xFFFF} buffers in flight"
                return []
            self._fence()
            found: list[tuple[Token, int]] = []
            while left and len(found) < budget and self.broken is None:
                slot = 2 * (self._last_used & self._mask)
                head, written = self._used_ring[slot], self._used_ring[slot + 1]
                if head >= self.size or self._tokens[head] is None or head not in order:
                    self.broken = f"used.id {head} is not in flight"
                elif (batch := order.index(head) + 1) > left:
                    self.broken = f"used.id {head} ends a batch of {batch}, and used.idx moved by {left}"
                elif written > self._writable[head]:
                    limit = self._writable[head]
                    self.broken = f"used.len {written} for buffer {head}, which has {limit} writable bytes"
                else:
                    left -= batch
                    found += [self._free_head(order.popleft()) for _ in range(batch - 1)]
                    order.popleft()
                    found.append((self._free_head(head)[0], written))
                    self._last_used = (self._last_used + batch) & 0xFFFF
            self._ready.extend(found)
        return [self._ready.popleft() for _ in range(min(budget, len(self._ready)))]

    def _free_head(self, head: int) -> tuple[Token, int]:
        """Free a chain's descriptors; its token, and the bytes in it that a device may write."""
        token, chain = self._tokens[head], self._chains[head]
        assert token is not None, "only heads that are in flight are freed"
        self._tokens[head] = self._chains[head] = None
        self._free.append(head)
        self._free.extend(chain or ())
        return token, self._writable[head]

    def pending(self) -> bool:
        """Whether the device has used more than was reaped."""
        return bool(self._ready) or (self.broken is None and self._used[1] != self._last_used)

    def detach(self) -> list[Token]:
        """Take back the tokens of everything in flight, after the device was reset; the ring is of no more use."""
        self.broken = self.broken or "detached"
        tokens = [token for token, _ in self._ready] + [token for token in self._tokens if token is not None]
        self._tokens = [None] * self.size
        self._ready.clear()
        return tokens

    # -- interrupts, §2.7.7 --------------------------------------------------------------------------------------

    def enable_interrupts(self, after: int = 1) -> bool:
        """Ask for an interrupt once `after` more buffers are used; True when they are already, and none may come.

        Without EVENT_IDX every used buffer interrupts. The caller that gets True polls again: this is the re-check
        that keeps a wake-up from being lost (§2.7.14).
        """
        self._interrupts = True
        if self._event_idx:
            self._avail[self._used_event] = (self._last_used + after - 1) & 0xFFFF
        else:
            self._avail[0] = 0
        self._fence()
        return bool(self._ready) or (self.broken is None and (self._used[1] - self._last_used) & 0xFFFF >= after)

    def disable_interrupts(self) -> None:
        """Ask for no interrupts; one that comes all the same is to be borne (§2.7.7.1)."""
        if not self._interrupts:
            return
        self._interrupts = False
        if self._event_idx:
            # An index just passed comes round again only after 65536 buffers; `flags` has to stay 0 (§2.7.7.1).
            self._avail[self._used_event] = (self._last_used - 1) & 0xFFFF
        else:
            self._avail[0] = abi.VRING_AVAIL_F_NO_INTERRUPT

    # -- for people ----------------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """Descriptors that are free."""
        return len(self._free)

    @property
    def in_flight(self) -> int:
        """Chains that the device has been shown and has not returned."""
        return (self._published - self._last_used) & 0xFFFF

    def snapshot(self) -> dict[str, object]:
        """The shadows, by name, for views; nothing is read from memory."""
        desc, driver, device = self.addresses
        return {
            "index": self.index,
            "size": self.size,
            "desc": desc,
            "driver": driver,
            "device": device,
            "avail_idx": self._published,
            "last_used": self._last_used,
            "in_flight": self.in_flight,
            "free": len(self._free),
            "heads": [head for head, token in enumerate(self._tokens) if token is not None],
            "event_idx": self._event_idx,
            "in_order": self._order is not None,
            "indirect_entries": self._indirect_entries,
            "interrupts": self._interrupts,
            "broken": self.broken,
        }

    def __repr__(self) -> str:
        state = self.broken or f"{self.in_flight} in flight, {len(self._free)} free"
        return f"<SplitRing {self.index} of {self.size}: avail {self._published}, used {self._last_used}, {state}>"
