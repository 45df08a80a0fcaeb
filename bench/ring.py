"""Chains per second through both halves of the split ring: add, publish, pop, push, flush, reap."""

from __future__ import annotations

import time

from bench.harness import Figure, compare
from bench.yardsticks import BareRing
from guest.dma import DmaPool
from guest.ring.split import SplitRing
from hw.abi.virtio import VIRTIO_RING_F_EVENT_IDX, features
from hw.memory import GuestMemory
from hw.virtio.split import SplitQueue

SIZE = 256
BATCH = 32
EVENT_IDX = features(VIRTIO_RING_F_EVENT_IDX)


def ours(chains: int) -> float:
    """Both halves over guest RAM, with event index and all checks; chains of one descriptor, in batches."""
    memory = GuestMemory(1 << 20)
    dma = DmaPool(memory.port("driver"), 0x10000, 1 << 20)
    ring = SplitRing(dma, 0, SIZE, EVENT_IDX)
    queue = SplitQueue(memory, 0, SIZE, *ring.addresses, EVENT_IDX)
    payload = dma.alloc(4096)
    buffers: list[tuple[int, int, object]] = [(payload, 1514, token) for token in range(1, BATCH + 1)]
    pop, push, flush = queue.pop, queue.push, queue.flush
    start = time.perf_counter()
    for _ in range(chains // BATCH):
        ring.post(buffers, False)
        ring.publish()
        ring.kick_needed()
        while (chain := pop()) is not None:
            push(chain.head, 0)
        flush()
        queue.enable_kicks()
        ring.reap(BATCH)
        ring.enable_interrupts()
    return chains / (time.perf_counter() - start)


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
    """The figure of this file."""
    chains = int(60_000 * scale)
    figure = Figure("chains through both ring halves", "chains/s", "a ring without checks", note=f"batches of {BATCH}")
    return [compare(figure, lambda: ours(chains), lambda: bare(chains), rounds)]
