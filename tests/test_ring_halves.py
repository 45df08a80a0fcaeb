"""Both halves of the split ring over one memory, against a naive model, and against a decoder that knows neither.

The halves share guest RAM and the data sheet, and nothing else. Indices start just below the wrap.
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
from guest.ring.split import SplitRing
from hw.abi.virtio import VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, features
from hw.memory import AccessHook, GuestMemory
from hw.virtio.split import QueueError, SplitQueue
from vring.view.decode import decode_split_ring

EVENT_IDX = features(VIRTIO_RING_F_EVENT_IDX)
INDIRECT_DESC = features(VIRTIO_RING_F_INDIRECT_DESC)
START = 0xFFF0
SLOTS = 64
SLOT = 512


@dataclass
class Halves:
    """A driver half and a device half over one page pool; payload slots lie behind the rings."""

    features: int
    size: int
    memory: GuestMemory = field(init=False)
    ring: SplitRing = field(init=False)
    queue: SplitQueue = field(init=False)
    payload: int = field(init=False)

    def __post_init__(self) -> None:
        self.memory = GuestMemory(1 << 20)
        dma = DmaPool(self.memory.port("driver"), 0x10000, 1 << 20)
        self.ring = SplitRing(dma, 0, self.size, self.features, indirect_entries=6, start_index=START)
        self.queue = SplitQueue(self.memory, 0, self.size, *self.ring.addresses, self.features, START)
        self.payload = dma.alloc(SLOTS * SLOT)

    def slot(self, number: int) -> int:
        return self.payload + number % SLOTS * SLOT


FRAMES = 100_000
SHAPES = [(1, 0), (2, 0), (0, 1), (1, 1), (2, 3), (0, 4), (3, 3)]  # readable and writable elements of a chain


@settings(max_examples=4, deadline=None)
@given(
    shapes=st.lists(st.sampled_from(SHAPES), min_size=1, max_size=12),
    batches=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    work=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    reaps=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    suppress=st.lists(st.booleans(), min_size=1, max_size=5),
    mask=st.sampled_from([0, EVENT_IDX, INDIRECT_DESC, EVENT_IDX | INDIRECT_DESC]),
    size=st.sampled_from([8, 32, 64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_p1_a_hundred_thousand_frames_cross_whole(
    shapes: list[tuple[int, int]],
    batches: list[int],
    work: list[int],
    reaps: list[int],
    suppress: list[bool],
    mask: int,
    size: int,
    seed: int,
) -> None:
    """One ring, from 0xFFF0 round its 65,536 indices and on: chain shapes, batch sizes, how much each side does at a
    time and whether it suppresses notifications are drawn; the device completes what it holds in any order.

    The model is a dict of what was added. A side works only when it was notified, or is busy anyway; when both sleep
    with buffers in flight, a wake-up was lost.
    """
    rng = random.Random(seed)
    halves = Halves(mask, size)
    ring, queue, memory = halves.ring, halves.queue, halves.memory
    shape, batch, share, reap, quiet = (itertools.cycle(each) for each in (shapes, batches, work, reaps, suppress))
    model: dict[int, tuple[bytes, int]] = {}  # token → what the device must read, how many bytes it will write
    held: list[tuple[int, int, int]] = []  # taken by the device, not yet completed: token, head, bytes to write
    order: deque[int] = deque()  # tokens in the order in which the device must find them
    slots = list(range(SLOTS))
    where: dict[int, int] = {}
    sent = done = 0
    device_awake = driver_awake = True
    while done < FRAMES:
        for _ in range(min(next(batch), FRAMES - sent, len(slots))):
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


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), mask=st.sampled_from([0, EVENT_IDX, INDIRECT_DESC]))
def test_a_raw_dump_decodes_to_what_both_halves_report(seed: int, mask: int) -> None:
    rng = random.Random(seed)
    halves = Halves(mask, 8)
    ring, queue = halves.ring, halves.queue
    for number in range(30):
        if rng.random() < 0.7:
            parts = rng.randint(1, 3)
            ring.add([(halves.slot(number) + 32 * at, 32) for at in range(parts)], [], number)
        if rng.random() < 0.6:
            ring.publish()
        if rng.random() < 0.5 and (chain := queue.pop()) is not None:
            queue.push(chain.head, 0)
        if rng.random() < 0.5:
            queue.flush()
        if rng.random() < 0.3:
            ring.reap(rng.randint(1, 4))
        shadow = ring.snapshot()
        raw = decode_split_ring(halves.memory, ring.addresses, 8)
        assert raw.avail_idx == shadow["avail_idx"]
        assert raw.used_idx == queue._signalled
        assert (raw.avail_idx - shadow["last_used"]) & 0xFFFF == shadow["in_flight"]


class Corrupt(AccessHook):
    """Before the n-th load by either side, writes a random value over the cell."""

    def __init__(self, memory: GuestMemory, at: int, rng: random.Random) -> None:
        self.memory, self.at, self.rng, self.loads = memory, at, rng, 0

    def before_load(self, who: str, addr: int, size: int) -> None:
        if self.loads == self.at:
            self.memory.span(addr, size)[:] = self.rng.randbytes(size)
        self.loads += 1


@pytest.mark.parametrize("mask", [0, EVENT_IDX | INDIRECT_DESC])
def test_h11_corruption_at_any_access_of_a_round_trip_harms_neither_half(mask: int) -> None:
    """A pop, a push and a reap with memory changed at every access point: an error is named, nothing else happens."""
    broken = 0
    for at in range(60):
        for seed in range(10):
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
    assert broken > 50


def test_setting_and_clearing_the_hook_reopens_both_halves() -> None:
    """Both halves see the hook at once, and run on plain views again after it is gone."""
    halves = Halves(0, 8)
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
