"""Frames per second from one guest's driver to another's, over the hub: two drivers, two rings, two devices."""

from __future__ import annotations

import time

from bench.harness import Figure, compare
from bench.yardsticks import BareRing
from guest.dma import DmaPool
from guest.drivers.registry import probe_devices, standard_grid
from guest.net.device import NetDevice
from guest.net.pbuf import PacketBuffer
from guest.services import Services
from hw.clock import VirtualClock
from hw.loop import Loop
from hw.machine import Machine
from hw.wire.hub import Hub

BATCH = 64


class DriverOnly:
    """A guest that is nothing but its driver."""

    halted = False

    def __init__(self, machine: Machine) -> None:
        pool = DmaPool(machine.platform.memory, 1 << 20, machine.memory.size)
        self.services = Services.of(machine.platform, pool)
        self.device: NetDevice = probe_devices(self.services, standard_grid())[0]
        machine.power_on(self)

    def interrupt(self, line: int) -> None:
        self.services.irqs.dispatch(line)

    def run(self) -> bool:
        self.services.timers.run_due()
        return self.services.deferred.run()

    def next_deadline(self) -> int | None:
        return self.services.timers.next_deadline()


def ours(frames: int, size: int) -> float:
    """Frames of `size` bytes from one driver to the other."""
    loop = Loop(VirtualClock())
    hub = Hub(loop, "lan")
    guests = []
    for name in ("a", "b"):
        machine = Machine(loop, name=name, memory_size=16 << 20)
        machine.add_virtio_net(hub.port(name))
        guests.append(DriverOnly(machine))
    sender, receiver = (guest.device for guest in guests)
    got = 0

    def count(packets: object) -> None:
        nonlocal got
        got += len(packets)  # type: ignore[arg-type]

    receiver.receiver = count
    packet = PacketBuffer.from_bytes(receiver.mac + sender.mac + b"\x88\xb5" + bytes(size - 14))
    batch = [packet] * BATCH
    turn = loop.turn
    start = time.perf_counter()
    for _ in range(frames // BATCH):
        sender.transmit(batch)
        while turn():
            pass
    elapsed = time.perf_counter() - start
    loop.close()
    if got != frames // BATCH * BATCH:
        raise RuntimeError(f"{frames - got} of {frames} frames did not arrive")
    return got / elapsed


def bare(frames: int, size: int) -> float:
    """The same through two bare rings: the frame is copied in, across and handed out, as ours is."""
    out, back = BareRing(256), BareRing(256)
    memory, other, frame = memoryview(bytearray(2048 * BATCH)), memoryview(bytearray(2048 * BATCH)), bytes(size)
    start = time.perf_counter()
    for _ in range(frames // BATCH):
        for head in range(BATCH):
            back.add(head, 2048 * head, 2048, 2)
            memory[2048 * head : 2048 * head + size] = frame
            out.add(head, 2048 * head, size, 0)
        back.publish()
        out.publish()
        while (taken := out.pop()) is not None:
            head, addr, length = taken
            room = back.pop()
            if room is not None:
                other[room[1] : room[1] + length] = memory[addr : addr + length]
                back.push(room[0], length)
            out.push(head, 0)
        out.flush()
        back.flush()
        while out.reap() is not None:
            pass
        while back.reap() is not None:
            pass
    return frames / (time.perf_counter() - start)


def measure(rounds: int, scale: float) -> list[Figure]:
    """Small and full-size frames."""
    frames = int(20_000 * scale)
    return [_figure(size, frames, rounds) for size in (60, 1514)]


def _figure(size: int, frames: int, rounds: int) -> Figure:
    name = f"driver to driver over the hub, {size} B"
    figure = Figure(name, "frames/s", "two rings without checks", note=f"batches of {BATCH}")
    return compare(figure, lambda: ours(frames, size), lambda: bare(frames, size), rounds)
