"""More of the table of calls: streams, in every state of a connection. See sys_table.py.

`L` listens, `A` connects to it, `B` is what `L` accepted; `C` and `D` are others. Steps that are no calls of ours:
("take", B, L) waits for a connection and accepts it; ("fill", A) sends until there is no room; ("drain", B) receives
until nothing is there.
"""

# ruff: noqa: F403, F405  # the names of the constants are the table's words

from __future__ import annotations

import struct
from typing import Any

from guest.sys.constants import *
from tests.sys_table import LO4, LO6, NOW, NOWHERE, NOWHERE6, A, B, C, Row, Socket, To, To4

L, D = Socket("L"), Socket("D")

EVERY = POLLIN | POLLPRI | POLLOUT | POLLRDNORM | POLLRDBAND | POLLWRNORM | POLLWRBAND | POLLRDHUP
RESET = struct.pack("ii", 1, 0)  # SO_LINGER with no time: closing sends RST
Steps = list[tuple[Any, ...]]


def tcp(name: Socket) -> tuple[Any, ...]:
    return ("socket", name, AF_INET, SOCK_STREAM)


def tcp6(name: Socket) -> tuple[Any, ...]:
    return ("socket", name, AF_INET6, SOCK_STREAM)


def calm(name: Socket) -> tuple[Any, ...]:
    """A socket that does not block."""
    return ("socket", name, AF_INET, SOCK_STREAM | SOCK_NONBLOCK)


def listening(name: Socket = L, backlog: int = 5) -> Steps:
    return [tcp(name), ("bind", name, LO4), ("listen", name, backlog)]


def listening6(name: Socket = L) -> Steps:
    return [tcp6(name), ("bind", name, LO6), ("listen", name, 5)]


def connected() -> Steps:
    return [*listening(), tcp(A), ("connect", A, To(L)), ("take", B, L)]


def connected6() -> Steps:
    return [*listening6(), tcp6(A), ("connect", A, To(L)), ("take", B, L)]


def refused() -> Steps:
    """A knows a port where nobody listens any more, under the name L."""
    return [tcp(L), ("bind", L, LO4)]


def connecting() -> Steps:
    """A waits for an answer that does not come: the queue of L is full."""
    return [*listening(L, 0), tcp(C), ("connect", C, To(L)), calm(A), ("connect", A, To(L))]


def was_reset() -> Steps:
    """B has reset its connection with A."""
    return [*connected(), ("setsockopt", B, SOL_SOCKET, SO_LINGER, RESET), ("close", B)]


def look(*names: Socket) -> Steps:
    return [("poll", [(name, EVERY)], 0) for name in names]


def ask(name: Socket) -> Steps:
    return [("ioctl", name, SIOCINQ), ("ioctl", name, SIOCATMARK)]


