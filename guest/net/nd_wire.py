"""Messages of neighbour discovery: their checks and options, and how they are written. RFC 4861 §4, §6.1, §7.1, §8.1.

Promises:
- `parse` accepts only what a node on the same link can have sent: hop limit 255, code 0, whole, with sound options. For
  everything else it names the reason.
- A message's options are walked once and their number is bounded by the message's size: an option of length 0, or one
  that goes past the end, makes the whole message wrong.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from guest.net.address import MAC_ZERO, is_multicast, is_unspecified
from guest.net.family import IpHeader
from guest.net.pbuf import PacketBuffer

ROUTER_SOLICITATION = 133
ROUTER_ADVERTISEMENT = 134
NEIGHBOUR_SOLICITATION = 135
NEIGHBOUR_ADVERTISEMENT = 136
REDIRECT = 137

SOURCE_LINK = 1
TARGET_LINK = 2
PREFIX = 3
MTU = 5
NONCE = 14
RDNSS = 25

HOP_LIMIT = 255
MAX_MESSAGE = 9000  # nobody sends more; bounds the walk over the options
SMALLEST = {
    ROUTER_SOLICITATION: 8, ROUTER_ADVERTISEMENT: 16, NEIGHBOUR_SOLICITATION: 24, NEIGHBOUR_ADVERTISEMENT: 24,
    REDIRECT: 40,
}  # fmt: skip

# type, code, checksum; hop limit, flags, router lifetime (s), reachable time (ms), retransmission timer (ms)
ADVERTISEMENT = struct.Struct("!BBHBBHII")
assert ADVERTISEMENT.size == 16
# prefix length, flags, valid lifetime (s), preferred lifetime (s), reserved, prefix; behind type and length
PREFIX_OPTION = struct.Struct("!BBIII16s")
assert PREFIX_OPTION.size == 30

FLAG_ROUTER, FLAG_SOLICITED, FLAG_OVERRIDE = 0x80, 0x40, 0x20  # of a neighbour advertisement
FLAG_ON_LINK, FLAG_AUTONOMOUS = 0x80, 0x40  # of a prefix

ALL_NODES = 0xFF02 << 112 | 1
ALL_ROUTERS = 0xFF02 << 112 | 2


class NdMessage(NamedTuple):
    """A checked message.

    Attributes:
        kind: its type.
        flags: of a neighbour advertisement.
        target: what it is about, 0 where it has none. destination: of a redirect, else 0.
        options: type and content, without type and length, in order.
        body: the whole message.
    """

    kind: int
    flags: int
    target: int
    destination: int
    options: list[tuple[int, bytes]]
    body: bytes

    def link_address(self, kind: int) -> bytes | None:
        """The MAC address in the first option of that type, or None."""
        for option, content in self.options:
            if option == kind and len(content) == 6:
                return None if content[0] & 1 or content == MAC_ZERO else content
        return None


class PrefixInformation(NamedTuple):
    """A prefix of a router advertisement; lifetimes in seconds, 0xFFFFFFFF for ever."""

    prefix: int
    length: int
    on_link: bool
    autonomous: bool
    valid: int
    preferred: int


class Advertisement(NamedTuple):
    """A router advertisement.

    Attributes:
        router: who sent it. hop_limit: 0 where it does not say. lifetime: as default router, seconds.
        preference: 1 high, 0 medium, -1 low (RFC 4191 §2.1).
        mtu: 0 where it does not say.
        prefixes: in order. servers: name servers with the seconds they may be used (RFC 8106).
    """

    router: int
    hop_limit: int
    lifetime: int
    preference: int
    mtu: int
    prefixes: list[PrefixInformation]
    servers: list[tuple[int, int]]


def solicited_node(address: int) -> int:
    """The group that `address` is asked for in (RFC 4291 §2.7.1)."""
    return 0xFF02_0000_0000_0000_0000_0001_FF00_0000 | address & 0xFF_FFFF


def is_link_local(address: int) -> bool:
    """fe80::/10."""
    return address >> 118 == 0x3FA


def eui64(prefix: int, mac: bytes) -> int:
    """The address with the interface identifier of `mac` in a /64 (RFC 4291 appendix A)."""
    identifier = bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:6]
    return prefix >> 64 << 64 | int.from_bytes(identifier, "big")


def read_options(body: bytes, at: int) -> list[tuple[int, bytes]] | None:
    """The options from `at` on; None where one has length 0 or goes past the end (RFC 4861 §4.6)."""
    options: list[tuple[int, bytes]] = []
    while at < len(body):
        if at + 2 > len(body):
            return None
        end = at + body[at + 1] * 8
        if end == at or end > len(body):
            return None
        options.append((body[at], body[at + 2 : end]))
        at = end
    return options


def parse(packet: PacketBuffer, header: IpHeader) -> NdMessage | str:
    """Check a message whose checksum is right; or the reason to drop it."""
    if header.ttl != HOP_LIMIT:
        return "rx_dropped_hop_limit"
    if not 8 <= len(packet) <= MAX_MESSAGE:
        return "rx_dropped_length"
    body = packet.tobytes()
    kind = body[0]
    smallest = SMALLEST.get(kind)
    if smallest is None or len(body) < smallest:
        return "rx_dropped_length"
    if body[1]:
        return "rx_dropped_code"
    options = read_options(body, smallest)
    if options is None:
        return "rx_dropped_options"
    target = int.from_bytes(body[8:24], "big") if smallest >= 24 else 0
    destination = int.from_bytes(body[24:40], "big") if kind == REDIRECT else 0
    message = NdMessage(kind, body[4], target, destination, options, body)
    reason = check_addresses(message, header)
    return reason or message


def check_addresses(message: NdMessage, header: IpHeader) -> str:
    """Whether the message's addresses go together: the reason to drop it, or an empty text."""
    kind, src, dst = message.kind, header.src, header.dst
    if kind in (ROUTER_ADVERTISEMENT, REDIRECT):
        if not is_link_local(src):
            return "rx_dropped_source"
    elif is_unspecified(src):
        named = any(option == SOURCE_LINK for option, _ in message.options)
        asked = kind == NEIGHBOUR_SOLICITATION and dst != solicited_node(message.target)
        if named or asked or kind == NEIGHBOUR_ADVERTISEMENT:
            return "rx_dropped_source"
    if is_multicast(message.target) or is_multicast(message.destination):
        return "rx_dropped_target"
    if kind == NEIGHBOUR_ADVERTISEMENT and is_multicast(dst) and message.flags & FLAG_SOLICITED:
        return "rx_dropped_solicited"
    if kind == REDIRECT and message.target != message.destination and not is_link_local(message.target):
        return "rx_dropped_target"
    return ""


