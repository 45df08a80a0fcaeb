"""The contract of a ring: both halves over one memory, in each format and under each set of its features.

The halves share guest RAM and the data sheet, and nothing else. They are held against a naive model, and against
decoders that know neither. Split indices start just below the wrap; a packed ring wraps by itself.
"""

from __future__ import annotations

import itertools
import random
import struct
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guest.dma import DmaPool
from guest.ring.packed import PackedRing
from guest.ring.ring import Ring
from guest.ring.split import SplitRing
from hw.abi.virtio import (
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_RING_PACKED,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
    features,
)
from hw.memory import AccessHook, GuestMemory
from hw.virtio.packed import PackedQueue
from hw.virtio.queue import DeviceQueue, QueueError
from hw.virtio.split import SplitQueue
from vring.view.decode import decode_split_ring
from vring.view.decode_packed import decode_packed_ring

EVENT_IDX = features(VIRTIO_RING_F_EVENT_IDX)
INDIRECT_DESC = features(VIRTIO_RING_F_INDIRECT_DESC)
IN_ORDER = features(VIRTIO_F_IN_ORDER)
PACKED = features(VIRTIO_F_RING_PACKED)
NAMES = {PACKED: "packed", EVENT_IDX: "event", INDIRECT_DESC: "indirect", IN_ORDER: "order"}


def name_of(mask: int) -> str:
    return "-".join(name for bit, name in NAMES.items() if mask & bit) or "split"


ALL = [sum(chosen) for count in range(5) for chosen in itertools.combinations(NAMES, count)]
every_ring = pytest.mark.parametrize("mask", ALL, ids=name_of)
START = 0xFFF0
SLOTS = 64
SLOT = 512


@dataclass
class Halves:
    """A driver half and a device half over one page pool; payload slots lie behind the rings."""

    features: int
    size: int
    memory: GuestMemory = field(init=False)
    ring: Ring[int] = field(init=False)
    queue: DeviceQueue = field(init=False)
    payload: int = field(init=False)

    def __post_init__(self) -> None:
        self.memory = GuestMemory(1 << 20)
        dma = DmaPool(self.memory.port("driver"), 0x10000, 1 << 20)
        if self.features & PACKED:
            self.ring = PackedRing(dma, 0, self.size, self.features, indirect_entries=6)
            self.queue = PackedQueue(self.memory, 0, self.size, *self.ring.addresses, self.features)
        else:
            self.ring = SplitRing(dma, 0, self.size, self.features, indirect_entries=6, start_index=START)
            self.queue = SplitQueue(self.memory, 0, self.size, *self.ring.addresses, self.features, START)
        self.payload = dma.alloc(SLOTS * SLOT)

    def slot(self, number: int) -> int:
        return self.payload + number % SLOTS * SLOT


FRAMES = 100_000  # past the 65,536 indices of a split ring, and hundreds of rounds of any ring here
SHAPES = [(1, 0), (2, 0), (0, 1), (1, 1), (2, 3), (0, 4), (3, 3)]  # readable and writable elements of a chain


@dataclass
class Plan:
    """How a run goes, each list taken round and round."""

    shapes: list[tuple[int, int]]
    batches: list[int]
    work: list[int]
    reaps: list[int]
    suppress: list[bool]
    size: int
    seed: int


counts = st.lists(st.integers(1, 40), min_size=1, max_size=8)
plans = st.builds(
    Plan,
    st.lists(st.sampled_from(SHAPES), min_size=1, max_size=12),
    counts,
    counts,
    counts,
    st.lists(st.booleans(), min_size=1, max_size=5),
    st.sampled_from([8, 32, 64]),
    st.integers(0, 2**32 - 1),
)


def some_plan(mask: int) -> Plan:
    """One that is the same each time."""
    rng = random.Random(mask)

    def numbers() -> list[int]:
        return [rng.randint(1, 40) for _ in range(8)]

    suppress = [rng.random() < 0.5 for _ in range(5)]
    return Plan(rng.choices(SHAPES, k=12), numbers(), numbers(), numbers(), suppress, rng.choice([8, 32, 64]), mask)