# In each state: (its name, the steps that lead there), with A as the socket that is asked.
STATES: list[tuple[str, Steps]] = [
    ("fresh", [tcp(A)]),
    ("fresh, v6", [tcp6(A)]),
    ("bound", [tcp(A), ("bind", A, LO4)]),
    ("listening", listening(A)),
    ("listening with a connection", [*listening(A), tcp(B), ("connect", B, To(A))]),
    ("connecting", connecting()),
    ("refused", [*refused(), calm(A), ("connect", A, To(L))]),
    ("refused and asked", [*refused(), calm(A), ("connect", A, To(L)), ("getsockopt", A, SOL_SOCKET, SO_ERROR)]),
    ("connected", connected()),
    ("connected, v6", connected6()),
    ("with data", [*connected(), ("send", B, b"hello")]),
    ("shut to write", [*connected(), ("shutdown", A, SHUT_WR)]),
    ("shut to read", [*connected(), ("shutdown", A, SHUT_RD)]),
    ("shut to read, with data", [*connected(), ("send", B, b"hello"), ("shutdown", A, SHUT_RD)]),
    ("shut both ways", [*connected(), ("shutdown", A, SHUT_RDWR)]),
    ("its peer shut to write", [*connected(), ("shutdown", B, SHUT_WR)]),
    ("its peer shut to read", [*connected(), ("shutdown", B, SHUT_RD)]),
    ("its peer closed", [*connected(), ("close", B)]),
    ("its peer closed, with data", [*connected(), ("send", B, b"hello"), ("close", B)]),
    ("its peer closed with data unread", [*connected(), ("send", A, b"hello"), ("close", B)]),
    ("both shut to write, it first", [*connected(), ("shutdown", A, SHUT_WR), ("shutdown", B, SHUT_WR)]),
    ("both shut to write, its peer first", [*connected(), ("shutdown", B, SHUT_WR), ("shutdown", A, SHUT_WR)]),
    ("reset", was_reset()),
    ("reset, with data", [*connected(), ("send", B, b"hello"), ("setsockopt", B, SOL_SOCKET, SO_LINGER, RESET),
                          ("close", B)]),
    ("reset and asked", [*was_reset(), ("getsockopt", A, SOL_SOCKET, SO_ERROR)]),
    ("reset after its FIN", [*connected(), ("shutdown", A, SHUT_WR), ("setsockopt", B, SOL_SOCKET, SO_LINGER, RESET),
                             ("close", B)]),
    ("sent to a closed peer", [*connected(), ("close", B), ("send", A, b"x")]),
    ("with urgent data", [*connected(), ("send", B, b"ab"), ("send", B, b"!", MSG_OOB)]),
    ("with urgent data in the middle", [*connected(), ("send", B, b"ab!", MSG_OOB), ("send", B, b"cd")]),
    ("at urgent data", [*connected(), ("send", B, b"ab!", MSG_OOB), ("send", B, b"cd"), ("recv", A, 9, NOW)]),
    ("at urgent data that is all", [*connected(), ("send", B, b"!", MSG_OOB)]),
    ("urgent data was read", [*connected(), ("send", B, b"ab!", MSG_OOB), ("recv", A, 1, MSG_OOB)]),
    ("urgent data in its place", [*connected(), ("setsockopt", A, SOL_SOCKET, SO_OOBINLINE, 1),
                                  ("send", B, b"ab!", MSG_OOB), ("send", B, b"cd")]),
    ("disconnected", [*connected(), ("connect", A, None)]),
    ("disconnected while connecting", [*connecting(), ("connect", A, None)]),
    ("disconnected while listening", [*listening(A), ("connect", A, None)]),
]

# What is asked in each state, every time on sockets of its own.
QUESTIONS: list[tuple[str, Steps]] = [
    ("poll", look(A)),
    ("names", [("getsockname", A), ("getpeername", A)]),
    ("receive", [("recv", A, 9, NOW), ("recv", A, 9, NOW), ("recv", A, 9, NOW), *look(A)]),
    ("receive in pieces", [("recvfrom", A, 2, NOW), ("recv_into", A, bytearray(2), 0, NOW), *look(A),
                           ("recvmsg", A, 9, 100, NOW), ("recv", A, 9, NOW)]),
    ("peek", [("recv", A, 3, NOW | MSG_PEEK), ("recv", A, 9, NOW | MSG_PEEK), ("recvmsg", A, 9, 0, NOW)]),
    ("nothing", [("recv", A, 0, NOW), ("send", A, b"", NOW), *look(A)]),
    ("send", [("send", A, b"x", NOW), ("send", A, b"y", NOW), *look(A)]),
    ("send elsewhere", [("sendto", A, b"x", ("127.0.0.1", 9), NOW), ("sendmsg", A, [b"y", b"z"], [], NOW)]),
    ("urgent", [("recv", A, 9, MSG_OOB | MSG_PEEK), ("recvmsg", A, 9, 0, MSG_OOB), ("recv", A, 1, MSG_OOB), *look(A)]),
    ("send urgently", [("send", A, b"!", NOW | MSG_OOB), *look(A)]),
    ("how much", ask(A)),
    ("accept", [("fcntl", A, F_SETFL, O_NONBLOCK), ("take", D, A), *look(D)]),
    ("listen", [("listen", A, 5), *look(A), ("getsockopt", A, SOL_SOCKET, SO_ACCEPTCONN)]),
    ("bind", [("bind", A, LO4)]),
    ("shut to write", [("shutdown", A, SHUT_WR), *look(A), ("send", A, b"x", NOW), ("shutdown", A, SHUT_WR),
                       ("recv", A, 9, NOW)]),
    ("shut to read", [("shutdown", A, SHUT_RD), *look(A), ("recv", A, 9, NOW), ("recv", A, 9, NOW),
                      ("send", A, b"x", NOW)]),
    ("shut both ways", [("shutdown", A, SHUT_RDWR), *look(A), ("recv", A, 9, NOW), ("send", A, b"x", NOW),
                        ("shutdown", A, SHUT_RDWR), ("getpeername", A)]),
    ("error", [("getsockopt", A, SOL_SOCKET, SO_ERROR), ("getsockopt", A, SOL_SOCKET, SO_ERROR), *look(A)]),
    ("disconnect", [("connect", A, None), *look(A), ("getpeername", A), ("recv", A, 9, NOW)]),
    ("connect", [("fcntl", A, F_SETFL, O_NONBLOCK), *listening(D), ("connect", A, To(D)), ("connect", A, To(D)),
                 ("connect", A, To(D)), *look(A)]),
    ("dup", [("dup", D, A), ("close", A), *look(D), ("getsockname", D), ("recv", D, 9, NOW)]),
    ("the state's number", [("getsockopt", A, IPPROTO_TCP, TCP_INFO, 1)]),
    ("the segment's size", [("setsockopt", A, IPPROTO_TCP, TCP_MAXSEG, 500)]),
]

