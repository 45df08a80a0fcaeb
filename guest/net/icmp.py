"""ICMP: answers echo, sends and receives errors, and the port that ping uses.

RFC 792, RFC 1122 §3.2.2, RFC 1812 §4.3.2.

Promises:
- A message with a bad checksum, or shorter than 8 bytes, is dropped and counted.
- An echo reply carries the request's identifier, sequence number and payload; a long payload is shared with the
  request's memory, not copied, and nothing is written into that memory.
- An error is never sent about an error, a broadcast or multicast, a fragment that is not the first, or a source that
  is not one host (RFC 1122 §3.2.2); all errors together keep within a token bucket.
- A received error is believed only if the packet that it quotes is long enough and was sent from here.

Every message that comes in is counted once more: under `rx_echo_requests`, `rx_echo_replies`, `rx_errors`,
`rx_ignored_…` or `rx_dropped_…`.
"""

from __future__ import annotations

import errno
import os
import random
import struct
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from guest.net.address import V4_PREFIX, format_address, is_unspecified, to_address
from guest.net.checksum import checksum, sum_views, update
from guest.net.config import SECOND, NetConfig
from guest.net.family import IpHeader
from guest.net.ip import IpEngine
from guest.net.layer import Layer
from guest.net.pbuf import CAST_HOST, SMALL_FRAME, PacketBuffer

PROTOCOL = 1

HEADER = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence number (of an error: 0, next-hop MTU)
HEADER_SIZE = 8
assert HEADER.size == HEADER_SIZE
QUOTED = struct.Struct("!BBHHHBBHII")  # the IPv4 header that an error quotes

ECHO_REPLY = 0
UNREACHABLE = 3
SOURCE_QUENCH = 4
REDIRECT = 5
ECHO_REQUEST = 8
TIME_EXCEEDED = 11
PARAMETER_PROBLEM = 12
ERRORS = frozenset((UNREACHABLE, SOURCE_QUENCH, REDIRECT, TIME_EXCEEDED, PARAMETER_PROBLEM))

HOST_UNREACHABLE = 1
PROTOCOL_UNREACHABLE = 2
FRAGMENTATION_NEEDED = 4

ERROR_SIZE = 576  # bytes of an error's whole IP packet, at most (RFC 1812 §4.3.2.3)
MIN_MTU = 68  # every IPv4 link carries this much (RFC 791 §3.2)

UNREACHABLE_TEXT = {
    0: "Destination Net Unreachable",
    1: "Destination Host Unreachable",
    2: "Destination Protocol Unreachable",
    3: "Destination Port Unreachable",
    5: "Source Route Failed",
    9: "Destination Net Prohibited",
    10: "Destination Host Prohibited",
    13: "Packet Filtered",
}


class IcmpError(NamedTuple):
    """An error about a packet that was sent from here.

    Attributes:
        type, code: of the message. mtu: next-hop MTU of "fragmentation needed", else 0.
        offender: who reports it; an own address when the neighbour did not answer.
        src, dst: of the packet it is about.
        quoted: that packet's first bytes behind its IP header, at least 8.
    """

    type: int
    code: int
    mtu: int
    offender: int
    src: int
    dst: int
    quoted: bytes

    @property
    def text(self) -> str:
        """What ping prints."""
        if self.type == UNREACHABLE:
            if self.code == FRAGMENTATION_NEEDED:
                return f"Frag needed and DF set (mtu = {self.mtu})"
            return UNREACHABLE_TEXT.get(self.code, f"Destination Unreachable, code {self.code}")
        if self.type == TIME_EXCEEDED:
            return "Frag reassembly time exceeded" if self.code else "Time to live exceeded"
        return "Parameter problem"


class EchoReply(NamedTuple):
    """What came back for an echo request.

    Attributes:
        src: who answered, as text.
        ident, seq: of the request.
        ttl: hops that the reply had left (0 for an error).
        payload: of the reply (empty for an error).
        when: the time it arrived.
        error: None for a reply, else what went wrong, in ping's words; then `src` is who says so.
    """

    src: str
    ident: int
    seq: int
    ttl: int
    payload: bytes
    when: int
    error: str | None = None


ErrorHandler: TypeAlias = Callable[[IcmpError], bool]


class EchoPort:
    """Sends echo requests under an identifier of its own and collects what comes back. Made by `Icmp.open_echo`.

    Attributes:
        ident: the identifier.
        on_ready: called when something can be received.
    """

    def __init__(self, icmp: Icmp, ident: int, limit: int) -> None:
        self.ident = ident
        self.on_ready: Callable[[], None] | None = None
        self._icmp = icmp
        self._limit = limit
        self._received: deque[EchoReply] = deque()
        self._open = True

    def send(self, dst: int | str, seq: int, payload: bytes, ttl: int | None = None) -> None:
        """Send a request.

        Args:
            dst: text or 128-bit number.
            seq: its lower 16 bits count.
            payload: goes out from where it is; it is not copied.
            ttl: hops; the stack's usual number if not given.

        Raises:
            AddressError: `dst` is no address.
            OSError: with the errno of `IpEngine.output`, or EBADF when the port is closed.
        """
        failed = errno.EBADF
        if self._open:
            failed = self._icmp.send_echo(to_address(dst), self.ident, seq & 0xFFFF, payload, ttl)
        if failed:
            raise OSError(failed, os.strerror(failed))

    def receive(self) -> EchoReply | None:
        """The oldest reply or error that waits, or None."""
        return self._received.popleft() if self._received else None

    def deliver(self, reply: EchoReply) -> bool:
        """Queue a reply; False when the queue is full."""
        if len(self._received) >= self._limit:
            return False
        self._received.append(reply)
        if self.on_ready is not None:
            self.on_ready()
        return True

    def close(self) -> None:
        """Give the identifier back."""
        if self._open:
            self._open = False
            self._icmp.close_echo(self)


