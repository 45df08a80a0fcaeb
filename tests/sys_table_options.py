"""More of the table of calls: socket options, ancillary data, raw and ICMP sockets. See sys_table.py."""

# ruff: noqa: F403, F405  # the names of the constants are the table's words

from __future__ import annotations

import struct
from socket import inet_aton, inet_pton

from guest.sys.constants import *
from tests.sys_table import (
    GROUP,
    GROUP6,
    INT,
    LO_INDEX,
    LO_RAW,
    NOW,
    NOWHERE,
    NOWHERE6,
    A,
    B,
    Row,
    To,
    echo,
    echo_summed,
    options,
    pair,
    pair6,
    ping,
    ping6,
    raw,
    raw6,
    udp,
    udp6,
)

ONE = INT.pack(1)
STRANGER = inet_aton(NOWHERE)

SOCKET_OPTIONS: list[Row] = [
    ("SO_TYPE, SO_DOMAIN, SO_PROTOCOL, SO_ACCEPTCONN", [
        udp(A), *(("getsockopt", A, SOL_SOCKET, option) for option in (SO_TYPE, SO_DOMAIN, SO_PROTOCOL, SO_ACCEPTCONN)),
    ]),
    ("options that cannot be set", [
        udp(A), *(("setsockopt", A, SOL_SOCKET, option, 1) for option in (SO_TYPE, SO_ERROR, SO_DOMAIN, SO_PROTOCOL)),
    ]),
    *((f"SOL_SOCKET flag {option}", options(udp(A), SOL_SOCKET, option, 1, 0, 5, b"\1\0\0\0", b"\1\0"))
      for option in (SO_REUSEADDR, SO_REUSEPORT, SO_BROADCAST, SO_KEEPALIVE, SO_DONTROUTE, SO_OOBINLINE, SO_NO_CHECK)),
    ("SO_PRIORITY", options(udp(A), SOL_SOCKET, SO_PRIORITY, 0, 6, 7)),
    ("SO_RCVBUF doubles", options(udp(A), SOL_SOCKET, SO_RCVBUF, 0, 1, 5000, 100_000)),
    ("SO_SNDBUF doubles", options(udp(A), SOL_SOCKET, SO_SNDBUF, 0, 1, 5000, 100_000)),
    ("SO_RCVTIMEO", options(udp(A), SOL_SOCKET, SO_RCVTIMEO, struct.pack("qq", 1, 500_000), struct.pack("qq", 0, 10**6),
                            struct.pack("qq", 1, -1), struct.pack("qq", -1, 0), bytes(15), bytes(16), size=16)),
    ("SO_SNDTIMEO, cut off", options(udp(A), SOL_SOCKET, SO_SNDTIMEO, struct.pack("qq", 2, 0), size=8)),
    ("SO_LINGER", options(udp(A), SOL_SOCKET, SO_LINGER, struct.pack("ii", 5, 7), struct.pack("ii", 0, 7), bytes(4),
                          size=8)),
    ("SO_BINDTODEVICE", options(udp(A), SOL_SOCKET, SO_BINDTODEVICE, b"lo", b"nope", b"lo\0", b"l" * 20, b"", size=16)),
    ("SO_BINDTODEVICE, no room", options(udp(A), SOL_SOCKET, SO_BINDTODEVICE, b"lo", size=4)),
    ("unknown options", [
        udp(A), ("getsockopt", A, SOL_SOCKET, 200), ("setsockopt", A, SOL_SOCKET, 200, 1),
        ("getsockopt", A, SOL_SOCKET, SO_RCVBUFFORCE),
    ]),
    ("levels that are none", [
        udp(A), ("getsockopt", A, 9999, 1), ("setsockopt", A, 9999, 1, 1), ("getsockopt", A, IPPROTO_TCP, 1),
        ("setsockopt", A, IPPROTO_TCP, 1, 1), ("getsockopt", A, IPPROTO_IPV6, IPV6_V6ONLY),
        ("setsockopt", A, IPPROTO_IPV6, IPV6_V6ONLY, 1), ("getsockopt", A, SOL_RAW, ICMP_FILTER),
        ("setsockopt", A, SOL_RAW, ICMP_FILTER, 1),
    ]),
    ("levels that are none, v6", [
        udp6(A), ("getsockopt", A, IPPROTO_TCP, 1), ("setsockopt", A, IPPROTO_TCP, 1, 1),
        ("getsockopt", A, IPPROTO_ICMPV6, ICMP6_FILTER, 32), ("setsockopt", A, IPPROTO_ICMPV6, ICMP6_FILTER, bytes(32)),
    ]),
    ("a value that is cut off", [
        udp(A), ("getsockopt", A, SOL_SOCKET, SO_TYPE, 2), ("getsockopt", A, SOL_SOCKET, SO_TYPE, 20),
        ("getsockopt", A, IPPROTO_IP, IP_TTL, 2), ("getsockopt", A, IPPROTO_IP, IP_TTL, 20),
    ]),
    ("a value that is cut off, v6", [udp6(A), ("getsockopt", A, IPPROTO_IPV6, IPV6_UNICAST_HOPS, 2)]),
]