MAKING: list[Row] = [
    (f"socket {family} {kind:#x} {protocol}", [("socket", A, family, kind, protocol), *look(A)])
    for family, kind, protocol in (
        (AF_INET, SOCK_STREAM, 0),
        (AF_INET, SOCK_STREAM, IPPROTO_TCP),
        (AF_INET6, SOCK_STREAM, IPPROTO_TCP),
        (AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0),
        (AF_INET, SOCK_STREAM, IPPROTO_UDP),
        (AF_INET6, SOCK_STREAM, IPPROTO_ICMPV6),
        (AF_INET, SOCK_STREAM, 300),
    )
]

NAMING: list[Row] = [
    ("bind", [tcp(A), ("bind", A, LO4), ("getsockname", A), ("getpeername", A), ("bind", A, LO4)]),
    ("bind, v6", [tcp6(A), ("bind", A, LO6), ("getsockname", A), ("getpeername", A), ("bind", A, LO6)]),
    ("bind to broadcast", [tcp(A), ("bind", A, ("<broadcast>", 0))]),
    ("bind to a group", [tcp(A), ("bind", A, ("239.1.2.3", 0))]),
    ("bind to a group, v6", [tcp6(A), ("bind", A, ("ff02::1234", 0, 0, 1))]),
    ("bind to a stranger's address", [tcp(A), ("bind", A, (NOWHERE, 0))]),
    ("bind to a stranger's address, v6", [tcp6(A), ("bind", A, (NOWHERE6, 0))]),
    ("bind a socket of v6 to v4", [tcp6(A), ("bind", A, ("::ffff:127.0.0.1", 0)), ("getsockname", A), ("listen", A, 1),
                                   tcp(B), ("connect", B, To4(A, "127.0.0.1")), ("take", C, A), ("getsockname", C)]),
    ("bind where another is", [tcp(A), ("bind", A, LO4), tcp(B), ("bind", B, To(A)), ("bind", B, To(A, "")),
                               ("bind", B, To(A, "127.0.0.2"))]),
    ("bind where another listens", [*listening(), tcp(B), ("bind", B, To(L)), ("bind", B, To(L, ""))]),
    ("SO_REUSEADDR, nobody listens", [
        tcp(A), ("setsockopt", A, SOL_SOCKET, SO_REUSEADDR, 1), ("bind", A, LO4), tcp(B), ("bind", B, To(A)),
        ("setsockopt", B, SOL_SOCKET, SO_REUSEADDR, 1), ("bind", B, To(A)), ("listen", A, 1), ("listen", B, 1),
        tcp(C), ("setsockopt", C, SOL_SOCKET, SO_REUSEADDR, 1), ("bind", C, To(A)),
    ]),
    ("SO_REUSEADDR, one listens", [
        tcp(A), ("setsockopt", A, SOL_SOCKET, SO_REUSEADDR, 1), ("bind", A, LO4), ("listen", A, 1), tcp(B),
        ("setsockopt", B, SOL_SOCKET, SO_REUSEADDR, 1), ("bind", B, To(A)), ("bind", B, To(A, "")),
        ("bind", B, To(A, "127.0.0.2")), ("listen", B, 1),
    ]),
    ("SO_REUSEADDR on one alone", [
        tcp(A), ("bind", A, LO4), tcp(B), ("setsockopt", B, SOL_SOCKET, SO_REUSEADDR, 1), ("bind", B, To(A)),
    ]),
    ("SO_REUSEPORT on both", [
        tcp(A), ("setsockopt", A, SOL_SOCKET, SO_REUSEPORT, 1), ("bind", A, LO4), ("listen", A, 1), tcp(B),
        ("bind", B, To(A)), ("setsockopt", B, SOL_SOCKET, SO_REUSEPORT, 1), ("bind", B, To(A)), ("listen", B, 1),
        tcp(C), ("setsockopt", C, SOL_SOCKET, SO_REUSEADDR, 1), ("bind", C, To(A)),
    ]),
    ("SO_REUSEADDR on one, SO_REUSEPORT on the other", [
        tcp(A), ("setsockopt", A, SOL_SOCKET, SO_REUSEPORT, 1), ("bind", A, LO4), tcp(B),
        ("setsockopt", B, SOL_SOCKET, SO_REUSEADDR, 1), ("bind", B, To(A)),
    ]),
    ("bind where a connection is", [*connected(), ("close", L), tcp(C), ("bind", C, To(B)),
                                    ("setsockopt", C, SOL_SOCKET, SO_REUSEADDR, 1), ("bind", C, To(B))]),
    ("bind where a connection of a socket with SO_REUSEADDR is", [
        tcp(L), ("setsockopt", L, SOL_SOCKET, SO_REUSEADDR, 1), ("bind", L, LO4), ("listen", L, 1), tcp(A),
        ("connect", A, To(L)), ("take", B, L), ("close", L), tcp(C), ("bind", C, To(B)),
        ("setsockopt", C, SOL_SOCKET, SO_REUSEADDR, 1), ("bind", C, To(B)), ("listen", C, 1),
        tcp(D), ("connect", D, To(B)), ("take", L, C), ("send", D, b"x"), ("recv", L, 9, NOW),
    ]),
    ("bind where a connection waits (TIME_WAIT)", [
        tcp(L), ("setsockopt", L, SOL_SOCKET, SO_REUSEADDR, 1), ("bind", L, LO4), ("listen", L, 1), tcp(A),
        ("connect", A, To(L)), ("take", B, L), ("close", B), ("close", A), ("close", L), tcp(C), ("bind", C, To(L)),
        ("setsockopt", C, SOL_SOCKET, SO_REUSEADDR, 1), ("bind", C, To(L)), ("listen", C, 1), tcp(D),
        ("connect", D, To(L)), ("take", B, C), ("send", D, b"again"), ("recv", B, 9, NOW),
    ]),
    ("bind where a connection was reset", [*was_reset(), ("close", A), ("close", L), tcp(C), ("bind", C, To(L))]),
    ("bind where a socket was closed", [*listening(), ("close", L), tcp(C), ("bind", C, To(L)), ("listen", C, 1)]),
    ("listen on a port by chance", [tcp(A), ("listen", A, 1), ("getsockname", A), tcp(B),
                                    ("connect", B, To(A, "127.0.0.1")), ("take", C, A), ("getsockname", C)]),
    ("listen on a port by chance, v6", [tcp6(A), ("listen", A, 1), ("getsockname", A), tcp6(B),
                                        ("connect", B, To(A, "::1")), ("take", C, A), ("getsockname", C)]),
    ("a dual socket takes the v4 port as well", [
        tcp6(A), ("bind", A, ("::", 0)), ("listen", A, 5), tcp(B), ("bind", B, To4(A, "")),
        ("bind", B, To4(A, "127.0.0.1")), ("connect", B, To4(A, "127.0.0.1")), ("take", C, A), ("getpeername", C),
        ("getsockname", C), ("getpeername", B), tcp6(D), ("connect", D, To(A, "::ffff:127.0.0.1")), ("take", L, A),
        ("getpeername", D), ("getsockname", D), ("send", C, b"x"), ("recvfrom", B, 9, NOW),
    ]),
    ("with IPV6_V6ONLY it does not", [
        tcp6(A), ("setsockopt", A, IPPROTO_IPV6, IPV6_V6ONLY, 1), ("bind", A, ("::", 0)), ("listen", A, 5), tcp(B),
        ("connect", B, To4(A, "127.0.0.1")), tcp(C), ("bind", C, To4(A, "")), ("listen", C, 1),
        tcp6(D), ("connect", D, To(A, "::1")), ("take", L, A), ("getpeername", L),
    ]),
    ("IPV6_V6ONLY once bound", [tcp6(A), ("bind", A, LO6), ("setsockopt", A, IPPROTO_IPV6, IPV6_V6ONLY, 1)]),
    ("a v6 socket of v6 alone to v4", [
        *listening(), tcp6(A), ("setsockopt", A, IPPROTO_IPV6, IPV6_V6ONLY, 1),
        ("connect", A, To(L, "::ffff:127.0.0.1")), ("bind", A, ("::ffff:127.0.0.1", 0)),
    ]),
    ("::1 to v4", [*listening(), tcp6(A), ("bind", A, LO6), ("connect", A, To(L, "::ffff:127.0.0.1"))]),
    ("a v4 address to ::1", [*listening6(), tcp6(A), ("bind", A, ("::ffff:127.0.0.1", 0)), ("connect", A, To(L))]),
    ("the names of both ends", [*connected(), *(step for name in (A, B, L) for step in (
        ("getsockname", name), ("getpeername", name)))]),
    ("the names of both ends, v6", [*connected6(), *(step for name in (A, B, L) for step in (
        ("getsockname", name), ("getpeername", name)))]),
]

