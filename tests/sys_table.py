"""The table of calls that the host's kernel and ours answer side by side: a row is a name and a list of steps.

A step is (call, socket, arguments …). `A` to `C` are sockets; `To(A)` is the address of A, `To(A, host)` its port on
another host. Ports that the kernel chose are compared by whose they are.
"""

# ruff: noqa: F403, F405  # the names of the constants are the table's words

from __future__ import annotations

import struct
from socket import inet_aton, inet_pton
from typing import Any, NamedTuple

from guest.sys.constants import *
from guest.sys.sockaddr import pack_sockaddr, pack_sockaddr_in6


class Socket(str):
    """A socket of a row."""


class To(NamedTuple):
    """The address of a socket; `host` instead of its own."""

    of: Socket
    host: str | None = None

    def told(self, host: str, port: int, *tail: int) -> tuple[Any, ...]:
        """What stands for this where that is the socket's address."""
        return (host if self.host is None else self.host, port, *tail)


class To4(To):
    """The same for a socket of IPv4, whose addresses are pairs."""

    def told(self, host: str, port: int, *tail: int) -> tuple[Any, ...]:
        return super().told(host, port)


class AsBytes(NamedTuple):
    """The address of a socket as a C struct."""

    of: Socket
    family: int | None = None
    cut: int | None = None


A, B, C = Socket("A"), Socket("B"), Socket("C")
Row = tuple[str, list[tuple[Any, ...]]]

NOW = MSG_DONTWAIT
LO4, LO6 = ("127.0.0.1", 0), ("::1", 0)
LO_INDEX = 1
NOWHERE = "203.0.113.9"
NOWHERE6 = "2001:db8::9"
GROUP, GROUP6 = inet_aton("239.1.2.3"), inet_pton(AF_INET6, "ff02::1234")
LO_RAW = inet_aton("127.0.0.1")
INT = struct.Struct("i")


def udp(name: Socket) -> tuple[Any, ...]:
    return ("socket", name, AF_INET, SOCK_DGRAM)


def udp6(name: Socket) -> tuple[Any, ...]:
    return ("socket", name, AF_INET6, SOCK_DGRAM)


def raw(name: Socket, protocol: int = IPPROTO_ICMP) -> tuple[Any, ...]:
    return ("socket", name, AF_INET, SOCK_RAW, protocol)


def raw6(name: Socket, protocol: int = IPPROTO_ICMPV6) -> tuple[Any, ...]:
    return ("socket", name, AF_INET6, SOCK_RAW, protocol)


def ping(name: Socket) -> tuple[Any, ...]:
    return ("socket", name, AF_INET, SOCK_DGRAM, IPPROTO_ICMP)


def ping6(name: Socket) -> tuple[Any, ...]:
    return ("socket", name, AF_INET6, SOCK_DGRAM, IPPROTO_ICMPV6)


def bound(name: Socket) -> list[tuple[Any, ...]]:
    return [udp(name), ("bind", name, LO4)]


def bound6(name: Socket) -> list[tuple[Any, ...]]:
    return [udp6(name), ("bind", name, LO6)]


def pair() -> list[tuple[Any, ...]]:
    return [*bound(A), *bound(B)]


def pair6() -> list[tuple[Any, ...]]:
    return [*bound6(A), *bound6(B)]


def connected() -> list[tuple[Any, ...]]:
    return [*pair(), ("connect", A, To(B)), ("connect", B, To(A))]


def options(make: tuple[Any, ...], level: int, number: int, *values: Any, size: int = 0) -> list[tuple[Any, ...]]:
    """Read an option, then set it to each of the values and read it again."""
    name = make[1]
    read = ("getsockopt", name, level, number, size) if size else ("getsockopt", name, level, number)
    steps = [make, read]
    for value in values:
        steps += [("setsockopt", name, level, number, value), read]
    return steps


def echo(kind: int, sequence: int = 1) -> bytes:
    """An ICMP echo message without checksum and identifier, which ping sockets fill in."""
    return struct.pack("!BBHHH", kind, 0, 0, 0, sequence) + b"payload"


def echo_summed(ident: int) -> bytes:
    """An ICMP echo request with its checksum."""
    body = struct.pack("!BBHHH", 8, 0, 0, ident, 1)
    total = sum(struct.unpack("!4H", body))
    return struct.pack("!BBHHH", 8, 0, ~(total + (total >> 16)) & 0xFFFF, ident, 1)