IP_OPTIONS: list[Row] = [
    ("IP_TTL", options(udp(A), IPPROTO_IP, IP_TTL, 5, 0, 256, -2, 255, -1, b"\7", b"")),
    ("IP_TOS", options(udp(A), IPPROTO_IP, IP_TOS, 8, 300, -1, b"\4", b"")),
    *((f"IPPROTO_IP flag {option}", options(udp(A), IPPROTO_IP, option, 1, 0, 5, b"\1"))
      for option in (IP_PKTINFO, IP_RECVTTL, IP_RECVTOS, IP_RECVERR, IP_MULTICAST_LOOP)),
    ("IP_MTU_DISCOVER", options(udp(A), IPPROTO_IP, IP_MTU_DISCOVER, 0, 1, 2, 3, 4, 5, 6, -1)),
    ("IP_MULTICAST_TTL", options(udp(A), IPPROTO_IP, IP_MULTICAST_TTL, 0, 255, 256, -1, b"\3")),
    ("IP_MULTICAST_ALL", options(udp(A), IPPROTO_IP, IP_MULTICAST_ALL, 0, 1, 2)),
    ("IP_MULTICAST_IF", options(udp(A), IPPROTO_IP, IP_MULTICAST_IF, LO_RAW, STRANGER, bytes(4), b"abc",
                                bytes(4) + LO_RAW, bytes(8) + INT.pack(LO_INDEX), bytes(8) + INT.pack(99), size=4)),
    ("IP_MTU unconnected", [udp(A), ("getsockopt", A, IPPROTO_IP, IP_MTU),
                            ("setsockopt", A, IPPROTO_IP, IP_MTU, 1500)]),
    ("IP_MTU", [*pair(), ("connect", A, To(B)), ("getsockopt", A, IPPROTO_IP, IP_MTU)]),
    ("IPV6_MTU", [*pair6(), ("connect", A, To(B)), ("getsockopt", A, IPPROTO_IPV6, IPV6_MTU)]),
    ("IP_HDRINCL on UDP", [udp(A), ("getsockopt", A, IPPROTO_IP, IP_HDRINCL),
                           ("setsockopt", A, IPPROTO_IP, IP_HDRINCL, 1)]),
    ("IP_ADD_MEMBERSHIP", [
        udp(A), *(("setsockopt", A, IPPROTO_IP, IP_ADD_MEMBERSHIP, value) for value in (
            GROUP + LO_RAW, GROUP + LO_RAW, inet_aton("10.1.2.3") + LO_RAW, GROUP + STRANGER, GROUP,
            GROUP + bytes(4) + INT.pack(99),
        )), ("getsockopt", A, IPPROTO_IP, IP_ADD_MEMBERSHIP),
    ]),
    ("IP_DROP_MEMBERSHIP", [
        udp(A), ("setsockopt", A, IPPROTO_IP, IP_ADD_MEMBERSHIP, GROUP + LO_RAW),
        *(("setsockopt", A, IPPROTO_IP, IP_DROP_MEMBERSHIP, value) for value in (
            inet_aton("10.1.2.3") + LO_RAW, GROUP + STRANGER, GROUP, GROUP + LO_RAW, GROUP + LO_RAW,
        )),
    ]),
    ("a group by index", [udp(A), ("setsockopt", A, IPPROTO_IP, IP_ADD_MEMBERSHIP, GROUP + bytes(4) + ONE),
                          ("setsockopt", A, IPPROTO_IP, IP_ADD_MEMBERSHIP, GROUP + LO_RAW)]),
    ("IPV6_JOIN_GROUP", [
        udp6(A), *(("setsockopt", A, IPPROTO_IPV6, IPV6_JOIN_GROUP, value) for value in (
            GROUP6 + ONE, GROUP6 + ONE, inet_pton(AF_INET6, "::1") + ONE, GROUP6 + INT.pack(99), GROUP6,
            inet_pton(AF_INET6, "::ffff:239.1.2.3") + ONE,
        )),
    ]),
    ("IPV6_LEAVE_GROUP", [
        udp6(A), ("setsockopt", A, IPPROTO_IPV6, IPV6_JOIN_GROUP, GROUP6 + ONE),
        *(("setsockopt", A, IPPROTO_IPV6, IPV6_LEAVE_GROUP, value) for value in (
            GROUP6 + INT.pack(99), GROUP6 + ONE, GROUP6 + ONE,
        )),
    ]),
    ("IPV6_UNICAST_HOPS", options(udp6(A), IPPROTO_IPV6, IPV6_UNICAST_HOPS, 0, 255, 256, -2, -1, b"\5")),
    ("IPV6_MULTICAST_HOPS", options(udp6(A), IPPROTO_IPV6, IPV6_MULTICAST_HOPS, 0, 255, 256, -2, -1)),
    ("IPV6_MULTICAST_LOOP", options(udp6(A), IPPROTO_IPV6, IPV6_MULTICAST_LOOP, 0, 1, 2)),
    ("IPV6_MULTICAST_IF", options(udp6(A), IPPROTO_IPV6, IPV6_MULTICAST_IF, LO_INDEX, 99, 0, -1)),
    ("IPV6_MULTICAST_ALL", options(udp6(A), IPPROTO_IPV6, IPV6_MULTICAST_ALL, 0, 1)),
    ("IPV6_TCLASS", options(udp6(A), IPPROTO_IPV6, IPV6_TCLASS, 0, 255, 256, -2, -1)),
    ("IPV6_MTU_DISCOVER", options(udp6(A), IPPROTO_IPV6, IPV6_MTU_DISCOVER, 0, 3, 6)),
    ("IPV6_V6ONLY", options(udp6(A), IPPROTO_IPV6, IPV6_V6ONLY, 1, 0, 5)),
    ("IPV6_V6ONLY when bound", [*pair6(), ("setsockopt", A, IPPROTO_IPV6, IPV6_V6ONLY, 1)]),
    ("IPV6_CHECKSUM on UDP", [udp6(A), ("getsockopt", A, IPPROTO_IPV6, IPV6_CHECKSUM)]),
    *((f"IPPROTO_IPV6 flag {option}", options(udp6(A), IPPROTO_IPV6, option, 1, 0, 5, b"\1"))
      for option in (IPV6_RECVPKTINFO, IPV6_RECVHOPLIMIT, IPV6_RECVTCLASS, IPV6_RECVERR)),
    ("v4 options of a v6 socket", options(udp6(A), IPPROTO_IP, IP_TTL, 5, 0)),
]

