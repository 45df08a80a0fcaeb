"""The IPv4 header: RFC 791 §3.1, RFC 1122 §3.2.1.

`parse` checks in this order and names the first thing that is wrong: version, header length, total length, checksum,
source, destination, options. A frame longer than the packet (Ethernet padding) is trimmed. Options are walked and
skipped; source-routed packets are dropped (RFC 7126 §4.3, §4.4).
"""

from __future__ import annotations

import struct

from guest.net.address import V4_BITS, V4_PREFIX
from guest.net.checksum import inet_sum
from guest.net.family import IpHeader
from guest.net.pbuf import PacketBuffer

# version and IHL, TOS, total length, identification, flags and fragment offset, TTL, protocol, checksum, src, dst
HEADER = struct.Struct("!BBHHHBBHII")
HEADER_SIZE = 20
assert HEADER.size == HEADER_SIZE

DONT_FRAGMENT = 0x4000
MORE_FRAGMENTS = 0x2000
OFFSET_BITS = 0x1FFF

OPTION_END = 0
OPTION_NOP = 1
OPTION_LSRR = 131
OPTION_SSRR = 137


class Ipv4:
    """The codec for IPv4."""

    ethertype = 0x0800
    header_size = HEADER_SIZE
    max_size = 65535

    def parse(self, packet: PacketBuffer, from_wire: bool) -> IpHeader | str:
        if not packet.pullup(HEADER_SIZE):
            return "rx_dropped_short"
        first, tos, total, _, frag, ttl, protocol, _, src, dst = HEADER.unpack_from(packet.area, packet.data)
        size = HEADER_SIZE
        if first != 0x45:
            if first >> 4 != 4:
                return "rx_dropped_version"
            size = (first & 15) * 4
            if size < HEADER_SIZE or not packet.pullup(size):
                return "rx_dropped_header_length"
        length = len(packet)
        if total < size:
            return "rx_dropped_total_length"
        if total > length:
            return "rx_dropped_truncated"
        header = packet.area[packet.data : packet.data + size]
        if inet_sum(header) != 0xFFFF:
            return "rx_dropped_checksum"
        top = src >> 24
        if top >= 224 or (top == 127 and from_wire) or (top == 0 and src):
            return "rx_dropped_source"
        if from_wire and dst >> 24 == 127:
            return "rx_dropped_destination"
        if length > total:
            packet.trim(total)
        if size > HEADER_SIZE:
            reason = check_options(header[HEADER_SIZE:])
            if reason:
                return reason
        fragment = 0
        if frag & (MORE_FRAGMENTS | OFFSET_BITS):
            fragment = (frag & OFFSET_BITS) << 1 | (frag & MORE_FRAGMENTS) >> 13
        return IpHeader(V4_PREFIX | src, V4_PREFIX | dst, protocol, ttl, tos, size, fragment)

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
    ) -> None:
        total = len(packet) + HEADER_SIZE
        flags = DONT_FRAGMENT if dont_fragment else 0
        src &= V4_BITS
        dst &= V4_BITS
        # The checksum from the fields themselves: cheaper than a second pass over the bytes.
        check = 0x4500 + tos + total + identification + flags + (ttl << 8 | protocol)
        check += (src >> 16) + (src & 0xFFFF) + (dst >> 16) + (dst & 0xFFFF)
        check = (check & 0xFFFF) + (check >> 16)
        check = ~((check & 0xFFFF) + (check >> 16)) & 0xFFFF
        packet.push(HEADER_SIZE)
        HEADER.pack_into(
            packet.area, packet.data, 0x45, tos, total, identification, flags, ttl, protocol, check, src, dst
        )


def check_options(options: memoryview) -> str:
    """Walk the options of a header; the reason to drop the packet, or an empty text."""
    at = 0
    while at < len(options):
        kind = options[at]
        if kind == OPTION_END:
            return ""
        if kind == OPTION_NOP:
            at += 1
            continue
        if kind in (OPTION_LSRR, OPTION_SSRR):
            return "rx_dropped_source_route"
        if at + 1 >= len(options) or options[at + 1] < 2 or at + options[at + 1] > len(options):
            return "rx_dropped_options"
        at += options[at + 1]
    return ""
