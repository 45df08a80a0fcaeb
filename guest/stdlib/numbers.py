"""The functions of a module `socket` that only turn one form of a number or an address into another."""

from __future__ import annotations

import sys
from typing import Any

from guest.net.address import V4_PREFIX, AddressError, parse_address
from guest.sys import constants as c
from guest.sys.fault import fault
from guest.sys.sockaddr import format_v6
from guest.sys.sockaddr import inet_aton as parse_v4

IN6_SIZE = 16
CMSG_HEADER = 16  # struct cmsghdr: a long and two ints
CMSG_ALIGN = 8
CMSG_MAX = 0x7FFFFFFF


def _swapped(name: str, value: int, size: int) -> int:
    if not isinstance(value, int):
        raise TypeError(f"an integer is required (got type {type(value).__name__})")
    if size == 2 and value < 0:
        raise OverflowError(f"{name}: can't convert negative Python int to C 16-bit unsigned integer")
    if size == 2 and value > 0xFFFF:
        raise OverflowError(f"{name}: Python int too large to convert to C 16-bit unsigned integer")
    if not 0 <= value <= 0xFFFFFFFF:
        raise OverflowError("int larger than 32 bits" if value > 0 else "can't convert negative int to unsigned")
    return int.from_bytes(value.to_bytes(size, sys.byteorder), "big")


def htons(x: int) -> int:
    """A 16-bit number, from this machine's byte order to the network's."""
    return _swapped("htons", x, 2)


def ntohs(x: int) -> int:
    """A 16-bit number, from the network's byte order to this machine's."""
    return _swapped("ntohs", x, 2)


def htonl(x: int) -> int:
    """A 32-bit number, from this machine's byte order to the network's."""
    return _swapped("htonl", x, 4)


def ntohl(x: int) -> int:
    """A 32-bit number, from the network's byte order to this machine's."""
    return _swapped("ntohl", x, 4)


def inet_aton(ip_addr: str) -> bytes:
    """The 4 bytes of an IPv4 address in any form that inet_aton(3) takes. Raises OSError."""
    number = parse_v4(ip_addr)
    if number is None:
        raise OSError("illegal IP address string passed to inet_aton")
    return number.to_bytes(4, "big")


def inet_ntoa(packed_ip: Any) -> str:
    """The dotted text of 4 bytes. Raises OSError."""
    raw = bytes(memoryview(packed_ip))
    if len(raw) != 4:
        raise OSError("packed IP wrong length for inet_ntoa")
    return ".".join(map(str, raw))


def inet_pton(af: int, ip_string: str) -> bytes:
    """The bytes of an address of a family. Raises OSError."""
    if af not in (c.AF_INET, c.AF_INET6):
        raise fault("EAFNOSUPPORT")
    try:
        if (":" in ip_string) == (af == c.AF_INET6):
            number = parse_address(ip_string)
            return (number & 0xFFFFFFFF).to_bytes(4, "big") if af == c.AF_INET else number.to_bytes(IN6_SIZE, "big")
    except AddressError:
        pass
    raise OSError("illegal IP address string passed to inet_pton")


def inet_ntop(af: int, packed_ip: Any) -> str:
    """The text of an address's bytes. Raises ValueError."""
    raw = bytes(memoryview(packed_ip))
    sizes = {c.AF_INET: 4, c.AF_INET6: IN6_SIZE}
    if af not in sizes:
        raise ValueError(f"unknown address family {int(af)}")
    if len(raw) != sizes[af]:
        raise ValueError("invalid length of packed IP address string")
    return inet_ntoa(raw) if af == c.AF_INET else format_v6(int.from_bytes(raw, "big"))


def v4_text(number: int) -> str:
    """The dotted text of a 32-bit number."""
    return inet_ntoa((number & 0xFFFFFFFF).to_bytes(4, "big"))


def v4_mapped(text: str) -> str:
    """The IPv6 text of a dotted IPv4 address."""
    return format_v6(V4_PREFIX | int.from_bytes(inet_aton(text), "big"))


def CMSG_LEN(length: int) -> int:
    """How long a piece of ancillary data of so many bytes is. Raises OverflowError."""
    if not 0 <= length <= CMSG_MAX - CMSG_HEADER:
        raise OverflowError("CMSG_LEN() argument out of range")
    return CMSG_HEADER + length


def CMSG_SPACE(length: int) -> int:
    """How much room it needs with the padding behind it. Raises OverflowError."""
    if not 0 <= length <= CMSG_MAX - CMSG_HEADER - CMSG_ALIGN:
        raise OverflowError("CMSG_SPACE() argument out of range")
    return CMSG_HEADER + -(-length // CMSG_ALIGN) * CMSG_ALIGN