WANT4 = [("setsockopt", B, IPPROTO_IP, option, 1) for option in (IP_PKTINFO, IP_RECVTTL, IP_RECVTOS)]
WANT6 = [("setsockopt", B, IPPROTO_IPV6, option, 1)
         for option in (IPV6_RECVPKTINFO, IPV6_RECVHOPLIMIT, IPV6_RECVTCLASS)]


def beside(*items: tuple[int, int, bytes], v6: bool = False) -> Row:
    """Send with ancillary data, and look at what arrives."""
    steps = [*(pair6() if v6 else pair()), *(WANT6 if v6 else WANT4)]
    steps += [("sendmsg", A, [b"hello"], list(items), 0, To(B)), ("recvmsg", B, 9, 300, NOW)]
    return f"{'v6 ' if v6 else ''}beside the data: {items}", steps


ANCILLARY: list[Row] = [
    beside(),
    beside((IPPROTO_IP, IP_TTL, INT.pack(5))),
    beside((IPPROTO_IP, IP_TTL, INT.pack(0))),
    beside((IPPROTO_IP, IP_TTL, b"\5")),
    beside((IPPROTO_IP, IP_TOS, INT.pack(8)), (IPPROTO_IP, IP_TTL, INT.pack(9))),
    beside((IPPROTO_IP, IP_TOS, b"\4")),
    beside((IPPROTO_IP, IP_TOS, INT.pack(256))),
    beside((IPPROTO_IP, IP_PKTINFO, INT.pack(LO_INDEX) + inet_aton("127.0.0.9") + bytes(4))),
    beside((IPPROTO_IP, IP_PKTINFO, INT.pack(0) + STRANGER + bytes(4))),
    beside((IPPROTO_IP, IP_PKTINFO, INT.pack(99) + bytes(8))),
    beside((IPPROTO_IP, IP_PKTINFO, bytes(8))),
    beside((IPPROTO_IP, 99, INT.pack(1))),
    beside((99, 99, INT.pack(1))),
    beside((SOL_SOCKET, 99, INT.pack(1))),
    beside((IPPROTO_IPV6, IPV6_HOPLIMIT, INT.pack(5))),
    beside(v6=True),
    beside((IPPROTO_IPV6, IPV6_HOPLIMIT, INT.pack(9)), (IPPROTO_IPV6, IPV6_TCLASS, INT.pack(4)), v6=True),
    beside((IPPROTO_IPV6, IPV6_HOPLIMIT, INT.pack(256)), v6=True),
    beside((IPPROTO_IPV6, IPV6_TCLASS, b"\4"), v6=True),
    beside((IPPROTO_IPV6, IPV6_PKTINFO, inet_pton(AF_INET6, "::1") + ONE), v6=True),
    beside((IPPROTO_IPV6, IPV6_PKTINFO, inet_pton(AF_INET6, NOWHERE6) + bytes(4)), v6=True),
    beside((IPPROTO_IPV6, IPV6_PKTINFO, bytes(16) + INT.pack(99)), v6=True),
    beside((IPPROTO_IPV6, IPV6_PKTINFO, bytes(16)), v6=True),
    beside((IPPROTO_IPV6, 99, INT.pack(1)), v6=True),
    *((f"a control buffer of {room}", [*pair(), *WANT4, ("sendto", A, b"hello", To(B)), ("recvmsg", B, 3, room, NOW)])
      for room in (0, 15, 16, 20, 28, 32, 40, 52, 56, 80)),
    ("both families at a dual socket", [
        udp6(B), ("bind", B, ("::", 0)), *WANT4, *WANT6, udp(A), ("sendto", A, b"x", To(B, "127.0.0.1")),
        ("recvmsg", B, 9, 300, NOW),
    ]),
]