@every_ring
def test_p1_frames_cross_whole(mask: int) -> None:
    """A hundred thousand in each format with nothing and with everything negotiated, twelve thousand in between."""
    whole = mask | PACKED in (PACKED, PACKED | EVENT_IDX | INDIRECT_DESC | IN_ORDER)
    run(mask, some_plan(mask), FRAMES if whole else FRAMES // 8)


@settings(max_examples=60, deadline=None)
@given(mask=st.sampled_from(ALL), plan=plans)
def test_p1_frames_cross_whole_however_both_sides_go_about_it(mask: int, plan: Plan) -> None:
    run(mask, plan, 400)


def run(mask: int, plan: Plan, frames: int) -> None:
    """`frames` through one ring; the device completes what it holds in any order.

    The model is a dict of what was added. A side works only when it was notified, or is busy anyway; when both sleep
    with buffers in flight, a wake-up was lost.
    """
    size, seed = plan.size, plan.seed
    rng = random.Random(seed)
    halves = Halves(mask, size)
    ring, queue, memory = halves.ring, halves.queue, halves.memory
    shape, quiet = itertools.cycle(plan.shapes), itertools.cycle(plan.suppress)
    batch, share, reap = (itertools.cycle(each) for each in (plan.batches, plan.work, plan.reaps))
    model: dict[int, tuple[bytes, int]] = {}  # token → what the device must read, how many bytes it will write
    held: list[tuple[int, int, int]] = []  # taken by the device, not yet completed: token, head, bytes to write
    order: deque[int] = deque()  # tokens in the order in which the device must find them
    slots = list(range(SLOTS))
    where: dict[int, int] = {}
    sent = done = 0
    device_awake = driver_awake = True
    while done < frames:
        for _ in range(min(next(batch), frames - sent, len(slots))):
            readable, writable = next(shape)
            length = 8 + sent % 40
            slot = slots.pop()
            base = halves.slot(slot)
            content = (struct.pack("<Q", sent) * 20)[: readable * length]
            memory.span(base, len(content))[:] = content
            out = [(base + at * length, length) for at in range(readable)]
            in_ = [(base + 256 + at * 64, length) for at in range(writable)]
            if not ring.add(out, in_, sent):
                slots.append(slot)
                break
            model[sent] = content, writable * length
            where[sent] = slot
            order.append(sent)
            sent += 1
        if ring.publish() and ring.kick_needed():
            device_awake = True
        if device_awake or held:
            if next(quiet):
                queue.disable_kicks()
            for _ in range(next(share)):
                chain = queue.pop()
                if chain is None:
                    break
                token = order.popleft()
                content, writable_length = model[token]
                assert b"".join(chain.readable) == content
                assert chain.writable_length == writable_length
                for view in chain.writable:
                    view[:] = bytes([token & 0xFF]) * len(view)
                held.append((token, chain.head, writable_length))
            rng.shuffle(held)
            for _ in range(min(next(share), len(held))):
                _, head, written = held.pop()
                queue.push(head, written)
            if queue.flush():
                driver_awake = True
            device_awake = queue.enable_kicks()
        if driver_awake:
            if next(quiet):
                ring.disable_interrupts()
            for token, written in ring.reap(next(reap)):
                assert written == model.pop(token)[1]
                slots.append(where.pop(token))
                done += 1
            driver_awake = ring.enable_interrupts()
        assert device_awake or driver_awake or held or not model, "both sleep, with buffers in flight"
    assert ring.broken is None
    assert ring.room == size


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), mask=st.sampled_from(ALL), size=st.sampled_from([4, 8, 16]))
def test_p1_a_raw_dump_decodes_to_what_both_halves_report(seed: int, mask: int, size: int) -> None:
    rng = random.Random(seed)
    halves = Halves(mask, size)
    ring, queue = halves.ring, halves.queue
    held: list[int] = []
    for number in range(60):
        if rng.random() < 0.7:
            parts = rng.randint(1, 3)
            ring.add([(halves.slot(number) + 32 * at, 32) for at in range(parts)], [], number)
        if rng.random() < 0.6:
            ring.publish()
        if rng.random() < 0.5 and (chain := queue.pop()) is not None:
            held.append(chain.head)
        if held and rng.random() < 0.5:
            queue.push(held.pop(rng.randrange(len(held))), 0)
        if rng.random() < 0.5:
            queue.flush()
        if rng.random() < 0.3:
            ring.reap(rng.randint(1, 4))
        (ring.enable_interrupts if rng.random() < 0.5 else ring.disable_interrupts)()
        (queue.enable_kicks if rng.random() < 0.5 else queue.disable_kicks)()
        assert ring.broken is None
        if mask & PACKED:
            check_packed(halves)
        else:
            check_split(halves)