MAKING: list[Row] = [
    (f"socket {family} {kind:#x} {protocol}", [("socket", A, family, kind, protocol)])
    for family, kind, protocol in (
        (AF_INET, SOCK_DGRAM, 0),
        (AF_INET, SOCK_DGRAM, IPPROTO_UDP),
        (AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0),
        (AF_INET6, SOCK_DGRAM, IPPROTO_UDP),
        (AF_INET, SOCK_DGRAM, IPPROTO_TCP),
        (AF_INET6, SOCK_DGRAM, IPPROTO_TCP),
        (AF_INET, SOCK_DGRAM, IPPROTO_ICMPV6),
        (AF_INET6, SOCK_DGRAM, IPPROTO_ICMP),
        (AF_INET, SOCK_DGRAM, 300),
        (AF_INET, SOCK_RAW, 0),
        (AF_INET, SOCK_RAW, 300),
        (AF_INET, SOCK_RAW, IPPROTO_RAW),
        (AF_INET6, SOCK_RAW, 0),
        (AF_INET, 99, 0),
        (AF_INET, 7, 0),
        (AF_INET, 5, 0),
        (AF_INET, 0, 0),
        (AF_INET, SOCK_DGRAM | 0x10000, 0),
        (AF_UNSPEC, SOCK_DGRAM, 0),
        (99, SOCK_DGRAM, 0),
    )
]

NAMING: list[Row] = [
    ("an unbound socket", [udp(A), ("getsockname", A), ("getpeername", A)]),
    ("an unbound socket, v6", [udp6(A), ("getsockname", A), ("getpeername", A)]),
    ("bind to a free port", [*bound(A), ("getsockname", A)]),
    ("bind to a free port, v6", [*bound6(A), ("getsockname", A)]),
    ("bind to every address", [udp(A), ("bind", A, ("", 0)), ("getsockname", A)]),
    ("bind to every address, v6", [udp6(A), ("bind", A, ("", 0)), ("getsockname", A)]),
    ("bind to an address of 127/8", [udp(A), ("bind", A, ("127.1.2.3", 0)), ("getsockname", A)]),
    ("bind to a short form", [udp(A), ("bind", A, ("127.1", 0)), ("getsockname", A)]),
    ("bind to broadcast", [udp(A), ("bind", A, ("<broadcast>", 0)), ("getsockname", A)]),
    ("bind to a group", [udp(A), ("bind", A, ("239.1.2.3", 0)), ("getsockname", A)]),
    ("bind twice", [*bound(A), ("bind", A, LO4)]),
    ("bind to a stranger's address", [udp(A), ("bind", A, (NOWHERE, 0)), ("bind", A, LO4)]),
    ("bind to a stranger's address, v6", [udp6(A), ("bind", A, (NOWHERE6, 0)), ("bind", A, LO6)]),
    ("bind where another is", [*bound(A), udp(B), ("bind", B, To(A)), ("bind", B, LO4)]),
    ("bind where another is, v6", [*bound6(A), udp6(B), ("bind", B, To(A)), ("bind", B, LO6)]),
    ("bind to every address where another is", [*bound(A), udp(B), ("bind", B, To(A, ""))]),
    ("the same port on another address", [*bound(A), udp(B), ("bind", B, To(A, "127.0.0.2")), ("getsockname", B)]),
    (
        "SO_REUSEADDR on both",
        [
            udp(A), ("setsockopt", A, SOL_SOCKET, SO_REUSEADDR, 1), ("bind", A, LO4), udp(B), ("bind", B, To(A)),
            ("setsockopt", B, SOL_SOCKET, SO_REUSEADDR, 1), ("bind", B, To(A)), ("getsockname", B),
        ],
    ),
    (
        "SO_REUSEPORT on one and on both",
        [
            udp(A), ("setsockopt", A, SOL_SOCKET, SO_REUSEPORT, 1), ("bind", A, LO4), udp(B), ("bind", B, To(A)),
            ("setsockopt", B, SOL_SOCKET, SO_REUSEPORT, 1), ("bind", B, To(A)), ("getsockname", B),
        ],
    ),
    ("a dual socket takes the v4 port as well", [udp6(A), ("bind", A, ("::", 0)), udp(B), ("bind", B, To4(A, ""))]),
    (
        "with IPV6_V6ONLY it does not",
        [
            udp6(A), ("setsockopt", A, IPPROTO_IPV6, IPV6_V6ONLY, 1), ("bind", A, ("::", 0)), udp(B),
            ("bind", B, To4(A, "")),
        ],
    ),
    ("bind v6 to a mapped address", [udp6(A), ("bind", A, ("::ffff:127.0.0.1", 0)), ("getsockname", A)]),
    (
        "bind v6only to a mapped address",
        [udp6(A), ("setsockopt", A, IPPROTO_IPV6, IPV6_V6ONLY, 1), ("bind", A, ("::ffff:127.0.0.1", 0))],
    ),
    ("bind to a link-local address without zone", [udp6(A), ("bind", A, ("fe80::1", 0))]),
    ("bind a struct", [udp(A), ("bind", A, pack_sockaddr(AF_INET, 0, 0x7F000001)), ("getsockname", A)]),
    ("bind a struct that is too short", [udp(A), ("bind", A, pack_sockaddr(AF_INET, 0, 0x7F000001)[:15])]),
    ("bind a struct of another family", [udp(A), ("bind", A, pack_sockaddr(AF_INET6, 0, 0x7F000001))]),
    ("bind a struct of no family", [udp(A), ("bind", A, pack_sockaddr(0, 0, 0)), ("getsockname", A)]),
    ("bind an address of no family", [udp(A), ("bind", A, pack_sockaddr(0, 0, 0x7F000001))]),
    ("bind a v4 struct to v6", [udp6(A), ("bind", A, pack_sockaddr(AF_INET, 0, 0x7F000001))]),
    ("bind a long v4 struct to v6", [udp6(A), ("bind", A, pack_sockaddr(AF_INET, 0, 0x7F000001) + bytes(12))]),
    ("bind a v6 struct without scope", [udp6(A), ("bind", A, pack_sockaddr_in6(0, 1)[:24]), ("getsockname", A)]),
    ("bind a v6 struct that is too short", [udp6(A), ("bind", A, pack_sockaddr_in6(0, 1)[:23])]),
    ("a tuple that is none", [udp(A), ("bind", A, "127.0.0.1")]),
    ("a tuple of three", [udp(A), ("bind", A, ("127.0.0.1", 5, 6))]),
    ("a port out of range", [udp(A), ("bind", A, ("127.0.0.1", 65536)), ("connect", A, ("127.0.0.1", -1))]),
    ("a v6 name for a v4 socket", [udp(A), ("bind", A, ("::1", 0))]),
    ("a v4 name for a v6 socket", [udp6(A), ("bind", A, ("127.0.0.1", 0))]),
    ("closed", [udp(A), ("close", A), ("close", A), ("bind", A, LO4), ("getsockname", A), ("recv", A, 1, NOW)]),
]

