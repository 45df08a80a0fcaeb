"""The device half of the split ring against a scripted driver: what it takes, what it refuses, when it interrupts.

Names H1, H2, … are rows of the list of hostile inputs; each such test fails when its check is taken out.
"""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw.abi.virtio import VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, features
from hw.memory import AccessHook, GuestMemory
from hw.virtio.split import QueueError, SplitQueue, check_areas
from tests.scripted_driver import INDIRECT, NEXT, WRITE, ScriptedRing

EVENT_IDX = features(VIRTIO_RING_F_EVENT_IDX)
INDIRECT_DESC = features(VIRTIO_RING_F_INDIRECT_DESC)
BUF = 0x8000


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory(1 << 20)


@pytest.fixture
def ring(memory: GuestMemory) -> ScriptedRing:
    return ScriptedRing(memory, 0x1000, 8)


def test_a_chain_is_taken_filled_and_given_back(ring: ScriptedRing, memory: GuestMemory) -> None:
    memory.span(BUF, 5)[:] = b"hello"
    ring.chain(2, [(BUF, 5, 0), (BUF + 100, 3, WRITE), (BUF + 200, 4, WRITE)])
    ring.offer(2)
    queue = ring.queue()
    chain = queue.pop()
    assert chain is not None
    assert [bytes(view) for view in chain.readable] == [b"hello"]
    assert [len(view) for view in chain.writable] == [3, 4]
    assert (chain.readable_length, chain.writable_length) == (5, 7)
    chain.writable[0][:] = b"abc"
    queue.push(chain.head, 3)
    assert ring.used() == []  # nothing is visible before flush
    assert queue.flush() is True
    assert ring.used() == [(2, 3)]
    assert bytes(memory.span(BUF + 100, 3)) == b"abc"
    assert queue.pop() is None


def test_indices_wrap_at_65536(memory: GuestMemory) -> None:
    ring = ScriptedRing(memory, 0x1000, 4, start=0xFFF0)
    queue = ring.queue(start=0xFFF0)
    for round_ in range(40):
        ring.chain(round_ % 4, [(BUF, 1, 0)])
        ring.offer(round_ % 4)
        chain = queue.pop()
        assert chain is not None
        assert chain.head == round_ % 4
        queue.push(chain.head, round_)
        assert queue.flush() is True
        assert ring.used() == [(round_ % 4, round_)]
    assert ring.used_idx == (0xFFF0 + 40) & 0xFFFF == 0x18


def test_h1_avail_idx_ahead_by_more_than_the_queue_is_an_error(ring: ScriptedRing) -> None:
    queue = ring.queue()
    ring.put16(ring.driver + 2, 9)
    with pytest.raises(QueueError, match=r"9 ahead.*§2\.7\.6\.1"):
        queue.pop()


def test_h1_buffers_in_flight_count_against_the_queue(ring: ScriptedRing) -> None:
    for head in range(8):
        ring.chain(head, [(BUF, 1, 0)])
    ring.offer(*range(8))
    queue = ring.queue()
    for _ in range(8):
        assert queue.pop() is not None
    ring.offer(0)  # the ninth, while eight are in flight
    with pytest.raises(QueueError, match="8 of 8 in flight"):
        queue.pop()


def test_h2_avail_idx_going_back_is_an_error(ring: ScriptedRing) -> None:
    ring.chain(0, [(BUF, 1, 0)])
    ring.offer(0, 0)
    queue = ring.queue()
    queue.pop()
    queue.pop()
    ring.put16(ring.driver + 2, 1)
    with pytest.raises(QueueError, match="65535 ahead"):
        queue.pop()


@pytest.mark.parametrize("head", [8, 9, 0xFFFF])
def test_h3_an_avail_entry_past_the_queue_is_an_error(ring: ScriptedRing, head: int) -> None:
    ring.offer(head)
    with pytest.raises(QueueError, match=f"avail entry {head}"):
        ring.queue().pop()


@pytest.mark.parametrize("loop", [[(0, 0)], [(0, 1), (1, 0)], [(0, 1), (1, 2), (2, 1)]])
def test_h4_a_loop_of_descriptors_ends_in_an_error(ring: ScriptedRing, loop: list[tuple[int, int]]) -> None:
    for index, next_ in loop:
        ring.descriptor(index, BUF, 1, NEXT, next_)
    ring.offer(0)
    with pytest.raises(QueueError, match=r"more than 8 descriptors.*§2\.7\.5\.2"):
        ring.queue().pop()


