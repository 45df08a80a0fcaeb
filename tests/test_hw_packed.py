"""The device half of the packed ring against a scripted driver: what it takes, what it refuses, when it interrupts.

Names H1, H2, … are rows of the list of hostile inputs, as in test_hw_split.py; each such test fails when its check is
taken out.
"""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw.abi.virtio import VIRTIO_F_IN_ORDER, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, features
from hw.memory import AccessHook, GuestMemory
from hw.virtio.packed import PackedQueue, check_areas
from hw.virtio.queue import Chain, QueueError
from tests.scripted_packed import AT_DESC, AVAIL, DISABLE, ENABLE, INDIRECT, NEXT, USED, WRITE, ScriptedPackedRing

EVENT_IDX = features(VIRTIO_RING_F_EVENT_IDX)
INDIRECT_DESC = features(VIRTIO_RING_F_INDIRECT_DESC)
IN_ORDER = features(VIRTIO_F_IN_ORDER)
BUF = 0x8000


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory(1 << 20)


@pytest.fixture
def ring(memory: GuestMemory) -> ScriptedPackedRing:
    return ScriptedPackedRing(memory, 0x1000, 8)


def taken(queue: PackedQueue) -> Chain:
    chain = queue.pop()
    assert chain is not None, "the device sees no list"
    return chain


def test_a_list_is_taken_filled_and_given_back(ring: ScriptedPackedRing, memory: GuestMemory) -> None:
    memory.span(BUF, 5)[:] = b"hello"
    ring.make((BUF, 5, 0), (BUF + 100, 3, WRITE), (BUF + 200, 4, WRITE), ident=5)
    queue = ring.queue()
    chain = taken(queue)
    assert (chain.head, chain.descriptors) == (5, 3)
    assert [bytes(view) for view in chain.readable] == [b"hello"]
    assert [len(view) for view in chain.writable] == [3, 4]
    assert (chain.readable_length, chain.writable_length) == (5, 7)
    chain.writable[0][:] = b"abc"
    queue.push(chain.head, 3)
    assert ring.used() == []  # nothing is visible before flush
    assert queue.flush() is True
    assert ring.used() == [(5, 3)]
    assert bytes(memory.span(BUF + 100, 3)) == b"abc"
    assert queue.pop() is None


def test_write_in_a_used_descriptor_says_whether_anything_was_written(ring: ScriptedPackedRing) -> None:
    """§2.8.3"""
    queue = ring.queue()
    for written in (7, 0):
        ring.make((BUF, 7, WRITE))
        queue.push(taken(queue).head, written)
    queue.flush()
    assert [ring.get(at)[3] for at in (0, 1)] == [AVAIL | USED | WRITE, AVAIL | USED]


def test_a_fresh_ring_of_zeros_has_nothing_available(ring: ScriptedPackedRing) -> None:
    assert ring.queue().pop() is None


def test_nothing_is_looked_at_before_the_flags_say_so(ring: ScriptedPackedRing, memory: GuestMemory) -> None:
    """§2.8.15: and then each field is read once, the flags before all others."""
    loads: list[tuple[int, int]] = []

    class Count(AccessHook):
        def loaded(self, who: str, addr: int, size: int, value: int) -> None:
            loads.append((addr - ring.desc, size))

    queue = ring.queue()
    memory.hook = Count()
    ring.make((BUF, 4, 0), (BUF + 64, 4, WRITE), show=False)
    assert queue.pop() is None
    assert loads == [(14, 2)]
    loads.clear()
    ring.set_flags(0, AVAIL | NEXT)
    assert taken(queue).writable_length == 4
    assert loads == [(14, 2), (0, 8), (8, 4), (30, 2), (16, 8), (24, 4), (28, 2)]


