"""Options of IPPROTO_IPV6, and the filter of raw ICMPv6 sockets. ipv6(7), RFC 3493, RFC 3542."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guest.net.address import is_multicast, is_v4
from guest.sys import constants as c
from guest.sys.fault import check, fault
from guest.sys.option import INT, Option, field, icmp_filter, table, wish, within
from guest.sys.options_ip import discover, flag, interface_at, member, path_mtu
from guest.sys.socket_file import DatagramFile, SocketFile

if TYPE_CHECKING:
    from guest.net.stack import Stack


def _get_hops(file: SocketFile, stack: Stack) -> int:
    hops = file.endpoint.options.hop_limit
    return stack.config.ttl if hops is None else hops


def _set_v6only(file: SocketFile, _stack: Stack, value: int, _raw: bytes) -> None:
    if file.raw or file.endpoint.local[1]:
        raise fault("EINVAL")
    file.endpoint.options.v6only = bool(value)


def _get_group_index(file: SocketFile, _stack: Stack) -> int:
    interface = file.endpoint.options.multicast_if
    return 0 if interface is None else interface.index


def _set_group_hops(file: SocketFile, _stack: Stack, value: int, _raw: bytes) -> None:
    if not isinstance(file, DatagramFile):
        raise fault("ENOPROTOOPT")
    file.endpoint.options.multicast_ttl = _default(value, 1) or 0


def _set_group_index(file: SocketFile, stack: Stack, value: int, _raw: bytes) -> None:
    if not isinstance(file, DatagramFile):
        raise fault("ENOPROTOOPT")
    interface = interface_at(stack, value) if value else None
    if value and interface is None:
        raise fault("ENODEV")
    file.endpoint.options.multicast_if = interface


def _join6(file: SocketFile, stack: Stack, _value: int, raw: bytes) -> None:
    group, index = int.from_bytes(raw[:16], "big"), INT.unpack_from(raw, 16)[0]
    if not is_multicast(group) or is_v4(group):
        raise fault("EINVAL")
    interface = interface_at(stack, index)
    if index and interface is None:
        raise fault("ENODEV")
    check(member(file).join(group, interface))


def _leave6(file: SocketFile, stack: Stack, _value: int, raw: bytes) -> None:
    group, index = int.from_bytes(raw[:16], "big"), INT.unpack_from(raw, 16)[0]
    interface = interface_at(stack, index)
    if not is_multicast(group) or is_v4(group):
        raise fault("EINVAL")
    if index and interface is None:
        raise fault("EADDRNOTAVAIL")
    check(member(file).leave(group, interface))


def _set_checksum(file: SocketFile, _stack: Stack, value: int, _raw: bytes) -> None:
    if file.protocol == c.IPPROTO_ICMPV6 or (value > 0 and value & 1):
        raise fault("EINVAL")
    file.endpoint.options.checksum_offset = max(-1, value)


def _get_checksum(file: SocketFile, _stack: Stack) -> int:
    return 2 if file.protocol == c.IPPROTO_ICMPV6 else file.endpoint.options.checksum_offset


def _default(value: int, instead: int | None) -> int | None:
    return instead if value == -1 else within(value, 0, 255)


OPTIONS = table(
    c.IPPROTO_IPV6,
    field("IPV6_UNICAST_HOPS", "hop_limit", lambda value: _default(value, None))._replace(get=_get_hops),
    Option("IPV6_MULTICAST_HOPS", lambda file, _stack: file.endpoint.options.multicast_ttl, _set_group_hops),
    field("IPV6_MULTICAST_LOOP", "multicast_loop", flag),
    field("IPV6_MULTICAST_ALL", "multicast_all", bool),
    Option("IPV6_MULTICAST_IF", _get_group_index, _set_group_index),
    Option("IPV6_JOIN_GROUP", None, _join6, 20),
    Option("IPV6_LEAVE_GROUP", None, _leave6, 20),
    Option("IPV6_V6ONLY", lambda file, _stack: int(file.endpoint.options.v6only), _set_v6only),
    field("IPV6_TCLASS", "tclass", lambda value: _default(value, 0)),
    wish(c.IPPROTO_IPV6, "IPV6_RECVPKTINFO"),
    wish(c.IPPROTO_IPV6, "IPV6_RECVHOPLIMIT"),
    wish(c.IPPROTO_IPV6, "IPV6_RECVTCLASS"),
    field("IPV6_RECVERR", "recverr", bool),
    field("IPV6_MTU_DISCOVER", "mtu_discover", discover),
    Option("IPV6_MTU", lambda file, stack: path_mtu(file, stack, 6), None),
    Option("IPV6_CHECKSUM", _get_checksum, _set_checksum, 4, lambda file: file.raw),
) | table(c.IPPROTO_ICMPV6, icmp_filter("ICMP6_FILTER", 32))
