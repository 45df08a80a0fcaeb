"""The IP engine on a bench: fake interfaces below, a fake transport above, and what differs between the families."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from scapy.layers.inet import IP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, fragment6
from scapy.packet import Packet, Raw

from guest.net.address import Prefix, format_address, is_v4, parse_address, to_prefix
from guest.net.config import NetConfig
from guest.net.family import IpHeader
from guest.net.ip import IpEngine
from guest.net.ipv4 import Ipv4
from guest.net.ipv6 import Ipv6
from guest.net.pbuf import CAST_HOST, PacketBuffer
from guest.net.route import Route
from tests.net_world import Clock

UDP_NUMBER = 17


class FakeInterface:
    """Below the engine: writes down what it is to send."""

    def __init__(self, *addresses: str, mtu: int = 1500, bare: bool = False, name: str = "") -> None:
        self.name = name
        self.addresses: list[Prefix] = []
        for text in addresses:
            address, _, length = text.partition("/")
            self.addresses.append(to_prefix(address, int(length)))
        self.tentative: set[int] = set()
        self.deprecated: set[int] = set()
        self.mtu = mtu
        self.mtu6 = mtu
        self.hop_limit = 0
        self.bare = bare
        self.is_up = True
        self.sent: list[tuple[bytes, str, int]] = []
        self.packets: list[PacketBuffer] = []

    def send(self, packet: PacketBuffer, next_hop: int, cast: int) -> None:
        self.sent.append((packet.tobytes(), format_address(next_hop), cast))
        self.packets.append(packet)


class Bench:
    """An engine with eth0, eth1 and a loopback in both families, and a transport that writes down."""

    def __init__(self, seed: int = 3, config: NetConfig | None = None) -> None:
        self.clock = Clock()
        self.engine = IpEngine([Ipv4(), Ipv6()], rng=random.Random(seed), config=config or NetConfig(), now=self.clock)
        self.eth0 = FakeInterface("10.0.0.1/24", "2001:db8::1/64", "fe80::1/64", name="eth0")
        self.eth1 = FakeInterface("192.168.1.1/24", "192.168.1.2/24", "2001:db8:1::1/64", "fe80::2/64", name="eth1")
        self.lo = FakeInterface("127.0.0.1/8", "::1/128", mtu=65536, bare=True, name="lo")
        self.interfaces: Sequence[FakeInterface] = (self.lo, self.eth0, self.eth1)
        self.engine.loopback = self.lo
        self.engine.default = self.eth0
        for interface in self.interfaces:
            for prefix in interface.addresses:
                route = Route(Prefix(prefix.network, prefix.length), None, interface)
                if route not in list(self.engine.routes):
                    self.engine.routes.add(route)
        for anywhere, gateway in (("0.0.0.0", "10.0.0.254"), ("::", "fe80::fe")):
            self.engine.routes.add(Route(to_prefix(anywhere, 0), parse_address(gateway), self.eth0))
        self.refresh()
        self.got: list[tuple[IpHeader, bytes, int]] = []
        self.errors: list[tuple[str, int, bytes]] = []
        self.engine.handlers[UDP_NUMBER] = self._deliver
        self.engine.error = self._error

    def _deliver(self, packet: PacketBuffer, header: IpHeader) -> None:
        self.got.append((header, packet.tobytes(), packet.cast))

    def _error(self, packet: PacketBuffer, header: IpHeader, kind: str, value: int) -> None:
        """As ICMP sees it: with the IP header still to be quoted."""
        self.errors.append((kind, value, bytes(packet.area[packet.network : packet.data]) + packet.tobytes()))

    def refresh(self) -> None:
        self.engine.refresh(self.interfaces)

    def receive(
        self, raw: object, interface: FakeInterface | None = None, cast: int = CAST_HOST, ethertype: int = 0
    ) -> None:
        """A packet arrives; of which family, its first half byte says unless `ethertype` does."""
        packet = raw if isinstance(raw, PacketBuffer) else PacketBuffer.from_bytes(bytes(raw))  # type: ignore[call-overload]
        packet.cast = cast
        if not ethertype:
            ethertype = 0x86DD if packet.tobytes()[:1] >= b"\x60" else 0x0800
        self.engine.input(interface or self.eth0, ethertype, [packet])

    def count(self, name: str) -> int:
        return self.engine.counters[name]

    def drops(self) -> dict[str, int]:
        return {name: count for name, count in self.engine.counters.items() if "dropped" in name}

    def send(self, dst: str, content: bytes = b"payload", **options: object) -> int:
        return self.engine.output(PacketBuffer.from_bytes(content), parse_address(dst), UDP_NUMBER, **options)  # type: ignore[arg-type]

    def balance(self) -> int:
        """How many packets came in that are not accounted for; 0 if the engine keeps its promise."""
        came = self.count("rx_packets") + self.count("rx_reassembled")
        went = self.count("rx_delivered") + self.count("forwarded") + self.count("rx_fragments")
        dropped = sum(count for name, count in self.drops().items() if name.startswith("rx_"))
        return came - went - dropped - self.engine.reassembler.held

    def wait(self, micros: int) -> None:
        """Let time pass, doing what is due on the way."""
        end = self.clock.now + micros
        while (due := self.engine.poll_at()) is not None and due <= end:
            self.clock.now = max(due, self.clock.now)
            self.engine.poll(self.clock.now)
        self.clock.now = end


class Family(NamedTuple):
    """What a test that is written for both families has to know of one."""

    name: str
    ours: str
    peer: str
    far: str
    gateway: str
    group: str
    header: int  # bytes of the IP header

    def packet(self, payload: bytes = b"payload", *, src: str = "", dst: str = "", hops: int = 64) -> Packet:
        """A UDP-numbered packet, by scapy."""
        src, dst = src or self.peer, dst or self.ours
        if self.name == "IPv4":
            return IP(src=src, dst=dst, proto=UDP_NUMBER, ttl=hops) / Raw(payload)
        return IPv6(src=src, dst=dst, nh=UDP_NUMBER, hlim=hops) / Raw(payload)

    def part(
        self, offset: int, data: bytes, more: bool, *, ident: int = 7, src: str = "", dst: str = "", tos: int = 0
    ) -> bytes:
        """One fragment; `offset` in bytes."""
        src, dst = src or self.peer, dst or self.ours
        if self.name == "IPv4":
            flags = "MF" if more else 0
            header = IP(src=src, dst=dst, proto=UDP_NUMBER, id=ident, flags=flags, frag=offset // 8, tos=tos)
            return bytes(header / Raw(data))
        piece = IPv6ExtHdrFragment(nh=UDP_NUMBER, offset=offset // 8, m=int(more), id=ident)
        return bytes(IPv6(src=src, dst=dst, tc=tos) / piece / Raw(data))

    def split(self, payload: bytes, size: int) -> list[bytes]:
        """scapy's fragments of a packet, with about `size` bytes of data in each."""
        if self.name == "IPv4":
            return [bytes(piece) for piece in fragment(self.packet(payload), fragsize=size)]
        whole = IPv6(src=self.peer, dst=self.ours) / IPv6ExtHdrFragment(nh=UDP_NUMBER, id=9) / Raw(payload)
        return [bytes(piece) for piece in fragment6(whole, size + 48 + 8)]


V4 = Family("IPv4", "10.0.0.1", "10.0.0.2", "8.8.8.8", "10.0.0.254", "239.1.2.3", 20)
V6 = Family("IPv6", "2001:db8::1", "2001:db8::2", "2001:4860::8888", "fe80::fe", "ff05::123", 40)
FAMILIES = [V4, V6]


def content(raw: bytes) -> tuple[str, str, bytes, int, bool, int]:
    """Source, destination, data, offset, more, identification of a packet or fragment, as scapy reads it."""
    if raw[0] >> 4 == 4:
        packet = IP(raw)
        data = raw[packet.ihl * 4 : packet.len]
        return packet.src, packet.dst, data, packet.frag * 8, "MF" in str(packet.flags), packet.id
    packet = IPv6(raw)
    piece = packet.getlayer(IPv6ExtHdrFragment)
    if piece is None:
        return packet.src, packet.dst, raw[40:], 0, False, 0
    return packet.src, packet.dst, raw[48:], piece.offset * 8, bool(piece.m), piece.id


def family_of(address: str) -> Family:
    return V4 if is_v4(parse_address(address)) else V6
