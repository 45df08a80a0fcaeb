"""More of the table of calls: data on streams, their ends, their options. See sys_table_streams.py for the words."""

# ruff: noqa: F403, F405  # the names of the constants are the table's words

from __future__ import annotations

import struct
from typing import Any

from guest.sys.constants import *
from tests.sys_table import INT, LO4, LO_RAW, NOW, A, B, C, Row, To, options
from tests.sys_table_streams import (
    RESET,
    D,
    L,
    Steps,
    ask,
    connected,
    connecting,
    listening,
    look,
    tcp,
    tcp6,
    was_reset,
)


def chosen(level: int, number: int, *values: Any) -> Steps:
    """Set an option to each of the values and read it again; what it is at first is for each kernel to choose."""
    steps: Steps = [tcp(A)]
    for value in values:
        steps += [("setsockopt", A, level, number, value), ("getsockopt", A, level, number)]
    return steps


SENDING: list[Row] = [
    ("send and receive", [*connected(), ("send", A, b"hello"), ("recv", B, 9, NOW), ("send", B, b"!"),
                          ("recvfrom", A, 9, NOW), ("recv", A, 9, NOW)]),
    ("two sends are one stream", [*connected(), ("send", A, b"one "), ("send", A, b"two"), *look(B),
                                  ("recv", B, 2, NOW), ("recvmsg", B, 9, 100, NOW)]),
    ("sendmsg gathers", [*connected(), ("sendmsg", A, [b"he", b"", b"llo"], [], 0),
                         ("recvmsg_into", B, [bytearray(2), bytearray(0), bytearray(9)], 0, NOW)]),
    ("sendmsg with ancillary data", [
        *connected(), ("sendmsg", A, [b"x"], [(SOL_SOCKET, 77, bytes(4))], 0),
        ("sendmsg", A, [b"x"], [(IPPROTO_IP, IP_TTL, INT.pack(5))], 0), ("recv", B, 9, NOW),
    ]),
    ("MSG_MORE waits for the rest", [*connected(), ("send", A, b"one ", MSG_MORE), ("recv", B, 9, NOW),
                                     ("send", A, b"two"), ("recv", B, 9, NOW)]),
    ("TCP_CORK waits for its end", [
        *connected(), ("setsockopt", A, IPPROTO_TCP, TCP_CORK, 1), ("send", A, b"one "), ("send", A, b"two"),
        ("recv", B, 9, NOW), *ask(A), ("setsockopt", A, IPPROTO_TCP, TCP_CORK, 0), ("recv", B, 9, NOW), *ask(A),
    ]),
    ("TCP_CORK, and the end of the stream", [
        *connected(), ("setsockopt", A, IPPROTO_TCP, TCP_CORK, 1), ("send", A, b"one"), ("shutdown", A, SHUT_WR),
        ("recv", B, 9, NOW), ("recv", B, 9, NOW),
    ]),
    ("flags that change nothing", [*connected(),
                                   ("send", A, b"x", MSG_EOR | MSG_NOSIGNAL | MSG_CONFIRM | MSG_DONTROUTE),
                                   ("recv", B, 9, NOW)]),
    ("MSG_PEEK", [*connected(), ("send", A, b"hello"), ("recv", B, 3, NOW | MSG_PEEK),
                  ("recvfrom", B, 9, NOW | MSG_PEEK),
                  ("recvmsg_into", B, [bytearray(2), bytearray(2)], 0, NOW | MSG_PEEK), ("recv", B, 9, NOW)]),
    ("MSG_PEEK at the end", [*connected(), ("send", A, b"hello"), ("close", A), ("recv", B, 9, NOW | MSG_PEEK),
                             ("recv", B, 9, NOW), ("recv", B, 9, NOW | MSG_PEEK)]),
    ("MSG_WAITALL", [*connected(), ("send", A, b"hello"), ("recv", B, 5, MSG_WAITALL), ("send", A, b"hello"),
                     ("recv", B, 9, MSG_WAITALL | NOW), ("send", A, b"bye"), ("shutdown", A, SHUT_WR),
                     ("recv", B, 9, MSG_WAITALL), ("recv", B, 9, MSG_WAITALL)]),
    ("MSG_WAITALL and a timeout", [*connected(), ("set_timeout", B, 10_000), ("send", A, b"hello"),
                                   ("recv", B, 9, MSG_WAITALL), ("recv", B, 9, MSG_WAITALL)]),
    ("MSG_WAITALL and SO_RCVTIMEO", [
        *connected(), ("setsockopt", B, SOL_SOCKET, SO_RCVTIMEO, struct.pack("qq", 0, 20_000)), ("send", A, b"hello"),
        ("recv", B, 9, MSG_WAITALL), ("recv", B, 9, MSG_WAITALL),
    ]),
    ("MSG_WAITALL and a reset", [*connected(), ("send", A, b"hello"), ("setsockopt", A, SOL_SOCKET, SO_LINGER, RESET),
                                 ("close", A), ("recv", B, 9, MSG_WAITALL), ("recv", B, 9, MSG_WAITALL)]),
    ("MSG_TRUNC throws away", [
        *connected(), ("send", A, b"hello world"), ("recv_into", B, bytearray(6), 0, NOW | MSG_TRUNC),
        ("recvmsg_into", B, [bytearray(2)], 0, NOW | MSG_TRUNC), ("recv", B, 9, NOW),
        ("recv_into", B, bytearray(6), 0, NOW | MSG_TRUNC),
    ]),
    ("MSG_TRUNC and MSG_PEEK", [*connected(), ("send", A, b"hello"),
                                ("recv_into", B, bytearray(3), 0, NOW | MSG_TRUNC | MSG_PEEK), ("recv", B, 9, NOW)]),
    ("MSG_ERRQUEUE", [*connected(), ("recv", A, 9, MSG_ERRQUEUE), ("recvmsg", A, 9, 100, MSG_ERRQUEUE)]),
    ("a negative size", [*connected(), ("recv", A, -1, NOW), ("recvmsg", A, -1, 0, NOW)]),
    ("SO_RCVLOWAT", [
        *connected(), ("setsockopt", B, SOL_SOCKET, SO_RCVLOWAT, 4), ("send", A, b"one"), *look(B),
        ("recv", B, 9, NOW), ("send", A, b"four"), *look(B), ("recv", B, 2), ("recv", B, 9, NOW), ("send", A, b"1"),
        ("shutdown", A, SHUT_WR), *look(B), ("recv", B, 9), ("recv", B, 9),
    ]),
    ("SO_RCVLOWAT and SO_RCVTIMEO", [
        *connected(), ("setsockopt", B, SOL_SOCKET, SO_RCVLOWAT, 4), ("send", A, b"one"),
        ("setsockopt", B, SOL_SOCKET, SO_RCVTIMEO, struct.pack("qq", 0, 20_000)), ("recv", B, 9), ("recv", B, 9),
    ]),
    ("no room", [*connected(), ("fill", A), *look(A), ("send", A, b"x", NOW), ("drain", B), *look(A, B)]),
    ("no room, and a timeout", [*connected(), ("fill", A), ("set_timeout", A, 10_000), ("send", A, b"x")]),
    ("no room, and SO_SNDTIMEO", [*connected(), ("fill", A), (
        "setsockopt", A, SOL_SOCKET, SO_SNDTIMEO, struct.pack("qq", 0, 20_000)), ("send", A, b"x")]),
    ("no room, and a reset", [*connected(), ("fill", A), ("close", B), *look(A), ("send", A, b"x", NOW),
                              ("send", A, b"x", NOW)]),
    ("a timeout", [*connected(), ("set_timeout", A, 10_000), ("recv", A, 9), ("send", B, b"x"), ("recv", A, 9)]),
    ("SO_RCVTIMEO", [*connected(), ("setsockopt", A, SOL_SOCKET, SO_RCVTIMEO, struct.pack("qq", 0, 20_000)),
                     ("recv", A, 9), ("set_timeout", L, 1000), ("take", D, L)]),
    ("accept and SO_RCVTIMEO", [*listening(), ("setsockopt", L, SOL_SOCKET, SO_RCVTIMEO, struct.pack("qq", 0, 20_000)),
                                ("take", A, L)]),
    ("read and write", [*connected(), ("write", A, b"hello"), ("read", B, 3), ("read", B, 9), ("shutdown", A, SHUT_WR),
                        ("read", B, 9), ("write", A, b"x"), ("write", B, b"")]),
    ("half-closed, the other way still open", [*connected(), ("shutdown", A, SHUT_WR), ("recv", B, 9, NOW),
                                               ("send", B, b"late"), ("recv", A, 9, NOW), ("close", B),
                                               ("recv", A, 9, NOW), *look(A)]),
    ("what was sent to who does not read any more", [*connected(), ("shutdown", A, SHUT_RD), ("send", B, b"x"),
                                                     *look(A, B), ("recv", A, 9, NOW), ("recv", A, 9, NOW),
                                                     ("send", B, b"y")]),
    ("sent to who has gone", [*connected(), ("close", B), *look(A), ("send", A, b"x"), *look(A), ("send", A, b"y"),
                              ("send", A, b"z"), ("recv", A, 9, NOW), ("getsockopt", A, SOL_SOCKET, SO_ERROR)]),
    ("sent to who has gone, and asked", [*connected(), ("close", B), ("send", A, b"x"),
                                         ("getsockopt", A, SOL_SOCKET, SO_ERROR), ("send", A, b"y"),
                                         ("recv", A, 9, NOW)]),
]

