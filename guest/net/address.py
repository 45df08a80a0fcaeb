"""Addresses: every IP address is one 128-bit integer.

The IPv4 address a.b.c.d is ::ffff:a.b.c.d (RFC 4291 §2.5.5.2), so one routing table, one neighbour cache and one engine
serve both families. Prefix lengths inside the stack count from the top of the 128 bits: an IPv4 /24 is 120.

Text is parsed and printed here and nowhere else; packets never meet an address object. `ipaddress` from the standard
library reads and writes the text.
"""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

V4_PREFIX = 0xFFFF << 32
V4_BITS = 0xFFFF_FFFF
V4_ANY = V4_PREFIX
V4_LOOPBACK = V4_PREFIX | 0x7F00_0001
V4_BROADCAST = V4_PREFIX | V4_BITS
V4_ALL_HOSTS = V4_PREFIX | 0xE000_0001
V6_ANY = 0
V6_LOOPBACK = 1
V6_ALL_NODES = 0xFF02 << 112 | 1

MAC_BROADCAST = b"\xff" * 6
MAC_ZERO = bytes(6)


class AddressError(ValueError):
    """The text or number is no address, mask or prefix that can be used here."""


class Prefix(NamedTuple):
    """An address and how many of its leading bits name the network (of 128)."""

    address: int
    length: int

    @property
    def network(self) -> int:
        """The address with its host bits cleared."""
        return self.address & mask(self.length)

    @property
    def broadcast(self) -> int | None:
        """The directed broadcast address; None for IPv6 and where the prefix leaves no room (RFC 3021)."""
        return self.address | ((1 << (128 - self.length)) - 1) if is_v4(self.address) and self.length < 127 else None

    def contains(self, address: int) -> bool:
        """Whether `address` lies in this network."""
        return (self.address ^ address) >> (128 - self.length) == 0

    def __str__(self) -> str:
        length = self.length - 96 if is_v4(self.address) else self.length
        return f"{format_address(self.address)}/{length}"


def parse_address(text: str) -> int:
    """The address that `text` writes, in either family. Raises AddressError."""
    if "%" in text:
        raise AddressError(f"{text!r}: an address with a zone cannot be used here")
    try:
        if ":" in text:
            return int(ipaddress.IPv6Address(text))
        return V4_PREFIX | int(ipaddress.IPv4Address(text))
    except ValueError as error:
        raise AddressError(f"{text!r} is not an IP address") from error


def to_address(value: str | int) -> int:
    """An address given as text or as its 128-bit number. Raises AddressError."""
    if isinstance(value, str):
        return parse_address(value)
    if not 0 <= value < 1 << 128:
        raise AddressError(f"{value:#x} is not a 128-bit address")
    return value


def to_prefix(value: str | int, family_length: int) -> Prefix:
    """An address with a prefix length as its own family counts it (IPv4: 0 to 32). Raises AddressError."""
    address = to_address(value)
    bits = 32 if is_v4(address) else 128
    if not 0 <= family_length <= bits:
        raise AddressError(f"prefix length {family_length} is not within 0 to {bits}")
    return Prefix(address, family_length + 128 - bits)


def netmask_length(text: str) -> int:
    """The prefix length, 0 to 32, that an IPv4 netmask such as 255.255.255.0 writes. Raises AddressError."""
    value = parse_address(text)
    hosts = ~value & V4_BITS
    if not is_v4(value) or hosts & (hosts + 1):
        raise AddressError(f"{text!r} is not a netmask")
    return 32 - hosts.bit_length()


def format_address(address: int) -> str:
    """The usual text: dotted for IPv4, RFC 5952 for IPv6."""
    if address >> 32 == 0xFFFF:
        return f"{address >> 24 & 255}.{address >> 16 & 255}.{address >> 8 & 255}.{address & 255}"
    return str(ipaddress.IPv6Address(address))


def format_mapped(address: int) -> str:
    """The text for traces, which shows IPv4 as what the engine sees: ::ffff:a.b.c.d."""
    text = format_address(address)
    return f"::ffff:{text}" if is_v4(address) else text


def mask(length: int) -> int:
    """The 128-bit mask with `length` leading ones."""
    return (1 << 128) - (1 << (128 - length))


def is_v4(address: int) -> bool:
    """Whether it is an IPv4 address in its mapped form."""
    return address >> 32 == 0xFFFF


def is_multicast(address: int) -> bool:
    """224.0.0.0/4 or ff00::/8."""
    return address >> 28 == 0xFFFFE or address >> 120 == 0xFF


def is_broadcast(address: int) -> bool:
    """255.255.255.255; directed broadcasts are known by their prefix alone (`Prefix.broadcast`)."""
    return address == V4_BROADCAST


def is_loopback(address: int) -> bool:
    """127.0.0.0/8 or ::1."""
    return address >> 24 == 0xFFFF7F or address == V6_LOOPBACK


def is_link_local(address: int) -> bool:
    """169.254.0.0/16 or fe80::/10."""
    return address >> 118 == 0xFE80 >> 6 or address >> 16 == 0xFFFF_A9FE


def is_unspecified(address: int) -> bool:
    """0.0.0.0 or ::."""
    return address in (V4_ANY, V6_ANY)


def format_mac(mac: bytes) -> str:
    """A MAC address as 52:54:00:12:34:56."""
    return mac.hex(":")


def parse_mac(text: str) -> bytes:
    """The 6 bytes of a MAC address written with colons. Raises AddressError."""
    parts = text.split(":")
    try:
        if len(parts) == 6 and all(len(part) in (1, 2) for part in parts):
            return bytes(int(part, 16) for part in parts)
    except ValueError:
        pass
    raise AddressError(f"{text!r} is not a MAC address")


def multicast_mac(address: int) -> bytes:
    """The Ethernet group of a multicast address (RFC 1112 §6.4, RFC 2464 §7)."""
    if is_v4(address):
        return b"\x01\x00\x5e" + (address & 0x7F_FFFF).to_bytes(3, "big")
    return b"\x33\x33" + (address & V4_BITS).to_bytes(4, "big")