CONNECTING: list[Row] = [
    ("connect", [*listening(), tcp(A), ("connect", A, To(L)), ("connect", A, To(L)), ("take", B, L)]),
    ("connect, not blocking", [*listening(), calm(A), ("connect", A, To(L)), *look(A), ("connect", A, To(L)),
                               ("connect", A, To(L)), ("getsockopt", A, SOL_SOCKET, SO_ERROR)]),
    ("refused", [*refused(), tcp(A), ("connect", A, To(L)), *look(A), ("getsockopt", A, SOL_SOCKET, SO_ERROR),
                 ("send", A, b"x"), ("recv", A, 9)]),
    ("refused, v6", [tcp6(L), ("bind", L, LO6), tcp6(A), ("connect", A, To(L)), *look(A)]),
    ("refused, and once more", [*refused(), tcp(A), ("connect", A, To(L)), ("listen", L, 5), ("connect", A, To(L)),
                                ("take", B, L), ("send", A, b"x"), ("recv", B, 9, NOW)]),
    ("refused, not blocking", [*refused(), calm(A), ("connect", A, To(L)), *look(A), ("connect", A, To(L)), *look(A),
                               ("connect", A, To(L)), ("getsockopt", A, SOL_SOCKET, SO_ERROR), ("connect", A, To(L)),
                               ("connect", A, To(L))]),
    ("refused, and received", [*refused(), calm(A), ("connect", A, To(L)), ("recv", A, 9), ("recv", A, 9),
                               ("send", A, b"x")]),
    ("refused, and sent", [*refused(), calm(A), ("connect", A, To(L)), ("send", A, b"x"), ("send", A, b"x"),
                           ("recv", A, 9)]),
    ("under way", [*connecting(), ("connect", A, To(L)), *look(A), ("getpeername", A), ("getsockname", A),
                   ("send", A, b"x"), ("recv", A, 9), ("bind", A, LO4), ("listen", A, 5)]),
    ("under way, and a timeout", [*connecting(), ("set_timeout", A, 10_000), ("connect", A, To(L))]),
    ("a timeout", [*listening(L, 0), tcp(C), ("connect", C, To(L)), tcp(A), ("set_timeout", A, 10_000),
                   ("connect", A, To(L)), *look(A), ("connect", A, To(L))]),
    ("SO_SNDTIMEO", [*listening(L, 0), tcp(C), ("connect", C, To(L)), tcp(A),
                     ("setsockopt", A, SOL_SOCKET, SO_SNDTIMEO, struct.pack("qq", 0, 20_000)),
                     ("connect", A, To(L)), ("connect", A, To(L)), *look(A), ("send", A, b"x")]),
    ("a timeout that is long enough", [*listening(), tcp(A), ("set_timeout", A, 10**6), ("connect", A, To(L)),
                                       ("connect", A, To(L)), ("connect", A, To(L))]),
    ("a timeout, and refused", [*refused(), tcp(A), ("set_timeout", A, 10**6), ("connect", A, To(L)),
                                ("connect", A, To(L)), ("connect", A, To(L))]),
    ("connect to any", [*listening(), tcp(A), ("connect", A, To(L, "0.0.0.0")), ("getpeername", A),
                        ("getsockname", A)]),
    ("connect to any, v6", [*listening6(), tcp6(A), ("connect", A, To(L, "::")), ("getpeername", A),
                            ("getsockname", A)]),
    ("connect to a group", [tcp(A), ("connect", A, ("239.1.2.3", 9)), ("getpeername", A)]),
    ("connect to a group, v6", [tcp6(A), ("connect", A, ("ff02::1234", 9, 0, 1))]),
    ("connect to everybody", [tcp(A), ("setsockopt", A, SOL_SOCKET, SO_BROADCAST, 1),
                              ("connect", A, ("<broadcast>", 9))]),
    ("connect to port 0", [tcp(A), ("connect", A, ("127.0.0.1", 0))]),
    ("connect to a stranger", [tcp(A), ("connect", A, (NOWHERE, 9)), *look(A), ("getsockname", A)]),
    ("connect to a stranger, v6", [tcp6(A), ("connect", A, (NOWHERE6, 9)), *look(A), ("getsockname", A)]),
    ("connect to a link-local address without zone", [tcp6(A), ("connect", A, ("fe80::1", 9))]),
    ("connect a struct that is too short", [tcp(A), ("connect", A, b"\2\0\0\11\177\0\0"), ("connect", A, b"\2")]),
    ("connect to itself", [tcp(A), ("bind", A, LO4), ("connect", A, To(A)), ("send", A, b"me"), ("recv", A, 9, NOW),
                           ("getpeername", A), *look(A), ("shutdown", A, SHUT_WR), ("recv", A, 9, NOW), *look(A)]),
    ("the same pair of ports twice", [
        *listening(), tcp(A), ("setsockopt", A, SOL_SOCKET, SO_REUSEADDR, 1), ("bind", A, LO4), tcp(C),
        ("setsockopt", C, SOL_SOCKET, SO_REUSEADDR, 1), ("bind", C, To(A)), ("connect", A, To(L)),
        ("connect", C, To(L)),
    ]),
    ("disconnect, and elsewhere", [*connected(), *listening(C), ("connect", A, None), ("connect", A, To(C)),
                                   ("take", D, C), ("send", A, b"x"), ("recv", D, 9, NOW), ("recv", B, 9, NOW)]),
    ("listen after a disconnect", [*connected(), ("connect", A, None), ("listen", A, 1), ("getsockname", A)]),
    ("what was sent before accept", [*listening(), tcp(A), ("connect", A, To(L)), ("send", A, b"early"), ("take", B, L),
                                     ("recv", B, 9, NOW)]),
    ("closed before accept", [*listening(), tcp(A), ("connect", A, To(L)), ("send", A, b"early"), ("close", A),
                              *look(L), ("take", B, L), ("recv", B, 9, NOW), ("recv", B, 9, NOW), *look(B)]),
    ("reset before accept", [*listening(), tcp(A), ("connect", A, To(L)),
                             ("setsockopt", A, SOL_SOCKET, SO_LINGER, RESET),
                             ("close", A), *look(L), ("take", B, L), *look(B), ("getpeername", B),
                             ("recv", B, 9, NOW), ("recv", B, 9, NOW)]),
    ("the listener closes before accept", [*listening(), tcp(A), ("connect", A, To(L)), ("close", L), *look(A),
                                           ("recv", A, 9, NOW), ("recv", A, 9, NOW)]),
    ("the listener closes after accept", [*connected(), ("close", L), ("send", A, b"x"), ("recv", B, 9, NOW),
                                          tcp(C), ("connect", C, To(L))]),
    ("the listener stops", [*listening(), tcp(A), ("connect", A, To(L)), ("shutdown", L, SHUT_RD), *look(L, A),
                            ("recv", A, 9, NOW), ("fcntl", L, F_SETFL, O_NONBLOCK), ("take", B, L), tcp(C),
                            ("connect", C, To(L)), ("listen", L, 5), ("connect", C, To(L))]),
    ("the listener stops to write", [*listening(), ("shutdown", L, SHUT_WR), tcp(A), ("connect", A, To(L)),
                                     ("take", B, L)]),
    ("accept what is not there", [tcp(A), ("fcntl", A, F_SETFL, O_NONBLOCK), ("bind", A, LO4), ("take", B, A),
                                  ("listen", A, 1), ("take", B, A), ("set_timeout", A, 1000), ("take", B, A)]),
    ("accept in order", [*listening(), tcp(A), tcp(B), ("connect", A, To(L)), ("connect", B, To(L)), ("take", C, L),
                         ("take", D, L)]),
    ("a full queue", [*listening(L, 1), *(step for name in (A, B) for step in (tcp(name), ("connect", name, To(L)))),
                      calm(C), ("connect", C, To(L)), *look(A, B, C, L), ("connect", C, To(L))]),
    ("a queue that is made longer", [*listening(L, 0), tcp(A), ("connect", A, To(L)), ("listen", L, 1), tcp(B),
                                     ("connect", B, To(L)), *look(B), ("take", C, L), ("take", D, L)]),
    ("a negative queue", [*listening(L, -1), tcp(A), ("connect", A, To(L)), calm(B), ("connect", B, To(L)), *look(B)]),
]