URGENT: list[Row] = [
    ("urgent data", [*connected(), ("send", A, b"abc", MSG_OOB), *look(B), *ask(B), ("recv", B, 9, MSG_OOB | MSG_PEEK),
                     ("recv", B, 9, MSG_OOB), ("recv", B, 9, MSG_OOB), ("recv", B, 9, NOW), *ask(B), *look(B),
                     ("recv", B, 9, NOW)]),
    ("reading stops there", [*connected(), ("send", A, b"ab!", MSG_OOB), ("send", A, b"cd"), *ask(B),
                             ("recv", B, 9, NOW), *ask(B), *look(B), ("recv", B, 9, NOW), *ask(B), *look(B),
                             ("recv", B, 9, MSG_OOB)]),
    ("MSG_WAITALL stops there", [*connected(), ("send", A, b"ab!", MSG_OOB), ("send", A, b"cd"),
                                 ("recv", B, 4, MSG_WAITALL), ("recv", B, 2, MSG_WAITALL)]),
    ("MSG_PEEK stops there", [*connected(), ("send", A, b"ab!", MSG_OOB), ("send", A, b"cd"),
                              ("recv", B, 9, MSG_PEEK), ("recv", B, 2), ("recv", B, 9, MSG_PEEK), ("recv", B, 9)]),
    ("in its place", [*connected(), ("setsockopt", B, SOL_SOCKET, SO_OOBINLINE, 1), ("send", A, b"ab!", MSG_OOB),
                      ("send", A, b"cd"), ("recv", B, 1, MSG_OOB), *look(B), *ask(B), ("recv", B, 9, NOW), *ask(B),
                      *look(B), ("recv", B, 9, NOW), *ask(B), *look(B)]),
    ("into nothing", [*connected(), ("send", A, b"!", MSG_OOB), ("recvmsg", B, 0, 0, MSG_OOB | MSG_PEEK),
                      ("recvmsg", B, 9, 0, MSG_OOB), ("recvmsg", B, 9, 0, MSG_OOB)]),
    ("after the end", [*connected(), ("send", A, b"!", MSG_OOB), ("close", A), *look(B), ("recv", B, 9, MSG_OOB),
                       ("recv", B, 9, MSG_OOB), ("recv", B, 9, NOW)]),
    ("select has exceptions for it", [*connected(), ("send", A, b"!", MSG_OOB), ("poll", [(B, POLLPRI)], 0),
                                      ("recv", B, 1, MSG_OOB), ("poll", [(B, POLLPRI)], 0)]),
]

