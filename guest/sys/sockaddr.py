"""Socket addresses: Python's tuples and C's structs on one side, 128-bit numbers on the other.

A caller may give an address as the standard library has it, `(host, port)` or `(host, port, flow, scope)`, or as the
bytes of a `sockaddr_in` (2 + 2 + 4 + 8) or `sockaddr_in6` (2 + 2 + 4 + 16 + 4). It always gets tuples back.

Hosts are written as numbers, in any form that inet_aton takes for IPv4; "" is the wildcard and "<broadcast>" is
255.255.255.255. Any other name is for a resolver, if there is one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from guest.net.address import V4_ANY, V4_BITS, V4_BROADCAST, V4_PREFIX, V6_ANY, AddressError, format_address, is_v4
from guest.net.address import parse_address as parse_number
from guest.sys.constants import AF_INET, AF_INET6, AF_UNSPEC
from guest.sys.fault import fault

SOCKADDR_IN_SIZE = 16
SOCKADDR_IN6_SIZE = 28
SIN6_LEN_RFC2133 = 24  # without the scope, which Linux does not insist on
SOCKADDR_MAX = 128

EAI_NONAME = -2
EAI_ADDRFAMILY = -9

SocketAddress: TypeAlias = tuple[str, int] | tuple[str, int, int] | tuple[str, int, int, int]
AddressArgument: TypeAlias = SocketAddress | bytes
Resolver: TypeAlias = Callable[[str, int], int]  # (host name, AF_*) → 128-bit address; raises ResolveError


class ResolveError(OSError):
    """A host name that leads to no address; `errno` is one of EAI_* (the standard library's `gaierror`)."""


class Destination(NamedTuple):
    """An address that a caller gave.

    Attributes:
        family: AF_*; what the caller called it.
        address: 128-bit number. port: of the transport.
        scope: interface index, 0 for none. flow: flow label.
    """

    family: int
    address: int
    port: int
    scope: int = 0
    flow: int = 0


# -- the structs -------------------------------------------------------------------------------------------------


def pack_sockaddr(family: int, port: int, address: int) -> bytes:
    """The 16 bytes of a `sockaddr`: family, port and IPv4 address (a 32-bit number), 8 bytes of zero."""
    return struct.pack("<H", family) + struct.pack("!HI8x", port, address)


def unpack_sockaddr(raw: bytes) -> tuple[int, int, int]:
    """Family, port and IPv4 address (a 32-bit number) of a 16-byte `sockaddr`. Raises OSError: EINVAL."""
    if len(raw) < SOCKADDR_IN_SIZE:
        raise fault("EINVAL")
    port, address = struct.unpack_from("!HI", raw, 2)
    return int.from_bytes(raw[:2], "little"), port, address


def pack_sockaddr_in6(port: int, address: int, flow: int = 0, scope: int = 0) -> bytes:
    """The 28 bytes of a `sockaddr_in6`."""
    head = struct.pack("<H", AF_INET6) + struct.pack("!HI", port, flow)
    return head + address.to_bytes(16, "big") + struct.pack("<I", scope)


def family_of(raw: bytes) -> int:
    """The family that a struct starts with. Raises OSError: EINVAL."""
    if not 2 <= len(raw) <= SOCKADDR_MAX:
        raise fault("EINVAL")
    return int.from_bytes(raw[:2], "little")


def _unpack(raw: bytes, family: int) -> Destination:
    """A struct for a socket of `family`. Raises OSError: EINVAL, EAFNOSUPPORT."""
    given = family_of(raw)
    if given == AF_INET and (family == AF_INET or len(raw) < SIN6_LEN_RFC2133):
        _, port, address = unpack_sockaddr(raw)
        return Destination(AF_INET, V4_PREFIX | address, port)
    if family == AF_INET and len(raw) < SOCKADDR_IN_SIZE:
        raise fault("EINVAL")
    if given == AF_INET and family == AF_INET6:
        _, port, address = unpack_sockaddr(raw)
        return Destination(AF_INET, V4_PREFIX | address, port)
    if family == AF_INET6 and len(raw) < SIN6_LEN_RFC2133:
        raise fault("EINVAL")
    if given == AF_UNSPEC and family == AF_INET:
        _, port, address = unpack_sockaddr(raw)
        return Destination(AF_UNSPEC, V4_PREFIX | address, port)
    if given == AF_UNSPEC:
        return Destination(AF_UNSPEC, V6_ANY, 0)
    if given != family:
        raise fault("EAFNOSUPPORT")
    port, flow = struct.unpack_from("!HI", raw, 2)
    scope = int.from_bytes(raw[24:28], "little") if len(raw) >= SOCKADDR_IN6_SIZE else 0
    return Destination(AF_INET6, int.from_bytes(raw[8:24], "big"), port, scope, flow & 0xFFFFF)


# -- the tuples --------------------------------------------------------------------------------------------------


def parse(
    value: AddressArgument, family: int, zone: Callable[[str], int], resolver: Resolver | None = None
) -> Destination:
    """What a caller means by an address for a socket of `family`.

    Args:
        value: a tuple or a struct.
        family: AF_INET or AF_INET6.
        zone: the interface index that the text behind a % names.
        resolver: for names; without one they are unknown.

    Raises:
        TypeError, OverflowError: as the standard library, for a tuple of another shape or a port out of range.
        ResolveError: the host is not known.
        OSError: EINVAL, EAFNOSUPPORT for a struct.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _unpack(bytes(value), family)
    label = "AF_INET" if family == AF_INET else "AF_INET6"
    if not isinstance(value, tuple):
        raise TypeError(f"{label} address must be tuple, not {type(value).__name__}")
    if len(value) < 2 or len(value) > (2 if family == AF_INET else 4) or not isinstance(value[1], int):
        raise TypeError(f"{label} address must be a pair (host, port)" + ("" if family == AF_INET else " or more"))
    port = value[1]
    if not 0 <= port <= 0xFFFF:
        raise OverflowError("port must be 0-65535.")
    flow = value[2] if len(value) > 2 else 0
    scope = value[3] if len(value) > 3 else 0
    if not 0 <= flow <= 0xFFFFF:
        raise OverflowError("flowinfo must be 0-1048575.")
    address, named = parse_host(value[0], family, zone, resolver)
    return Destination(family, address, port, scope & 0xFFFF_FFFF or named, flow)


def parse_host(
    host: str | bytes | bytearray, family: int, zone: Callable[[str], int], resolver: Resolver | None = None
) -> tuple[int, int]:
    """The 128-bit address and the scope (0 for none) of a host. Raises as `parse`."""
    if isinstance(host, (bytes, bytearray)):
        host = host.decode("ascii", "replace")
    if not isinstance(host, str):
        raise TypeError(f"str, bytes or bytearray expected, not {type(host).__name__}")
    if not host:
        return (V4_ANY if family == AF_INET else V6_ANY), 0
    if host in ("<broadcast>", "255.255.255.255"):
        if family != AF_INET:
            raise ResolveError(EAI_ADDRFAMILY, "address family mismatched")
        return V4_BROADCAST, 0
    v4 = inet_aton(host)
    if v4 is not None:
        if family != AF_INET:
            raise ResolveError(EAI_ADDRFAMILY, "Address family for hostname not supported")
        return V4_PREFIX | v4, 0
    text, percent, where = host.partition("%")
    if ":" in text:
        try:
            address = parse_number(text)
        except AddressError:
            raise ResolveError(EAI_NONAME, "Name or service not known") from None
        if family != AF_INET6:
            raise ResolveError(EAI_ADDRFAMILY, "Address family for hostname not supported")
        scope = zone(where) if percent else 0
        if percent and not scope:
            raise ResolveError(EAI_NONAME, "Name or service not known")
        return address, scope
    if resolver is None:
        raise ResolveError(EAI_NONAME, "Name or service not known")
    return resolver(host, family), 0


def inet_aton(text: str) -> int | None:
    """The 32-bit number that inet_aton(3) reads, with one to four parts, each decimal, octal or hexadecimal."""
    parts = text.split(".")
    if not 1 <= len(parts) <= 4:
        return None
    numbers = []
    for part in parts:
        if not part.isascii() or not part.isalnum() or not part[0].isdigit():
            return None
        try:
            if part[:2] in ("0x", "0X"):
                numbers.append(int(part[2:] or "0", 16))
            else:
                numbers.append(int(part, 8 if part[0] == "0" else 10))
        except ValueError:
            return None
    *leading, last = numbers
    if any(number > 255 for number in leading) or last >> 8 * (4 - len(leading)):
        return None
    for place, number in enumerate(leading):
        last |= number << 8 * (3 - place)
    return last


def show(family: int, address: int, port: int, scope: int = 0) -> SocketAddress:
    """The tuple for a socket of `family`, as the standard library shows it."""
    if family == AF_INET:
        return format_address(address), port
    return format_v6(address), port, 0, scope if needs_scope(address) else 0


def needs_scope(address: int) -> bool:
    """Whether an IPv6 address says which one it is only together with an interface (RFC 4007): link-local ones."""
    return address >> 118 == 0x3FA or (address >> 120 == 0xFF and (address >> 112 & 15) in (1, 2))


def format_v6(address: int) -> str:
    """IPv6 text as inet_ntop(3) writes it: IPv4 inside of IPv6 stays dotted."""
    low = address & V4_BITS
    if is_v4(address):
        return f"::ffff:{format_address(address)}"
    if address == low and low >> 16:
        return f"::{format_address(V4_PREFIX | low)}"
    return format_address(address)
