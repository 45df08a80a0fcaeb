"""ICMPv6: message types, errors by kind, and the packets that they quote. RFC 4443, RFC 8201 §4.

What it shares with ICMP, and its promises, are in icmp_base.py. Neighbour discovery and multicast listener discovery
are messages of ICMPv6; they are handed to whoever is in `handlers` once their checksums were found right.
"""

from __future__ import annotations

from collections.abc import Callable

from guest.net.config import NetConfig
from guest.net.echo import HEADER_SIZE
from guest.net.family import IpHeader
from guest.net.icmp import Icmp
from guest.net.icmp_base import IcmpLayer, Quote
from guest.net.icmp_error import V6_PACKET_TOO_BIG, V6_PARAMETER_PROBLEM, V6_TIME_EXCEEDED, V6_UNREACHABLE
from guest.net.ip import IpEngine
from guest.net.pbuf import PacketBuffer

PROTOCOL = 58

ECHO_REQUEST = 128
ECHO_REPLY = 129
INFORMATIONAL = 128  # types from here on are no errors
REDIRECT = 137  # is no error, but none is sent about it (RFC 4443 §2.4 (e.2))
ERRORS = frozenset((V6_UNREACHABLE, V6_PACKET_TOO_BIG, V6_TIME_EXCEEDED, V6_PARAMETER_PROBLEM))

MIN_MTU = 1280  # every IPv6 link carries this much (RFC 8200 §5)
HEADER_SIZE_V6 = 40
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION = 0, 43, 44, 60
MAX_EXTENSIONS = 8  # in a quoted packet of ours, which has two at most

# What the engine and the transports ask for → type and code. An unknown "protocol" is a bad byte of a header here.
KINDS = {
    "no_route": (V6_UNREACHABLE, 0),
    "admin": (V6_UNREACHABLE, 1),
    "scope": (V6_UNREACHABLE, 2),
    "host": (V6_UNREACHABLE, 3),
    "port": (V6_UNREACHABLE, 4),
    "too_big": (V6_PACKET_TOO_BIG, 0),
    "ttl": (V6_TIME_EXCEEDED, 0),
    "reassembly": (V6_TIME_EXCEEDED, 1),
    "parameter": (V6_PARAMETER_PROBLEM, 0),
    "protocol": (V6_PARAMETER_PROBLEM, 1),
    "option": (V6_PARAMETER_PROBLEM, 2),
    "header_chain": (V6_PARAMETER_PROBLEM, 3),  # RFC 7112 §5
}
ABOUT_GROUPS = frozenset(("too_big", "option"))  # RFC 4443 §2.4 (e.3)

# Takes a message with its header linear; the counter that it belongs under.
MessageHandler = Callable[[PacketBuffer, IpHeader], str]


class Icmpv6(IcmpLayer):
    """ICMPv6 of one stack.

    Args:
        ip: the engine below; it is told to bring its messages here.
        icmp: the other family's; identifiers and error handlers are shared with it.
        now: the time.
        config: limits and times.

    Attributes:
        handlers: message type → who takes such messages.
    """

    family = 6
    protocol = PROTOCOL
    echo_request = ECHO_REQUEST
    echo_reply = ECHO_REPLY
    ip_header = HEADER_SIZE_V6
    error_size = MIN_MTU  # RFC 4443 §2.4 (c)
    host_unreachable = KINDS["host"]

    def __init__(self, ip: IpEngine, icmp: Icmp, *, now: Callable[[], int], config: NetConfig) -> None:
        super().__init__(
            "icmpv6", ip, now=now, config=config, echo=icmp.echo, error_handlers=icmp.error_handlers
        )
        self.handlers: dict[int, MessageHandler] = {}

    def pseudo_sum(self, src: int, dst: int, size: int) -> int:
        return (src + dst + size + PROTOCOL) % 65535  # RFC 8200 §8.1; 2^16 is 1 modulo 65535

    def answers_groups(self) -> bool:
        return self._config.icmpv6_echo_multicast

    def receive(self, packet: PacketBuffer, header: IpHeader, kind: int, code: int, value: int) -> str:
        handler = self.handlers.get(kind)
        if handler is not None:
            return handler(packet, header)
        if kind in ERRORS:
            mtu = 0
            if kind == V6_PACKET_TOO_BIG:
                mtu = value
                if mtu < MIN_MTU:  # RFC 8201 §4
                    return "rx_dropped_mtu"
            return self.error_arrived(packet, header, kind, code, mtu)
        return "rx_dropped_type"

    def read_quote(self, quote: bytes) -> Quote | str:
        if len(quote) < HEADER_SIZE_V6 + HEADER_SIZE or quote[0] >> 4 != 6:
            return "rx_dropped_quote_short"
        protocol = quote[6]
        src = int.from_bytes(quote[8:24], "big")
        dst = int.from_bytes(quote[24:40], "big")
        at = HEADER_SIZE_V6
        for _ in range(MAX_EXTENSIONS):
            if protocol not in (HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION):
                break
            if len(quote) < at + 8:
                return "rx_dropped_quote_short"
            if protocol == FRAGMENT and int.from_bytes(quote[at + 2 : at + 4], "big") >> 3:
                return "rx_dropped_quote_foreign"
            size = 8 if protocol == FRAGMENT else quote[at + 1] * 8 + 8
            protocol = quote[at]
            at += size
        if len(quote) < at + 8:
            return "rx_dropped_quote_short"
        return Quote(src, dst, protocol, quote[at:])

    def is_error(self, kind: int) -> bool:
        return kind < INFORMATIONAL or kind == REDIRECT

    def report(self, packet: PacketBuffer, header: IpHeader, kind: str, value: int) -> None:
        """The engine or a transport asks for an error: see `KINDS`; `value` is an MTU or the offset of a bad byte."""
        if kind == "refused":
            self.tell_sender(Quote(header.src, header.dst, header.protocol, packet.tobytes()), *KINDS["port"])
        elif kind in KINDS:
            self.send_error(packet, header, *KINDS[kind], value, groups=kind in ABOUT_GROUPS)
