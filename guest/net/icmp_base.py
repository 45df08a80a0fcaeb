"""What ICMP of both families does: echo answered and sent, errors sent and received. Its instances: icmp.py, icmpv6.py.

RFC 792, RFC 1122 §3.2.2, RFC 1812 §4.3.2, RFC 4443.

Promises:
- A message with a bad checksum, or shorter than 8 bytes, is dropped and counted.
- An echo reply carries the request's identifier, sequence number and payload; a long payload is shared with the
  request's memory, not copied, and nothing is written into that memory.
- An error is never sent about an error, a broadcast or multicast (RFC 4443 has two exceptions), a fragment that is not
  the first, or a source that is not one host; all errors of a family together keep within a token bucket.
- A received error is believed only if the packet that it quotes is long enough and has an own source.
- It changes a path MTU only if that packet was sent here: whoever takes the errors of its protocol knows it, or it is
  among the last large packets of the raw ends or the last large echo replies (`REMEMBERED` of each).

Every message that comes in is counted once more: under `rx_echo_requests`, `rx_echo_replies`, `rx_errors`, `rx_nd`,
`rx_mld`, `rx_ignored_…` or `rx_dropped_…`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from guest.net.address import is_loopback, is_multicast, is_unspecified
from guest.net.checksum import checksum, sum_views, update
from guest.net.config import NetConfig
from guest.net.echo import HEADER, HEADER_SIZE, EchoPort, EchoPorts
from guest.net.family import IpHeader
from guest.net.icmp_error import ErrorHandler, IcmpError, TokenBucket
from guest.net.ip import IpEngine, IpInterface
from guest.net.layer import Layer
from guest.net.pbuf import CAST_HOST, SMALL_FRAME, PacketBuffer

REMEMBERED = 256
LARGE = 512  # bytes behind the IP header; no path that we believe in is too narrow for less (see pmtu.py)


class Quote(NamedTuple):
    """The packet that an error quotes: its addresses, its transport, and that transport's first bytes."""

    src: int
    dst: int
    protocol: int
    rest: bytes


class RawEnds(Protocol):
    """What ICMP asks of the raw ends."""

    def icmp_error(self, protocol: int, error: IcmpError) -> bool:
        """An error about a packet of `protocol`: tell the ends that it may be of; whether there were any."""

    def has_sent(self, dst: int, protocol: int, start: bytes) -> bool:
        """Whether a large packet with these first 8 bytes behind its IP header was sent of late."""