def test_h4_a_loop_inside_an_indirect_table_ends_in_an_error(ring: ScriptedRing, memory: GuestMemory) -> None:
    memory.span(BUF, 32)[:] = struct.pack("<QIHHQIHH", BUF, 1, NEXT, 1, BUF, 1, NEXT, 0)
    ring.descriptor(0, BUF, 32, INDIRECT)
    ring.offer(0)
    with pytest.raises(QueueError, match="more than 2 descriptors"):
        ring.queue(INDIRECT_DESC).pop()


@pytest.mark.parametrize("next_", [8, 0xFFFF])
def test_h5_next_past_the_table_is_an_error(ring: ScriptedRing, next_: int) -> None:
    ring.descriptor(0, BUF, 1, NEXT, next_)
    ring.offer(0)
    with pytest.raises(QueueError, match=f"descriptor {next_}"):
        ring.queue().pop()


def test_h6_a_chain_above_4_gib_is_an_error(memory: GuestMemory) -> None:
    # Views cost nothing, so a gigabyte of RAM lets the sum pass 2^32 while each descriptor is in RAM.
    huge = GuestMemory(1 << 30)
    ring = ScriptedRing(huge, 0x1000, 8)
    ring.chain(0, [(0x10000, (1 << 30) - 0x10000, 0)] * 5)
    ring.offer(0)
    with pytest.raises(QueueError, match=r"longer than 2\^32"):
        ring.queue().pop()


@pytest.mark.parametrize(
    ("addr", "length"),
    [
        ((1 << 20) - 1, 2),  # the last byte and one past it
        (1 << 20, 1),
        (0xD0000000, 4),  # the devices' registers
        ((1 << 64) - 1, 2),  # wraps 64 bits
        ((1 << 64) - 16, 0xFFFFFFFF),
    ],
)
@pytest.mark.parametrize("flags", [0, WRITE])
def test_h7_addresses_outside_ram_are_refused_untouched(
    ring: ScriptedRing, addr: int, length: int, flags: int
) -> None:
    ring.descriptor(0, addr, length, flags)
    ring.offer(0)
    with pytest.raises(QueueError, match="not inside guest RAM"):
        ring.queue().pop()


@pytest.mark.parametrize("empty", [0, 1, 2])
def test_h8_one_empty_descriptor_is_skipped(ring: ScriptedRing, empty: int) -> None:
    ring.chain(0, [(BUF, 0 if at == empty else 4, 0) for at in range(3)])
    ring.offer(0)
    chain = ring.queue().pop()
    assert chain is not None
    assert [len(view) for view in chain.readable] == [4, 4]


def test_h8_a_chain_of_empty_descriptors_has_no_views(ring: ScriptedRing) -> None:
    ring.chain(0, [(BUF, 0, 0), (BUF, 0, WRITE), (1 << 50, 0, 0)])
    ring.offer(0)
    chain = ring.queue().pop()
    assert chain is not None
    assert (chain.readable, chain.writable) == ([], [])


def test_h9_readable_behind_writable_is_an_error(ring: ScriptedRing) -> None:
    ring.chain(0, [(BUF, 4, 0), (BUF, 4, WRITE), (BUF, 4, 0)])
    ring.offer(0)
    with pytest.raises(QueueError, match=r"§2\.7\.4\.2"):
        ring.queue().pop()


@pytest.mark.parametrize(
    ("length", "flags", "what"),
    [
        (24, INDIRECT, "24 bytes"),
        (0, INDIRECT, "0 bytes"),
        (16 * 1025, INDIRECT, "16400 bytes"),
        (16, INDIRECT | NEXT, "both INDIRECT and NEXT"),
    ],
)
def test_h10_malformed_indirect_descriptors_are_errors(
    ring: ScriptedRing, length: int, flags: int, what: str
) -> None:
    ring.descriptor(0, BUF, length, flags)
    ring.offer(0)
    with pytest.raises(QueueError, match=what):
        ring.queue(INDIRECT_DESC).pop()


def test_h10_indirect_without_negotiation_is_an_error(ring: ScriptedRing) -> None:
    ring.descriptor(0, BUF, 16, INDIRECT)
    ring.offer(0)
    with pytest.raises(QueueError, match="not negotiated"):
        ring.queue().pop()


def test_h10_indirect_inside_indirect_is_an_error(ring: ScriptedRing, memory: GuestMemory) -> None:
    memory.span(BUF, 16)[:] = struct.pack("<QIHH", BUF, 16, INDIRECT, 0)
    ring.descriptor(0, BUF, 16, INDIRECT)
    ring.offer(0)
    with pytest.raises(QueueError, match="inside an indirect table"):
        ring.queue(INDIRECT_DESC).pop()


