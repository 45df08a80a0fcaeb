"""ICMP for IPv4: message types, errors by kind, and the packets that they quote. RFC 792, RFC 1122 §3.2.2, RFC 1191.

What it shares with ICMPv6, and its promises, are in icmp_base.py; echo is in echo.py.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

from guest.net.address import V4_PREFIX
from guest.net.config import NetConfig
from guest.net.echo import EchoPort, EchoPorts, EchoReply
from guest.net.family import IpHeader
from guest.net.icmp_base import IcmpLayer, Quote
from guest.net.icmp_error import (
    FRAGMENTATION_NEEDED,
    PARAMETER_PROBLEM,
    TIME_EXCEEDED,
    UNREACHABLE,
    ErrorHandler,
    IcmpError,
)
from guest.net.ip import IpEngine
from guest.net.pbuf import PacketBuffer

__all__ = ["PROTOCOL", "EchoPort", "EchoReply", "ErrorHandler", "Icmp", "IcmpError"]

PROTOCOL = 1

QUOTED = struct.Struct("!BBHHHBBHII")  # the IPv4 header that an error quotes

ECHO_REPLY = 0
SOURCE_QUENCH = 4
REDIRECT = 5
ECHO_REQUEST = 8
ERRORS = frozenset((UNREACHABLE, SOURCE_QUENCH, REDIRECT, TIME_EXCEEDED, PARAMETER_PROBLEM))

NET_UNREACHABLE = 0
HOST_UNREACHABLE = 1
PROTOCOL_UNREACHABLE = 2
PORT_UNREACHABLE = 3
ADMIN_PROHIBITED = 13

MIN_MTU = 68  # every IPv4 link carries this much (RFC 791 §3.2)

# What the engine and the transports ask for → type and code.
KINDS = {
    "no_route": (UNREACHABLE, NET_UNREACHABLE),
    "host": (UNREACHABLE, HOST_UNREACHABLE),
    "protocol": (UNREACHABLE, PROTOCOL_UNREACHABLE),
    "port": (UNREACHABLE, PORT_UNREACHABLE),
    "too_big": (UNREACHABLE, FRAGMENTATION_NEEDED),
    "admin": (UNREACHABLE, ADMIN_PROHIBITED),
    "ttl": (TIME_EXCEEDED, 0),
    "reassembly": (TIME_EXCEEDED, 1),
    "parameter": (PARAMETER_PROBLEM, 0),
}


class Icmp(IcmpLayer):
    """ICMP of one stack.

    Args:
        ip: the engine below; it is told to bring its messages here.
        now: the time.
        rng: source of identifiers.
        config: limits and times.
    """

    family = 4
    protocol = PROTOCOL
    echo_request = ECHO_REQUEST
    echo_reply = ECHO_REPLY
    ip_header = 20
    error_size = 576  # RFC 1812 §4.3.2.3
    host_unreachable = KINDS["host"]

    def __init__(self, ip: IpEngine, *, now: Callable[[], int], rng: random.Random, config: NetConfig) -> None:
        echo = EchoPorts(now=now, rng=rng, limit=config.echo_queue)
        super().__init__("icmp", ip, now=now, config=config, echo=echo, error_handlers={})

    def pseudo_sum(self, src: int, dst: int, size: int) -> int:
        return 0

    def receive(self, packet: PacketBuffer, header: IpHeader, kind: int, code: int, value: int) -> str:
        if kind not in (UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM):
            # Nobody may change routes by a redirect here (RFC 1122 §3.2.2.2); source quench is deprecated (RFC 6633).
            return "rx_ignored_type" if kind in ERRORS else "rx_dropped_type"
        mtu = 0
        if kind == UNREACHABLE and code == FRAGMENTATION_NEEDED:
            mtu = value & 0xFFFF  # RFC 1191 §4
            if mtu < MIN_MTU:
                return "rx_dropped_mtu"
        return self.error_arrived(packet, header, kind, code, mtu)

    def read_quote(self, quote: bytes) -> Quote | str:
        if len(quote) < QUOTED.size:
            return "rx_dropped_quote_short"
        first, _, _, _, frag, _, protocol, _, src, dst = QUOTED.unpack_from(quote)
        size = (first & 15) * 4
        if first >> 4 != 4 or size < QUOTED.size or len(quote) < size + 8:
            return "rx_dropped_quote_short"
        if frag & 0x1FFF:
            return "rx_dropped_quote_foreign"
        return Quote(V4_PREFIX | src, V4_PREFIX | dst, protocol, quote[size:])

    def is_error(self, kind: int) -> bool:
        return kind in ERRORS

    def report(self, packet: PacketBuffer, header: IpHeader, kind: str, value: int) -> None:
        """The engine or a transport asks for an error: see `KINDS`; `value` is an MTU or the offset of a bad byte."""
        if kind == "refused":
            self.tell_sender(Quote(header.src, header.dst, header.protocol, packet.tobytes()), *KINDS["port"])
        elif kind in KINDS:
            word = value & 0xFFFF if kind == "too_big" else value << 24 & 0xFF00_0000 if kind == "parameter" else 0
            self.send_error(packet, header, *KINDS[kind], word)