CONNECTING: list[Row] = [
    ("connect", [*pair(), ("connect", A, To(B)), ("getpeername", A), ("getsockname", A)]),
    ("connect, v6", [*pair6(), ("connect", A, To(B)), ("getpeername", A), ("getsockname", A)]),
    ("connect unbound", [*bound(B), udp(A), ("connect", A, To(B)), ("getsockname", A), ("getpeername", A)]),
    ("connect to any", [*bound(B), udp(A), ("connect", A, To(B, "0.0.0.0")), ("getpeername", A)]),
    ("connect to any, v6", [*bound6(B), udp6(A), ("connect", A, To(B, "::")), ("getpeername", A)]),
    ("connect to port 0", [udp(A), ("connect", A, ("127.0.0.1", 0)), ("getpeername", A)]),
    ("connect to a stranger", [udp(A), ("connect", A, (NOWHERE, 9)), ("getpeername", A)]),
    ("connect to a stranger, v6", [udp6(A), ("connect", A, (NOWHERE6, 9)), ("getpeername", A)]),
    ("connect to a mapped address", [*bound(B), udp6(A), ("connect", A, To(B, "::ffff:127.0.0.1")),
                                     ("getpeername", A), ("getsockname", A)]),
    (
        "connect v6only to a mapped address",
        [*bound(B), udp6(A), ("setsockopt", A, IPPROTO_IPV6, IPV6_V6ONLY, 1),
         ("connect", A, To(B, "::ffff:127.0.0.1"))],
    ),
    ("connect to a link-local address without zone", [udp6(A), ("connect", A, ("fe80::1", 9))]),
    ("connect again", [*pair(), *bound(C), ("connect", A, To(B)), ("connect", A, To(C)), ("getpeername", A)]),
    (
        "disconnect",
        [*pair(), ("connect", A, To(B)), ("connect", A, None), ("getpeername", A), ("getsockname", A),
         ("send", A, b"x")],
    ),
    ("disconnect what was not bound", [*bound(B), udp(A), ("connect", A, To(B)), ("connect", A, None),
                                       ("getsockname", A)]),
    ("disconnect what was not connected", [udp(A), ("connect", A, None), ("getsockname", A)]),
    ("connect a struct that is too short", [udp(A), ("connect", A, pack_sockaddr(AF_INET, 9, 1)[:15]),
                                            ("connect", A, b"\2")]),
    ("connect a struct of another family", [udp(A), ("connect", A, pack_sockaddr(AF_INET6, 9, 1))]),
    ("connect a v4 struct to v6", [*bound(B), udp6(A), ("connect", A, AsBytes(B)), ("getpeername", A)]),
    ("connect a v6 struct that is too short", [udp6(A), ("connect", A, pack_sockaddr_in6(9, 1)[:23])]),
    ("only the peer is heard", [*pair(), *bound(C), ("connect", A, To(B)), ("sendto", C, b"no", To(A)),
                                ("sendto", B, b"yes", To(A)), ("recvfrom", A, 9, NOW), ("recv", A, 9, NOW)]),
    ("listen and accept", [*bound(A), ("listen", A, 5), ("accept", A)]),
    ("listen and accept, v6", [*bound6(A), ("listen", A, 5), ("accept", A)]),
]

