"""ICMP datagram ends: sockets that may only ping, as an unprivileged program on Linux has them. icmp(7), RFC 792."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING

from guest.net.address import is_v4
from guest.net.checksum import inet_sum
from guest.net.datagram import MAX_SIZE, PortlessEndpoint
from guest.net.echo import HEADER_SIZE, EchoPorts
from guest.net.family import IpHeader
from guest.net.icmp_error import IcmpError
from guest.net.ip import IpEngine
from guest.net.pbuf import HEADROOM, Buffer, PacketBuffer

if TYPE_CHECKING:
    from guest.net.interface import Interface
    from guest.net.raw import Raw

ICMP = 1
ICMPV6 = 58
ECHO_REQUEST = {4: 8, 6: 128}


class PingEndpoint(PortlessEndpoint):
    """An ICMP datagram socket below the system calls: it sends echo requests under its identifier, which is the port it
    is bound to, and receives the replies, ICMP header included. Made by `Raw.open_ping`.
    """

    def __init__(self, layer: Raw, ip: IpEngine, family: int, echo: EchoPorts) -> None:
        super().__init__(layer, ip, family, ICMP if family == 4 else ICMPV6)
        self._echo = echo
        self._registered = False

    def bind(self, addr: int, port: int, interface: Interface | None = None) -> int:
        if self.closed:
            return errno.EBADF
        if self._registered:
            return errno.EINVAL
        failed = self._may_bind(addr, interface) or self._register(port)
        return failed or self._bind_address(addr, interface)

    def _register(self, port: int) -> int:
        if not self._registered:
            try:
                ident = self._echo.register(self, port or None)
            except OSError as error:
                return errno.EADDRINUSE if error.errno == errno.EMFILE else error.errno or errno.EADDRINUSE
            self._registered = True
            self.local = (self.local[0], ident)
        return 0

    def connect(self, addr: int, port: int, interface: Interface | None = None) -> int:
        if self.closed:
            return errno.EBADF
        if self._register(0):
            return errno.EAGAIN
        return super().connect(addr, port, interface)

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
        """Send an echo request made of `pieces`: identifier and checksum are filled in, type and code are checked.

        EINVAL for anything else.
        """
        if self.closed:
            return errno.EBADF
        if self._register(0):
            return errno.EAGAIN
        size = sum(map(len, pieces))
        if size > MAX_SIZE:
            return errno.EMSGSIZE
        if size < HEADER_SIZE:
            return errno.EINVAL
        packet = self._pack(pieces, size)
        area = packet.area
        if area[HEADROOM] != ECHO_REQUEST[self.family] or area[HEADROOM + 1]:
            return errno.EINVAL
        to = self.remote if to is None else to
        if to is None:
            return errno.EDESTADDRREQ
        failed, dst, src, out, hop = self._reach(to[0], src, interface)
        if failed or hop is None:
            return failed
        if self.error:
            return self.take_error()
        if self.shut_write:
            return errno.EPIPE
        src = hop.src if src is None else src
        area[HEADROOM + 2 : HEADROOM + 4] = b"\0\0"
        area[HEADROOM + 4 : HEADROOM + 6] = self.local[1].to_bytes(2, "big")
        total = inet_sum(packet.linear)
        if self.family == 6:
            total += src + dst + size + ICMPV6
        area[HEADROOM + 2 : HEADROOM + 4] = (-total % 0xFFFF).to_bytes(2, "big")
        failed = self._output(packet, self.protocol, dst, src, hop, out, ttl, tos)
        self._layer.counters["tx_failed" if failed else "tx_packets"] += 1
        return failed

    def echo_reply(self, packet: PacketBuffer, header: IpHeader) -> bool:
        """A reply with our identifier arrived."""
        if is_v4(header.dst) != (self.family == 4) or not self._wants(packet, header):
            self._layer.counters["rx_ignored_address"] += 1
            return True
        return self._enqueue(packet, header)

    def echo_failed(self, error: IcmpError) -> bool:
        """An error about our identifier arrived."""
        if error.family != self.family:
            return False
        self.report(error)
        return True

    def close(self) -> None:
        if self._closing() and self._registered:
            self._echo.unregister(self, self.local[1])