RAW: list[Row] = [
    ("a raw socket's names", [raw(A), ("getsockname", A), ("getpeername", A), ("bind", A, ("127.0.0.1", 5)),
                              ("getsockname", A), ("bind", A, ("127.0.0.2", 0)), ("getsockname", A),
                              ("bind", A, (NOWHERE, 0))]),
    ("a raw socket's names, v6", [raw6(A), ("getsockname", A), ("bind", A, ("::1", 0)), ("getsockname", A)]),
    ("a raw socket's peer", [raw(A), ("connect", A, ("127.0.0.1", 9)), ("getpeername", A), ("getsockname", A),
                             ("connect", A, None), ("getpeername", A), ("shutdown", A, SHUT_RDWR)]),
    ("a raw socket without a peer", [raw(A), ("send", A, b"x"), ("shutdown", A, SHUT_WR), ("listen", A, 1)]),
    ("MSG_OOB on a raw socket", [raw(A), ("recv", A, 9, NOW | MSG_OOB),
                                 ("sendto", A, b"x", ("127.0.0.1", 0), MSG_OOB)]),
    ("a raw ping", [raw(A), ("sendto", A, echo_summed(7), ("127.0.0.1", 0)), ("raw_recv", A), ("raw_recv", A),
                    ("raw_recv", A)]),
    ("a raw ping, filtered", [raw(A), ("setsockopt", A, SOL_RAW, ICMP_FILTER, 1 << 8),
                              ("sendto", A, echo_summed(7), ("127.0.0.1", 0)), ("raw_recv", A), ("raw_recv", A)]),
    ("a raw ping, v6", [raw6(A), ("sendto", A, b"\x80\0\0\0\0\7\0\1hi", ("::1", 0)), ("recvfrom", A, 99, NOW),
                        ("recvfrom", A, 99, NOW), ("recv", A, 9, NOW)]),
    ("a raw ping, v6, filtered", [
        raw6(A), ("setsockopt", A, IPPROTO_ICMPV6, ICMP6_FILTER, (1 << 128).to_bytes(32, "little")),
        ("sendto", A, b"\x80\0\0\0\0\7\0\1hi", ("::1", 0)), ("recvfrom", A, 99, NOW), ("recv", A, 9, NOW),
    ]),
    ("raw v6 with a port", [raw6(A), ("sendto", A, b"\x80\0\0\0\0\7\0\1", ("::1", 9))]),
    ("raw to another protocol's socket", [raw(A, 253), raw(B, 253), ("sendto", A, b"hello", ("127.0.0.1", 0)),
                                          ("raw_recv", B), ("raw_recv", A)]),
    ("ICMP_FILTER", options(raw(A), SOL_RAW, ICMP_FILTER, 5, b"ab", size=8)),
    ("ICMP_FILTER on another protocol", options(raw(A, 17), SOL_RAW, ICMP_FILTER, 5)),
    ("another SOL_RAW option", [raw(A), ("setsockopt", A, SOL_RAW, 2, 1)]),
    ("ICMP6_FILTER", options(raw6(A), IPPROTO_ICMPV6, ICMP6_FILTER, bytes(range(32)), b"abcd", size=64)),
    ("ICMP6_FILTER on another protocol", options(raw6(A, 17), IPPROTO_ICMPV6, ICMP6_FILTER, bytes(32), size=32)),
    ("IP_HDRINCL", options(raw(A), IPPROTO_IP, IP_HDRINCL, 1, 0)),
    ("IP_HDRINCL of IPPROTO_RAW", options(raw(A, IPPROTO_RAW), IPPROTO_IP, IP_HDRINCL, 0)),
    ("IPV6_CHECKSUM of ICMPv6", options(raw6(A), IPPROTO_IPV6, IPV6_CHECKSUM, 4)),
    ("IPV6_CHECKSUM", options(raw6(A, 17), IPPROTO_IPV6, IPV6_CHECKSUM, 2, 3, -5, 4)),
    ("SO_REUSEADDR of a raw socket", options(raw(A), SOL_SOCKET, SO_REUSEADDR, 0)),
    ("IPV6_V6ONLY of a raw socket", [raw6(A), ("setsockopt", A, IPPROTO_IPV6, IPV6_V6ONLY, 1)]),
    ("v4 options of a raw v6 socket", options(raw6(A), IPPROTO_IP, IP_TTL, 5)),
]