SENDING: list[Row] = [
    ("sendto and recvfrom", [*pair(), ("sendto", A, b"hello", To(B)), ("recvfrom", B, 100, NOW)]),
    ("sendto and recvfrom, v6", [*pair6(), ("sendto", A, b"hello", To(B)), ("recvfrom", B, 100, NOW)]),
    ("an empty datagram", [*pair(), ("sendto", A, b"", To(B)), ("recvfrom", B, 100, NOW), ("recv", B, 9, NOW)]),
    ("send", [*connected(), ("send", A, b"hello"), ("recv", B, 100, NOW), ("send", B, b"!"), ("recv", A, 9, NOW)]),
    ("send without a peer", [udp(A), ("send", A, b"x")]),
    ("send without a peer, v6", [udp6(A), ("send", A, b"x")]),
    ("send to port 0", [udp(A), ("sendto", A, b"x", ("127.0.0.1", 0))]),
    ("send to a stranger", [udp(A), ("sendto", A, b"x", (NOWHERE, 9)), ("getsockname", A)]),
    ("send to a stranger, v6", [udp6(A), ("sendto", A, b"x", (NOWHERE6, 9))]),
    ("send to everybody where there is nobody", [udp(A), ("sendto", A, b"x", ("<broadcast>", 9))]),
    ("connected, yet to another", [*connected(), *bound(C), ("sendto", A, b"x", To(C)), ("recvfrom", C, 9, NOW)]),
    ("the largest datagram", [*pair(), ("sendto", A, bytes(65507), To(B)), ("recv_into", B, bytearray(65536), 0, NOW)]),
    ("larger than the largest", [*pair(), ("sendto", A, bytes(65508), To(B)), ("sendto", A, bytes(70000), To(B))]),
    ("the largest, v6", [*pair6(), ("sendto", A, bytes(65527), To(B)), ("recv_into", B, bytearray(65536), 0, NOW)]),
    ("larger than the largest, v6", [*pair6(), ("sendto", A, bytes(65528), To(B))]),
    ("MSG_OOB", [*connected(), ("send", A, b"x", MSG_OOB), ("recv", A, 1, MSG_OOB | NOW)]),
    ("MSG_CONFIRM and MSG_NOSIGNAL", [*connected(), ("send", A, b"x", MSG_CONFIRM | MSG_NOSIGNAL),
                                      ("recv", B, 9, NOW)]),
    (
        "MSG_MORE collects",
        [*connected(), ("send", A, b"one ", MSG_MORE), ("recv", B, 9, NOW), ("send", A, b"two "), ("recv", B, 9, NOW),
         ("send", A, b"three"), ("recv", B, 9, NOW)],
    ),
    ("MSG_MORE without a peer", [udp(A), ("send", A, b"x", MSG_MORE)]),
    ("v4 to a dual socket", [udp6(B), ("bind", B, ("::", 0)), *bound(A), ("sendto", A, b"x", To4(B, "127.0.0.1")),
                             ("recvfrom", B, 9, NOW)]),
    ("a dual socket to v4", [udp6(A), *bound(B), ("sendto", A, b"x", To(B, "::ffff:127.0.0.1")), ("recv", B, 9, NOW)]),
    ("v6only to v4", [udp6(A), ("setsockopt", A, IPPROTO_IPV6, IPV6_V6ONLY, 1),
                      ("sendto", A, b"x", ("::ffff:127.0.0.1", 9))]),
    ("::1 to v4", [*bound6(A), ("sendto", A, b"x", ("::ffff:127.0.0.1", 9))]),
    ("send a struct", [*pair(), ("sendto", A, b"x", AsBytes(B)), ("recv", B, 9, NOW)]),
    ("send a struct of no family", [*pair(), ("sendto", A, b"x", AsBytes(B, AF_UNSPEC)), ("recv", B, 9, NOW)]),
    ("send a struct of another family", [*pair(), ("sendto", A, b"x", AsBytes(B, 7))]),
    ("send a struct that is too short", [*pair(), ("sendto", A, b"x", AsBytes(B, None, 15))]),
    ("send a v4 struct to v6", [udp6(A), *bound(B), ("sendto", A, b"x", AsBytes(B)), ("recv", B, 9, NOW)]),
    ("send a v6 struct that is too short", [udp6(A), *bound6(B), ("sendto", A, b"x", AsBytes(B, None, 23))]),
    ("send a v6 struct of no family", [udp6(A), ("sendto", A, b"x", bytes(28))]),
    ("a group on the loopback", [
        udp(A), udp(B), ("bind", B, ("", 0)),
        ("setsockopt", B, IPPROTO_IP, IP_ADD_MEMBERSHIP, GROUP + LO_RAW),
        ("setsockopt", A, IPPROTO_IP, IP_MULTICAST_IF, LO_RAW),
        ("sendto", A, b"all", To(B, "239.1.2.3")), ("recv", B, 9, NOW),
        ("setsockopt", A, IPPROTO_IP, IP_MULTICAST_LOOP, 0),
        ("setsockopt", B, IPPROTO_IP, IP_DROP_MEMBERSHIP, GROUP + LO_RAW),
        ("setsockopt", B, IPPROTO_IP, IP_DROP_MEMBERSHIP, GROUP + LO_RAW),
    ]),
]

