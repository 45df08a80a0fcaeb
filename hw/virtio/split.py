"""The device half of the split virtqueue.

Read first: virtio 1.4 §2.7 (all of it), and `hw/abi/virtio_ring.py` for the layout.

Promises: those of `queue.py`; and the descriptor table and the available ring are never written, nor is a
device-readable buffer.

A descriptor is 16 bytes and is read as two 64-bit cells, the second of which holds length, flags and next: two loads
instead of four, and a snapshot of the three fields that belong together.

Sections: `check_areas`, `SplitQueue`: taking buffers, giving them back, suppressing kicks.
"""

from __future__ import annotations

from hw.abi.virtio_ring import (
    QUEUE_SIZE_MAX,
    RING_ENTRIES,
    USED_ELEM_SIZE,
    VRING_AVAIL_ALIGN_SIZE,
    VRING_AVAIL_F_NO_INTERRUPT,
    VRING_DESC_ALIGN_SIZE,
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
    VRING_USED_ALIGN_SIZE,
    VRING_USED_F_NO_NOTIFY,
    avail_event_offset,
    desc_area_size,
    device_area_size,
    driver_area_size,
    used_event_offset,
)
from hw.memory import FieldView, GuestMemory
from hw.virtio.queue import CHAIN_BYTES_MAX, Chain, DeviceQueue, QueueError, why_not

# Places of fields in the areas, in 16-bit cells.
_FLAGS = 0
_IDX = 1
_RING = RING_ENTRIES // 2


def check_areas(memory: GuestMemory, size: int, desc: int, driver: int, device: int) -> str | None:
    """Why a split queue cannot live at these guest-physical addresses, or None (§2.7)."""
    if not 0 < size <= QUEUE_SIZE_MAX or size & (size - 1):
        return f"queue size {size} is not a power of two up to {QUEUE_SIZE_MAX}"
    areas = [
        ("descriptor area", desc, desc_area_size(size), VRING_DESC_ALIGN_SIZE),
        ("driver area", driver, driver_area_size(size), VRING_AVAIL_ALIGN_SIZE),
        ("device area", device, device_area_size(size), VRING_USED_ALIGN_SIZE),
    ]
    return why_not(memory, areas)