CLOSING: list[Row] = [
    ("close", [*connected(), ("close", A), ("recv", B, 9, NOW), *look(B), ("close", A)]),
    ("close what dup has", [*connected(), ("dup", C, A), ("close", A), *look(B), ("send", C, b"x"), ("recv", B, 9, NOW),
                            ("close", C), ("recv", B, 9, NOW)]),
    ("shutdown reaches all that dup made", [*connected(), ("dup", C, A), ("shutdown", C, SHUT_WR), ("send", A, b"x"),
                                            ("recv", B, 9, NOW)]),
    ("dup has the same flags", [*connected(), ("dup", C, A), ("fcntl", C, F_SETFL, O_NONBLOCK), ("recv", A, 9),
                                ("fcntl", A, F_GETFL)]),
    ("SO_LINGER waits", [*connected(), ("setsockopt", A, SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 1)),
                         ("send", A, b"x"), ("close", A), ("recv", B, 9, NOW), ("recv", B, 9, NOW)]),
    ("SO_LINGER of no time", [*was_reset(), *look(A), ("recv", A, 9, NOW), ("recv", A, 9, NOW), ("send", A, b"x")]),
    ("SO_LINGER of no time, with data unsent", [
        *connected(), ("setsockopt", A, IPPROTO_TCP, TCP_CORK, 1), ("send", A, b"x"),
        ("setsockopt", A, SOL_SOCKET, SO_LINGER, RESET), ("close", A), ("recv", B, 9, NOW), ("recv", B, 9, NOW),
    ]),
    ("closed with data unread", [*connected(), ("send", B, b"x"), ("close", A), *look(B), ("send", B, b"y"),
                                 ("recv", B, 9, NOW)]),
    ("closed, and the port of the listener", [*connected(), ("close", B), ("recv", A, 9, NOW), ("close", A), tcp(C),
                                              ("connect", C, To(L)), ("take", D, L), ("send", C, b"x"),
                                              ("recv", D, 9, NOW)]),
    ("both at once", [*connected(), ("shutdown", A, SHUT_WR), ("shutdown", B, SHUT_WR), *look(A, B), ("close", A),
                      ("close", B), *look(L)]),
]