def test_h10_an_indirect_table_outside_ram_is_an_error(ring: ScriptedRing) -> None:
    ring.descriptor(0, (1 << 20) - 8, 16, INDIRECT)
    ring.offer(0)
    with pytest.raises(QueueError, match="indirect table"):
        ring.queue(INDIRECT_DESC).pop()


@pytest.mark.parametrize("table", [BUF, BUF + 1])  # the standard asks for no alignment of the table
def test_h10_write_on_the_indirect_descriptor_is_ignored(
    ring: ScriptedRing, memory: GuestMemory, table: int
) -> None:
    memory.span(table, 32)[:] = struct.pack("<QIHHQIHH", BUF + 64, 3, NEXT, 1, BUF + 128, 5, WRITE, 0)
    ring.descriptor(0, table, 32, INDIRECT | WRITE)
    ring.offer(0)
    chain = ring.queue(INDIRECT_DESC).pop()
    assert chain is not None
    assert (chain.readable_length, chain.writable_length) == (3, 5)


def test_direct_descriptors_may_come_before_an_indirect_one(ring: ScriptedRing, memory: GuestMemory) -> None:
    memory.span(BUF, 16)[:] = struct.pack("<QIHH", BUF + 64, 3, 0, 0)
    ring.descriptor(0, BUF + 32, 2, NEXT, 1)
    ring.descriptor(1, BUF, 16, INDIRECT)
    ring.offer(0)
    chain = ring.queue(INDIRECT_DESC).pop()
    assert chain is not None
    assert [len(view) for view in chain.readable] == [2, 3]


@pytest.mark.parametrize("offset", [0, 100, 16 * 8, 16 * 8 + 22])
def test_h29_a_writable_buffer_over_the_ring_is_refused(ring: ScriptedRing, offset: int) -> None:
    ring.descriptor(0, ring.desc + offset, 64, WRITE)
    ring.offer(0)
    with pytest.raises(QueueError, match="over the ring itself"):
        ring.queue().pop()


@pytest.mark.parametrize("size", [0, 3, 12, 65535, 65536])
def test_h23_sizes_that_cannot_be(memory: GuestMemory, size: int) -> None:
    assert "power of two" in str(check_areas(memory, size, 0x1000, 0x2000, 0x3000))


@pytest.mark.parametrize(
    ("desc", "driver", "device", "why"),
    [
        (0x1008, 0x2000, 0x3000, "aligned to 16"),
        (0x1000, 0x2001, 0x3000, "aligned to 2"),
        (0x1000, 0x2000, 0x3002, "aligned to 4"),
        (0x1000, 0x1010, 0x3000, "overlaps"),
        (0x1000, 0x2000, 0x2010, "overlaps"),
        ((1 << 20) - 16, 0x2000, 0x3000, "RAM"),
        (0x1000, (1 << 64) - 2, 0x3000, "RAM"),
        (0xD0000000, 0x2000, 0x3000, "RAM"),
    ],
)
def test_h23_areas_that_cannot_be(memory: GuestMemory, desc: int, driver: int, device: int, why: str) -> None:
    assert why in str(check_areas(memory, 8, desc, driver, device))
    assert check_areas(memory, 8, 0x1000, 0x2000, 0x3000) is None


class Flip(AccessHook):
    """Changes one cell just before the device's n-th load: as a driver on another CPU would."""

    def __init__(self, memory: GuestMemory, at: int, value: int) -> None:
        self.memory, self.at, self.value, self.loads = memory, at, value, 0
        self.done: list[tuple[int, int]] = []

    def before_load(self, who: str, addr: int, size: int) -> None:
        if self.loads == self.at:
            self.memory.span(addr, size)[:] = (self.value & (1 << 8 * size) - 1).to_bytes(size, "little")
            self.done.append((addr, size))
        self.loads += 1