class Icmp(Layer):
    """ICMP of one stack.

    Args:
        ip: the engine below; it is told to bring its messages and complaints here.
        now: the time.
        rng: source of identifiers.
        config: limits and times.

    Attributes:
        error_handlers: protocol number → who wants errors about its packets; it returns whether they were its own.
    """

    def __init__(self, ip: IpEngine, *, now: Callable[[], int], rng: random.Random, config: NetConfig) -> None:
        super().__init__("icmp")
        self._ip = ip
        self._now = now
        self._rng = rng
        self._config = config
        self._ports: dict[int, EchoPort] = {}
        self.error_handlers: dict[int, ErrorHandler] = {PROTOCOL: self._echo_failed}
        # The token bucket is kept in microseconds: a message costs the time after which the next one may go.
        self._cost = SECOND // max(1, config.icmp_rate)
        self._credit = self._cost * config.icmp_burst
        self._credited = now()
        ip.handlers[PROTOCOL] = self.input
        ip.unreachable = self.protocol_unreachable

    # -- input ---------------------------------------------------------------------------------------------------

    def input(self, packet: PacketBuffer, header: IpHeader) -> None:
        """A message arrived, with its IP header pulled."""
        self.counters["rx_packets"] += 1
        result = self._receive(packet, header)
        if result.startswith("rx_dropped"):
            self.drop(packet, result)
        else:
            self.counters[result] += 1
            if self.trace is not None:
                self.trace(self.stage, packet, result)

    def _receive(self, packet: PacketBuffer, header: IpHeader) -> str:
        if not packet.pullup(HEADER_SIZE):
            return "rx_dropped_short"
        if sum_views(packet.views()) != 0xFFFF:
            return "rx_dropped_checksum"
        kind, code, check, ident, seq = HEADER.unpack_from(packet.area, packet.data)
        if kind == ECHO_REQUEST:
            return self._answer(packet, header, check, code)
        if kind == ECHO_REPLY:
            packet.pull(HEADER_SIZE)
            port = self._ports.get(ident)
            if port is None:
                return "rx_ignored_no_port"
            reply = EchoReply(format_address(header.src), ident, seq, header.ttl, packet.tobytes(), self._now())
            return "rx_echo_replies" if port.deliver(reply) else "rx_dropped_queue_full"
        if kind in (UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM):
            return self._error(packet, header, kind, code, seq)
        # Nobody may change routes by a redirect here (RFC 1122 §3.2.2.2); source quench is deprecated (RFC 6633).
        return "rx_ignored_type" if kind in ERRORS else "rx_dropped_type"

    def _answer(self, packet: PacketBuffer, header: IpHeader, check: int, code: int) -> str:
        if packet.cast != CAST_HOST and not self._config.icmp_echo_broadcast:
            return "rx_ignored_broadcast"
        if is_unspecified(header.src):
            return "rx_dropped_source"
        size = len(packet) - HEADER_SIZE
        small = size <= SMALL_FRAME
        reply = PacketBuffer.allocate(HEADER_SIZE + (size if small else 0))
        at = reply.data
        reply.put(HEADER_SIZE)[:] = packet.area[packet.data : packet.data + HEADER_SIZE]
        reply.area[at : at + 2] = b"\0\0"  # echo reply, code 0
        # In a message of zeros the checksum must not be zero as well; 0xFFFF is right wherever 0 is.
        check = update(check, ECHO_REQUEST << 8 | code, 0) or 0xFFFF
        reply.area[at + 2 : at + 4] = check.to_bytes(2, "big")
        packet.pull(HEADER_SIZE)
        if small:
            room = reply.put(size)
            at = 0
            for view in packet.views():
                room[at : at + len(view)] = view
                at += len(view)
        else:
            reply.frags = packet.views()
            reply.lease = packet.lease
        src = header.dst if packet.cast == CAST_HOST else None
        failed = self._ip.output(reply, header.src, PROTOCOL, src=src, tos=header.tos)
        if not failed:
            self.counters["tx_echo_replies"] += 1
        return "rx_echo_requests"

    def _error(self, packet: PacketBuffer, header: IpHeader, kind: int, code: int, mtu: int) -> str:
        packet.pull(HEADER_SIZE)
        quote = packet.tobytes()
        if len(quote) < QUOTED.size:
            return "rx_dropped_quote_short"
        first, _, _, _, frag, _, protocol, _, src, dst = QUOTED.unpack_from(quote)
        size = (first & 15) * 4
        if first >> 4 != 4 or size < QUOTED.size or len(quote) < size + 8:
            return "rx_dropped_quote_short"
        if not self._ip.is_local(V4_PREFIX | src) or frag & 0x1FFF:
            return "rx_dropped_quote_foreign"
        if kind == UNREACHABLE and code == FRAGMENTATION_NEEDED:
            if mtu < MIN_MTU:
                return "rx_dropped_mtu"
        else:
            mtu = 0
        error = IcmpError(kind, code, mtu, header.src, V4_PREFIX | src, V4_PREFIX | dst, quote[size:])
        handler = self.error_handlers.get(protocol)
        if handler is None or not handler(error):
            return "rx_ignored_no_port"
        return "rx_errors"

    def _echo_failed(self, error: IcmpError) -> bool:
        kind, _, _, ident, seq = HEADER.unpack_from(error.quoted)
        port = self._ports.get(ident)
        if kind != ECHO_REQUEST or port is None:
            return False
        return port.deliver(EchoReply(format_address(error.offender), ident, seq, 0, b"", self._now(), error.text))

    # -- output --------------------------------------------------------------------------------------------------

    def open_echo(self) -> EchoPort:
        """A port under an identifier that no other port has. Raises OSError (EMFILE) when all 65,536 are taken."""
        if len(self._ports) > 0xFFFF:
            raise OSError(errno.EMFILE, "no echo identifier is free")
        ident = self._rng.getrandbits(16)
        while ident in self._ports:
            ident = ident + 1 & 0xFFFF
        port = self._ports[ident] = EchoPort(self, ident, self._config.echo_queue)
        return port

    def close_echo(self, port: EchoPort) -> None:
        """Forget a port."""
        if self._ports.get(port.ident) is port:
            del self._ports[port.ident]

    def send_echo(self, dst: int, ident: int, seq: int, payload: bytes, ttl: int | None = None) -> int:
        """Send an echo request; 0 or an errno."""
        packet = PacketBuffer.allocate(HEADER_SIZE)
        header = HEADER.pack(ECHO_REQUEST, 0, 0, ident, seq)
        check = checksum((header, payload))
        packet.put(HEADER_SIZE)[:] = HEADER.pack(ECHO_REQUEST, 0, check, ident, seq)
        if payload:
            packet.frags.append(memoryview(payload))
        failed = self._ip.output(packet, dst, PROTOCOL, ttl=ttl)
        if not failed:
            self.counters["tx_echo_requests"] += 1
        return failed

    def protocol_unreachable(self, packet: PacketBuffer, header: IpHeader) -> None:
        """Tell the sender that nothing here takes its protocol."""
        self.send_error(packet, header, UNREACHABLE, PROTOCOL_UNREACHABLE)

    def send_error(self, packet: PacketBuffer, header: IpHeader, kind: int, code: int, mtu: int = 0) -> bool:
        """Send an error about a received packet, where that is allowed; whether it was sent.

        Args:
            packet: as a transport handler has it: its IP header stands at `packet.network`.
            header: that header.
            kind, code, mtu: of the message.
        """
        if packet.cast != CAST_HOST or header.fragment >> 1 or is_unspecified(header.src):
            self.counters["tx_suppressed"] += 1
            return False
        if header.protocol == PROTOCOL and (not len(packet) or packet.views()[0][0] in ERRORS):
            self.counters["tx_suppressed"] += 1
            return False
        if not self._take_token():
            self.counters["tx_dropped_rate_limited"] += 1
            return False
        quoted = bytes(packet.area[packet.network : packet.data]) + packet.tobytes()
        body = quoted[: ERROR_SIZE - 20 - HEADER_SIZE]
        check = checksum((HEADER.pack(kind, code, 0, 0, mtu), body))
        message = PacketBuffer.from_bytes(HEADER.pack(kind, code, check, 0, mtu) + body)
        failed = self._ip.output(message, header.src, PROTOCOL, src=header.dst)
        if not failed:
            self.counters["tx_errors"] += 1
        return not failed

    def neighbour_failed(self, packet: PacketBuffer) -> None:
        """An own packet, starting at its IP header, was dropped because its next hop did not answer ARP."""
        quote = packet.tobytes()
        first, _, _, _, _, _, protocol, _, src, dst = QUOTED.unpack_from(quote)
        handler = self.error_handlers.get(protocol)
        quoted = quote[(first & 15) * 4 :]
        if handler is not None and len(quoted) >= 8:
            own = V4_PREFIX | src
            handler(IcmpError(UNREACHABLE, HOST_UNREACHABLE, 0, own, own, V4_PREFIX | dst, quoted))

    def _take_token(self) -> bool:
        now = self._now()
        self._credit = min(self._credit + now - self._credited, self._cost * self._config.icmp_burst)
        self._credited = now
        if self._credit < self._cost:
            return False
        self._credit -= self._cost
        return True