@pytest.mark.parametrize("size", [1, 2, 3, 8, 100])
def test_wrap_counters_turn_at_the_end_of_the_ring_and_on_past_65536(memory: GuestMemory, size: int) -> None:
    ring = ScriptedPackedRing(memory, 0x1000, size)
    queue = ring.queue()
    for number in range(66_000 if size == 3 else 5 * size):
        parts = min(size, 1 + number % 3)
        ident = ring.make(*[(BUF, 1, WRITE)] * parts)
        chain = taken(queue)
        assert (chain.head, len(chain.writable)) == (ident, parts)
        queue.push(ident, 1)
        assert queue.flush() is True
        assert ring.used() == [(ident, 1)]
        assert (queue.next_used, queue.used_wrap) == (ring.seen % size, not ring.seen // size % 2)


def test_a_batch_is_shown_with_its_first_flags_last(ring: ScriptedPackedRing, memory: GuestMemory) -> None:
    """§2.8.9: a driver that looks at the first sees all or nothing."""
    stores: list[tuple[int, int]] = []

    class Watch(AccessHook):
        def stored(self, who: str, addr: int, size: int, old: int, new: int) -> None:
            stores.append((addr - ring.desc, size))

    queue = ring.queue()
    for _ in range(3):
        ring.make((BUF, 1, WRITE))
    chains = [taken(queue) for _ in range(3)]
    memory.hook = Watch()
    for chain in reversed(chains):
        queue.push(chain.head, 1)
    assert (14, 2) not in stores
    queue.flush()
    assert stores[-1] == (14, 2)
    assert ring.used() == [(chain.head, 1) for chain in reversed(chains)]


# -- what a driver must not do ---------------------------------------------------------------------------------------


def test_h1_more_descriptors_than_the_ring_has_are_an_error(memory: GuestMemory) -> None:
    """As avail.idx that runs ahead: the device holds all there are, and another one is marked available."""
    ring = ScriptedPackedRing(memory, 0x1000, 4)
    queue = ring.queue()
    for _ in range(4):
        ring.make((BUF, 1, 0))
        taken(queue)
    assert queue.pop() is None
    ring.make((BUF, 1, 0))
    with pytest.raises(QueueError, match=r"made available again, with all 4 in flight.*§2\.8\.16"):
        queue.pop()


def test_h1_a_list_longer_than_what_is_free_is_an_error(memory: GuestMemory) -> None:
    ring = ScriptedPackedRing(memory, 0x1000, 4)
    queue = ring.queue()
    ring.make((BUF, 1, 0), (BUF, 1, 0))
    taken(queue)
    ring.make((BUF, 1, 0), (BUF, 1, 0), (BUF, 1, 0))
    with pytest.raises(QueueError, match="more descriptors than the 2 that are free"):
        queue.pop()


@pytest.mark.parametrize("size", [1, 2, 8])
def test_h4_h28_a_list_that_goes_round_the_ring_ends_in_an_error(memory: GuestMemory, size: int) -> None:
    ring = ScriptedPackedRing(memory, 0x1000, size)
    for at in range(size):
        ring.put(at, BUF, 1, at, AVAIL | NEXT)
    with pytest.raises(QueueError, match=rf"more descriptors than the {size}.*§2\.8\.17"):
        ring.queue().pop()


def test_h28_the_last_descriptor_of_a_list_is_missing(ring: ScriptedPackedRing) -> None:
    ring.put(0, BUF, 1, 0, AVAIL | NEXT)
    with pytest.raises(QueueError, match=r"descriptor 1 of a list was not made available.*§2\.8\.6"):
        ring.queue().pop()


@pytest.mark.parametrize("marks", [0, USED, AVAIL | USED])
def test_h28_marks_of_another_round_make_nothing_available(ring: ScriptedPackedRing, marks: int) -> None:
    ring.put(0, BUF, 1, 0, marks)
    assert ring.queue().pop() is None
    ring.put(0, BUF, 1, 0, AVAIL | NEXT)
    ring.put(1, BUF, 1, 0, marks)
    with pytest.raises(QueueError, match="descriptor 1 of a list"):
        ring.queue().pop()


def test_h28_flags_that_are_flipped_back_lose_one_list_and_do_no_harm(ring: ScriptedPackedRing) -> None:
    queue = ring.queue()
    ring.make((BUF, 1, 0))
    ring.set_flags(0, 0)
    assert queue.pop() is None
    ring.set_flags(0, AVAIL)
    assert taken(queue).readable_length == 1
    ring.set_flags(0, AVAIL)  # it was read: this is nothing any more
    assert queue.pop() is None


@pytest.mark.parametrize("ident", [8, 9, 0xFFFF])
def test_h3_h28_a_buffer_id_past_the_queue_is_an_error(ring: ScriptedPackedRing, ident: int) -> None:
    ring.make((BUF, 1, 0), ident=ident)
    with pytest.raises(QueueError, match=f"buffer id {ident} in a queue of 8"):
        ring.queue().pop()


def test_h28_a_buffer_id_twice_is_an_error(ring: ScriptedPackedRing) -> None:
    queue = ring.queue()
    ring.make((BUF, 1, 0), ident=3)
    ring.make((BUF, 1, 0), ident=3)
    assert taken(queue).head == 3
    with pytest.raises(QueueError, match="buffer id 3 is in flight already"):
        queue.pop()


def test_h6_a_list_above_4_gib_is_an_error() -> None:
    huge = GuestMemory(1 << 30)
    ring = ScriptedPackedRing(huge, 0x1000, 8)
    ring.make(*[(0x10000, (1 << 30) - 0x10000, 0)] * 5)
    with pytest.raises(QueueError, match=r"longer than 2\^32"):
        ring.queue().pop()


@pytest.mark.parametrize(
    ("addr", "length"),
    [
        ((1 << 20) - 1, 2),
        (1 << 20, 1),
        (0xD0000000, 4),
        ((1 << 64) - 1, 2),
        ((1 << 64) - 16, 0xFFFFFFFF),
    ],
)
@pytest.mark.parametrize("flags", [0, WRITE])
def test_h7_addresses_outside_ram_are_refused_untouched(
    ring: ScriptedPackedRing, addr: int, length: int, flags: int
) -> None:
    ring.make((addr, length, flags))
    with pytest.raises(QueueError, match="not inside guest RAM"):
        ring.queue().pop()


@pytest.mark.parametrize("empty", [0, 1, 2])
def test_h8_one_empty_descriptor_is_skipped(ring: ScriptedPackedRing, empty: int) -> None:
    ring.make(*((BUF, 0 if at == empty else 4, 0) for at in range(3)))
    assert [len(view) for view in taken(ring.queue()).readable] == [4, 4]


def test_h8_a_list_of_empty_descriptors_has_no_views(ring: ScriptedPackedRing) -> None:
    ring.make((BUF, 0, 0), (BUF, 0, WRITE), (1 << 50, 0, 0))
    chain = taken(ring.queue())
    assert (chain.readable, chain.writable) == ([], [])


def test_h9_readable_behind_writable_is_an_error(ring: ScriptedPackedRing) -> None:
    ring.make((BUF, 4, 0), (BUF, 4, WRITE), (BUF, 4, 0))
    with pytest.raises(QueueError, match=r"§2\.8\.17"):
        ring.queue().pop()


@pytest.mark.parametrize(
    ("parts", "what"),
    [
        ([(BUF, 24, INDIRECT)], "24 bytes"),
        ([(BUF, 0, INDIRECT)], "0 bytes"),
        ([(BUF, 16 * 1025, INDIRECT)], "16400 bytes"),
        ([(BUF, 16, INDIRECT), (BUF, 1, 0)], r"list joined with NEXT.*§2\.8\.19"),
        ([(BUF, 1, 0), (BUF, 16, INDIRECT)], r"list joined with NEXT.*§2\.8\.19"),
        ([((1 << 20) - 8, 16, INDIRECT)], "indirect table"),
    ],
)
def test_h10_malformed_indirect_descriptors_are_errors(
    ring: ScriptedPackedRing, parts: list[tuple[int, int, int]], what: str
) -> None:
    ring.make(*parts)
    with pytest.raises(QueueError, match=what):
        ring.queue(INDIRECT_DESC).pop()


def test_h10_indirect_without_negotiation_is_an_error(ring: ScriptedPackedRing) -> None:
    ring.make((BUF, 16, INDIRECT))
    with pytest.raises(QueueError, match="not negotiated"):
        ring.queue().pop()


@pytest.mark.parametrize("table", [BUF, BUF + 1])
def test_h10_of_the_flags_in_a_table_only_write_counts(
    ring: ScriptedPackedRing, memory: GuestMemory, table: int
) -> None:
    """§2.8.7: INDIRECT and NEXT in there are ignored, ids as well, and WRITE on the descriptor of the table."""
    entries = [(BUF + 64, 3, 0xFFFF, NEXT | INDIRECT), (BUF + 128, 5, 0xFFFF, WRITE | AVAIL)]
    memory.span(table, 32)[:] = b"".join(struct.pack("<QIHH", *entry) for entry in entries)
    ring.make((table, 32, INDIRECT | WRITE))
    chain = taken(ring.queue(INDIRECT_DESC))
    assert (chain.readable_length, chain.writable_length, chain.descriptors) == (3, 5, 1)


@pytest.mark.parametrize("offset", [0, 100, 16 * 8, 16 * 8 + 4])
def test_h29_a_writable_buffer_over_the_ring_is_refused(ring: ScriptedPackedRing, offset: int) -> None:
    ring.make((ring.desc + offset, 64, WRITE))
    with pytest.raises(QueueError, match="over the ring itself"):
        ring.queue().pop()


@pytest.mark.parametrize("size", [0, 32769, 65535])
def test_h23_sizes_that_cannot_be(memory: GuestMemory, size: int) -> None:
    assert "from 1 to 32768" in str(check_areas(memory, size, 0x1000, 0x2000, 0x3000))


def test_h23_a_packed_queue_need_not_be_a_power_of_two(memory: GuestMemory) -> None:
    """§2.8.10.1"""
    assert check_areas(memory, 100, 0x1000, 0x2000, 0x3000) is None


@pytest.mark.parametrize(
    ("desc", "driver", "device", "why"),
    [
        (0x1008, 0x2000, 0x3000, "aligned to 16"),
        (0x1000, 0x2002, 0x3000, "aligned to 4"),
        (0x1000, 0x2000, 0x3002, "aligned to 4"),
        (0x1000, 0x1010, 0x3000, "overlaps"),
        (0x1000, 0x2000, 0x2000, "overlaps"),
        ((1 << 20) - 16, 0x2000, 0x3000, "RAM"),
        (0x1000, (1 << 64) - 4, 0x3000, "RAM"),
        (0xD0000000, 0x2000, 0x3000, "RAM"),
    ],
)
def test_h23_areas_that_cannot_be(memory: GuestMemory, desc: int, driver: int, device: int, why: str) -> None:
    assert why in str(check_areas(memory, 8, desc, driver, device))


class Flip(AccessHook):
    """Changes one cell just before the device's n-th load: as a driver on another CPU would."""

    def __init__(self, memory: GuestMemory, at: int, value: int) -> None:
        self.memory, self.at, self.value, self.loads = memory, at, value, 0
        self.done = False

    def before_load(self, who: str, addr: int, size: int) -> None:
        if self.loads == self.at:
            self.memory.span(addr, size)[:] = (self.value & (1 << 8 * size) - 1).to_bytes(size, "little")
            self.done = True
        self.loads += 1


def test_h11_memory_flipped_at_every_access_point_of_a_pop_and_a_push() -> None:
    """Whatever a field turns into between two looks, the outcome is a legal list, none, or a QueueError."""
    values = [0, 1, 7, 8, 0xFFFF, AVAIL, USED, AVAIL | NEXT, AVAIL | INDIRECT, AVAIL | USED, (1 << 64) - 1, 2 << 48]
    outcomes = {"chain": 0, "error": 0}
    points = 0
    for at in range(60):
        flipped = False
        for value in values:
            memory = GuestMemory(1 << 20)
            ring = ScriptedPackedRing(memory, 0x1000, 8)
            memory.span(BUF, 32)[:] = struct.pack("<QIHHQIHH", BUF + 64, 3, 0, 0, BUF + 128, 5, 0, WRITE)
            ring.make((BUF + 256, 4, 0), (BUF + 512, 4, WRITE))
            ring.make((BUF, 32, INDIRECT))
            queue = ring.queue(INDIRECT_DESC | EVENT_IDX)
            hook = memory.hook = Flip(memory, at, value)
            try:
                for _ in range(3):
                    chain = queue.pop()
                    if chain is None:
                        break
                    for view in chain.readable + chain.writable:
                        assert 0 < len(view) <= 1 << 20
                    for view in chain.writable:
                        view[:] = b"\xee" * len(view)
                    queue.push(chain.head, chain.writable_length)
                    queue.flush()
                    outcomes["chain"] += 1
                queue.enable_kicks()
            except QueueError:
                outcomes["error"] += 1
            flipped = flipped or hook.done
            assert hook.loads < 60
        points += flipped
    assert points >= 17  # flags, address, length of three descriptors, two ids, a table of four cells, two events
    assert min(outcomes.values()) > 20


def test_h26_scribbled_used_descriptors_and_events_do_no_harm(memory: GuestMemory) -> None:
    ring = ScriptedPackedRing(memory, 0x1000, 4)
    queue = ring.queue(EVENT_IDX)
    rng = random.Random(26)
    for round_ in range(100):
        for at in range(4):
            marks = 0 if queue.avail_wrap else AVAIL
            ring.put(at, rng.getrandbits(64), rng.getrandbits(32), rng.getrandbits(16), marks)
        memory.span(ring.driver, 8)[:] = rng.randbytes(8)
        ident = ring.make((BUF, 1, 0))
        assert taken(queue).head == ident
        queue.push(ident, 0)
        queue.flush()
        assert queue.next_used == (round_ + 1) % 4  # the device keeps its own place


# -- interrupts and kicks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flags", "interrupt"), [(ENABLE, True), (DISABLE, False), (AT_DESC, True), (3, True)])
def test_interrupts_follow_the_flags(ring: ScriptedPackedRing, flags: int, interrupt: bool) -> None:
    """Without EVENT_IDX nobody may ask for a certain descriptor: who does gets every interrupt (§2.8.10)."""
    queue = ring.queue()
    ring.ask_interrupt(flags, 5)
    ring.make((BUF, 1, 0))
    queue.push(taken(queue).head, 0)
    assert queue.flush() is interrupt
    assert queue.flush() is False  # nothing new, so nothing to say


@given(before=st.integers(0, 30), batch=st.integers(1, 8), event=st.integers(-7, 8), parts=st.integers(1, 3))
def test_an_event_interrupts_exactly_when_the_batch_passes_it(before: int, batch: int, event: int, parts: int) -> None:
    """§2.8.10: an interrupt is due when the descriptor with this place and wrap counter was used."""
    memory = GuestMemory(1 << 16)
    ring = ScriptedPackedRing(memory, 0x1000, 24)
    queue = ring.queue(EVENT_IDX)
    for _ in range(before):
        ring.make((BUF, 1, 0))
        queue.push(taken(queue).head, 0)
        queue.flush()
    start = ring.made
    if start + event < 0:
        return
    ring.ask_interrupt(AT_DESC, start + event)
    for _ in range(batch):
        ring.make(*[(BUF, 1, 0)] * parts)
        queue.push(taken(queue).head, 0)
    assert queue.flush() is (0 <= event < batch * parts)


def test_kicks_are_asked_for_with_the_next_descriptor(ring: ScriptedPackedRing) -> None:
    plain = ring.queue()
    plain.disable_kicks()
    assert ring.device_event[2] == DISABLE
    assert plain.enable_kicks() is False
    assert ring.device_event[2] == ENABLE
    with_event = ring.queue(EVENT_IDX)
    ring.make((BUF, 1, 0), (BUF, 1, 0))
    taken(with_event)
    assert with_event.enable_kicks() is False
    assert ring.device_event == (2, 1, AT_DESC)
    ring.make((BUF, 1, 0))
    assert with_event.enable_kicks() is True  # one came unannounced


# -- in order --------------------------------------------------------------------------------------------------------


def test_in_order_a_run_of_readable_lists_is_one_used_descriptor(ring: ScriptedPackedRing) -> None:
    """§2.8.8: it stands where the first of them stood, names the last, and the device goes on behind them."""
    queue = ring.queue(IN_ORDER)
    for ident in (4, 2, 6):
        ring.make((BUF, 1, 0), (BUF, 1, 0), ident=ident)
    chains = [taken(queue) for _ in range(3)]
    for at in (1, 2, 0):
        queue.push(chains[at].head, 0)
    assert queue.flush() is True
    assert ring.get(0)[1:] == (0, 6, AVAIL | USED)
    assert [ring.get(at)[3] & USED for at in range(1, 6)] == [0] * 5, "nothing is written for the others"
    assert (queue.next_used, queue.in_flight) == (6, 0)


def test_in_order_a_list_pushed_early_waits_for_its_turn(ring: ScriptedPackedRing) -> None:
    queue = ring.queue(IN_ORDER)
    first, second = ring.make((BUF, 9, WRITE)), ring.make((BUF, 9, WRITE))
    assert [taken(queue).head, taken(queue).head] == [first, second]
    queue.push(second, 2)
    assert queue.flush() is False
    assert ring.used() == []
    queue.push(first, 1)
    assert queue.flush() is True
    assert ring.used() == [(first, 1), (second, 2)], "each with its length, which the driver could not know"
