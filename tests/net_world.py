"""Hosts for the tests of the stack: a clock that is moved by hand, a stack whose frames are collected, a wire."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from scapy.layers.inet import ICMP, IP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from guest.net.config import SECOND, NetConfig
from guest.net.interface import Interface
from guest.net.pbuf import PacketBuffer
from guest.net.stack import Stack

OUR_MAC = "52:54:00:00:00:01"
PEER_MAC = "52:54:00:00:00:02"
OUR_IP = "10.0.0.1"
PEER_IP = "10.0.0.2"
BROADCAST = "ff:ff:ff:ff:ff:ff"


class Clock:
    """Microseconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 1_000 * SECOND

    def __call__(self) -> int:
        return self.now


class Host:
    """A stack with one Ethernet interface; what it sends is kept in `sent` as bytes until a test takes it."""

    def __init__(
        self,
        address: str | None = OUR_IP,
        mac: str = OUR_MAC,
        *,
        clock: Clock | None = None,
        seed: int = 1,
        config: NetConfig | None = None,
    ) -> None:
        self.clock = clock or Clock()
        self.stack = Stack(now=self.clock, rng=random.Random(seed), config=config)
        self.batches: list[list[PacketBuffer]] = []
        self.eth: Interface = self.stack.add_interface("eth0", bytes.fromhex(mac.replace(":", "")), 1500, self._output)
        self.stack.default = self.eth
        if address is not None:
            self.eth.add_address(address, 24)
            self.eth.set_up()
        self.batches.clear()

    def _output(self, packets: Sequence[PacketBuffer]) -> None:
        self.batches.append(list(packets))

    def take(self) -> list[bytes]:
        """The frames sent since the last time."""
        frames = [packet.tobytes() for batch in self.batches for packet in batch]
        self.batches.clear()
        return frames

    def parsed(self) -> list[Packet]:
        """The same, as scapy reads them."""
        return [Ether(frame) for frame in self.take()]

    def receive(self, *frames: bytes | Packet) -> None:
        """Frames arrive in one batch."""
        self.eth.input([PacketBuffer.from_bytes(bytes(frame)) for frame in frames])

    def meet(self, address: str = PEER_IP, mac: str = PEER_MAC) -> None:
        """Let the neighbour be known."""
        self.receive(arp_request(address, mac))
        self.take()

    def wait(self, micros: int) -> None:
        """Let time pass, doing what is due on the way."""
        end = self.clock.now + micros
        while (due := self.stack.poll_at()) is not None and due <= end:
            self.clock.now = max(due, self.clock.now)
            self.stack.poll()
        self.clock.now = end

    def count(self, layer: str, name: str) -> int:
        """One counter."""
        return self.stack.counters[layer][name]


def arp_request(sender: str = PEER_IP, mac: str = PEER_MAC, target: str = OUR_IP) -> Packet:
    """Who has `target`, asks `sender`."""
    return Ether(dst=BROADCAST, src=mac) / ARP(op=1, hwsrc=mac, psrc=sender, pdst=target)


def arp_reply(sender: str = PEER_IP, mac: str = PEER_MAC, target: str = OUR_IP, target_mac: str = OUR_MAC) -> Packet:
    """`sender` is at `mac`."""
    return Ether(dst=target_mac, src=mac) / ARP(op=2, hwsrc=mac, psrc=sender, hwdst=target_mac, pdst=target)


def to_us(payload: Packet, src: str = PEER_IP, dst: str = OUR_IP, **fields: object) -> Packet:
    """An IPv4 packet for our host, in a frame for it."""
    return Ether(dst=OUR_MAC, src=PEER_MAC) / IP(src=src, dst=dst, **fields) / payload


def echo_request(payload: bytes = b"abcdefgh", ident: int = 7, seq: int = 1, **fields: object) -> Packet:
    """A ping for our host."""
    return to_us(ICMP(type=8, id=ident, seq=seq) / payload, **fields)


def fragments(frame: bytes, cuts: Iterable[int]) -> PacketBuffer:
    """The frame as a received packet in several pieces, cut at the given places."""
    edges = sorted({cut for cut in cuts if 0 < cut < len(frame)})
    pieces = [frame[a:b] for a, b in zip([0, *edges], [*edges, len(frame)], strict=True)]
    views = [memoryview(bytearray(piece)) for piece in pieces]
    return PacketBuffer(views[0], frags=views[1:])


def join(*hosts: Host) -> int:
    """Carry frames between hosts on one wire until none is under way; how many were carried."""
    carried = 0
    while True:
        flights = [(host, host.take()) for host in hosts]
        if not any(frames for _, frames in flights):
            return carried
        for sender, frames in flights:
            carried += len(frames)
            for host in hosts:
                if host is not sender and frames:
                    host.receive(*frames)
