"""Where the interface below cuts packets into segments itself, they pass through whole, with what it must know for that
(virtio 1.4 §5.1.9.2); and a packet that was joined on its way in is taken as one.
"""

from __future__ import annotations

import errno
import random

import pytest

from guest.net.address import parse_address
from guest.net.config import NetConfig
from guest.net.pbuf import Offload, PacketBuffer
from guest.net.stack import Stack
from guest.net.tcp.config import TcpConfig
from guest.net.tcp.endpoint import TcpEndpoint

OURS, THEIRS = {4: "10.0.0.1", 6: "fd00::1"}, {4: "10.0.0.2", 6: "fd00::2"}
DATA = random.Random(1).randbytes(300_000)


class World:
    """Two stacks on bare links; those of the first cut packets of up to 64 KB, which the second takes as they are."""

    def __init__(self, family: int) -> None:
        self.now = 0
        self.family = family
        self.sent: list[PacketBuffer] = []
        self.wire: list[tuple[int, PacketBuffer]] = []
        self.stacks = [self._stack(number) for number in (0, 1)]

    def _stack(self, number: int) -> Stack:
        config = NetConfig(tcp=TcpConfig(check=True, window=1 << 20))
        stack = Stack(now=lambda: self.now, rng=random.Random(number), config=config)

        def send(packets: list[PacketBuffer]) -> None:
            for packet in packets:
                if number == 0:
                    self.sent.append(packet)
                copy = PacketBuffer.from_bytes(packet.tobytes())
                copy.offload = packet.offload
                self.wire.append((1 - number, copy))

        interface = stack.add_interface("tun0", None, 1500, send)
        interface.gso_max_size = interface.gso_max_size6 = 65535 if number == 0 else 0
        interface.add_address((OURS, THEIRS)[number][self.family], 24 if self.family == 4 else 64)
        interface.set_up()
        return stack

    def connect(self) -> tuple[TcpEndpoint, TcpEndpoint]:
        """A connection from the first to the second."""
        there = parse_address(THEIRS[self.family])
        listening, end = self.stacks[1].tcp.open(self.family), self.stacks[0].tcp.open(self.family)
        assert (listening.bind(there, 80), listening.listen(1)) == (0, 0)
        assert end.connect(there, 80) == errno.EINPROGRESS
        self.carry()
        accepted = listening.accept()
        assert accepted is not None
        return end, accepted

    def carry(self) -> None:
        """Let everything arrive that is on the wire, and what answers it."""
        while self.wire:
            number, packet = self.wire.pop(0)
            self.stacks[number].interfaces[1].input([packet])

    def deliver(self, end: TcpEndpoint, accepted: TcpEndpoint) -> bytes:
        """Send DATA, and what arrived."""
        left, got, target = memoryview(DATA), bytearray(), bytearray(1 << 20)
        for _ in range(2000):
            if len(got) == len(DATA):
                break
            left = left[max(0, end.write([left])) :]
            got += target[: accepted.read_into(memoryview(target)) or 0]
            self.carry()
            self.now += 1000
            for stack in self.stacks:
                stack.poll()
        return bytes(got)


@pytest.mark.parametrize("family", [4, 6])
def test_packets_of_many_segments_go_down_whole_and_say_how_they_are_cut(family: int) -> None:
    world = World(family)
    end, accepted = world.connect()

    assert world.deliver(end, accepted) == DATA

    large = [packet for packet in world.sent if packet.offload is not None]
    mss = end.info().mss
    headers = {4: 20, 6: 40}[family]
    assert max(map(len, large)) > 40_000
    assert {packet.offload for packet in large} == {
        Offload(1, {4: 1, 6: 4}[family], headers + 32, mss, headers, 16),  # NEEDS_CSUM, GSO_TCPV4 or GSO_TCPV6
    }
    small = [packet for packet in world.sent if packet.offload is None]
    assert max(map(len, small)) <= 1500


@pytest.mark.parametrize("family", [4, 6])
def test_the_checksum_field_holds_the_sum_of_the_pseudo_header(family: int) -> None:
    """What completes it adds up the segment from csum_start on (§5.1.9.2)."""
    world = World(family)
    end, accepted = world.connect()
    world.deliver(end, accepted)
    packet = next(packet for packet in world.sent if packet.offload is not None)
    raw = packet.tobytes()
    start = {4: 20, 6: 40}[family]
    addresses = raw[12:20] if family == 4 else raw[8:40]
    pseudo = int.from_bytes(addresses, "big") + 6 + len(raw) - start
    assert int.from_bytes(raw[start + 16 : start + 18], "big") % 65535 == pseudo % 65535


def test_no_packet_is_larger_than_the_interface_said() -> None:
    world = World(4)
    world.stacks[0].interfaces[1].gso_max_size = 10_000
    end, accepted = world.connect()
    assert world.deliver(end, accepted) == DATA
    assert 8000 < max(map(len, world.sent)) <= 10_000
