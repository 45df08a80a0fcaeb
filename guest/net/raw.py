"""Raw ends, which see and send whole IP packets of one protocol. As on Linux: raw(7), RFC 3542 §3.

Raw ends get a copy, over the same bytes, of every packet of their protocol for this host, before its transport has seen
it: an IPv4 packet with its IP header, an IPv6 one without. What they take is no longer of an unknown protocol. A raw
IPv6 end gets no IPv4 packets.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from guest.net.address import V4_PREFIX
from guest.net.checksum import inet_sum, sum_views
from guest.net.config import NetConfig
from guest.net.datagram import MAX_SIZE, PortlessEndpoint
from guest.net.echo import EchoPorts
from guest.net.family import IpHeader
from guest.net.icmp_base import LARGE, REMEMBERED
from guest.net.icmp_error import IcmpError
from guest.net.ip import IpEngine
from guest.net.layer import Layer
from guest.net.pbuf import HEADROOM, Buffer, PacketBuffer
from guest.net.ping_end import PingEndpoint

if TYPE_CHECKING:
    from guest.net.interface import Interface

ICMP = 1
UDP = 17
ICMPV6 = 58
RAW = 255  # only sends, and brings its headers along


class RawEndpoint(PortlessEndpoint):
    """A raw socket below the system calls. Made by `Raw.open`."""

    def __init__(self, layer: Raw, ip: IpEngine, family: int, protocol: int) -> None:
        super().__init__(layer, ip, family, protocol)
        self.local = (self._any, protocol)
        if protocol == RAW:
            self.options.hdrincl = True
        if (family, protocol) == (6, ICMPV6):
            self.options.checksum_offset = 2

    def bind(self, addr: int, port: int = 0, interface: Interface | None = None) -> int:
        """Take an address; unlike elsewhere, again and again as long as the end is not connected."""
        if self.closed:
            return errno.EBADF
        if self.remote is not None:
            return errno.EINVAL
        return self._bind_address(addr, interface)

    def accepts(self, packet: PacketBuffer, header: IpHeader) -> bool:
        """Whether a packet of its family and protocol is for this end; the packet's IP header is pulled."""
        if not self._wants(packet, header):
            return False
        if self.remote is not None and self.remote[0] != header.src:
            return False
        options = self.options
        if options.icmp_filter and self.protocol == (ICMP if self.family == 4 else ICMPV6) and packet.pullup(1):
            kind = packet.area[packet.data]
            if (kind < 32 or self.family == 6) and options.icmp_filter >> kind & 1:
                return False
        if self.family == 6 and options.checksum_offset >= 0:
            size = len(packet)
            total = sum_views(packet.views()) + header.src + header.dst + size + self.protocol
            if total % 0xFFFF or size < options.checksum_offset + 2:
                self._layer.counters["rx_dropped_checksum"] += 1
                return False
        return True

    def take(self, packet: PacketBuffer, header: IpHeader) -> None:
        """Queue a packet that was accepted."""
        payload = packet.clone()
        if self.family == 4:
            payload.data = payload.network
        self._enqueue(payload, header)

    def send(
        self,
        pieces: Sequence[Buffer],
        to: tuple[int, int] | None = None,
        *,
        src: int | None = None,
        interface: Interface | None = None,
        ttl: int | None = None,
        tos: int | None = None,
    ) -> int:
        if self.closed:
            return errno.EBADF
        size = sum(map(len, pieces))
        if size > MAX_SIZE:
            return errno.EMSGSIZE
        to = self.remote if to is None else to
        if to is None:
            return errno.EDESTADDRREQ
        if self.family == 6 and to[1] not in (0, self.protocol):
            return errno.EINVAL
        failed, dst, src, out, hop = self._reach(to[0], src, interface)
        if failed or hop is None:
            return failed
        if self.error:
            return self.take_error()
        if self.shut_write:
            return errno.EPIPE
        packet = self._pack(pieces, size)
        if self.options.hdrincl:
            failed = self._ip.output_with_header(packet, dst, interface=out)
        else:
            src = hop.src if src is None else src
            at = self.options.checksum_offset
            if self.family == 6 and at >= 0:
                if at + 2 > size:
                    return errno.EINVAL
                self._sum_up(packet, at, src, dst, size)
            failed = self._output(packet, self.protocol, dst, src, hop, out, ttl, tos)
        self._layer.counters["tx_failed" if failed else "tx_packets"] += 1
        if not failed and size >= LARGE:
            self._remember(packet.area[HEADROOM:], dst)
        return failed

    def _remember(self, sent: memoryview, dst: int) -> None:
        """Note a large packet, so that an error about it is believed."""
        protocol, start = self.protocol, 0
        if self.options.hdrincl and self.family == 4:
            protocol, dst, start = sent[9], V4_PREFIX | int.from_bytes(sent[16:20], "big"), (sent[0] & 15) * 4
        elif self.options.hdrincl:
            protocol, dst, start = sent[6], int.from_bytes(sent[24:40], "big"), 40
        self._layer.remember(dst, protocol, bytes(sent[start : start + 8]))

    def _sum_up(self, packet: PacketBuffer, at: int, src: int, dst: int, size: int) -> None:
        """Fill in the checksum `at` bytes into the packet (RFC 3542 §3.1)."""
        at += packet.data
        packet.area[at : at + 2] = b"\0\0"
        check = 0xFFFF - (inet_sum(packet.linear) + src + dst + size + self.protocol) % 0xFFFF
        if check == 0xFFFF and self.protocol != UDP:
            check = 0
        packet.area[at : at + 2] = check.to_bytes(2, "big")

    def close(self) -> None:
        if self._closing():
            self._layer.forget(self)


