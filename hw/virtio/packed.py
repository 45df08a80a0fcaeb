"""The device half of the packed virtqueue.

Read first: virtio 1.4 §2.8 (all of it), and `hw/abi/virtio_packed.py` for the layout.

Promises: those of `queue.py`; and
- A descriptor's flags are read first, alone, and decide whether the rest is looked at.
- A used descriptor shows its flags last, and the first of a batch after all others: a driver, which looks at one place
  only, sees the whole batch or nothing of it.
- Only descriptors that the driver made available and the device has not used are ever written.

Positions run from 0 to size - 1, each with a wrap counter; for distances they are counted through two rounds of the
ring, so that a position and its wrap counter are one number modulo 2 * size.

A driver in another process needs a fence behind the first load of flags, before the last store of them, and between
that and the look at the driver's event structure (§2.8.21.1.1, §2.8.22).

Sections: `check_areas`, `PackedQueue`: taking buffers, giving them back, suppressing kicks.
"""

from __future__ import annotations

from hw.abi.virtio_packed import (
    PACKED_DESC_ALIGN_SIZE,
    PACKED_EVENT_ALIGN_SIZE,
    PACKED_EVENT_SIZE,
    PACKED_QUEUE_SIZE_MAX,
    VRING_PACKED_DESC_F_AVAIL,
    VRING_PACKED_DESC_F_USED,
    VRING_PACKED_EVENT_F_WRAP_CTR,
    VRING_PACKED_EVENT_FLAG_DESC,
    VRING_PACKED_EVENT_FLAG_DISABLE,
    VRING_PACKED_EVENT_FLAG_ENABLE,
    packed_ring_size,
)
from hw.abi.virtio_ring import VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE
from hw.memory import FieldView, GuestMemory
from hw.virtio.queue import CHAIN_BYTES_MAX, Chain, DeviceQueue, QueueError, why_not

_AVAIL = 1 << VRING_PACKED_DESC_F_AVAIL
_USED = 1 << VRING_PACKED_DESC_F_USED
_BOTH = _AVAIL | _USED
_WRAP = 1 << VRING_PACKED_EVENT_F_WRAP_CTR

# Places of fields in a descriptor: id and flags in 16-bit cells, the length in 32-bit cells.
_ID = 6
_FLAGS = 7
_LEN = 2


def check_areas(memory: GuestMemory, size: int, desc: int, driver: int, device: int) -> str | None:
    """Why a packed queue cannot live at these guest-physical addresses, or None (§2.8.10.1)."""
    if not 0 < size <= PACKED_QUEUE_SIZE_MAX:
        return f"queue size {size} is not from 1 to {PACKED_QUEUE_SIZE_MAX}"
    areas = [
        ("descriptor area", desc, packed_ring_size(size), PACKED_DESC_ALIGN_SIZE),
        ("driver area", driver, PACKED_EVENT_SIZE, PACKED_EVENT_ALIGN_SIZE),
        ("device area", device, PACKED_EVENT_SIZE, PACKED_EVENT_ALIGN_SIZE),
    ]
    return why_not(memory, areas)