class IcmpLayer(Layer, ABC):
    """ICMP of one family in one stack.

    Args:
        stage: its name.
        ip: the engine below.
        now: the time.
        config: limits and times.
        echo: the identifiers that both families share.
        error_handlers: see below; shared by both families.

    Attributes:
        echo: the identifiers.
        error_handlers: protocol number → who wants errors about its packets; it returns whether they were its own.
        raw: the raw ends; they hear of an error before its handler does.
        elsewhere: takes echo requests for addresses that are not this stack's own, its packet at the ICMP header; the
            counter that they belong under. For proxies; without it they are answered like all others.
    """

    family: int
    protocol: int
    echo_request: int
    echo_reply: int
    ip_header: int  # bytes of the IP header before an error
    error_size: int  # bytes of an error's whole IP packet, at most
    host_unreachable: tuple[int, int]  # type and code

    def __init__(
        self,
        stage: str,
        ip: IpEngine,
        *,
        now: Callable[[], int],
        config: NetConfig,
        echo: EchoPorts,
        error_handlers: dict[int, ErrorHandler],
    ) -> None:
        super().__init__(stage)
        self._ip = ip
        self._config = config
        self.echo = echo
        self.error_handlers = error_handlers
        self.raw: RawEnds | None = None
        self.elsewhere: Callable[[PacketBuffer, IpHeader, int, int], str] | None = None
        self._bucket = TokenBucket(now, config.icmp_rate, config.icmp_burst)
        self._replied: deque[tuple[int, bytes]] = deque(maxlen=REMEMBERED)  # peer; identifier and number
        echo.senders[self.family] = self
        error_handlers[self.protocol] = self._echo_failed
        ip.handlers[self.protocol] = self.input

    # -- what a family knows -------------------------------------------------------------------------------------

    @abstractmethod
    def pseudo_sum(self, src: int, dst: int, size: int) -> int:
        """The sum of what a checksum covers besides the message."""

    @abstractmethod
    def receive(self, packet: PacketBuffer, header: IpHeader, kind: int, code: int, value: int) -> str:
        """A message that is no echo: the counter that it belongs under. `value` is the header's second word."""

    @abstractmethod
    def read_quote(self, quote: bytes) -> Quote | str:
        """Read a quoted packet; or the reason not to believe it."""

    @abstractmethod
    def is_error(self, kind: int) -> bool:
        """Whether a message type is an error, about which no other is sent."""

    # -- input ---------------------------------------------------------------------------------------------------

    def input(self, packet: PacketBuffer, header: IpHeader) -> None:
        """A message arrived, with its IP header pulled."""
        self.counters["rx_packets"] += 1
        self.settle(packet, self._receive(packet, header))

    def _receive(self, packet: PacketBuffer, header: IpHeader) -> str:
        if not packet.pullup(HEADER_SIZE):
            return "rx_dropped_short"
        if not self.is_whole(packet, header):
            return "rx_dropped_checksum"
        kind, code, check, ident, seq = HEADER.unpack_from(packet.area, packet.data)
        if self.trace is not None:
            self.trace(self.stage, packet, f"type {kind} code {code}")
        if kind == self.echo_request:
            if self.elsewhere is not None and packet.cast == CAST_HOST and not self._ip.is_local(header.dst):
                return self.elsewhere(packet, header, ident, seq)
            return self._answer(packet, header, check, code)
        if kind == self.echo_reply:
            owner = self.echo.owners.get(ident)
            if owner is None:
                return "rx_ignored_no_port"
            return "rx_echo_replies" if owner.echo_reply(packet, header) else "rx_dropped_queue_full"
        return self.receive(packet, header, kind, code, ident << 16 | seq)

    def is_whole(self, packet: PacketBuffer, header: IpHeader) -> bool:
        """Whether the checksum of a message is right, its IP header pulled."""
        return sum_views(packet.views(), self.pseudo_sum(header.src, header.dst, len(packet))) == 0xFFFF

    def answers_groups(self) -> bool:
        """Whether pings to broadcast and multicast addresses are answered."""
        return self._config.icmp_echo_broadcast

    def _answer(self, packet: PacketBuffer, header: IpHeader, check: int, code: int) -> str:
        ours = packet.cast == CAST_HOST
        if not ours and not self.answers_groups():
            return "rx_ignored_broadcast"
        if is_unspecified(header.src):
            return "rx_dropped_source"
        src = header.dst if ours else self._source(header)
        if src is None:
            return "rx_dropped_source"
        size = len(packet) - HEADER_SIZE
        small = size <= SMALL_FRAME
        reply = PacketBuffer.allocate(HEADER_SIZE + (size if small else 0))
        at = reply.data
        reply.put(HEADER_SIZE)[:] = packet.area[packet.data : packet.data + HEADER_SIZE]
        reply.area[at : at + 2] = bytes((self.echo_reply, 0))
        check = update(check, self.echo_request << 8 | code, self.echo_reply << 8)
        if not (check or self.echo_reply or any(packet.tobytes()[4:])):
            check = 0xFFFF  # in a message of zeros the checksum must not be zero as well
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
        if not ours and self.family == 6:  # other addresses than the request's are covered
            self._sum_up(reply, src, header.src)
        about = bytes(reply.area[reply.data + 4 : reply.data + 8]) if size >= LARGE - HEADER_SIZE else b""
        failed = self._send(reply, header.src, src, header, tos=header.tos)
        if not failed:
            self.counters["tx_echo_replies"] += 1
            if about:
                self._replied.append((header.src, about))
        return "rx_echo_requests"

    def error_arrived(self, packet: PacketBuffer, header: IpHeader, kind: int, code: int, mtu: int) -> str:
        """An error about a packet of ours, its `mtu` checked or 0: tell whoever sent that packet."""
        packet.pull(HEADER_SIZE)
        quote = self.read_quote(packet.tobytes())
        if isinstance(quote, str):
            return quote
        if not self._ip.is_local(quote.src):
            return "rx_dropped_quote_foreign"
        error = IcmpError(kind, code, mtu, header.src, quote.src, quote.dst, quote.rest, self.family)
        told, own = self._tell(quote.protocol, error)
        if error.too_big and (own or self._was_sent(quote)):
            self._ip.packet_too_big(quote.dst, mtu)
            return "rx_errors"
        return "rx_errors" if told else "rx_ignored_no_port"

    def _tell(self, protocol: int, error: IcmpError) -> tuple[bool, bool]:
        """Tell whoever may have sent the packet: whether there was anybody, and whether somebody knows that he did."""
        heard = self.raw is not None and self.raw.icmp_error(protocol, error)
        handler = self.error_handlers.get(protocol)
        own = handler is not None and handler(error)
        return heard or own, own

    def _was_sent(self, quote: Quote) -> bool:
        """Whether the quoted packet, which no handler knows, is remembered."""
        if quote.protocol == self.protocol and quote.rest[0] == self.echo_reply:
            if (quote.dst, quote.rest[4:8]) in self._replied:
                return True
        return self.raw is not None and self.raw.has_sent(quote.dst, quote.protocol, quote.rest[:8])

    def _echo_failed(self, error: IcmpError) -> bool:
        if error.family != self.family or error.quoted[0] != self.echo_request:
            return False
        owner = self.echo.owners.get(int.from_bytes(error.quoted[4:6], "big"))
        return owner is not None and owner.echo_failed(error)

    # -- output --------------------------------------------------------------------------------------------------

    def open_echo(self, family: int | None = None) -> EchoPort:
        """A port under an identifier that nobody else has; for one family, or for both. Raises OSError (EMFILE)."""
        return self.echo.open(family)

    def _source(self, header: IpHeader) -> int | None:
        """The own address from which to answer `header`'s sender."""
        hop = self._ip.hop(header.src, self._back(header))
        return None if hop is None else hop.src

    @staticmethod
    def _back(header: IpHeader) -> IpInterface | None:
        """The interface that an answer must leave by: a link-local address says nothing about which link."""
        return header.interface if header.src >> 118 == 0x3FA else None

    def _sum_up(self, message: PacketBuffer, src: int, dst: int) -> None:
        """Fill in the checksum."""
        at = message.data + 2
        message.area[at : at + 2] = b"\0\0"
        check = checksum(message.views(), self.pseudo_sum(src, dst, len(message)))
        message.area[at : at + 2] = check.to_bytes(2, "big")

    def send_message(
        self, body: bytes, src: int, dst: int, interface: IpInterface, ttl: int, router_alert: bool = False
    ) -> int:
        """Send a message of a protocol inside ICMP, out of `interface`; 0 or an errno. Fills in its checksum."""
        message = PacketBuffer.from_bytes(body)
        self._sum_up(message, src, dst)
        return self._ip.output(
            message, dst, self.protocol, src=src, ttl=ttl, interface=interface, router_alert=router_alert
        )

    def _send(self, message: PacketBuffer, dst: int, src: int, about: IpHeader, tos: int = 0) -> int:
        return self._ip.output(
            message, dst, self.protocol, src=src, tos=tos, dont_fragment=False, interface=self._back(about)
        )

    def send_echo(
        self,
        dst: int,
        ident: int,
        seq: int,
        payload: bytes,
        ttl: int | None = None,
        interface: IpInterface | None = None,
    ) -> int:
        """Send an echo request; 0 or an errno."""
        packet = PacketBuffer.allocate(HEADER_SIZE)
        packet.put(HEADER_SIZE)[:] = HEADER.pack(self.echo_request, 0, 0, ident, seq)
        if payload:
            packet.frags.append(memoryview(payload))
        src = None
        if self.family == 6:
            hop = self._ip.hop(dst, interface)
            src = None if hop is None else hop.src
        self._sum_up(packet, src or 0, dst)
        failed = self._ip.output(packet, dst, self.protocol, src=src, ttl=ttl, dont_fragment=False, interface=interface)
        if not failed:
            self.counters["tx_echo_requests"] += 1
        return failed

    def send_error(
        self, packet: PacketBuffer, header: IpHeader, kind: int, code: int, value: int = 0, groups: bool = False
    ) -> bool:
        """Send an error about a received packet, where that is allowed; whether it was sent.

        Args:
            packet: its IP header stands at `packet.network`; whether it was pulled does not matter.
            header: that header.
            kind, code, value: of the message; `value` is the second word of its header.
            groups: also about packets to groups.
        """
        src = header.src
        cast_ok = groups or (packet.cast == CAST_HOST and not is_multicast(header.dst))
        if not cast_ok or header.fragment >> 1 or is_unspecified(src) or is_multicast(src) or packet.network < 0:
            self.counters["tx_suppressed"] += 1
            return False
        quoted = bytes(packet.area[packet.network : packet.data]) + packet.tobytes()
        if header.protocol == self.protocol and (len(quoted) <= header.size or self.is_error(quoted[header.size])):
            self.counters["tx_suppressed"] += 1
            return False
        if not self._bucket.take():
            self.counters["tx_dropped_rate_limited"] += 1
            return False
        own = header.dst if self._ip.is_local(header.dst) and not is_loopback(header.dst) else None
        own = self._source(header) if own is None else own
        if own is None:
            self.counters["tx_dropped_no_route"] += 1
            return False
        body = quoted[: self.error_size - self.ip_header - HEADER_SIZE]
        message = PacketBuffer.from_bytes(HEADER.pack(kind, code, 0, value >> 16, value & 0xFFFF) + body)
        self._sum_up(message, own, src)
        failed = self._send(message, src, own, header)
        if not failed:
            self.counters["tx_errors"] += 1
        return not failed

    def neighbour_failed(self, packet: PacketBuffer, header: IpHeader) -> None:
        """A packet, starting at its IP header, was dropped because its next hop did not answer.

        An own one is an error for whoever sent it; about a forwarded one its sender is told.
        """
        if not self._ip.is_local(header.src):
            self.send_error(packet, header, *self.host_unreachable)
            return
        quote = self.read_quote(packet.tobytes())
        if isinstance(quote, Quote):
            self.tell_sender(quote, *self.host_unreachable)

    def tell_sender(self, quote: Quote, kind: int, code: int) -> None:
        """Tell whoever sent an own packet, its `rest` at least 8 bytes, that it got no further than here."""
        self._tell(quote.protocol, IcmpError(kind, code, 0, quote.src, quote.src, quote.dst, quote.rest, self.family))
