"""The IPv4 header: RFC 791 §3.1, RFC 1122 §3.2.1.

`parse` checks in this order and names the first thing that is wrong: version, header length, total length, checksum,
source, destination. A frame longer than the packet (Ethernet padding) is trimmed. `extend` walks the options and skips
them; source-routed packets are dropped (RFC 7126 §4.3, §4.4), and a packet whose options cannot be walked is dropped
with Parameter Problem, which points to where the walk ended.
"""

from __future__ import annotations

import struct

from guest.net.address import V4_BITS, V4_PREFIX
from guest.net.checksum import inet_sum, update
from guest.net.family import IpHeader, IpInterface, Refusal
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
OPTION_COPIED = 0x80  # goes into every fragment (RFC 791 §3.1)
ROUTER_ALERT = bytes((148, 4, 0, 0))  # RFC 2113 §2.1


class Ipv4:
    """The codec for IPv4."""

    ethertype = 0x0800
    header_size = HEADER_SIZE
    max_size = 65535
    fragment_size = HEADER_SIZE
    checks_on_way = True

    def parse(self, packet: PacketBuffer, interface: IpInterface, from_wire: bool) -> IpHeader | str:
        if not packet.pullup(HEADER_SIZE):
            return "rx_dropped_short"
        first, tos, total, ident, frag, ttl, protocol, _, src, dst = HEADER.unpack_from(packet.area, packet.data)
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
        if inet_sum(packet.area[packet.data : packet.data + size]) != 0xFFFF:
            return "rx_dropped_checksum"
        top = src >> 24
        if top >= 224 or (top == 127 and from_wire) or (top == 0 and src):
            return "rx_dropped_source"
        if from_wire and dst >> 24 == 127:
            return "rx_dropped_destination"
        if length > total:
            packet.trim(total)
        fragment = 0
        if frag & (MORE_FRAGMENTS | OFFSET_BITS):
            fragment = (frag & OFFSET_BITS) << 1 | (frag & MORE_FRAGMENTS) >> 13
        return IpHeader(
            V4_PREFIX | src, V4_PREFIX | dst, protocol, ttl, tos, size, fragment, interface, ident, 0, 9,
            size > HEADER_SIZE,
        )  # fmt: skip

    def extend(self, packet: PacketBuffer, header: IpHeader, *, joined: bool = False) -> IpHeader | Refusal:
        options = packet.area[packet.data + HEADER_SIZE : packet.data + header.size]
        return check_options(options) or header

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
        first = 0x45
        if router_alert:
            packet.push(len(ROUTER_ALERT))[:] = ROUTER_ALERT
            first = 0x46
        total = len(packet) + HEADER_SIZE
        flags = DONT_FRAGMENT if dont_fragment else 0
        if fragmented:
            flags |= fragment_field(fragment)
        src &= V4_BITS
        dst &= V4_BITS
        # The checksum from the fields themselves: cheaper than a second pass over the bytes.
        check = (first << 8) + tos + total + identification + flags + (ttl << 8 | protocol)
        check += (src >> 16) + (src & 0xFFFF) + (dst >> 16) + (dst & 0xFFFF)
        if router_alert:
            check += int.from_bytes(ROUTER_ALERT[:2], "big")
        check = (check & 0xFFFF) + (check >> 16)
        check = ~((check & 0xFFFF) + (check >> 16)) & 0xFFFF
        packet.push(HEADER_SIZE)
        HEADER.pack_into(
            packet.area, packet.data, first, tos, total, identification, flags, ttl, protocol, check, src, dst
        )

    def join_header(self, header: memoryview, parsed: IpHeader, size: int) -> tuple[bytes, IpHeader]:
        raw = with_fragment(header, 0, parsed.size + size)
        return raw, parsed._replace(fragment=0, extended=False)

    def complete(self, packet: PacketBuffer, src: int, identification: int) -> bool:
        size = (packet.area[packet.data] & 15) * 4 if packet.pullup(HEADER_SIZE) else 0
        total = len(packet)
        if size < HEADER_SIZE or total > self.max_size or not packet.pullup(size):
            return False
        header = packet.area[packet.data : packet.data + size]
        if not any(header[4:6]):
            header[4:6] = identification.to_bytes(2, "big")
        if not any(header[12:16]):
            header[12:16] = (src & V4_BITS).to_bytes(4, "big")
        header[2:4] = total.to_bytes(2, "big")
        set_checksum(header)
        return True

    def hop_passed(self, header: memoryview) -> None:
        old = int.from_bytes(header[8:10], "big")
        header[8] -= 1
        check = update(int.from_bytes(header[10:12], "big"), old, old - 0x100)
        header[10:12] = check.to_bytes(2, "big")

    def may_fragment(self, header: memoryview) -> bool:
        return not header[6] & DONT_FRAGMENT >> 8


def fragment_field(fragment: int) -> int:
    """Flags and offset as they stand in the header, from the form of `IpHeader.fragment`."""
    return fragment >> 1 | (MORE_FRAGMENTS if fragment & 1 else 0)


def set_checksum(header: memoryview | bytearray) -> None:
    """Compute a header's checksum."""
    header[10:12] = b"\0\0"
    header[10:12] = (~inet_sum(header) & 0xFFFF).to_bytes(2, "big")


def with_fragment(header: memoryview, fragment: int, total: int) -> bytes:
    """A copy of a header for another part of its packet, `total` bytes in all."""
    copy = bytearray(header)
    copy[2:4] = total.to_bytes(2, "big")
    copy[6:8] = fragment_field(fragment).to_bytes(2, "big")
    set_checksum(copy)
    return bytes(copy)


def copied_options(header: memoryview) -> memoryview:
    """The header of fragments that are not the first: only the options that go into each (RFC 791 §3.2)."""
    options = header[HEADER_SIZE:]
    kept = b""
    at = 0
    while at < len(options) and options[at] != OPTION_END:
        size = 1 if options[at] == OPTION_NOP else options[at + 1]
        if options[at] & OPTION_COPIED:
            kept += bytes(options[at : at + size])
        at += size
    kept += bytes(-len(kept) % 4)
    first = 0x40 | (HEADER_SIZE + len(kept)) // 4
    return memoryview(bytes((first,)) + bytes(header[1:HEADER_SIZE]) + kept)


def check_options(options: memoryview) -> Refusal | None:
    """Walk the options of a header; why to drop the packet, or None."""
    at = 0
    while at < len(options):
        kind = options[at]
        if kind == OPTION_END:
            return None
        if kind == OPTION_NOP:
            at += 1
            continue
        if kind in (OPTION_LSRR, OPTION_SSRR):
            return Refusal("rx_dropped_source_route")
        if at + 1 >= len(options) or options[at + 1] < 2 or at + options[at + 1] > len(options):
            return Refusal("rx_dropped_options", "parameter", HEADER_SIZE + min(at + 1, len(options) - 1))
        at += options[at + 1]
    return None