class Raw(Layer):
    """The raw and ICMP datagram ends of one stack.

    Args:
        ip: the engine below.
        now: the time.
        config: limits and times.
        echo: the identifiers of echo requests (`Icmp.echo`).
    """

    def __init__(
        self,
        ip: IpEngine,
        *,
        now: Callable[[], int],
        config: NetConfig,
        echo: EchoPorts,
    ) -> None:
        super().__init__("raw")
        self.now = now
        self._ip = ip
        self.config = config
        self._echo = echo
        self._ends: dict[tuple[bool, int], list[RawEndpoint]] = {}  # (IPv4?, protocol) → ends
        self._sent: deque[tuple[int, int, bytes]] = deque(maxlen=REMEMBERED)  # of large packets, see `has_sent`

    def open(self, family: int, protocol: int) -> RawEndpoint:
        """A raw end of family 4 or 6; ValueError for a protocol outside 1 to 255."""
        if not 1 <= protocol <= 255:
            raise ValueError(f"{protocol} is no IP protocol number")
        end = RawEndpoint(self, self._ip, family, protocol)
        self._ends.setdefault((family == 4, protocol), []).append(end)
        self._ip.raw = self.input  # the engine need not ask while there is none
        return end

    def open_ping(self, family: int) -> PingEndpoint:
        """An ICMP datagram end of family 4 or 6."""
        return PingEndpoint(self, self._ip, family, self._echo)

    def forget(self, end: RawEndpoint) -> None:
        """An end was closed."""
        key = (end.family == 4, end.protocol)
        ends = self._ends[key]
        ends.remove(end)
        if not ends:
            del self._ends[key]
        if not self._ends:
            self._ip.raw = None

    def __iter__(self) -> Iterator[RawEndpoint]:
        """The raw ends."""
        return iter([end for ends in self._ends.values() for end in ends])

    def input(self, packet: PacketBuffer, header: IpHeader) -> bool:
        """A packet for this host, with its IP header pulled: a copy for each end that wants it; whether any did."""
        ends = self._ends.get((header.dst >> 32 == 0xFFFF, header.protocol))
        if ends is None:
            return False
        self.counters["rx_packets"] += 1
        taken = False
        for end in ends:
            if end.accepts(packet, header):
                taken = True
                end.take(packet, header)
        return taken

    def icmp_error(self, protocol: int, error: IcmpError) -> bool:
        """An error about a packet of `protocol`: tell the ends that it may be of; whether there were any.

        Which end sent it is not known, as on Linux.
        """
        told = False
        for end in self._ends.get((error.family == 4, protocol), ()):
            if end.local[0] not in (end._any, error.src) or (end.remote is not None and end.remote[0] != error.dst):
                continue
            end.report(error)
            told = True
        return told

    def remember(self, dst: int, protocol: int, start: bytes) -> None:
        """A packet with these first 8 bytes behind its IP header was sent."""
        self._sent.append((dst, protocol, start))

    def has_sent(self, dst: int, protocol: int, start: bytes) -> bool:
        """Whether such a packet, of at least `LARGE` bytes, was among the last that raw ends sent."""
        return (dst, protocol, start) in self._sent
