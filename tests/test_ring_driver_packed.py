"""The driver half of the packed virtqueue against a device that the test plays by hand (virtio 1.4 §2.8), and what both
formats do with a device that uses buffers in order.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest.dma import DmaPool
from guest.ring.packed import PackedRing
from guest.ring.split import SplitRing
from hw.memory import AccessHook, GuestMemory
from tests.scripted_device import HandRing
from tests.scripted_packed import AT_DESC, AVAIL, DISABLE, ENABLE, USED, HandPackedRing
from tests.test_ring_driver import EVENT_IDX, INDIRECT, FlipAt
from tests.test_ring_halves import IN_ORDER


class Pair:
    """A driver's ring and the device's hands on it."""

    def __init__(self, size: int = 8, offered: int = EVENT_IDX, indirect: int = 0) -> None:
        self.memory = GuestMemory(1 << 20)
        self.dma = DmaPool(self.memory.port("driver"), 1 << 16, 1 << 20)
        self.ring: PackedRing[str] = PackedRing(self.dma, 0, size, offered, indirect_entries=indirect)
        self.device = HandPackedRing(self.memory, size, *self.ring.addresses)

    def offer(self, *tokens: str, length: int = 100) -> None:
        """Make one writable buffer available for each token."""
        assert self.ring.post([(0x8000, length, token) for token in tokens], True) == len(tokens), "no room"
        self.ring.publish()

    def use(self, written: int = 0, count: int = 1) -> None:
        """The device takes the next lists and returns them."""
        for _ in range(count):
            self.device.put_used(self.device.take(), written)

    def sound(self) -> None:
        """Every buffer id is either free or in flight, none is both, and descriptors are counted right."""
        flying = [ident for ident, token in enumerate(self.ring._tokens) if token is not None]
        assert sorted(self.ring._free + flying) == list(range(self.ring.size)), "an id was lost, or is there twice"
        assert self.ring.size - self.ring.room == sum(self.ring._counts[ident] for ident in flying)


@pytest.fixture
def pair() -> Pair:
    return Pair()


# -- supplying ---------------------------------------------------------------------------------------------------


def test_areas_are_aligned_apart_and_mapped_the_right_way(pair: Pair) -> None:
    desc, driver, device = pair.ring.addresses
    assert (desc % 16, driver % 4, device % 4) == (0, 0, 0)
    assert desc + 16 * 8 <= driver
    assert driver + 4 <= device
    assert pair.dma.allows(desc, 16 * 8, "to-device")
    assert pair.dma.allows(desc, 16 * 8, "from-device"), "both sides write the ring"
    assert not pair.dma.allows(driver, 4, "from-device"), "its event structure is the driver's alone"
    assert pair.dma.allows(device, 4, "from-device")


@pytest.mark.parametrize("size", [0, 32769])
def test_a_packed_queue_has_1_to_32768_entries(size: int) -> None:
    with pytest.raises(ValueError, match=str(size)):
        Pair(size=size)


def test_a_list_lies_in_the_ring_as_it_was_added(pair: Pair) -> None:
    assert pair.ring.add([(0x8000, 12), (0x9000, 1514)], [(0xA000, 1)], "frame") is True
    assert pair.device.waiting() == 0, "nothing is shown before publish"
    assert pair.ring.publish() is True
    ident = pair.device.take()
    assert pair.device.elements(ident) == [(0x8000, 12, False), (0x9000, 1514, False), (0xA000, 1, True)]


def test_a_batch_is_published_with_one_store_of_flags(pair: Pair) -> None:
    """§2.8.6: the first descriptor of the batch becomes available last."""
    stores: list[tuple[int, int]] = []

    class Watch(AccessHook):
        def stored(self, who: str, addr: int, size: int, old: int, new: int) -> None:
            stores.append((addr - pair.ring.addresses[0], size))

    pair.memory.hook = Watch()
    assert pair.ring.add([(0x8000, 1), (0x8100, 1)], [], "a")
    assert pair.ring.post([(0x8000, 9, "b"), (0x8000, 9, "c")], True) == 2
    assert (14, 2) not in stores
    assert pair.device.waiting() == 0
    pair.ring.publish()
    assert stores[-1] == (14, 2)
    assert pair.device.waiting() == 3
    assert pair.ring.publish() is False


def test_a_full_ring_says_so(pair: Pair) -> None:
    for number in range(8):
        assert pair.ring.add([(0x8000, 1)], [], f"frame {number}") is True
    assert pair.ring.add([(0x8000, 1)], [], "one too many") is False
    assert pair.ring.post([(0x8000, 1, "one too many")], True) == 0
    pair.ring.publish()
    pair.use()
    assert pair.ring.reap(8) == [("frame 0", 0)]
    assert pair.ring.add([(0x8000, 1), (0x8001, 1)], [], "two elements, one descriptor") is False
    assert pair.ring.add([(0x8000, 1)], [], "fits again") is True
    pair.sound()


@pytest.mark.parametrize("count", [0, 9])
def test_a_list_that_never_fits_is_the_callers_mistake(pair: Pair, count: int) -> None:
    with pytest.raises(ValueError, match=str(count)):
        pair.ring.add([(0x8000, 1)] * count, [], "frame")


def test_an_indirect_list_takes_one_descriptor() -> None:
    pair = Pair(offered=INDIRECT, indirect=4)
    assert pair.ring.add([(0x8000, 12), (0x9000, 1514)], [(0xA000, 1)], "frame") is True
    assert pair.ring.room == 7
    assert pair.ring.add([(0x8000, 12)], [], "short") is True
    assert pair.ring.add([(0x8000, 1)] * 5, [], "longer than a table") is True
    pair.ring.publish()
    table, short, long = (pair.device.take() for _ in range(3))
    assert pair.device.is_indirect(table)
    assert pair.device.elements(table) == [(0x8000, 12, False), (0x9000, 1514, False), (0xA000, 1, True)]
    assert not pair.device.is_indirect(short), "one element needs no table"
    assert not pair.device.is_indirect(long)
    assert len(pair.device.elements(long)) == 5


# -- receiving ---------------------------------------------------------------------------------------------------


def test_used_buffers_come_back_in_the_devices_order(pair: Pair) -> None:
    pair.offer("a", "b", "c")
    idents = [pair.device.take() for _ in range(3)]
    for at, written in ((2, 30), (0, 10), (1, 20)):
        pair.device.put_used(idents[at], written)
    assert pair.ring.reap(2) == [("c", 30), ("a", 10)], "the budget is kept"
    assert pair.ring.reap(2) == [("b", 20)]
    assert pair.ring.reap(2) == []
    pair.sound()


def test_flags_are_read_first_and_each_field_once(pair: Pair) -> None:
    loads: list[tuple[int, int]] = []

    class Watch(AccessHook):
        def loaded(self, who: str, addr: int, size: int, value: int) -> None:
            loads.append((addr - pair.ring.addresses[0], size))

    pair.offer("a", "b")
    pair.use(1)
    pair.memory.hook = Watch()
    assert len(pair.ring.reap(8)) == 1
    assert loads == [(14, 2), (12, 2), (8, 4), (30, 2)], "flags, id, length; and the next one's flags"


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("offered", [0, EVENT_IDX])
def test_wrap_counters_turn_at_the_end_of_the_ring_and_past_65536(size: int, offered: int) -> None:
    pair = Pair(size=size, offered=offered)
    for number in range(66_000 if size == 3 and not offered else 5 * size + 40):
        pair.offer("buffer", length=number % 50 + 1)
        pair.use(number % 50 + 1)
        assert pair.ring.reap(4) == [("buffer", number % 50 + 1)]
    pair.sound()


def test_a_device_that_never_sets_write_is_believed_all_the_same(pair: Pair) -> None:
    """§2.8.3 wants WRITE with a length; QEMU writes the length and no WRITE."""
    pair.offer("a")
    pair.device.put_used(pair.device.take(), 60, show=False)
    pair.device.hidden = [(at, flags & ~2) for at, flags in pair.device.hidden]
    pair.device.show_used()
    assert pair.ring.reap(8) == [("a", 60)]


def test_the_length_of_a_readable_buffer_without_write_is_reserved(pair: Pair) -> None:
    pair.ring.add([(0x8000, 100)], [], "frame")
    pair.ring.publish()
    pair.device.put_used(pair.device.take(), 0, show=False)
    pair.device.put(0, 0, 0xDEADBEEF, *pair.device.get(0)[2:])
    pair.device.show_used()
    assert pair.ring.reap(8) == [("frame", 0)]


# -- H31, H32, H33, H35 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bogus", [8, 0xFFFF, 5], ids=["size", "far", "not in flight"])
@pytest.mark.parametrize("offered", [0, IN_ORDER])
def test_h31_a_used_id_that_is_not_in_flight_is_refused(offered: int, bogus: int) -> None:
    pair = Pair(offered=offered)
    pair.offer("a", "b")
    honest, other = pair.device.take(), pair.device.take()
    assert 5 not in (honest, other), "5 was to be an id that is free"
    pair.device.put_used(honest, 1, show=False)
    pair.device.put_used(bogus, 1)
    assert pair.ring.reap(8) == [("a", 1)], "what came before is believed, the bogus entry is not"
    assert pair.ring.broken == f"used.id {bogus} is not in flight"
    assert pair.ring.reap(8) == []
    pair.sound()


def test_h31_the_same_buffer_twice_is_refused(pair: Pair) -> None:
    pair.offer("a", "b")
    ident = pair.device.take()
    pair.device.put_used(ident, 1, show=False)
    pair.device.put_used(ident, 1)
    assert pair.ring.reap(8) == [("a", 1)]
    assert pair.ring.broken == f"used.id {ident} is not in flight"
    pair.sound()


def test_h32_more_bytes_than_the_buffer_has_are_refused(pair: Pair) -> None:
    pair.offer("a", "b", length=100)
    pair.use(100)
    assert pair.ring.reap(8) == [("a", 100)]
    pair.use(101)
    assert pair.ring.reap(8) == []
    assert "used.len 101" in (pair.ring.broken or "")
    pair.sound()


def test_h32_a_readable_buffer_has_no_writable_bytes(pair: Pair) -> None:
    pair.ring.add([(0x8000, 100)], [], "frame")
    pair.ring.publish()
    pair.use(1)
    assert pair.ring.reap(8) == []
    assert "used.len 1" in (pair.ring.broken or "")


def test_h33_a_used_mark_with_nothing_in_flight_stops_the_ring(pair: Pair) -> None:
    pair.device.put(0, 0, 0, 0, AVAIL | USED)
    assert pair.ring.reap(8) == []
    assert pair.ring.broken == "used.id 0 is not in flight"
    assert pair.ring.add([(0x8000, 1)], [], "more") is False


@pytest.mark.parametrize("offered", [0, IN_ORDER])
def test_h33_what_is_added_but_not_published_is_not_in_flight(offered: int) -> None:
    pair = Pair(offered=offered)
    pair.offer("a")
    pair.ring.add([(0x8000, 1)], [], "unpublished")
    unpublished = next(ident for ident, token in enumerate(pair.ring._tokens) if token == "unpublished")
    pair.device.take()
    pair.device.put_used(unpublished, 0)
    assert pair.ring.reap(8) == []
    assert pair.ring.broken == f"used.id {unpublished} is not in flight"
    assert sorted(pair.ring.detach()) == ["a", "unpublished"], "the driver gets its buffers back"


def test_h35_a_rewritten_ring_changes_nothing() -> None:
    pair = Pair(offered=INDIRECT, indirect=2)
    for _ in range(20):
        for token, count in (("list", 3), ("table", 2), ("one", 1)):
            assert pair.ring.add([(0x8000 + at, 7) for at in range(count)], [], token) is True
        pair.ring.publish()
        idents = [pair.device.take() for _ in range(3)]
        for at in range(8):
            pair.device.put(at, 0xFFFF, 0xFFFF, 0xFFFF, pair.device.get(at)[3] | 7)  # every address, id, length lies
        for ident in idents:
            pair.device.put_used(ident, 0)
        assert [token for token, _ in pair.ring.reap(8)] == ["list", "table", "one"]
        pair.sound()


@pytest.mark.parametrize("mask", [0x1, 0x2, 0x80, 0x8000, 0x8080, 0xFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("offered", [0, EVENT_IDX, EVENT_IDX | IN_ORDER])
def test_memory_flipped_at_every_load_does_no_harm(mask: int, offered: int) -> None:
    target = 0
    while True:
        pair = Pair(offered=offered)
        hook = FlipAt(pair.memory, target, mask)
        pair.memory.hook = hook
        reaped: list[tuple[str, int]] = []
        pair.offer("a", "b", "c", length=20)
        idents = [pair.device.take() for _ in range(3)]
        pair.ring.kick_needed()
        pair.ring.enable_interrupts()
        for ident in idents[:2]:
            pair.device.put_used(ident, 10)
        reaped += pair.ring.reap(1)
        pair.ring.disable_interrupts()
        reaped += pair.ring.reap(8)
        added = pair.ring.add([(0x8000, 1), (0x9000, 1)], [], "d")
        pair.ring.publish()
        pair.ring.kick_needed()
        pair.device.put_used(idents[2], 20)
        reaped += pair.ring.reap(8)
        tokens = [token for token, _ in reaped]
        assert len(tokens) == len(set(tokens)), f"a buffer came back twice (load {target})"
        assert all(written <= 20 for _, written in reaped), f"more bytes than the buffer has (load {target})"
        pair.sound()
        assert set(pair.ring.detach()) == {"a", "b", "c", *(["d"] if added else [])} - set(tokens)
        if hook.left >= 0:
            break  # there is no such load any more: all were flipped
        target += 1
    assert target >= 9, "every load was to be flipped"


# -- notifications and interrupts --------------------------------------------------------------------------------


@pytest.mark.parametrize("offered", [0, EVENT_IDX])
@pytest.mark.parametrize(("flags", "kick"), [(ENABLE, True), (DISABLE, False), (3, True)])
def test_kicks_follow_the_flags(offered: int, flags: int, kick: bool) -> None:
    pair = Pair(offered=offered)
    pair.device.ask_kick(flags, 6)
    pair.offer("a")
    assert pair.ring.kick_needed() is kick
    assert pair.ring.kick_needed() is False, "nothing new was published"


def test_a_descriptor_may_be_named_only_with_event_idx() -> None:
    for offered, kick in ((0, True), (EVENT_IDX, False)):
        pair = Pair(offered=offered)
        pair.device.ask_kick(AT_DESC, 6)
        pair.offer("a")
        assert pair.ring.kick_needed() is kick


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 12)), max_size=30))
def test_no_kick_that_the_device_waits_for_is_missed(steps: list[tuple[int, int]]) -> None:
    pair = Pair(size=16)
    for number, (count, ahead) in enumerate(steps):
        pair.device.ask_kick(AT_DESC, pair.device.seen + ahead)
        pair.offer(*(f"{number}.{at}" for at in range(count)))
        assert pair.ring.kick_needed() is (ahead < count)
        pair.use(count=count)
        assert len(pair.ring.reap(16)) == count


@pytest.mark.parametrize("offered", [0, EVENT_IDX])
def test_a_wake_up_is_not_lost_between_the_last_look_and_enabling(offered: int) -> None:
    pair = Pair(offered=offered)
    pair.offer("a", "b")
    pair.ring.disable_interrupts()
    assert pair.device.driver_event[2] == DISABLE
    pair.use(1)
    assert pair.ring.reap(8) == [("a", 1)]
    pair.use(2)  # right here, with interrupts off: the device says nothing
    assert pair.ring.enable_interrupts() is True, "the second look finds it (2.8.22)"
    assert pair.ring.reap(8) == [("b", 2)]
    assert pair.ring.enable_interrupts() is False


def test_interrupts_off_on_and_after_so_many() -> None:
    pair = Pair(size=64)

    def interrupt() -> bool:
        old = pair.device.next_used
        pair.use()
        return pair.device.interrupt_wanted(old)

    for _ in range(3):  # the third round has other wrap counters
        pair.offer(*(f"buffer {at}" for at in range(40)))
        pair.ring.enable_interrupts()
        assert interrupt() is True
        pair.ring.reap(8)
        pair.ring.disable_interrupts()
        assert [interrupt() for _ in range(5)] == [False] * 5
        pair.ring.reap(8)
        assert pair.ring.enable_interrupts(after=3) is False
        assert [interrupt() for _ in range(5)] == [False, False, True, False, False], "once three more are used"
        assert pair.ring.enable_interrupts(after=3) is True, "some are used already"
        pair.use(count=29)
        pair.ring.reap(64)


# -- in order, both formats --------------------------------------------------------------------------------------


def in_order(packed: bool) -> tuple[PackedRing[str] | SplitRing[str], HandPackedRing | HandRing]:
    memory = GuestMemory(1 << 20)
    dma = DmaPool(memory.port("driver"), 1 << 16, 1 << 20)
    if packed:
        ring: PackedRing[str] = PackedRing(dma, 0, 8, IN_ORDER)
        return ring, HandPackedRing(memory, 8, *ring.addresses)
    split: SplitRing[str] = SplitRing(dma, 0, 8, IN_ORDER, start_index=0xFFFC)
    return split, HandRing(memory, 8, *split.addresses, start=0xFFFC)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_one_entry_stands_for_a_batch(packed: bool) -> None:
    """§2.7.9, §2.8.8: those that were skipped count as used completely; a batch may be more than a reap wants."""
    ring, device = in_order(packed)
    for round_ in range(20):
        ring.add([(0x8000, 5)], [], "read only")
        ring.add([(0x8000, 5)], [(0x9000, 70), (0x9100, 7)], "two parts")
        ring.post([(0x8000, 50, "last")], True)
        ring.publish()
        heads = [device.take() for _ in range(3)]
        device.put_used(heads[2], 20, batch=heads[:2])
        assert ring.reap(1) == [("read only", 0)]
        assert ring.pending() is True, "two wait to be handed out"
        assert ring.enable_interrupts() is True
        assert ring.reap(2 + round_) == [("two parts", 77), ("last", 20)]
        assert (ring.reap(8), ring.room, ring.in_flight) == ([], 8, 0)


def test_in_order_the_table_is_gone_through_round_and_round() -> None:
    """§2.7.5.2: descriptors are used from 0 on, and `next` is always one more, modulo the table."""
    ring, device = in_order(packed=False)
    assert isinstance(device, HandRing)
    expected = 0
    for round_ in range(20):
        parts = 1 + round_ % 3
        ring.add([(0x8000, 5)] * parts, [], "frame")
        ring.publish()
        head = device.take()
        assert head == expected
        assert len(device.elements(head)) == parts
        for at in range(parts - 1):
            assert device._get("QIHH", device.desc + 16 * ((head + at) % 8))[3] == (head + at + 1) % 8
        expected = (head + parts) % 8
        device.put_used(head, 0)
        assert ring.reap(8) == [("frame", 0)]


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_h31_a_batch_that_ends_in_a_buffer_not_in_flight_frees_nothing(packed: bool) -> None:
    ring, device = in_order(packed)
    ring.post([(0x8000, 50, "a"), (0x8000, 50, "b")], True)
    ring.publish()
    heads = [device.take(), device.take()]
    device.put_used(7, 0, batch=heads[:1])
    assert ring.reap(8) == []
    assert "7 is not in flight" in (ring.broken or "")
    assert sorted(ring.detach()) == ["a", "b"]


def test_h33_split_a_batch_longer_than_used_idx_moved_is_refused() -> None:
    ring, device = in_order(packed=False)
    ring.post([(0x8000, 50, "a"), (0x8000, 50, "b")], True)
    ring.publish()
    _, second = device.take(), device.take()
    device.put_used(second, 0)  # as a device does that forgot what it had negotiated
    assert ring.reap(8) == []
    assert ring.broken == f"used.id {second} ends a batch of 2, and used.idx moved by 1"


# -- closing -----------------------------------------------------------------------------------------------------


def test_close_gives_everything_back_and_adds_nothing_more() -> None:
    pair = Pair(offered=INDIRECT, indirect=4)
    pair.offer("a")
    assert pair.ring.detach() == ["a"]
    pair.ring.close()
    pair.ring.close()
    assert pair.dma.mapped_bytes == 0
    assert pair.dma.free_bytes == pair.dma.size
    assert pair.ring.add([(0x8000, 1)], [], "b") is False
    assert pair.ring.reap(8) == []


def test_a_snapshot_tells_where_both_stand(pair: Pair) -> None:
    pair.offer(*"abcdefgh")
    pair.use(count=8)
    pair.ring.reap(3)
    state = pair.ring.snapshot()
    assert (state["avail_idx"], state["avail_wrap"]) == (0, 0)
    assert (state["last_used"], state["used_wrap"]) == (3, 1)
    assert state["in_flight"] == 5
    assert "5 in flight" in repr(pair.ring)