SECONDS = (0, 1, 32767, 32768, -1)
TCP_OPTIONS: list[Row] = [
    ("SO_TYPE and the like", [tcp(A), *(("getsockopt", A, SOL_SOCKET, option) for option in (
        SO_TYPE, SO_DOMAIN, SO_PROTOCOL, SO_ACCEPTCONN, SO_ERROR))]),
    *((f"flag {number}", options(tcp(A), IPPROTO_TCP, number, 1, 0, 5, b"\1\0\0\0", b"\1"))
      for number in (TCP_NODELAY, TCP_CORK)),
    ("TCP_QUICKACK", options(tcp(A), IPPROTO_TCP, TCP_QUICKACK, 0, 1)),
    ("TCP_MAXSEG", options(tcp(A), IPPROTO_TCP, TCP_MAXSEG, 1, 87, 88, 500, 32767, 32768, -1, 0)),
    ("TCP_KEEPIDLE", chosen(IPPROTO_TCP, TCP_KEEPIDLE, *SECONDS)),
    ("TCP_KEEPINTVL", chosen(IPPROTO_TCP, TCP_KEEPINTVL, *SECONDS)),
    ("TCP_KEEPCNT", chosen(IPPROTO_TCP, TCP_KEEPCNT, 0, 1, 127, 128, -1)),
    ("TCP_SYNCNT", chosen(IPPROTO_TCP, TCP_SYNCNT, 1, 0, 127, 128, -1)),
    ("TCP_LINGER2", chosen(IPPROTO_TCP, TCP_LINGER2, -1, -5, 0, 5, 60, 119, 120, 121, 100000)),
    ("TCP_DEFER_ACCEPT", chosen(IPPROTO_TCP, TCP_DEFER_ACCEPT, 0, 1, 2, 3, 4, 7, 8, 15, 16, 100, 1000, -1)),
    ("TCP_WINDOW_CLAMP", chosen(IPPROTO_TCP, TCP_WINDOW_CLAMP, 0, 1, 1151, 1152, 1153, 5000, -1)),
    ("TCP_WINDOW_CLAMP off", [*connected(), ("setsockopt", A, IPPROTO_TCP, TCP_WINDOW_CLAMP, 0)]),
    ("TCP_USER_TIMEOUT", chosen(IPPROTO_TCP, TCP_USER_TIMEOUT, 1, 0, 100_000, -1)),
    ("TCP_CONGESTION", [tcp(A), *(step for value in (b"reno", b"nope", b"", b"cubic\0xx", b"r" * 20) for step in (
        ("setsockopt", A, IPPROTO_TCP, TCP_CONGESTION, value), ("getsockopt", A, IPPROTO_TCP, TCP_CONGESTION, 16))),
        ("getsockopt", A, IPPROTO_TCP, TCP_CONGESTION, 3)]),
    ("TCP_INFO", [tcp(A), ("setsockopt", A, IPPROTO_TCP, TCP_INFO, 1), ("getsockopt", A, IPPROTO_TCP, TCP_INFO, 1)]),
    ("unknown options", [tcp(A), ("getsockopt", A, IPPROTO_TCP, 200), ("setsockopt", A, IPPROTO_TCP, 200, 1),
                         ("getsockopt", A, 9999, 1), ("setsockopt", A, 9999, 1, 1)]),
    ("unknown options, v6", [tcp6(A), ("getsockopt", A, IPPROTO_TCP, 200), ("setsockopt", A, IPPROTO_TCP, 200, 1)]),
    *((f"SOL_SOCKET flag {number}", options(tcp(A), SOL_SOCKET, number, 1, 0, 5))
      for number in (SO_REUSEADDR, SO_REUSEPORT, SO_BROADCAST, SO_KEEPALIVE, SO_DONTROUTE, SO_OOBINLINE)),
    ("SO_LINGER", options(tcp(A), SOL_SOCKET, SO_LINGER, struct.pack("ii", 0, 7), struct.pack("ii", 5, 7),
                          struct.pack("ii", 0, 9), struct.pack("ii", 1, 0), bytes(4), size=8)),
    ("SO_RCVLOWAT", options(tcp(A), SOL_SOCKET, SO_RCVLOWAT, 0, 1, 5, 100_000)),
    ("SO_RCVLOWAT and SO_RCVBUF", [
        tcp(A), ("setsockopt", A, SOL_SOCKET, SO_RCVBUF, 10_000), ("setsockopt", A, SOL_SOCKET, SO_RCVLOWAT, 100_000),
        ("getsockopt", A, SOL_SOCKET, SO_RCVLOWAT), ("getsockopt", A, SOL_SOCKET, SO_RCVBUF), tcp(B),
        ("setsockopt", B, SOL_SOCKET, SO_RCVLOWAT, 100_000), ("getsockopt", B, SOL_SOCKET, SO_RCVBUF),
    ]),
    ("SO_SNDLOWAT", [tcp(A), ("getsockopt", A, SOL_SOCKET, SO_SNDLOWAT),
                     ("setsockopt", A, SOL_SOCKET, SO_SNDLOWAT, 5)]),
    ("SO_RCVBUF", chosen(SOL_SOCKET, SO_RCVBUF, 0, 5000, 100_000)),
    ("SO_SNDBUF", chosen(SOL_SOCKET, SO_SNDBUF, 0, 5000, 100_000)),
    ("groups", [
        tcp(A), ("setsockopt", A, IPPROTO_IP, IP_ADD_MEMBERSHIP, b"\357\1\2\3" + LO_RAW),
        ("setsockopt", A, IPPROTO_IP, IP_DROP_MEMBERSHIP, b"\357\1\2\3" + LO_RAW),
        ("setsockopt", A, IPPROTO_IP, IP_MULTICAST_TTL, 5), ("setsockopt", A, IPPROTO_IP, IP_MULTICAST_LOOP, 0),
        ("setsockopt", A, IPPROTO_IP, IP_MULTICAST_IF, LO_RAW), ("getsockopt", A, IPPROTO_IP, IP_MULTICAST_TTL),
    ]),
    ("groups, v6", [tcp6(A), *(("setsockopt", A, IPPROTO_IPV6, number, value) for number, value in (
        (IPV6_JOIN_GROUP, b"\377\2" + bytes(13) + b"\1" + INT.pack(1)),
        (IPV6_LEAVE_GROUP, b"\377\2" + bytes(13) + b"\1" + INT.pack(1)),
        (IPV6_MULTICAST_HOPS, 5), (IPV6_MULTICAST_LOOP, 1), (IPV6_MULTICAST_IF, 1)))]),
    ("IP_TTL", options(tcp(A), IPPROTO_IP, IP_TTL, 5, 0, 256)),
    ("IP_TOS", options(tcp(A), IPPROTO_IP, IP_TOS, 0x10, 0x13, 300)),
    ("IP_MTU", [*connected(), *(("getsockopt", name, IPPROTO_IP, IP_MTU) for name in (A, L))]),
    ("what an accepted socket has of its listener", [
        *listening(),
        *(("setsockopt", L, level, number, value) for level, number, value in (
            (SOL_SOCKET, SO_KEEPALIVE, 1), (SOL_SOCKET, SO_OOBINLINE, 1),
            (SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 3)),
            (SOL_SOCKET, SO_RCVLOWAT, 5), (SOL_SOCKET, SO_RCVTIMEO, struct.pack("qq", 4, 0)),
            (IPPROTO_TCP, TCP_NODELAY, 1), (IPPROTO_TCP, TCP_KEEPIDLE, 77), (IPPROTO_TCP, TCP_KEEPCNT, 3),
            (IPPROTO_TCP, TCP_USER_TIMEOUT, 5000), (IPPROTO_TCP, TCP_CONGESTION, b"reno"),
            (IPPROTO_TCP, TCP_LINGER2, 9), (IPPROTO_IP, IP_TTL, 33), (SOL_SOCKET, SO_REUSEADDR, 1),
        )),
        tcp(A), ("connect", A, To(L)), ("take", B, L),
        *(("getsockopt", B, level, number, size) for level, number, size in (
            (SOL_SOCKET, SO_KEEPALIVE, 4), (SOL_SOCKET, SO_OOBINLINE, 4), (SOL_SOCKET, SO_LINGER, 8),
            (SOL_SOCKET, SO_RCVLOWAT, 4), (SOL_SOCKET, SO_RCVTIMEO, 16), (IPPROTO_TCP, TCP_NODELAY, 4),
            (IPPROTO_TCP, TCP_KEEPIDLE, 4), (IPPROTO_TCP, TCP_KEEPCNT, 4), (IPPROTO_TCP, TCP_USER_TIMEOUT, 4),
            (IPPROTO_TCP, TCP_CONGESTION, 16), (IPPROTO_TCP, TCP_LINGER2, 4), (IPPROTO_IP, IP_TTL, 4),
            (SOL_SOCKET, SO_REUSEADDR, 4), (SOL_SOCKET, SO_ACCEPTCONN, 4),
        )),
        ("fcntl", B, F_GETFL),
    ]),
]