RECEIVING: list[Row] = [
    ("nothing there", [*bound(A), ("recv", A, 9, NOW), ("recvfrom", A, 9, NOW), ("recvmsg", A, 9, 0, NOW)]),
    ("unbound", [udp(A), ("recv", A, 9, NOW)]),
    ("O_NONBLOCK", [udp(A), ("fcntl", A, F_SETFL, O_NONBLOCK), ("recv", A, 9), ("set_timeout", A, None),
                    ("recv", A, 9, NOW)]),
    ("a timeout of nothing", [udp(A), ("set_timeout", A, 0), ("recv", A, 9)]),
    ("cut off", [*pair(), ("sendto", A, b"hello", To(B)), ("recv", B, 3, NOW), ("recv", B, 3, NOW)]),
    ("cut off to nothing", [*pair(), ("sendto", A, b"hello", To(B)), ("recvmsg", B, 0, 0, NOW),
                             ("recv", B, 3, NOW)]),
    ("MSG_PEEK", [*pair(), ("sendto", A, b"hello", To(B)), ("recv", B, 3, NOW | MSG_PEEK), ("recvfrom", B, 9, NOW),
                  ("recv", B, 9, NOW)]),
    ("MSG_TRUNC into a buffer", [*pair(), ("sendto", A, b"hello", To(B)),
                                 ("recv_into", B, bytearray(3), 0, NOW | MSG_TRUNC | MSG_PEEK),
                                 ("recv_into", B, bytearray(3), 0, NOW)]),
    ("recv_into less than the buffer", [*pair(), ("sendto", A, b"hello", To(B)),
                                        ("recvfrom_into", B, bytearray(9), 2, NOW)]),
    ("recv_into more than the buffer", [*pair(), ("recv_into", B, bytearray(3), 4, NOW)]),
    ("a negative size", [*bound(A), ("recv", A, -1, NOW), ("recvmsg", A, -1, 0, NOW)]),
    ("recvmsg", [*pair(), ("sendto", A, b"hello", To(B)), ("recvmsg", B, 9, 0, NOW)]),
    ("recvmsg cut off", [*pair(), ("sendto", A, b"hello", To(B)), ("recvmsg", B, 3, 0, NOW)]),
    ("recvmsg MSG_TRUNC", [*pair(), ("sendto", A, b"hello", To(B)),
                           ("recvmsg_into", B, [bytearray(3)], 0, NOW | MSG_TRUNC)]),
    ("recvmsg_into", [*pair(), ("sendto", A, b"hello", To(B)),
                      ("recvmsg_into", B, [bytearray(2), bytearray(0), bytearray(2), bytearray(9)], 0, NOW)]),
    ("sendmsg gathers", [*pair(), ("sendmsg", A, [b"he", b"", b"llo"], [], 0, To(B)), ("recv", B, 9, NOW)]),
    ("sendmsg nothing", [*pair(), ("sendmsg", A, [], [], 0, To(B)), ("recvmsg", B, 9, 0, NOW)]),
    ("MSG_ERRQUEUE", [*bound(A), ("recv", A, 9, MSG_ERRQUEUE)]),
    ("refused", [*pair(), ("connect", A, To(B)), ("close", B), ("send", A, b"x"),
                 ("poll", [(A, POLLIN | POLLOUT)], 0), ("recv", A, 9, NOW), ("recv", A, 9, NOW),
                 ("send", A, b"x"), ("send", A, b"x"), ("getsockopt", A, SOL_SOCKET, SO_ERROR),
                 ("send", A, b"x"), ("getsockopt", A, SOL_SOCKET, SO_ERROR), ("getsockopt", A, SOL_SOCKET, SO_ERROR)]),
    ("refused, v6", [*pair6(), ("connect", A, To(B)), ("close", B), ("send", A, b"x"), ("recv", A, 9, NOW),
                     ("recv", A, 9, NOW)]),
    ("refused, unconnected", [*pair(), ("close", B), ("sendto", A, b"x", To(B)), ("recv", A, 9, NOW)]),
    ("refused with IP_RECVERR", [
        *pair(), ("setsockopt", A, IPPROTO_IP, IP_RECVERR, 1), ("close", B), ("sendto", A, b"hello", To(B)),
        ("poll", [(A, POLLIN)], 0), ("recvmsg", A, 9, 200, MSG_ERRQUEUE), ("recvmsg", A, 9, 200, MSG_ERRQUEUE),
        ("poll", [(A, POLLIN)], 0),
    ]),
    ("poll", [*pair(), ("poll", [(B, POLLIN | POLLOUT)], 0), ("sendto", A, b"x", To(B)),
              ("poll", [(B, POLLIN | POLLRDNORM | POLLWRNORM | POLLWRBAND | POLLPRI)], 0), ("recv", B, 9, NOW),
              ("poll", [(B, POLLIN)], 0)]),
    ("shutdown unconnected", [*bound(A), ("shutdown", A, SHUT_RDWR),
                              ("poll", [(A, POLLIN | POLLOUT | POLLRDHUP)], 0),
                              ("sendto", A, b"x", To(A)), ("recv", A, 9, NOW), ("recv", A, 9)]),
    ("shutdown to write", [*connected(), ("shutdown", A, SHUT_WR), ("send", A, b"x"), ("send", B, b"y"),
                           ("recv", A, 9, NOW), ("poll", [(A, POLLIN | POLLOUT | POLLRDHUP)], 0)]),
    ("shutdown to read", [*connected(), ("shutdown", A, SHUT_RD), ("recv", A, 9), ("recv", A, 9, NOW),
                          ("send", A, b"x"), ("recv", B, 9, NOW), ("poll", [(A, POLLIN | POLLRDHUP)], 0),
                          ("recvfrom", A, 9)]),
    ("shutdown how?", [*connected(), ("shutdown", A, 3), ("shutdown", A, -1)]),
    ("dup", [*pair(), ("dup", C, A), ("close", A), ("sendto", C, b"x", To(B)), ("recvfrom", B, 9, NOW)]),
    ("F_GETFL", [udp(A), ("fcntl", A, F_GETFL), ("fcntl", A, F_SETFL, O_NONBLOCK), ("fcntl", A, F_GETFL),
                 ("fcntl", A, 9999)]),
]