def read_advertisement(message: NdMessage, router: int) -> Advertisement:
    """The content of a router advertisement. Options that make no sense are skipped (RFC 4861 §4.6)."""
    _, _, _, hop_limit, flags, lifetime, _, _ = ADVERTISEMENT.unpack_from(message.body)
    preference = (0, 1, 0, -1)[flags >> 3 & 3]  # the reserved value counts as medium (RFC 4191 §2.2)
    mtu = 0
    prefixes: list[PrefixInformation] = []
    servers: list[tuple[int, int]] = []
    for kind, content in message.options:
        if kind == PREFIX and len(content) == PREFIX_OPTION.size:
            length, bits, valid, preferred, _, raw = PREFIX_OPTION.unpack(content)
            if length <= 128:
                prefix = int.from_bytes(raw, "big") >> (128 - length) << (128 - length)
                on_link, autonomous = bool(bits & FLAG_ON_LINK), bool(bits & FLAG_AUTONOMOUS)
                prefixes.append(PrefixInformation(prefix, length, on_link, autonomous, valid, preferred))
        elif kind == MTU and len(content) == 6:
            mtu = int.from_bytes(content[2:6], "big")
        elif kind == RDNSS and len(content) >= 22 and len(content) % 16 == 6:
            seconds = int.from_bytes(content[2:6], "big")
            servers += [(int.from_bytes(content[at : at + 16], "big"), seconds) for at in range(6, len(content), 16)]
    return Advertisement(router, hop_limit, lifetime, preference, mtu, prefixes, servers)


def link_option(kind: int, mac: bytes) -> bytes:
    """A source or target link-layer address option."""
    return bytes((kind, 1)) + mac


def solicitation(target: int, options: bytes) -> bytes:
    """A neighbour solicitation, its checksum zero."""
    return bytes((NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0)) + target.to_bytes(16, "big") + options


def advertisement(target: int, flags: int, mac: bytes) -> bytes:
    """A neighbour advertisement, its checksum zero."""
    head = bytes((NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0))
    return head + target.to_bytes(16, "big") + link_option(TARGET_LINK, mac)


def router_solicitation(options: bytes) -> bytes:
    """A router solicitation, its checksum zero."""
    return bytes((ROUTER_SOLICITATION, 0, 0, 0, 0, 0, 0, 0)) + options


def router_advertisement(said: Advertisement, options: bytes = b"") -> bytes:
    """A router advertisement, its checksum zero; `options` come before those of `said`."""
    flags = {1: 1, 0: 0, -1: 3}[said.preference] << 3
    parts = [ADVERTISEMENT.pack(ROUTER_ADVERTISEMENT, 0, 0, said.hop_limit, flags, said.lifetime, 0, 0), options]
    if said.mtu:
        parts.append(bytes((MTU, 1, 0, 0)) + said.mtu.to_bytes(4, "big"))
    for prefix, length, on_link, autonomous, valid, preferred in said.prefixes:
        bits = FLAG_ON_LINK * on_link | FLAG_AUTONOMOUS * autonomous
        content = PREFIX_OPTION.pack(length, bits, valid, preferred, 0, prefix.to_bytes(16, "big"))
        parts.append(bytes((PREFIX, 4)) + content)
    for server, seconds in said.servers:
        parts.append(bytes((RDNSS, 3, 0, 0)) + seconds.to_bytes(4, "big") + server.to_bytes(16, "big"))
    return b"".join(parts)
