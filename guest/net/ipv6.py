"""The IPv6 header: RFC 8200 §3. Its extension headers are walked in extensions.py.

`parse` checks in this order and names the first thing that is wrong: version, payload length, source, destination. A
frame longer than the packet is trimmed. Jumbograms (RFC 2675) are refused by the walk, which finds their option.
IPv4-mapped addresses never stand in an IPv6 packet here: inside the engine they mean IPv4.
"""

from __future__ import annotations

import struct

from guest.net.address import V6_LOOPBACK
from guest.net.extensions import EXTENSIONS, FRAGMENT, HOP_BY_HOP, walk
from guest.net.family import IpHeader, IpInterface, Refusal
from guest.net.pbuf import PacketBuffer

# version, traffic class and flow label; payload length, next header, hop limit; src and dst in halves
HEADER = struct.Struct("!IHBBQQQQ")
HEADER_SIZE = 40
assert HEADER.size == HEADER_SIZE
FRAGMENT_HEADER = struct.Struct("!BBHI")  # next header, reserved, offset with flags, identification (RFC 8200 §4.5)
FRAGMENT_SIZE = 8
assert FRAGMENT_HEADER.size == FRAGMENT_SIZE

NEXT_HEADER_AT = 6
# hop-by-hop options: next header, length, router alert for MLD (RFC 2711 §2.1), two bytes of padding
ROUTER_ALERT = bytes((0, 0, 5, 2, 0, 0, 1, 0))
MASK = (1 << 64) - 1


class Ipv6:
    """The codec for IPv6."""

    ethertype = 0x86DD
    header_size = HEADER_SIZE
    max_size = HEADER_SIZE + 65535
    fragment_size = HEADER_SIZE + FRAGMENT_SIZE
    checks_on_way = False

    def parse(self, packet: PacketBuffer, interface: IpInterface, from_wire: bool) -> IpHeader | str:
        if not packet.pullup(HEADER_SIZE):
            return "rx_dropped_short"
        word, length, protocol, limit, src_high, src, dst_high, dst = HEADER.unpack_from(packet.area, packet.data)
        if word >> 28 != 6:
            return "rx_dropped_version"
        surplus = len(packet) - HEADER_SIZE - length
        if surplus:
            if surplus < 0:
                return "rx_dropped_truncated"
            if length or protocol != HOP_BY_HOP:  # that is how a jumbogram starts; the walk says so
                packet.trim(HEADER_SIZE + length)
        src |= src_high << 64
        dst |= dst_high << 64
        if src_high >> 56 == 0xFF or src >> 32 == 0xFFFF or (from_wire and src == V6_LOOPBACK):
            return "rx_dropped_source"
        if dst_high >> 56 == 0xFF:
            # Scope 0 is reserved, scope 1 ends at the interface (RFC 4291 §2.7)
            if dst_high >> 48 & 15 < (2 if from_wire else 1):
                return "rx_dropped_destination"
        elif dst >> 32 == 0xFFFF or not dst or (from_wire and dst == V6_LOOPBACK):
            return "rx_dropped_destination"
        return IpHeader(
            src, dst, protocol, limit, word >> 20 & 0xFF, HEADER_SIZE, 0, interface, 0, word & 0xF_FFFF,
            NEXT_HEADER_AT, protocol in EXTENSIONS,
        )  # fmt: skip

    def extend(self, packet: PacketBuffer, header: IpHeader, *, joined: bool = False) -> IpHeader | Refusal:
        found = walk(packet, header, joined)
        at = packet.data + 4
        if header.protocol == HOP_BY_HOP and not any(packet.area[at : at + 2]) and isinstance(found, IpHeader):
            return Refusal("rx_dropped_truncated")  # no payload, yet a header that is no jumbogram's
        return found

    def build(
        self,
        packet: PacketBuffer,
        *,
        src: int,
        dst: int,
        protocol: int,
        ttl: int,
        tos: int,
        identification: int,
        dont_fragment: bool,
        fragment: int = 0,
        fragmented: bool = False,
        flow: int = 0,
        router_alert: bool = False,
    ) -> None:
        if fragmented:
            packet.push(FRAGMENT_SIZE)
            offset = fragment >> 1 << 3 | fragment & 1
            FRAGMENT_HEADER.pack_into(packet.area, packet.data, protocol, 0, offset, identification)
            protocol = FRAGMENT
        if router_alert:
            options = packet.push(len(ROUTER_ALERT))
            options[:] = ROUTER_ALERT
            options[0] = protocol
            protocol = HOP_BY_HOP
        length = len(packet)
        packet.push(HEADER_SIZE)
        HEADER.pack_into(
            packet.area, packet.data, 6 << 28 | tos << 20 | flow, length, protocol, ttl,
            src >> 64, src & MASK, dst >> 64, dst & MASK,
        )  # fmt: skip

    def join_header(self, header: memoryview, parsed: IpHeader, size: int) -> tuple[bytes, IpHeader]:
        # The fragment header, the last one here, goes; what named it names the first header behind it instead.
        named_at = NEXT_HEADER_AT
        at = HEADER_SIZE
        last = parsed.size - FRAGMENT_SIZE
        while at < last:
            named_at = at
            at += (header[at + 1] + 1) * 8
        raw = bytearray(header[:last])
        raw[named_at] = parsed.protocol
        raw[4:6] = (last - HEADER_SIZE + size).to_bytes(2, "big")
        whole = parsed._replace(size=last, fragment=0, named_at=named_at, extended=parsed.protocol in EXTENSIONS)
        return bytes(raw), whole

    def complete(self, packet: PacketBuffer, src: int, identification: int) -> bool:
        if not packet.pullup(HEADER_SIZE) or packet.area[packet.data] >> 4 != 6 or len(packet) > self.max_size:
            return False
        header = packet.area[packet.data : packet.data + HEADER_SIZE]
        header[4:6] = (len(packet) - HEADER_SIZE).to_bytes(2, "big")
        if not any(header[8:24]):
            header[8:24] = src.to_bytes(16, "big")
        return True

    def hop_passed(self, header: memoryview) -> None:
        header[7] -= 1

    def may_fragment(self, header: memoryview) -> bool:
        return False
