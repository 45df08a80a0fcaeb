"""Ancillary data of sendmsg and recvmsg: what travels beside the payload. ip(7), ipv6(7), cmsg(3), RFC 3542.

On the way in it says where and how a datagram arrived, as far as the socket asked (IP_PKTINFO, IP_RECVTTL, …); on the
way out it chooses source, interface, hops and traffic class for one datagram. Items are (level, type, bytes), as in the
standard library.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from guest.net.address import V4_ANY, V4_BITS, V4_PREFIX, V6_ANY, is_v4
from guest.net.endpoint import Datagram
from guest.net.pbuf import Buffer
from guest.sys import constants as c
from guest.sys.fault import fault
from guest.sys.sockaddr import pack_sockaddr, pack_sockaddr_in6
from guest.sys.socket_file import SocketFile

if TYPE_CHECKING:
    from guest.net.icmp_error import IcmpError
    from guest.net.interface import Interface

Item: TypeAlias = tuple[int, int, bytes]

INT = struct.Struct("<i")
IN_PKTINFO = struct.Struct("<i4s4s")  # interface index, local address, destination of the header
IN6_PKTINFO = struct.Struct("<16sI")
SOCK_EXTENDED_ERR = struct.Struct("<IBBBBII")  # errno, origin, type, code, pad, info, data
CMSG_HEADER = 16
SO_EE_ORIGIN_ICMP = 2
SO_EE_ORIGIN_ICMP6 = 3


def space(size: int) -> int:
    """CMSG_SPACE: what an item of `size` bytes takes in a control buffer."""
    return CMSG_HEADER + (size + 7 & ~7)


def fit(items: Iterable[Item], room: int) -> tuple[list[Item], bool]:
    """The items that fit into a control buffer of `room` bytes, the last one cut off; whether something is missing."""
    kept: list[Item] = []
    for level, kind, value in items:
        if room < CMSG_HEADER:
            return kept, True
        kept.append((level, kind, value[: room - CMSG_HEADER]))
        if room < CMSG_HEADER + len(value):
            return kept, True
        room -= min(room, space(len(value)))
    return kept, False


# -- in ----------------------------------------------------------------------------------------------------------


def received(file: SocketFile, datagram: Datagram) -> list[Item]:
    """What `file` asked to be told about a datagram, in Linux's order."""
    wants = file.wants
    if not wants:
        return []
    items: list[Item] = []
    index = datagram.interface.index
    if (c.IPPROTO_IPV6, c.IPV6_RECVPKTINFO) in wants and file.family == c.AF_INET6:
        value = IN6_PKTINFO.pack(datagram.dst.to_bytes(16, "big"), index)
        items.append((c.IPPROTO_IPV6, c.IPV6_PKTINFO, value))
    if is_v4(datagram.src):
        if (c.IPPROTO_IP, c.IP_PKTINFO) in wants:
            dst = (datagram.dst & V4_BITS).to_bytes(4, "big")
            # of a broadcast or group the local address is the one we would answer from
            own = datagram.interface.source_for(datagram.src) if datagram.payload.cast else None
            local = dst if own is None else (own & V4_BITS).to_bytes(4, "big")
            items.append((c.IPPROTO_IP, c.IP_PKTINFO, IN_PKTINFO.pack(index, local, dst)))
        if (c.IPPROTO_IP, c.IP_RECVTTL) in wants:
            items.append((c.IPPROTO_IP, c.IP_TTL, INT.pack(datagram.ttl)))
        if (c.IPPROTO_IP, c.IP_RECVTOS) in wants:
            items.append((c.IPPROTO_IP, c.IP_TOS, bytes([datagram.tos])))
    else:
        if (c.IPPROTO_IPV6, c.IPV6_RECVHOPLIMIT) in wants:
            items.append((c.IPPROTO_IPV6, c.IPV6_HOPLIMIT, INT.pack(datagram.ttl)))
        if (c.IPPROTO_IPV6, c.IPV6_RECVTCLASS) in wants:
            items.append((c.IPPROTO_IPV6, c.IPV6_TCLASS, INT.pack(datagram.tos)))
    return items