class SplitQueue(DeviceQueue):
    """The device's view of one split virtqueue.

    Args:
        memory: guest RAM.
        index: the queue's number.
        size: entries, a power of two.
        desc, driver, device: guest-physical addresses of the three areas; `check_areas` must have passed them.
        features: what was negotiated (a mask); INDIRECT_DESC and EVENT_IDX matter here.
        start: first index of both rings, 0 on a real device; tests start just below the wrap.
    """

    def __init__(
        self,
        memory: GuestMemory,
        index: int,
        size: int,
        desc: int,
        driver: int,
        device: int,
        features: int,
        start: int = 0,
    ) -> None:
        areas = (
            (desc, desc_area_size(size)), (driver, driver_area_size(size)), (device, device_area_size(size)),
        )  # fmt: skip
        super().__init__(memory, index, size, areas, features)
        self.next_avail = start  # the next available entry to take
        self.next_used = start  # the next used entry to write
        self._known = 0  # available entries seen and not yet taken
        self._signalled = start  # next_used at the last interrupt decision
        self._run: tuple[int, int] | None = None  # with IN_ORDER: an entry not yet written, its index and head
        self._mask = size - 1
        self._open()
        memory.on_reopen(self._open)

    def _open(self) -> None:
        """Fetch the views of the areas; again whenever the memory's hook changes."""
        fields = self.memory.fields
        self._table: FieldView = fields(self.desc, desc_area_size(self.size), "Q", "device")
        self._avail: FieldView = fields(self.driver, driver_area_size(self.size), "H", "device")
        self._used: FieldView = fields(self.device, device_area_size(self.size), "H", "device")
        self._used_ring: FieldView = fields(self.device + RING_ENTRIES, USED_ELEM_SIZE * self.size, "I", "device")

    def resume(self, base: int) -> None:
        """Go on where another device left off: `base` is the next available entry, and the used index is in memory."""
        self.next_avail = base & 0xFFFF
        self.next_used = self._signalled = self._used[_IDX]

    @property
    def base(self) -> int:
        """Where another device would go on: chains that were taken and not given back are taken again."""
        return self.next_used

    # -- taking buffers (§2.7.13) ----------------------------------------------------------------------------------

    def available(self) -> int:
        """How many chains can be taken. Looks at `avail.idx` only when those seen before are all taken.

        Raises QueueError when the index ran ahead by more than the queue can hold, or went back.
        """
        if self._known == 0:
            ahead = (self._avail[_IDX] - self.next_avail) & 0xFFFF
            if ahead > self.size - self.in_flight:
                raise QueueError(
                    f"avail.idx is {ahead} ahead of {self.next_avail}, with {self.in_flight} of {self.size} in flight "
                    "(virtio 1.4 §2.7.6.1, §2.7.13)"
                )
            self._known = ahead
            if ahead:
                self._fence()
        return self._known

    def pop(self) -> Chain | None:
        """Take the next available chain, or None. Raises QueueError for a chain that breaks a rule."""
        if self._known == 0 and self.available() == 0:
            return None
        head = self._avail[_RING + (self.next_avail & self._mask)]
        if head >= self.size:
            raise QueueError(f"avail entry {head} in a queue of {self.size} (virtio 1.4 §2.7.6)")
        chain = Chain(head)
        self._walk(chain)
        self.next_avail = (self.next_avail + 1) & 0xFFFF
        self._known -= 1
        self.in_flight += 1
        if self.in_order:
            self._order.append(chain)
        return chain

    def _walk(self, chain: Chain) -> None:
        """Follow the descriptors of `chain` (§2.7.5), an indirect table included (§2.7.5.3)."""
        table, entries, limit = self._table, self.size, self.size
        index = chain.head
        nested = False
        total = steps = 0
        while True:
            if index >= entries:
                raise QueueError(f"descriptor {index} in a table of {entries} (virtio 1.4 §2.7.5)")
            steps += 1
            if steps > limit:
                raise QueueError(f"the chain at {chain.head} has more than {limit} descriptors (virtio 1.4 §2.7.5.2)")
            addr = table[2 * index]
            word = table[2 * index + 1]
            length = word & 0xFFFFFFFF
            flags = word >> 32 & 0xFFFF
            if flags & VRING_DESC_F_INDIRECT:
                if nested:
                    raise QueueError("an indirect descriptor inside an indirect table (virtio 1.4 §2.7.5.3.1)")
                if flags & VRING_DESC_F_NEXT:
                    raise QueueError("a descriptor with both INDIRECT and NEXT (virtio 1.4 §2.7.5.3.1)")
                chain.descriptors = steps
                table, entries = self._open_table(addr, length)  # its WRITE flag is ignored (§2.7.5.3.2)
                nested, index, steps, limit = True, 0, 0, entries
                continue
            total += length
            if total > CHAIN_BYTES_MAX:
                raise QueueError(f"the chain at {chain.head} is longer than 2^32 bytes (virtio 1.4 §2.7.5.2)")
            if length:
                self._add(chain, addr, length, bool(flags & VRING_DESC_F_WRITE))
            if not flags & VRING_DESC_F_NEXT:
                if not nested:
                    chain.descriptors = steps
                return
            index = word >> 48

    # -- giving them back (§2.7.8, §2.7.14) --------------------------------------------------------------------------

    def push(self, head: int, written: int) -> None:
        """Put a chain into the used ring: `written` is how many bytes of its writable part were written."""
        if self.in_order:
            self._push_in_order(head, written)
            return
        slot = 2 * (self.next_used & self._mask)
        self._used_ring[slot] = head
        self._used_ring[slot + 1] = written
        self.next_used = (self.next_used + 1) & 0xFFFF
        self.in_flight -= 1

    def _push_in_order(self, head: int, written: int) -> None:
        """§2.7.9: the entry of a run stands where that of its first chain would, and names the last."""
        for chain, length in self._due(head, written):
            if chain.writable:
                self._end_run()
                self._put_used(self.next_used, chain.head, length)
            else:
                self._run = (self.next_used if self._run is None else self._run[0], chain.head)
            self.next_used = (self.next_used + 1) & 0xFFFF
            self.in_flight -= 1

    def _end_run(self) -> None:
        if self._run is not None:
            self._put_used(*self._run, 0)
            self._run = None

    def _put_used(self, index: int, head: int, written: int) -> None:
        slot = 2 * (index & self._mask)
        self._used_ring[slot] = head
        self._used_ring[slot + 1] = written

    def flush(self) -> bool:
        """Publish what was pushed; whether the driver wants an interrupt for it (§2.7.7.2)."""
        new, old = self.next_used, self._signalled
        if new == old:
            return False
        self._end_run()
        self._fence()
        self._used[_IDX] = new
        self._signalled = new
        self._fence()
        if self.event_idx:
            used_event = self._avail[used_event_offset(self.size) // 2]
            return (new - used_event - 1) & 0xFFFF < (new - old) & 0xFFFF
        return not self._avail[_FLAGS] & VRING_AVAIL_F_NO_INTERRUPT

    # -- suppressing kicks (§2.7.10) ---------------------------------------------------------------------------------

    def disable_kicks(self) -> None:
        """Tell the driver that no notification is needed. With EVENT_IDX an old `avail_event` says so by itself."""
        if not self.event_idx:
            self._used[_FLAGS] = VRING_USED_F_NO_NOTIFY

    def enable_kicks(self) -> bool:
        """Ask for a notification with the next buffer; whether one came in the meantime, unannounced.

        Raises QueueError as `available` does.
        """
        if self.event_idx:
            self._used[avail_event_offset(self.size) // 2] = (self.next_avail + self._known) & 0xFFFF
        else:
            self._used[_FLAGS] = 0
        self._fence()
        return self.available() > 0