def test_h11_memory_flipped_at_every_access_point_of_a_pop_and_a_push() -> None:
    """Whatever a field turns into between two looks, the outcome is a legal chain or a QueueError, and bounded work."""
    values = [0, 1, 7, 8, 0xFFFF, 0xFFFFFFFF, (1 << 64) - 1, 2 << 32 | 64, 4 << 32 | 16, 1 << 32 | 3 << 48 | 64]
    outcomes = {"chain": 0, "error": 0}
    points = 0
    for at in range(40):
        flipped = False
        for value in values:
            memory = GuestMemory(1 << 20)
            ring = ScriptedRing(memory, 0x1000, 8)
            memory.span(BUF, 32)[:] = struct.pack("<QIHHQIHH", BUF + 64, 3, NEXT, 1, BUF + 128, 5, WRITE, 0)
            ring.chain(0, [(BUF + 256, 4, 0), (BUF + 512, 4, WRITE)])
            ring.descriptor(3, BUF, 32, INDIRECT)
            ring.offer(0, 3)
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
            flipped = flipped or bool(hook.done)
            assert hook.loads < 60
        points += flipped
    assert points >= 15  # avail.idx, two heads, seven descriptors of two cells, two used_event, avail.idx again
    assert min(outcomes.values()) > 20


def test_h11_each_field_is_read_once(ring: ScriptedRing, memory: GuestMemory) -> None:
    loads: list[int] = []

    class Count(AccessHook):
        def loaded(self, who: str, addr: int, size: int, value: int) -> None:
            loads.append(addr)

    ring.chain(0, [(BUF, 4, 0), (BUF + 64, 4, WRITE)])
    ring.offer(0)
    queue = ring.queue()
    memory.hook = Count()
    assert queue.pop() is not None
    assert len(loads) == len(set(loads)) == 6  # idx, ring entry, two cells of each of two descriptors


def test_h26_a_scribbled_used_ring_and_used_event_do_no_harm(memory: GuestMemory) -> None:
    ring = ScriptedRing(memory, 0x1000, 4)
    queue = ring.queue(EVENT_IDX)
    rng = random.Random(26)
    for round_ in range(100):
        memory.span(ring.device, 6 + 8 * 4)[:] = rng.randbytes(6 + 8 * 4)
        ring.put16(ring.driver + 4 + 2 * 4, rng.randrange(65536))
        ring.chain(round_ % 4, [(BUF, 1, 0)])
        ring.offer(round_ % 4)
        chain = queue.pop()
        assert chain is not None
        queue.push(chain.head, 0)
        queue.flush()
        assert ring.used_idx == (round_ + 1) & 0xFFFF  # the device keeps its own index


def test_interrupts_are_suppressed_by_the_flag(ring: ScriptedRing) -> None:
    queue = ring.queue()
    ring.chain(0, [(BUF, 1, 0)])
    ring.put16(ring.driver, 1)  # VRING_AVAIL_F_NO_INTERRUPT
    ring.offer(0)
    queue.push(queue.pop().head, 0)  # type: ignore[union-attr]
    assert queue.flush() is False
    ring.put16(ring.driver, 0)
    ring.offer(0)
    queue.push(queue.pop().head, 0)  # type: ignore[union-attr]
    assert queue.flush() is True


@given(start=st.integers(0, 0xFFFF), batch=st.integers(1, 8), event=st.integers(-12, 12))
def test_event_index_interrupts_exactly_when_the_batch_passes_used_event(start: int, batch: int, event: int) -> None:
    """§2.7.7.2: an interrupt is due when an entry was placed at index used_event."""
    memory = GuestMemory(1 << 16)
    ring = ScriptedRing(memory, 0x1000, 8, start)
    queue = ring.queue(EVENT_IDX, start)
    used_event = (start + event) & 0xFFFF
    ring.put16(ring.driver + 4 + 2 * 8, used_event)
    for head in range(batch):
        ring.chain(head, [(BUF, 1, 0)])
    ring.offer(*range(batch))
    for _ in range(batch):
        queue.push(queue.pop().head, 0)  # type: ignore[union-attr]
    placed = {(start + at) & 0xFFFF for at in range(batch)}
    assert queue.flush() is (used_event in placed)
    assert queue.flush() is False  # nothing new, so nothing to say


def test_kicks_are_asked_for_with_the_next_buffer(memory: GuestMemory) -> None:
    ring = ScriptedRing(memory, 0x1000, 8)
    plain: SplitQueue = ring.queue()
    plain.disable_kicks()
    assert ring.get16(ring.device) == 1  # VRING_USED_F_NO_NOTIFY
    assert plain.enable_kicks() is False
    assert ring.get16(ring.device) == 0
    with_event = ring.queue(EVENT_IDX)
    ring.chain(0, [(BUF, 1, 0)])
    ring.offer(0)
    assert with_event.pop() is not None
    assert with_event.enable_kicks() is False
    assert ring.get16(ring.device + 4 + 8 * 8) == 1  # avail_event
    ring.offer(0)
    assert with_event.enable_kicks() is True  # one came unannounced
