"""The driver half of the split virtqueue against a device that the test plays by hand (virtio 1.4 §2.7)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest.dma import DmaPool
from guest.ring.split import SplitRing, need_event
from hw.abi.virtio import VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, features
from hw.memory import AccessHook, GuestMemory
from tests.scripted_device import HandRing

EVENT_IDX = features(VIRTIO_RING_F_EVENT_IDX)
INDIRECT = features(VIRTIO_RING_F_INDIRECT_DESC)
NEAR_WRAP = 0xFFF0


class Pair:
    """A driver's ring and the device's hands on it."""

    def __init__(self, size: int = 8, offered: int = EVENT_IDX, indirect: int = 0, start: int = 0) -> None:
        self.memory = GuestMemory(1 << 20)
        self.dma = DmaPool(self.memory.port("driver"), 1 << 16, 1 << 20)
        self.ring: SplitRing[str] = SplitRing(
            self.dma, 0, size, offered, indirect_entries=indirect, start_index=start
        )
        self.device = HandRing(self.memory, size, *self.ring.addresses, start=start)

    def offer(self, *tokens: str, length: int = 100) -> None:
        """Make one writable buffer available for each token."""
        posted = [(0x8000, length, token) for token in tokens]
        assert self.ring.post(posted, True) == len(tokens), "the ring has no room"
        self.ring.publish()

    def use(self, written: int = 0, count: int = 1) -> None:
        """The device takes the next chains and returns them."""
        for _ in range(count):
            self.device.put_used(self.device.take(), written)

    def sound(self) -> None:
        """Every descriptor is either free or in flight, and none is both."""
        state = self.ring.snapshot()
        heads = state["heads"]
        assert isinstance(heads, list), "heads is a list"
        chained = sum(len(chain) for chain in self.ring._chains if chain is not None)
        assert len(self.ring._free) + len(heads) + chained == self.ring.size, f"descriptors were lost: {state}"
        assert len(set(self.ring._free)) == len(self.ring._free), "a descriptor is free twice"
        assert not set(self.ring._free) & set(heads), "a descriptor is free and in flight"


@pytest.fixture
def pair() -> Pair:
    return Pair()


# -- supplying ---------------------------------------------------------------------------------------------------


def test_areas_are_aligned_apart_and_mapped_the_right_way(pair: Pair) -> None:
    desc, avail, used = pair.ring.addresses
    assert (desc % 16, avail % 2, used % 4) == (0, 0, 0)
    assert desc + 16 * 8 <= avail
    assert avail + 6 + 2 * 8 <= used
    assert pair.dma.allows(desc, 16 * 8, "to-device")
    assert pair.dma.allows(avail, 6 + 2 * 8, "to-device")
    assert pair.dma.allows(used, 6 + 8 * 8, "from-device")
    assert not pair.dma.allows(desc, 16 * 8, "from-device"), "a device must not write descriptors (2.7.5.1)"


@pytest.mark.parametrize("size", [0, 3, 100, 65536])
def test_a_split_queue_has_a_power_of_two_of_entries(size: int) -> None:
    with pytest.raises(ValueError, match=str(size)):
        Pair(size=size)


def test_a_chain_lies_in_the_table_as_it_was_added(pair: Pair) -> None:
    assert pair.ring.add([(0x8000, 12), (0x9000, 1514)], [(0xA000, 1)], "frame") is True
    assert pair.device.waiting() == 0, "nothing is shown before publish"
    assert pair.ring.publish() is True
    head = pair.device.take()
    assert pair.device.elements(head) == [(0x8000, 12, False), (0x9000, 1514, False), (0xA000, 1, True)]


def test_a_batch_is_published_with_one_store() -> None:
    stores: list[tuple[int, int]] = []

    class Watch(AccessHook):
        def stored(self, who: str, addr: int, size: int, old: int, new: int) -> None:
            stores.append((addr, new))

    pair = Pair(start=NEAR_WRAP)
    pair.memory.hook = Watch()
    pair.offer("a", "b", "c")
    idx = pair.ring.addresses[1] + 2
    assert [new for addr, new in stores if addr == idx] == [NEAR_WRAP + 3]
    assert stores[-1][0] == idx, "avail.idx is written last (2.7.13)"
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
def test_a_chain_that_never_fits_is_the_callers_mistake(pair: Pair, count: int) -> None:
    with pytest.raises(ValueError, match=str(count)):
        pair.ring.add([(0x8000, 1)] * count, [], "frame")


def test_an_indirect_chain_takes_one_descriptor() -> None:
    pair = Pair(offered=INDIRECT, indirect=4)
    assert pair.ring.add([(0x8000, 12), (0x9000, 1514)], [(0xA000, 1)], "frame") is True
    assert pair.ring.room == 7
    pair.ring.publish()
    head = pair.device.take()
    assert pair.device.is_indirect(head)
    assert pair.device.elements(head) == [(0x8000, 12, False), (0x9000, 1514, False), (0xA000, 1, True)]
    assert pair.ring.add([(0x8000, 12)], [], "short") is True
    pair.ring.publish()
    assert not pair.device.is_indirect(pair.device.take()), "one element needs no table"
    assert pair.ring.add([(0x8000, 1)] * 5, [], "longer than a table") is True
    pair.ring.publish()
    long = pair.device.take()
    assert not pair.device.is_indirect(long)
    assert len(pair.device.elements(long)) == 5


def test_no_indirect_table_without_negotiation() -> None:
    pair = Pair(offered=EVENT_IDX, indirect=4)
    pair.ring.add([(0x8000, 12), (0x9000, 1514)], [], "frame")
    pair.ring.publish()
    assert not pair.device.is_indirect(pair.device.take()), "INDIRECT_DESC was not negotiated (2.7.5.3.1)"


# -- receiving ---------------------------------------------------------------------------------------------------


def test_used_buffers_come_back_in_the_devices_order(pair: Pair) -> None:
    pair.offer("a", "b", "c")
    heads = [pair.device.take() for _ in range(3)]
    for at, written in ((2, 30), (0, 10), (1, 20)):
        pair.device.put_used(heads[at], written)
    assert pair.ring.reap(2) == [("c", 30), ("a", 10)], "the budget is kept"
    assert pair.ring.reap(2) == [("b", 20)]
    assert pair.ring.reap(2) == []
    pair.sound()


def test_used_idx_is_read_once_a_batch_and_each_element_once(pair: Pair) -> None:
    loads: list[int] = []

    class Watch(AccessHook):
        def loaded(self, who: str, addr: int, size: int, value: int) -> None:
            loads.append(addr)

    pair.offer("a", "b", "c")
    pair.use(count=3)
    pair.memory.hook = Watch()
    assert len(pair.ring.reap(8)) == 3
    assert len(loads) == len(set(loads)) == 1 + 2 * 3, "each field is read once"


@pytest.mark.parametrize("size", [1, 2, 8, 256])
@pytest.mark.parametrize("offered", [0, EVENT_IDX])
def test_indices_wrap(size: int, offered: int) -> None:
    pair = Pair(size=size, offered=offered, start=NEAR_WRAP)
    for number in range(5 * size + 40):
        pair.offer(f"buffer {number}", length=number % 50 + 1)
        assert pair.device.avail_idx == (NEAR_WRAP + number + 1) & 0xFFFF
        pair.use(number % 50 + 1)
        assert pair.ring.reap(4) == [(f"buffer {number}", number % 50 + 1)]
        assert pair.ring.snapshot()["last_used"] == pair.device.used_idx
    pair.sound()


def test_the_ring_goes_on_when_a_hook_comes_and_goes(pair: Pair) -> None:
    pair.offer("a")
    pair.memory.hook = AccessHook()
    pair.use(5)
    assert pair.ring.reap(8) == [("a", 5)]
    pair.offer("b")
    pair.memory.hook = None
    pair.use(6)
    assert pair.ring.reap(8) == [("b", 6)]


# -- H31, H32, H33, H35 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bogus", [8, 0xFFFF, 0xFFFFFFFF, 5], ids=["size", "far", "all ones", "not in flight"])
def test_h31_used_id_that_is_not_in_flight_is_refused(pair: Pair, bogus: int) -> None:
    pair.offer("a", "b")
    honest, other = pair.device.take(), pair.device.take()
    assert 5 not in (honest, other), "5 was to be a head that is free"
    pair.device.put_used(honest, 1, show=False)
    pair.device.put_used(bogus, 1)
    assert pair.ring.reap(8) == [("a", 1)], "what came before is believed, the bogus entry is not"
    assert "used.id" in (pair.ring.broken or "")
    assert pair.ring.reap(8) == []
    pair.sound()


def test_h31_the_same_buffer_twice_is_refused(pair: Pair) -> None:
    pair.offer("a", "b")
    head = pair.device.take()
    pair.device.put_used(head, 1, show=False)
    pair.device.put_used(head, 1)
    assert pair.ring.reap(8) == [("a", 1)]
    assert pair.ring.broken == f"used.id {head} is not in flight"
    pair.sound()


def test_h31_a_descriptor_inside_a_chain_is_no_head(pair: Pair) -> None:
    pair.ring.add([(0x8000, 1), (0x9000, 1)], [], "frame")
    pair.ring.publish()
    taken = pair.device.take()
    inner = next(head for head in range(8) if head not in (taken, *pair.ring._free))
    pair.device.put_used(inner, 0)
    assert pair.ring.reap(8) == []
    assert pair.ring.broken == f"used.id {inner} is not in flight"


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


@pytest.mark.parametrize("ahead", [3, 9, 0x8000, 0xFFFF])
def test_h33_used_idx_ahead_of_what_is_in_flight_stops_the_ring(ahead: int) -> None:
    pair = Pair(start=NEAR_WRAP)
    pair.offer("a", "b")
    pair.device.show_used(NEAR_WRAP + ahead)
    assert pair.ring.reap(8) == []
    assert "used.idx" in (pair.ring.broken or "")
    assert pair.ring.add([(0x8000, 1)], [], "more") is False
    assert sorted(pair.ring.detach()) == ["a", "b"], "the driver gets its buffers back"


def test_h33_what_is_added_but_not_published_is_not_in_flight(pair: Pair) -> None:
    pair.offer("a")
    pair.ring.add([(0x8000, 1)], [], "unpublished")
    pair.device.show_used(2)
    assert pair.ring.reap(8) == []
    assert "used.idx is 2 ahead, with 1" in (pair.ring.broken or "")


def test_h35_a_rewritten_descriptor_table_changes_nothing() -> None:
    pair = Pair(offered=INDIRECT, indirect=2)
    desc = pair.ring.addresses[0]
    for _ in range(20):
        for token in ("chain", "table", "one"):
            count = {"chain": 3, "table": 2, "one": 1}[token]
            assert pair.ring.add([(0x8000 + at, 7) for at in range(count)], [], token) is True
        pair.ring.publish()
        heads = [pair.device.take() for _ in range(3)]
        assert [len(pair.device.elements(head)) for head in heads] == [3, 2, 1]
        pair.memory.span(desc, 16 * 8)[:] = b"\xff" * 16 * 8  # every next, flag and address is a lie
        for head in heads:
            pair.device.put_used(head, 0)
        assert [token for token, _ in pair.ring.reap(8)] == ["chain", "table", "one"]
        pair.sound()


class FlipAt(AccessHook):
    """Changes the bytes that are about to be read at the `target`-th load, as a device in another thread could."""

    def __init__(self, memory: GuestMemory, target: int, mask: int) -> None:
        self.memory = memory
        self.left = target
        self.mask = mask

    def before_load(self, who: str, addr: int, size: int) -> None:
        if self.left == 0:
            cell = self.memory.span(addr, size)
            value = int.from_bytes(cell, "little") ^ self.mask
            cell[:] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        self.left -= 1


@pytest.mark.parametrize("mask", [0x1, 0x8, 0x100, 0x8000, 0xFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("offered", [0, EVENT_IDX])
def test_memory_flipped_at_every_load_does_no_harm(mask: int, offered: int) -> None:
    target = 0
    while True:
        pair = Pair(offered=offered, start=NEAR_WRAP)
        hook = FlipAt(pair.memory, target, mask)
        pair.memory.hook = hook
        reaped: list[tuple[str, int]] = []
        pair.offer("a", "b", "c", length=20)
        pair.ring.kick_needed()
        pair.ring.enable_interrupts()
        pair.use(10, count=2)
        reaped += pair.ring.reap(1)
        pair.ring.disable_interrupts()
        reaped += pair.ring.reap(8)
        pair.ring.add([(0x8000, 1), (0x9000, 1)], [], "d")
        pair.ring.publish()
        pair.ring.kick_needed()
        pair.use(20)
        reaped += pair.ring.reap(8)
        tokens = [token for token, _ in reaped]
        assert len(tokens) == len(set(tokens)), f"a buffer came back twice (load {target})"
        assert all(written <= 20 for _, written in reaped), f"more bytes than the buffer has (load {target})"
        if pair.ring.broken is None and hook.left >= 0:
            assert reaped == [("a", 10), ("b", 10), ("c", 20)]
        pair.sound()
        assert set(pair.ring.detach()) == {"a", "b", "c", "d"} - set(tokens) - _not_added(pair)
        if hook.left >= 0:
            break  # there is no such load any more: all were flipped
        target += 1
    assert target >= 9, "every load was to be flipped"


def _not_added(pair: Pair) -> set[str]:
    """`d` is refused once the ring is broken."""
    broken_early = (pair.ring.snapshot()["avail_idx"] - NEAR_WRAP) & 0xFFFF == 3  # type: ignore[operator]
    return {"d"} if broken_early else set()


# -- notifications and interrupts --------------------------------------------------------------------------------


def passed(event: int, new: int, old: int) -> bool:
    """The same as `need_event`, entry by entry."""
    index = old
    while index != new:
        if index == event:
            return True
        index = (index + 1) & 0xFFFF
    return False


@given(st.integers(0, 0xFFFF), st.integers(0, 300), st.integers(-320, 320))
def test_need_event_is_what_walking_the_entries_gives(old: int, steps: int, distance: int) -> None:
    new, event = (old + steps) & 0xFFFF, (old + distance) & 0xFFFF
    assert need_event(event, new, old) is passed(event, new, old)


@pytest.mark.parametrize(("flags", "kick"), [(0, True), (1, False), (2, True), (3, False)])
def test_kicks_follow_the_flag_without_event_idx(flags: int, kick: bool) -> None:
    pair = Pair(offered=0)
    pair.device.set_avail_event(0x1234)
    pair.device.set_used_flags(flags)
    pair.offer("a")
    assert pair.ring.kick_needed() is kick
    assert pair.ring.kick_needed() is False, "nothing new was published"


def test_kicks_follow_avail_event_and_ignore_the_flag_with_event_idx() -> None:
    pair = Pair(start=0xFFFE)
    pair.device.set_used_flags(1)  # to be ignored, 2.7.10.1
    pair.device.set_avail_event(0xFFFF)
    pair.offer("a")
    assert pair.ring.kick_needed() is False
    pair.offer("b", "c")
    assert pair.ring.kick_needed() is True, "entry 0xffff was published in this batch"
    pair.offer("d")
    assert pair.ring.kick_needed() is False


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 12)), max_size=30))
def test_no_kick_that_the_device_waits_for_is_missed(steps: list[tuple[int, int]]) -> None:
    """A device that publishes avail_event = next entry is kicked in every batch that passes it."""
    pair = Pair(size=16, start=NEAR_WRAP)
    for number, (count, ahead) in enumerate(steps):
        old = pair.device.avail_idx
        event = (old + ahead) & 0xFFFF
        pair.device.set_avail_event(event)
        pair.offer(*(f"{number}.{at}" for at in range(count)))
        assert pair.ring.kick_needed() is passed(event, pair.device.avail_idx, old)
        pair.use(count=count)
        assert len(pair.ring.reap(16)) == count


@pytest.mark.parametrize("offered", [0, EVENT_IDX])
def test_a_wake_up_is_not_lost_between_the_last_look_and_enabling(offered: int) -> None:
    pair = Pair(offered=offered)
    pair.offer("a", "b")
    pair.ring.disable_interrupts()
    pair.use(1)
    assert pair.ring.reap(8) == [("a", 1)]
    pair.use(2)  # right here, with interrupts off: the device says nothing
    assert pair.ring.enable_interrupts() is True, "the second look finds it (2.7.14)"
    assert pair.ring.reap(8) == [("b", 2)]
    assert pair.ring.enable_interrupts() is False


def test_interrupts_off_and_on_with_the_flag() -> None:
    pair = Pair(offered=0)
    pair.ring.disable_interrupts()
    assert pair.device.avail_flags == 1
    pair.ring.enable_interrupts()
    assert pair.device.avail_flags == 0


@pytest.mark.parametrize("start", [0, NEAR_WRAP, 0xFFFF])
def test_interrupts_off_and_on_with_used_event(start: int) -> None:
    pair = Pair(size=64, start=start)

    def interrupts() -> bool:
        old = pair.device.used_idx
        pair.use()
        return need_event(pair.device.used_event, pair.device.used_idx, old)

    pair.offer(*(f"buffer {at}" for at in range(64)))
    assert interrupts() is True, "on from the start"
    pair.ring.reap(8)
    pair.ring.disable_interrupts()
    assert pair.device.avail_flags == 0, "flags stays 0 with EVENT_IDX (2.7.7.1)"
    assert [interrupts() for _ in range(5)] == [False] * 5
    pair.ring.reap(8)
    assert pair.ring.enable_interrupts(after=3) is False
    assert [interrupts() for _ in range(5)] == [False, False, True, False, False], "once three more are used"
    assert pair.ring.enable_interrupts(after=3) is True, "five are used already"


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


def test_a_snapshot_tells_what_memory_holds(pair: Pair) -> None:
    pair.offer("a", "b", "c")
    pair.use()
    pair.ring.reap(8)
    state = pair.ring.snapshot()
    assert (state["desc"], state["driver"], state["device"]) == pair.ring.addresses
    assert state["avail_idx"] == pair.device.avail_idx == 3
    assert state["last_used"] == pair.device.used_idx == 1
    assert state["in_flight"] == 2
    assert sorted([pair.device.take(), pair.device.take()]) == state["heads"]
    assert "2 in flight" in repr(pair.ring)
