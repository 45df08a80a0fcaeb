"""The extension headers of IPv6: a bounded walk. RFC 8200 §4, RFC 5095, RFC 7112, RFC 8504 §5.3.

Which are known: hop-by-hop options (only right behind the IPv6 header), destination options, routing (only one that
has no segments left, whatever its type), fragment. Every other number ends the walk and is taken for the transport's;
so authentication and encryption headers end as an unknown protocol.

Promises:
- At most 8 headers, and never more bytes than `PacketBuffer` keeps before its data; every length is checked against the
  packet before it is used, and every step goes forward.
- What is wrong names the ICMP error that RFC 8200 asks for, with its pointer.
- The walk stops behind the fragment header of a packet that is in fragments. Of the first fragment it has looked
  further, whether all headers are in it.
"""

from __future__ import annotations

from guest.net.address import is_multicast
from guest.net.family import IpHeader, Refusal
from guest.net.pbuf import HEADROOM, PacketBuffer

HOP_BY_HOP = 0
ROUTING = 43
FRAGMENT = 44
NO_NEXT_HEADER = 59
DESTINATION = 60
EXTENSIONS = frozenset((HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION))

MAX_HEADERS = 8
FIXED_SIZE = 40
UPPER_SIZE = 8  # bytes of the shortest header of a transport

OPTION_PAD1 = 0
OPTION_PADN = 1
OPTION_ROUTER_ALERT = 5
OPTION_JUMBO = 0xC2

TOO_MANY = Refusal("rx_dropped_extension_limit")
SHORT = Refusal("rx_dropped_extension_short")
CHAIN = Refusal("rx_dropped_header_chain", "header_chain")


def walk(packet: PacketBuffer, header: IpHeader, joined: bool) -> IpHeader | Refusal:
    """The header with all extension headers, or why the packet is dropped.

    Args:
        packet: starts at its IPv6 header.
        header: with `size` and `protocol` where the walk begins.
        joined: the packet was put together from fragments.
    """
    at = header.size
    protocol = header.protocol
    named_at = header.named_at
    first: IpHeader | None = None  # what to give back, once this has turned out to be a first fragment
    fragmented = joined
    for _ in range(MAX_HEADERS):
        if protocol not in EXTENSIONS:
            break
        if protocol == HOP_BY_HOP and at != FIXED_SIZE:
            return Refusal("rx_dropped_hop_by_hop", "protocol", named_at)  # RFC 8200 §4.1
        if at + 8 > HEADROOM:
            return TOO_MANY
        if not packet.pullup(at + 8):
            return SHORT if first is None else CHAIN
        start = packet.data + at
        following = packet.area[start]
        if protocol == FRAGMENT:
            if fragmented:
                return Refusal("rx_dropped_nested_fragment")
            fragmented = True
            word = int.from_bytes(packet.area[start + 2 : start + 4], "big")
            fragment = word >> 3 << 1 | word & 1
            at += 8
            if fragment:
                found = header._replace(
                    protocol=following, size=at, fragment=fragment, named_at=at - 8, extended=False,
                    identification=int.from_bytes(packet.area[start + 4 : start + 8], "big"),
                )  # fmt: skip
                if fragment != 1:
                    return found
                first = found
            named_at = at - 8
            protocol = following
            continue
        size = (packet.area[start + 1] + 1) * 8
        if at + size > HEADROOM:
            return TOO_MANY
        if not packet.pullup(at + size):
            return SHORT if first is None else CHAIN
        start = packet.data + at
        if protocol == ROUTING:
            if packet.area[start + 3]:  # RFC 8200 §4.4; type 0 is like any other (RFC 5095 §3)
                return Refusal("rx_dropped_routing_header", "parameter", at + 2)
        else:
            refusal = check_options(packet.area[start + 2 : start + size], at + 2, is_multicast(header.dst))
            if refusal is not None:
                return refusal
        named_at = at
        at += size
        protocol = following
    if protocol in EXTENSIONS:
        return TOO_MANY
    if first is not None:
        short = protocol != NO_NEXT_HEADER and len(packet) < at + UPPER_SIZE
        return CHAIN if short else first
    return header._replace(protocol=protocol, size=at, named_at=named_at, extended=False)


def upper(packet: PacketBuffer, header: IpHeader) -> tuple[int | None, int, int]:
    """What a packet carries that is on its way through: (protocol, its offset, fragment as in `IpHeader`).

    Nothing is checked but that the walk stays inside the packet: options are no router's business. The protocol is None
    where no walk leads to it, for want of bytes or after `MAX_HEADERS` headers. Of a fragment that is not the first the
    walk ends at its fragment header.
    """
    at = header.size
    protocol = header.protocol
    fragment = 0
    for _ in range(MAX_HEADERS):
        if protocol not in EXTENSIONS:
            return protocol, at, fragment
        start = packet.peek(at, 8)
        if len(start) < 8:
            break
        if protocol == FRAGMENT:
            word = int.from_bytes(start[2:4], "big")
            fragment = word >> 3 << 1 | word & 1
            if fragment > 1:
                return start[0], at + 8, fragment
            at += 8
        else:
            at += (start[1] + 1) * 8
        protocol = start[0]
    return (None if protocol in EXTENSIONS else protocol), at, fragment


def check_options(options: memoryview, offset: int, to_group: bool) -> Refusal | None:
    """Walk the options of one header; why to drop the packet, or None.

    Args:
        options: without the header's first two bytes.
        offset: of `options` from the start of the packet.
        to_group: the packet's destination is a multicast group.
    """
    at = 0
    while at < len(options):
        kind = options[at]
        if kind == OPTION_PAD1:
            at += 1
            continue
        if at + 2 > len(options) or at + 2 + options[at + 1] > len(options):
            return Refusal("rx_dropped_options", "parameter", offset + min(at + 1, len(options) - 1))
        if kind == OPTION_JUMBO:
            return Refusal("rx_dropped_jumbo", "parameter", offset + at)
        if kind not in (OPTION_PADN, OPTION_ROUTER_ALERT) and kind >> 6:
            # RFC 8200 §4.2: 1 says nothing, 2 always tells the sender, 3 only where the destination is no group
            tell = kind >> 6 == 2 or (kind >> 6 == 3 and not to_group)
            return Refusal("rx_dropped_unknown_option", "option" if tell else "", offset + at)
        at += 2 + options[at + 1]
    return None