class PackedQueue(DeviceQueue):
    """The device's view of one packed virtqueue.

    Args:
        memory: guest RAM.
        index: the queue's number.
        size: entries; need not be a power of two.
        desc, driver, device: guest-physical addresses of the ring and of the driver's and the device's event
            structure; `check_areas` must have passed them.
        features: what was negotiated (a mask); INDIRECT_DESC, EVENT_IDX and IN_ORDER matter here.

    Attributes:
        next_avail, avail_wrap: where the next available descriptor is looked for, and the wrap counter there.
        next_used, used_wrap: where the next used descriptor is written, and the wrap counter there.
    """

    def __init__(
        self, memory: GuestMemory, index: int, size: int, desc: int, driver: int, device: int, features: int
    ) -> None:
        areas = ((desc, packed_ring_size(size)), (driver, PACKED_EVENT_SIZE), (device, PACKED_EVENT_SIZE))
        super().__init__(memory, index, size, areas, features)
        self.next_avail = self.next_used = 0
        self.avail_wrap = self.used_wrap = True  # §2.8.1: both counters begin with 1
        self._peeked: int | None = None  # flags of the next descriptor, which was seen to be available
        self._held = 0  # descriptors taken and not yet given back
        self._lengths = [0] * size  # by buffer id: descriptors of the chain that is in flight under it
        self._first: tuple[int, int] | None = None  # used, not yet shown: the first of the batch, and its flags
        self._run: tuple[int, int, int] | None = None  # with IN_ORDER: place, flags, last id of a run to write
        self._moved = 0  # descriptors used since the last interrupt decision
        self._open()
        memory.on_reopen(self._open)

    def _open(self) -> None:
        """Fetch the views of the areas; again whenever the memory's hook changes."""
        fields, length = self.memory.fields, packed_ring_size(self.size)
        self._quads: FieldView = fields(self.desc, length, "Q", "device")
        self._words: FieldView = fields(self.desc, length, "I", "device")
        self._halves: FieldView = fields(self.desc, length, "H", "device")
        self._driver_event: FieldView = fields(self.driver, PACKED_EVENT_SIZE, "I", "device")
        self._device_event: FieldView = fields(self.device, PACKED_EVENT_SIZE, "I", "device")

    def resume(self, base: int) -> None:
        """Go on where another device left off: `base` has the place and wrap counter of the available side in its low
        half and of the used side in its high half. 0 in the high half stands for the same, 0 in all for the beginning.
        """
        base = base or _WRAP
        used = base >> 16 or base & 0xFFFF
        self.next_avail, self.avail_wrap = base & (_WRAP - 1), bool(base & _WRAP)
        self.next_used, self.used_wrap = used & (_WRAP - 1), bool(used & _WRAP)

    @property
    def base(self) -> int:
        """Where another device would go on: chains that were taken and not given back are taken again."""
        half = self.next_used | (_WRAP if self.used_wrap else 0)
        return half | half << 16

    # -- taking buffers (§2.8.21) ----------------------------------------------------------------------------------

    def available(self) -> int:
        """1 when a chain can be taken, else 0. Raises QueueError when the ring has no descriptor left to offer."""
        if self._peeked is None:
            flags = self._halves[8 * self.next_avail + _FLAGS]
            if flags & _BOTH != (_AVAIL if self.avail_wrap else _USED):
                return 0
            if self._held >= self.size:
                raise QueueError(
                    f"descriptor {self.next_avail} is made available again, with all {self.size} in flight "
                    "(virtio 1.4 §2.8.16)"
                )
            self._peeked = flags
            self._fence()
        return 1

    def pop(self) -> Chain | None:
        """Take the next available chain, or None. Raises QueueError for a chain that breaks a rule."""
        if self._peeked is None and not self.available():
            return None
        flags = self._peeked or 0
        chain = Chain(0)
        at, wrap = self.next_avail, self.avail_wrap
        size, halves, words, quads = self.size, self._halves, self._words, self._quads
        room = size - self._held
        steps = total = 0
        while True:
            steps += 1
            if steps > room:
                raise QueueError(f"a list of more descriptors than the {room} that are free (virtio 1.4 §2.8.17)")
            addr = quads[2 * at]
            length = words[4 * at + _LEN]
            if flags & VRING_DESC_F_INDIRECT:
                if steps > 1 or flags & VRING_DESC_F_NEXT:
                    raise QueueError("an indirect descriptor in a list joined with NEXT (virtio 1.4 §2.8.19)")
                self._read_table(chain, addr, length)  # its WRITE flag is ignored (§2.8.7)
            else:
                total += length
                if total > CHAIN_BYTES_MAX:
                    raise QueueError("a list longer than 2^32 bytes (virtio 1.4 §2.7.5.2, as for the split ring)")
                if length:
                    self._add(chain, addr, length, bool(flags & VRING_DESC_F_WRITE))
            last = at
            at += 1
            if at == size:
                at, wrap = 0, not wrap
            if not flags & VRING_DESC_F_NEXT:
                break
            if steps == room:
                continue
            flags = halves[8 * at + _FLAGS]
            if flags & _BOTH != (_AVAIL if wrap else _USED):
                raise QueueError(f"descriptor {at} of a list was not made available (virtio 1.4 §2.8.6, §2.8.17)")
        chain.head = ident = halves[8 * last + _ID]
        if ident >= size or self._lengths[ident]:
            why = "is in flight already" if ident < size else f"in a queue of {size}"
            raise QueueError(f"buffer id {ident} {why} (virtio 1.4 §2.8.21.1)")
        chain.descriptors = self._lengths[ident] = steps
        self.next_avail, self.avail_wrap = at, wrap
        self._held += steps
        self._peeked = None
        self.in_flight += 1
        if self.in_order:
            self._order.append(chain)
        return chain

    def _read_table(self, chain: Chain, addr: int, length: int) -> None:
        """The buffers of an indirect table; of its flags only WRITE means anything (§2.8.7)."""
        table, entries = self._open_table(addr, length)
        total = 0
        for entry in range(entries):
            where = table[2 * entry]
            word = table[2 * entry + 1]
            size = word & 0xFFFFFFFF
            total += size
            if total > CHAIN_BYTES_MAX:
                raise QueueError("a list longer than 2^32 bytes (virtio 1.4 §2.7.5.2, as for the split ring)")
            if size:
                self._add(chain, where, size, bool(word >> 48 & VRING_DESC_F_WRITE))

    # -- giving them back (§2.8.22) ----------------------------------------------------------------------------------

    def push(self, head: int, written: int) -> None:
        """Write the used descriptor of a chain: `written` is how many bytes of its writable part were written."""
        if self.in_order:
            self._push_in_order(head, written)
            return
        self._put_used(self.next_used, self._used_flags(written), head, written)
        self._advance(head)

    def _push_in_order(self, head: int, written: int) -> None:
        """§2.8.8: the descriptor of a run stands where that of its first chain would, and names the last."""
        for chain, length in self._due(head, written):
            if chain.writable:
                self._end_run()
                self._put_used(self.next_used, self._used_flags(length), chain.head, length)
            elif self._run is None:
                self._run = (self.next_used, self._used_flags(0), chain.head)
            else:
                self._run = (*self._run[:2], chain.head)
            self._advance(chain.head)

    def _end_run(self) -> None:
        if self._run is not None:
            self._put_used(*self._run, 0)
            self._run = None

    def _used_flags(self, written: int) -> int:
        """Both bits as the wrap counter; WRITE says whether any byte was written (§2.8.3)."""
        return (_BOTH if self.used_wrap else 0) | (VRING_DESC_F_WRITE if written else 0)

    def _put_used(self, at: int, flags: int, ident: int, written: int) -> None:
        self._halves[8 * at + _ID] = ident
        self._words[4 * at + _LEN] = written
        if self._first is None:
            self._first = (at, flags)
        else:
            self._halves[8 * at + _FLAGS] = flags

    def _advance(self, ident: int) -> None:
        """Skip as many descriptors as the chain had (§2.8.6)."""
        count = self._lengths[ident]
        self._lengths[ident] = 0
        self._held -= count
        self._moved += count
        self.in_flight -= 1
        self.next_used += count
        if self.next_used >= self.size:
            self.next_used -= self.size
            self.used_wrap = not self.used_wrap

    def flush(self) -> bool:
        """Show what was pushed; whether the driver wants an interrupt for it (§2.8.10)."""
        moved = self._moved
        if not moved:
            return False
        self._end_run()
        if self._first is not None:
            at, flags = self._first
            self._fence()
            self._halves[8 * at + _FLAGS] = flags
            self._first = None
        self._moved = 0
        self._fence()
        event = self._driver_event[0]
        wanted = event >> 16 & 3
        if wanted == VRING_PACKED_EVENT_FLAG_DESC and self.event_idx:
            rounds = 2 * self.size
            old = self._place(self.next_used, self.used_wrap) - moved
            where = self._place(event & (_WRAP - 1), bool(event & _WRAP))
            return (where - old) % rounds < moved
        return wanted != VRING_PACKED_EVENT_FLAG_DISABLE

    def _place(self, at: int, wrap: bool) -> int:
        """A position of the ring, counted through two rounds."""
        return at if wrap else at + self.size

    # -- suppressing kicks (§2.8.10) ---------------------------------------------------------------------------------

    def disable_kicks(self) -> None:
        """Tell the driver that no notification is needed."""
        self._device_event[0] = VRING_PACKED_EVENT_FLAG_DISABLE << 16

    def enable_kicks(self) -> bool:
        """Ask for a notification with the next descriptor; whether one is there already, unannounced.

        Raises QueueError as `available` does.
        """
        if self.event_idx:
            where = self.next_avail | (_WRAP if self.avail_wrap else 0)
            self._device_event[0] = VRING_PACKED_EVENT_FLAG_DESC << 16 | where
        else:
            self._device_event[0] = VRING_PACKED_EVENT_FLAG_ENABLE << 16
        self._fence()
        return self.available() > 0