def check_split(halves: Halves) -> None:
    ring, queue = halves.ring, halves.queue
    shadow = ring.snapshot()
    raw = decode_split_ring(halves.memory, ring.addresses, ring.size)
    assert raw.avail_idx == shadow["avail_idx"]
    assert isinstance(queue, SplitQueue)
    assert raw.used_idx == queue._signalled
    assert (raw.avail_idx - shadow["last_used"]) & 0xFFFF == shadow["in_flight"]
    if not halves.features & EVENT_IDX:
        assert bool(raw.avail_flags) is not shadow["interrupts"]


def check_packed(halves: Halves) -> None:
    """From where the device stands to what is available, from where the driver stands to what is used."""
    ring, queue = halves.ring, halves.queue
    shadow = ring.snapshot()
    raw = decode_packed_ring(halves.memory, ring.addresses, ring.size)
    assert isinstance(queue, PackedQueue)
    at, wrap = queue.next_avail, queue.avail_wrap
    for entries in raw.lists_from(at, wrap):
        assert raw.desc[entries[-1]].id in shadow["heads"]
        at, wrap = raw.step(at, wrap, len(entries))
    assert (at, wrap) == (shadow["avail_idx"], shadow["avail_wrap"]), "the driver stands behind what it made available"
    used = raw.is_used(shadow["last_used"], bool(shadow["used_wrap"]))
    assert isinstance(ring, PackedRing)
    assert ring.pending() is (used or bool(ring._ready))
    assert str(raw.driver_event) in (
        ["DISABLE"] if not shadow["interrupts"]
        else [f"DESC {shadow['last_used']}/{shadow['used_wrap']}"] if halves.features & EVENT_IDX
        else ["ENABLE"]
    )


class Corrupt(AccessHook):
    """Before the n-th load by either side, writes a random value over the cell."""

    def __init__(self, memory: GuestMemory, at: int, rng: random.Random) -> None:
        self.memory, self.at, self.rng, self.loads = memory, at, rng, 0

    def before_load(self, who: str, addr: int, size: int) -> None:
        if self.loads == self.at:
            self.memory.span(addr, size)[:] = self.rng.randbytes(size)
        self.loads += 1


@every_ring
def test_h11_corruption_at_any_access_of_a_round_trip_harms_neither_half(mask: int) -> None:
    """A pop, a push and a reap with memory changed at every access point: an error is named, nothing else happens."""
    broken = 0
    for at in range(60):
        for seed in range(3):
            halves = Halves(mask, 8)
            halves.memory.hook = Corrupt(halves.memory, at, random.Random(seed))
            for number in range(3):
                halves.ring.add([(halves.slot(number), 16)], [(halves.slot(number) + 64, 16)], number)
            halves.ring.publish()
            halves.ring.kick_needed()
            try:
                while (chain := halves.queue.pop()) is not None:
                    halves.queue.push(chain.head, chain.writable_length)
                halves.queue.flush()
                halves.queue.enable_kicks()
            except QueueError:
                broken += 1
            tokens = [token for token, _ in halves.ring.reap(8)]
            assert len(tokens) == len(set(tokens)) <= 3
            assert set(tokens) <= {0, 1, 2}
            broken += halves.ring.broken is not None
    assert broken > 15


@pytest.mark.parametrize("mask", [0, PACKED], ids=name_of)
def test_setting_and_clearing_the_hook_reopens_both_halves(mask: int) -> None:
    """Both halves see the hook at once, and run on plain views again after it is gone."""
    halves = Halves(mask, 8)
    seen: set[str] = set()

    class Names(AccessHook):
        def loaded(self, who: str, addr: int, size: int, value: int) -> None:
            seen.add(who)

        def stored(self, who: str, addr: int, size: int, old: int, new: int) -> None:
            seen.add(who)

    def round_trip() -> None:
        halves.ring.add([(halves.slot(0), 16)], [], "token")
        halves.ring.publish()
        chain = halves.queue.pop()
        assert chain is not None
        halves.queue.push(chain.head, 0)
        halves.queue.flush()
        assert halves.ring.reap(1) == [("token", 0)]

    halves.memory.hook = Names()
    round_trip()
    assert seen == {"driver", "device"}
    seen.clear()
    halves.memory.hook = None
    round_trip()
    assert seen == set()
