"""Chains per second through both halves of a ring, and through each half: add, publish, pop, push, flush, reap.

Both halves work on one guest's RAM, a batch at a time; the time of each is taken apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from bench.harness import Figure, compare
from bench.yardsticks import BareRing
from guest.dma import DmaPool
from guest.ring.make import make_ring
from hw.abi.virtio import VIRTIO_F_RING_PACKED, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, features
from hw.memory import GuestMemory
from hw.virtio.packed import PackedQueue
from hw.virtio.split import SplitQueue

SIZE = 256
BATCH = 32
PIECES = 3  # buffers of a chain that is no single one
SPLIT = features(VIRTIO_RING_F_EVENT_IDX)
PACKED = SPLIT | features(VIRTIO_F_RING_PACKED)
INDIRECT = features(VIRTIO_RING_F_INDIRECT_DESC)
HALVES = ("both ring halves", "the driver half", "the device half")


def ours(chains: int, accepted: int = SPLIT, pieces: int = 1) -> tuple[float, float, float]:
    """Chains per second of both halves, the driver half and the device half, with event index and all checks."""
    memory = GuestMemory(1 << 20)
    dma = DmaPool(memory.port("driver"), 0x10000, 1 << 20)
    ring = make_ring(dma, 0, SIZE, accepted, indirect_entries=pieces if accepted & INDIRECT else 0)
    kind: Any = PackedQueue if accepted & features(VIRTIO_F_RING_PACKED) else SplitQueue
    queue = kind(memory, 0, SIZE, *ring.addresses, accepted)
    payload = dma.alloc(4096)
    buffers: list[tuple[int, int, object]] = [(payload, 1514, token) for token in range(1, BATCH + 1)]
    chain_of = [(payload, 500)] * pieces
    pop, push, flush, add = queue.pop, queue.push, queue.flush, ring.add
    clock = time.perf_counter
    driver = device = 0.0
    for _ in range(chains // BATCH):
        start = clock()
        if pieces == 1:
            ring.post(buffers, False)
        else:
            for _, _, token in buffers:
                add(chain_of, (), token)
        ring.publish()
        ring.kick_needed()
        half = clock()
        while (chain := pop()) is not None:
            push(chain.head, 0)
        flush()
        queue.enable_kicks()
        back = clock()
        taken = len(ring.reap(BATCH))
        ring.enable_interrupts()
        end = clock()
        if taken != BATCH:
            raise RuntimeError(f"{BATCH - taken} of {BATCH} chains did not come back")
        device += back - half
        driver += half - start + end - back
    return chains / (driver + device), chains / driver, chains / device


def bare(chains: int) -> float:
    """The same through a ring that checks nothing."""
    ring = BareRing(SIZE)
    start = time.perf_counter()
    for _ in range(chains // BATCH):
        for head in range(BATCH):
            ring.add(head, 4096, 1514, 0)
        ring.publish()
        while (taken := ring.pop()) is not None:
            ring.push(taken[0], 0)
        ring.flush()
        while ring.reap() is not None:
            pass
    return chains / (time.perf_counter() - start)


def measure(rounds: int, scale: float) -> list[Figure]:
    """The split ring beside one that checks nothing, and the packed ring beside the split one."""
    chains = int(60_000 * scale) // BATCH * BATCH
    figure = Figure("chains through both ring halves", "chains/s", "a ring without checks", note=f"batches of {BATCH}")
    figures = [compare(figure, lambda: ours(chains)[0], lambda: bare(chains), rounds)]
    for name, pieces, more in (
        ("single buffers", 1, 0),
        (f"chains of {PIECES}", PIECES, 0),
        (f"indirect chains of {PIECES}", PIECES, INDIRECT),
    ):
        packed, split = _kept(chains, PACKED | more, pieces), _kept(chains, SPLIT | more, pieces)
        for at, half in enumerate(HALVES):
            figure = Figure(f"packed: {name} through {half}", "chains/s", "the split ring", note=f"batches of {BATCH}")
            figures.append(compare(figure, packed(at), split(at), rounds))
    return figures


def _kept(chains: int, accepted: int, pieces: int) -> Callable[[int], Callable[[], float]]:
    """A contestant for each half."""

    def of(half: int) -> Callable[[], float]:
        return lambda: ours(chains, accepted, pieces)[half]

    return of
