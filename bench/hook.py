"""What the access hook costs: the same work with a hook set, whose methods do nothing, and without one.

Without a hook there is nothing to pay: ring fields are plain memoryviews then.
"""

from __future__ import annotations

import time

from bench.harness import Figure, compare
from bench.hub import BATCH, DriverOnly
from guest.net.pbuf import PacketBuffer
from hw.clock import VirtualClock
from hw.loop import Loop
from hw.machine import Machine
from hw.memory import AccessHook, GuestMemory
from hw.wire.cable import cable
from hw.wire.link import Receiver


class Sink(Receiver):
    """The other end of the cable."""

    def receive(self, frames) -> int:  # type: ignore[no-untyped-def]
        return len(frames)


def loads(count: int, hook: AccessHook | None) -> float:
    """Loads a second of one ring field, in a plain loop."""
    memory = GuestMemory(1 << 20)
    memory.hook = hook
    field = memory.fields(0x1000, 64, "H", "device")
    start = time.perf_counter()
    for _ in range(count):
        _ = field[1]
    return count / (time.perf_counter() - start)


def frames(count: int, hook: AccessHook | None) -> float:
    """Frames a second from a driver through its card onto a cable, every access of both told to the hook."""
    loop = Loop(VirtualClock())
    near, far = cable(loop)
    far.attach(Sink())
    machine = Machine(loop, memory_size=16 << 20)
    machine.add_virtio_net(near)
    device = DriverOnly(machine).device
    machine.set_hook(hook)
    batch = [PacketBuffer.from_bytes(bytes(60))] * BATCH
    start = time.perf_counter()
    for _ in range(count // BATCH):
        device.transmit(batch)
        while loop.turn():
            pass
    elapsed = time.perf_counter() - start
    loop.close()
    if far.counters["rx_frames"] != count // BATCH * BATCH:
        raise RuntimeError(f"{far.counters['rx_frames']} of {count} frames went out")
    return count // BATCH * BATCH / elapsed


def measure(rounds: int, scale: float) -> list[Figure]:
    """One field, and a card that sends."""
    count, sent = int(500_000 * scale), int(20_000 * scale)
    without = "the same without a hook"
    one = Figure("loads of a ring field, hook set", "loads/s", without, note="with the loop's own cost")
    card = Figure("frames out of a card, hook set", "frames/s", without, note=f"60 B, batches of {BATCH}")
    return [
        compare(one, lambda: loads(count, AccessHook()), lambda: loads(count, None), rounds),
        compare(card, lambda: frames(sent, AccessHook()), lambda: frames(sent, None), rounds),
    ]
