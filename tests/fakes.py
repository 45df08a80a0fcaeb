"""A platform and a network device that are plain Python, for tests of what lies above the drivers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from guest.net.device import IFF_BROADCAST, IFF_MULTICAST, IFF_RUNNING, IFF_UP, NetDevice
from guest.net.pbuf import Lease, PacketBuffer
from guest.services import Timers
from guest.sys.scheduler import Scheduler


class FakeClock:
    """Time that a test moves by hand."""

    def __init__(self) -> None:
        self.time = 0

    def now(self) -> int:
        return self.time


class ProcessRun:
    """A scheduler with its timers, run by hand; `lines` is the log."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.timers = Timers(self.clock.now)
        self.lines: list[str] = []
        self.wakes = 0
        self.scheduler = Scheduler(self.timers, self._wake, self.lines.append)

    def _wake(self) -> None:
        self.wakes += 1

    def settle(self) -> None:
        """Run until nobody is ready, without moving time."""
        self.timers.run_due()
        while self.scheduler.run():
            self.timers.run_due()

    def run_until(self, when: int) -> None:
        """Run everything up to `when`, from deadline to deadline."""
        self.settle()
        while (due := self.timers.next_deadline()) is not None and due <= when:
            self.clock.time = max(due, self.clock.time)
            self.settle()
        self.clock.time = when


class FakeDevice(NetDevice):
    """A device with a pool of receive buffers and room for `tx_room` packets."""

    def __init__(self, mac: bytes = b"\x02\x00\x00\x00\x00\x01", mtu: int = 1500, buffers: int = 8) -> None:
        super().__init__("fake", mac, mtu, IFF_UP | IFF_RUNNING | IFF_BROADCAST | IFF_MULTICAST)
        self.buffers = buffers
        self.free = buffers
        self.tx_room: int | None = None
        self.sent: list[bytes] = []

    def transmit(self, packets: Sequence[PacketBuffer]) -> int:
        taken = 0
        for packet in packets:
            if self.tx_room is not None and len(self.sent) >= self.tx_room:
                self.counters["tx_dropped_ring_full"] += 1
                continue
            self.sent.append(packet.tobytes())
            taken += 1
        return taken

    def lend(self, frame: bytes) -> PacketBuffer:
        """A received packet in one of the device's buffers, which it gets back with the last reference."""
        assert self.free > 0, "the device has no buffer left: somebody keeps them"
        self.free -= 1
        return PacketBuffer(memoryview(bytearray(frame)), lease=Lease(self._give_back, lambda: False))

    def _give_back(self) -> None:
        self.free += 1

    def arrive(self, *frames: bytes) -> None:
        """These frames arrive, in one batch."""
        self.deliver([self.lend(frame) for frame in frames])


def frame(number: int, size: int = 64) -> bytes:
    """A broadcast frame of an experimental type, recognisable by its number."""
    body = number.to_bytes(4, "big") + random.Random(number).randbytes(size - 18)
    return b"\xff" * 6 + b"\x02\x00\x00\x00\x00\x99" + b"\x88\xb5" + body


class RecordingInterface:
    """Sits at the point `ni` and records what it gets; it changes the packets, as a stack may."""

    def __init__(self, order: list[str] | None = None, error: Callable[[], Exception] | None = None) -> None:
        self.got: list[bytes] = []
        self.order = order if order is not None else []
        self.error = error

    def input(self, packets: Sequence[PacketBuffer]) -> None:
        if self.error is not None:
            raise self.error()
        self.order.append("ni")
        for packet in packets:
            self.got.append(packet.tobytes())
            packet.area[:] = bytes(len(packet.area))
            packet.pull(len(packet))