PING: list[Row] = [
    ("a ping socket's names", [ping(A), ("getsockname", A), ("bind", A, ("127.0.0.1", 0)), ("getsockname", A)]),
    ("ping", [ping(A), ("sendto", A, echo(8), ("127.0.0.1", 0)), ("ping_recv", A), ("ping_recv", A)]),
    ("ping connected", [ping(A), ("connect", A, ("127.0.0.1", 9)), ("send", A, echo(8, 5)), ("ping_recv", A)]),
    ("ping, v6", [ping6(A), ("sendto", A, echo(128), ("::1", 0)), ("ping_recv", A), ("ping_recv", A)]),
    ("ping with another type", [ping(A), ("sendto", A, echo(0), ("127.0.0.1", 0)),
                                ("sendto", A, b"short", ("127.0.0.1", 0))]),
    ("ping to nobody", [ping(A), ("send", A, echo(8)), ("sendto", A, echo(8), (NOWHERE, 0))]),
    ("MSG_OOB on a ping socket", [ping(A), ("sendto", A, echo(8), ("127.0.0.1", 0), MSG_OOB),
                                  ("recv", A, 9, NOW | MSG_OOB)]),
    ("a ping socket's identifier", [ping(A), ("bind", A, ("127.0.0.1", 77)), ("getsockname", A),
                                    ("bind", A, ("127.0.0.1", 78))]),
    ("SO_REUSEADDR of a ping socket", options(ping(A), SOL_SOCKET, SO_REUSEADDR, 0)),
    ("SO_TYPE of a ping socket", [ping(A), ("getsockopt", A, SOL_SOCKET, SO_TYPE),
                                  ("getsockopt", A, SOL_SOCKET, SO_PROTOCOL)]),
]
