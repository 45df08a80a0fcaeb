"""Options of IPPROTO_IP, and the filter of raw ICMP sockets. ip(7), raw(7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guest.net.address import V4_ANY, V4_PREFIX, is_multicast, is_unspecified, is_v4
from guest.sys import constants as c
from guest.sys.fault import check, fault
from guest.sys.option import INT, Option, field, icmp_filter, table, wish, within
from guest.sys.socket_file import DatagramFile, SocketFile

if TYPE_CHECKING:
    from guest.net.endpoint import MessageEndpoint
    from guest.net.interface import Interface
    from guest.net.stack import Stack


def _number(raw: bytes) -> int:
    """An IPv4 address in network order, as a 128-bit number."""
    return V4_PREFIX | int.from_bytes(raw[:4], "big")


def interface_at(stack: Stack, index: int) -> Interface | None:
    """The interface with this index."""
    return next((interface for interface in stack.interfaces if interface.index == index), None)


def _owner(stack: Stack, address: int) -> Interface | None:
    return next((interface for interface in stack.interfaces if interface.owns(address)), None)


def _ttl(value: int) -> int | None:
    return None if value == -1 else within(value, 1, 255)


def _get_ttl(file: SocketFile, stack: Stack) -> int:
    ttl = file.endpoint.options.ttl
    return stack.config.ttl if ttl is None else ttl


def _get_group_interface(file: SocketFile, _stack: Stack) -> bytes:
    source = file.endpoint.options.multicast_source
    return ((V4_ANY if source is None else source) & 0xFFFF_FFFF).to_bytes(4, "big")


def _set_tos(file: SocketFile, _stack: Stack, value: int, _raw: bytes) -> None:
    """A stream's ECN bits are TCP's own (RFC 3168)."""
    options = file.endpoint.options
    options.tos = value & 0xFF if isinstance(file, DatagramFile) else value & 0xFC | options.tos & 3


def _set_group_ttl(file: SocketFile, _stack: Stack, value: int, _raw: bytes) -> None:
    if not isinstance(file, DatagramFile):
        raise fault("EINVAL")
    file.endpoint.options.multicast_ttl = 1 if value == -1 else within(value, 0, 255)


def _set_group_interface(file: SocketFile, stack: Stack, _value: int, raw: bytes) -> None:
    """An in_addr, an ip_mreq or an ip_mreqn, told apart by length."""
    if not isinstance(file, DatagramFile):
        raise fault("EINVAL")
    if len(raw) < 4:
        raise fault("EINVAL")
    address = _number(raw[4:8] if len(raw) >= 8 else raw)
    index = INT.unpack_from(raw, 8)[0] if len(raw) >= 12 else 0
    options = file.endpoint.options
    if not index and is_unspecified(address):
        options.multicast_if, options.multicast_source = None, None
        return
    found = interface_at(stack, index) if index else _owner(stack, address)
    if found is None:
        raise fault("EADDRNOTAVAIL")
    options.multicast_if = found
    options.multicast_source = None if is_unspecified(address) else address


def _member_interface(stack: Stack, raw: bytes) -> tuple[bool, Interface | None]:
    """Whether an ip_mreq or ip_mreqn names an interface, and which."""
    address = _number(raw[4:8])
    index = INT.unpack_from(raw, 8)[0] if len(raw) >= 12 else 0
    if index:
        return True, interface_at(stack, index)
    if is_unspecified(address):
        return False, None
    return True, _owner(stack, address)


def member(file: SocketFile) -> MessageEndpoint:
    """The endpoint that joins and leaves groups. Raises OSError: EPROTO for a stream."""
    if not isinstance(file, DatagramFile):
        raise fault("EPROTO")
    return file.endpoint


def _join(file: SocketFile, stack: Stack, _value: int, raw: bytes) -> None:
    group = _number(raw)
    if not is_multicast(group):
        raise fault("EINVAL")
    named, interface = _member_interface(stack, raw)
    if named and interface is None:
        raise fault("ENODEV")
    check(member(file).join(group, interface))


def _leave(file: SocketFile, stack: Stack, _value: int, raw: bytes) -> None:
    named, interface = _member_interface(stack, raw)
    if (named and interface is None) or not is_multicast(_number(raw)):
        raise fault("EADDRNOTAVAIL")
    check(member(file).leave(_number(raw), interface))


def path_mtu(file: SocketFile, stack: Stack, family: int) -> int:
    """IP_MTU and IPV6_MTU: of a connected socket's way. Raises OSError: ENOTCONN."""
    remote = file.endpoint.remote
    if remote is None:
        raise fault("ENOTCONN")
    hop = stack.ip.hop(remote[0])
    if hop is None:
        raise fault("ENOTCONN")
    mtu = hop.interface.mtu if is_v4(remote[0]) else hop.interface.mtu6
    return min(mtu, 0xFFFF) if family == 4 else mtu


def flag(value: int) -> bool:
    """0 or 1. Raises OSError: EINVAL."""
    return bool(within(value, 0, 1))


def discover(value: int) -> int:
    """IP_MTU_DISCOVER and IPV6_MTU_DISCOVER. Raises OSError: EINVAL."""
    return within(value, c.IP_PMTUDISC_DONT, c.IP_PMTUDISC_OMIT)


OPTIONS = table(
    c.IPPROTO_IP,
    Option("IP_TOS", lambda file, _stack: file.endpoint.options.tos, _set_tos, 0),
    field("IP_TTL", "ttl", _ttl, 1)._replace(get=_get_ttl),
    field("IP_HDRINCL", "hdrincl", bool, 1),
    wish(c.IPPROTO_IP, "IP_PKTINFO", 1),
    wish(c.IPPROTO_IP, "IP_RECVTTL", 1),
    wish(c.IPPROTO_IP, "IP_RECVTOS", 1),
    field("IP_RECVERR", "recverr", bool, 1),
    field("IP_MTU_DISCOVER", "mtu_discover", discover, 1),
    Option("IP_MTU", lambda file, stack: path_mtu(file, stack, 4), None),
    Option("IP_MULTICAST_TTL", lambda file, _stack: file.endpoint.options.multicast_ttl, _set_group_ttl, 1),
    field("IP_MULTICAST_LOOP", "multicast_loop", bool, 1),
    field("IP_MULTICAST_ALL", "multicast_all", flag, 1),
    Option("IP_MULTICAST_IF", _get_group_interface, _set_group_interface, 0),
    Option("IP_ADD_MEMBERSHIP", None, _join, 8),
    Option("IP_DROP_MEMBERSHIP", None, _leave, 8),
) | table(c.SOL_RAW, icmp_filter("ICMP_FILTER", 4))
