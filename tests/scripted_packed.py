"""Both sides of a packed ring played by hand, from virtio 1.4 §2.8 alone: `ScriptedPackedRing` is a driver for the
device half, `HandPackedRing` is a device for the driver half. They read and write raw bytes with `struct`, so that they
can break every rule.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from hw.abi.virtio_ring import VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE
from hw.memory import GuestMemory
from hw.virtio.packed import PackedQueue

NEXT, WRITE, INDIRECT = VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_DESC_F_INDIRECT
AVAIL, USED = 1 << 7, 1 << 15
ENABLE, DISABLE, AT_DESC = 0, 1, 2


class _Raw:
    """A packed ring as bytes."""

    def __init__(self, memory: GuestMemory, size: int, desc: int, driver: int, device: int) -> None:
        self.memory, self.size = memory, size
        self.desc, self.driver, self.device = desc, driver, device

    def get(self, at: int) -> tuple[int, int, int, int]:
        """desc[at]: addr, len, id, flags"""
        addr, length, ident, flags = struct.unpack("<QIHH", self.memory.span(self.desc + 16 * at, 16))
        return addr, length, ident, flags

    def put(self, at: int, addr: int, length: int, ident: int, flags: int) -> None:
        self.memory.span(self.desc + 16 * at, 16)[:] = struct.pack("<QIHH", addr, length, ident, flags)

    def set_flags(self, at: int, flags: int) -> None:
        self.memory.span(self.desc + 16 * at + 14, 2)[:] = struct.pack("<H", flags)

    def _event(self, addr: int) -> tuple[int, int, int]:
        off_wrap, flags = struct.unpack("<HH", self.memory.span(addr, 4))
        return off_wrap & 0x7FFF, off_wrap >> 15, flags

    def _set_event(self, addr: int, place: int, wrap: int, flags: int) -> None:
        self.memory.span(addr, 4)[:] = struct.pack("<HH", place | wrap << 15, flags)


class ScriptedPackedRing(_Raw):
    """A driver: `made` counts the descriptors that it has made available, `seen` those that it has seen used."""

    def __init__(self, memory: GuestMemory, base: int, size: int) -> None:
        driver = base + 16 * size
        super().__init__(memory, size, base, driver, driver + 4)
        self.end = -(-(self.device + 4) // 4096) * 4096
        memory.span(base, self.end - base)[:] = bytes(self.end - base)
        self.made = self.seen = self.seen_lists = 0
        self.ident = 0
        self.idx = 0  # lists made available
        self.chains: dict[int, Sequence[tuple[int, int, int]]] = {}
        self.counts: dict[int, int] = {}
        self.in_order = False
        self.order: list[int] = []  # ids that were offered and not seen used

    def marks(self, number: int) -> int:
        """The bits that make descriptor `number` available (§2.8.1)."""
        return USED if number // self.size % 2 else AVAIL

    def make(self, *parts: tuple[int, int, int], ident: int | None = None, show: bool = True) -> int:
        """Make a list of (addr, length, flags) available, joined with NEXT; its buffer id."""
        if ident is None:
            ident, self.ident = self.ident, (self.ident + 1) % self.size
        first, flags_of_first = self.made % self.size, 0
        for at, (addr, length, flags) in enumerate(parts):
            more = NEXT if at + 1 < len(parts) else 0
            whole = flags | more | self.marks(self.made)
            if at == 0:
                flags_of_first = whole
                whole = self.get(first)[3]
            self.put(self.made % self.size, addr, length, ident, whole)
            self.made += 1
        self.counts[ident] = len(parts)
        self.order.append(ident)
        if show:
            self.set_flags(first, flags_of_first)
        return ident

    def chain(self, head: int, parts: Sequence[tuple[int, int, int]]) -> None:
        """As `ScriptedRing`'s: what `offer` will make available under the id `head`."""
        self.chains[head] = parts

    def offer(self, *heads: int) -> None:
        """Make lists available, the first of them last."""
        first = self.made % self.size
        hidden = self.get(first)[3]
        flags = None
        for head in heads:
            self.make(*self.chains.get(head, [(0, 1, 0)]), ident=head)
            if flags is None:
                flags = self.get(first)[3]
                self.set_flags(first, hidden)
        self.idx += len(heads)
        if flags is not None:
            self.set_flags(first, flags)

    @property
    def used_idx(self) -> int:
        """Lists that were seen to be used, once `used` has looked."""
        return self.seen_lists

    def wants_kick(self, event_idx: int) -> bool:
        """Whether the device wants to be told of the next list."""
        place, wrap, flags = self.device_event
        if event_idx:
            return (place, wrap, flags) == (self.made % self.size, 1 - self.made // self.size % 2, AT_DESC)
        return flags == ENABLE

    def used(self) -> list[tuple[int, int]]:
        """The used buffers (id, len) that were not looked at before."""
        out = []
        while True:
            at, odd = self.seen % self.size, self.seen // self.size % 2
            _, length, ident, flags = self.get(at)
            if flags & (AVAIL | USED) != (0 if odd else AVAIL | USED):
                return out
            batch = self.order.index(ident) if self.in_order else 0
            out += [(each, 0) for each in self.order[:batch]]  # whose last one stands for all
            out.append((ident, length))
            for each in [*self.order[:batch], ident]:
                self.seen_lists += 1
                self.seen += self.counts.get(each, 1)
            del self.order[: batch + 1]

    def ask_interrupt(self, flags: int, number: int = 0) -> None:
        """The driver's event structure; `number` counts descriptors, as `made` does."""
        self._set_event(self.driver, number % self.size, 1 - number // self.size % 2, flags)

    @property
    def device_event(self) -> tuple[int, int, int]:
        """What the device asks for: place, wrap counter, flags."""
        return self._event(self.device)

    def queue(self, features: int = 0) -> PackedQueue:
        """The device half over this memory."""
        return PackedQueue(self.memory, 0, self.size, self.desc, self.driver, self.device, features)


class HandPackedRing(_Raw):
    """A device. It has the methods of `HandRing`, with a buffer id where that one has a head."""

    def __init__(self, memory: GuestMemory, size: int, desc: int, driver: int, device: int) -> None:
        super().__init__(memory, size, desc, driver, device)
        self.seen = 0  # descriptors taken
        self.next_used = 0  # descriptors used
        self.taken: dict[int, list[tuple[int, int, int]]] = {}  # by id: (addr, len, flags) of its list
        self.hidden: list[tuple[int, int]] = []  # used, not yet shown: place, flags

    # -- looking

    def _is_available(self, number: int) -> bool:
        marks = self.get(number % self.size)[3] & (AVAIL | USED)
        return marks == (USED if number // self.size % 2 else AVAIL)

    def waiting(self) -> int:
        """Lists that are available and not taken."""
        number, count = self.seen, 0
        while number < self.next_used + self.size and self._is_available(number):
            count += not self.get(number % self.size)[3] & NEXT
            number += 1
        return count

    def take(self) -> int:
        """The id of the next available list."""
        assert self._is_available(self.seen), "the driver has made nothing available"
        found: list[tuple[int, int, int]] = []
        while True:
            assert self._is_available(self.seen), "all descriptors of a list are marked available (2.8.6)"
            addr, length, ident, flags = self.get(self.seen % self.size)
            found.append((addr, length, flags))
            self.seen += 1
            assert len(found) <= self.size, "a list longer than the ring (2.8.17)"
            if not flags & NEXT:
                break
        assert ident not in self.taken, "an id that is in flight already"
        self.taken[ident] = found
        return ident

    def elements(self, ident: int) -> list[tuple[int, int, bool]]:
        """The list as (address, length, device-writable), its indirect table followed."""
        parts = self.taken[ident]
        addr, length, flags = parts[0]
        if flags & INDIRECT:
            assert len(parts) == 1, "INDIRECT and NEXT together (2.8.19)"
            table = struct.iter_unpack("<QIHH", self.memory.span(addr, length))
            parts = [(where, size, bits) for where, size, _, bits in table]
            assert not any(bits & ~WRITE for _, _, bits in parts), "only WRITE in an indirect table (2.8.19)"
        return [(where, size, bool(bits & WRITE)) for where, size, bits in parts]

    def is_indirect(self, ident: int) -> bool:
        return bool(self.taken[ident][0][2] & INDIRECT)

    @property
    def driver_event(self) -> tuple[int, int, int]:
        """What the driver asks for: place, wrap counter, flags."""
        return self._event(self.driver)

    def interrupt_wanted(self, old: int) -> bool:
        """Whether the driver wants one for the descriptors from `old` up to `next_used` (2.8.10)."""
        place, wrap, flags = self.driver_event
        if flags != AT_DESC:
            return flags == ENABLE
        return any((at % self.size, 1 - at // self.size % 2) == (place, wrap) for at in range(old, self.next_used))

    @property
    def used_idx(self) -> int:
        """Descriptors used so far."""
        return self.next_used

    def interrupts(self, event_idx: int, within: int = 1) -> bool:
        """Whether the driver asks for one with one of the next `within` used descriptors."""
        place, wrap, flags = self.driver_event
        assert flags in ((AT_DESC, DISABLE) if event_idx else (ENABLE, DISABLE))
        number = place if wrap else place + self.size
        return flags == ENABLE or (flags == AT_DESC and (number - self.next_used) % (2 * self.size) < within)

    # -- acting

    def put_used(self, ident: int, written: int, *, show: bool = True, batch: Sequence[int] = ()) -> None:
        """Write one used descriptor, which with `batch` stands for those buffers before it as well (2.8.8)."""
        at, odd = self.next_used % self.size, self.next_used // self.size % 2
        addr, _, _, old = self.get(at)
        self.put(at, addr, written, ident & 0xFFFF, old)
        self.hidden.append((at, (0 if odd else AVAIL | USED) | (WRITE if written else 0)))
        for each in (*batch, ident):
            self.next_used += len(self.taken.pop(each, [()]))
        if show:
            self.show_used()

    def show_used(self) -> None:
        """Flags of the first last, as an honest device does at the end of a batch."""
        for at, flags in reversed(self.hidden):
            self.set_flags(at, flags)
        self.hidden.clear()

    @property
    def used(self) -> int:
        """Where the device's own area lies, as in `HandRing`."""
        return self.device

    used_length = 4

    def lie_ahead(self) -> str:
        """Say that more is used than ever was available; what the driver calls that."""
        for _ in range(2):
            self.put_used(self.size, 0)
        return f"used.id {self.size} is not in flight"

    def scribble(self) -> None:
        """Write over all descriptors that are the device's, but for the marks, which say whether there is one."""
        for at in range(self.size):
            marks = self.get(at)[3] & (AVAIL | USED)
            if marks not in (AVAIL, USED):
                continue
            self.put(at, (1 << 64) - 1, (1 << 32) - 1, 0xFFFF, 0xFFFF & ~(AVAIL | USED) | marks)

    def want_kicks(self) -> None:
        """Ask for a notification of the very next descriptor."""
        number = self.seen
        while number < self.next_used + self.size and self._is_available(number):
            number += 1
        self.ask_kick(AT_DESC, number)

    def ask_kick(self, flags: int, number: int = 0) -> None:
        """The device's event structure; `number` counts descriptors, as `seen` does."""
        self._set_event(self.device, number % self.size, 1 - number // self.size % 2, flags)