def reported(file: SocketFile, error: IcmpError, number: int) -> Item:
    """An ICMP error for MSG_ERRQUEUE: a sock_extended_err and the address of who reported it."""
    v6 = error.family == 6
    origin = SO_EE_ORIGIN_ICMP6 if v6 else SO_EE_ORIGIN_ICMP
    head = SOCK_EXTENDED_ERR.pack(number, origin, error.type, error.code, 0, error.mtu, 0)
    if v6 or file.family == c.AF_INET6:
        return c.IPPROTO_IPV6, c.IPV6_RECVERR, head + pack_sockaddr_in6(0, error.offender)
    return c.IPPROTO_IP, c.IP_RECVERR, head + pack_sockaddr(c.AF_INET, 0, error.offender & V4_BITS)


# -- out ---------------------------------------------------------------------------------------------------------


class Choices(NamedTuple):
    """What the sender of one datagram chose; None leaves it to the socket and the routing table."""

    src: int | None = None
    interface: Interface | None = None
    ttl: int | None = None
    tos: int | None = None


def chosen(
    file: SocketFile,
    items: Iterable[tuple[int, int, Buffer]],
    interface_at: Callable[[int], Interface | None],
    is_local: Callable[[int], bool],
) -> Choices:
    """What the items for sendmsg choose.

    Raises OSError: EINVAL for what is malformed, out of range or unknown at this socket's own level; ENODEV and
    ENETUNREACH for an interface or source that is not here. Other levels are passed over, as on Linux.
    """
    found = Choices()
    level_here = c.IPPROTO_IP if file.family == c.AF_INET else c.IPPROTO_IPV6
    for level, kind, given in items:
        value = bytes(given)
        if level == c.SOL_SOCKET:
            raise fault("EINVAL")
        if level_here == c.IPPROTO_IP and level == c.IPPROTO_IPV6 and kind == c.IPV6_PKTINFO:
            raise fault("EINVAL")
        if level != level_here:
            continue
        if kind == (c.IP_PKTINFO if level == c.IPPROTO_IP else c.IPV6_PKTINFO):
            src, interface = _source(level, value, interface_at, is_local)
            found = found._replace(src=src, interface=interface)
        elif kind == (c.IP_TTL if level == c.IPPROTO_IP else c.IPV6_HOPLIMIT):
            least = 1 if level == c.IPPROTO_IP else -1
            ttl = _int(value, least)
            found = found._replace(ttl=None if ttl < 0 else ttl)
        elif kind == c.IP_TOS and level == c.IPPROTO_IP:
            found = found._replace(tos=value[0] if len(value) == 1 else _int(value, 0))
        elif kind == c.IPV6_TCLASS and level == c.IPPROTO_IPV6:
            tos = _int(value, -1)
            found = found._replace(tos=None if tos < 0 else tos)
        else:
            raise fault("EINVAL")
    return found


def _int(value: bytes, least: int) -> int:
    if len(value) != INT.size:
        raise fault("EINVAL")
    number: int = INT.unpack(value)[0]
    if not least <= number <= 255:
        raise fault("EINVAL")
    return number


def _source(
    level: int, value: bytes, interface_at: Callable[[int], Interface | None], is_local: Callable[[int], bool]
) -> tuple[int | None, Interface | None]:
    """Source and interface of an in_pktinfo or in6_pktinfo."""
    v4 = level == c.IPPROTO_IP
    if len(value) < (IN_PKTINFO.size if v4 else IN6_PKTINFO.size):
        raise fault("EINVAL")
    if v4:
        index, local, _ = IN_PKTINFO.unpack_from(value)
        src = V4_PREFIX | int.from_bytes(local, "big")
    else:
        text, index = IN6_PKTINFO.unpack_from(value)
        src = int.from_bytes(text, "big")
    interface = interface_at(index) if index else None
    if index and interface is None:
        raise fault("ENODEV")
    if src in (V4_ANY, V6_ANY):
        return None, interface
    if not is_local(src):
        raise fault("ENETUNREACH" if v4 else "EINVAL")
    return src, interface