IOCTL: list[Row] = [
    ("FIONREAD of datagrams", [
        ("socket", A, AF_INET, SOCK_DGRAM), ("bind", A, LO4), *ask(A), ("sendto", A, b"hello", To(A)),
        ("sendto", A, b"hi", To(A)), *ask(A), ("recv", A, 1, NOW), *ask(A),
    ]),
    ("FIONBIO", [tcp(A), ("ioctl", A, FIONBIO, 1), ("fcntl", A, F_GETFL), ("ioctl", A, FIONBIO, 0),
                 ("fcntl", A, F_GETFL)]),
    ("FIONBIO of datagrams", [("socket", A, AF_INET, SOCK_DGRAM), ("ioctl", A, FIONBIO, 1), ("recv", A, 1)]),
    ("how much of a stream", [*connected(), ("send", A, b"hello"), *ask(A), *ask(B), ("recv", B, 2, NOW), *ask(B),
                              ("close", A), *ask(B), ("recv", B, 9, NOW), *ask(B)]),
    ("how much of a stream is under way", [
        *connected(), *(("ioctl", A, number) for number in (SIOCOUTQ, SIOCOUTQNSD)),
        ("setsockopt", A, IPPROTO_TCP, TCP_CORK, 1), ("send", A, b"hello"),
        *(("ioctl", A, number) for number in (SIOCOUTQ, SIOCOUTQNSD)),
    ]),
    *(("how much before there is a connection: " + name, [*steps, *(
        ("ioctl", A, number) for number in (SIOCINQ, SIOCOUTQ, SIOCOUTQNSD, SIOCATMARK))])
      for name, steps in (("fresh", [tcp(A)]), ("listening", listening(A)), ("connecting", connecting()))),
    ("what is none", [tcp(A), ("ioctl", A, 0x5401), ("socket", B, AF_INET, SOCK_DGRAM), ("ioctl", B, 0x5401)]),
]
