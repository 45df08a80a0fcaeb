"""UDP over both families: RFC 768, RFC 8200 §8.1, RFC 1122 §4.1; what sockets see of it is as on Linux.

Promises:
- Every datagram that comes in is queued at the ends whose it is, or counted under one `rx_dropped_…`.
- Payload is not copied on its way in, except out of memory that its lender is short of; on its way out it is copied
  once, from the writer's bytes into the packet.
- What nobody wants is answered with port unreachable, unless it was for many.

A checksum of zero says "none" over IPv4 and is refused over IPv6. A datagram to port 0 is dropped in silence; one from
port 0 is taken, as nobody need answer it (RFC 768). Data behind the UDP length is cut off.
"""

from __future__ import annotations

import errno
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from guest.net.address import V4_ANY, V6_ANY, is_unspecified
from guest.net.addressed import needs_zone
from guest.net.checksum import inet_sum, sum_views
from guest.net.config import NetConfig
from guest.net.datagram import DatagramEndpoint
from guest.net.endpoint import Datagram
from guest.net.family import IpHeader
from guest.net.ip import IpEngine
from guest.net.layer import Layer
from guest.net.pbuf import CAST_HOST, CAST_MULTICAST, HEADROOM, Buffer, PacketBuffer
from guest.net.ports import PortTable

if TYPE_CHECKING:
    from guest.net.icmp_error import IcmpError
    from guest.net.interface import Interface

PROTOCOL = 17

HEADER = struct.Struct("!HHHH")  # source port, destination port, length with this header, checksum
HEADER_SIZE = 8
assert HEADER.size == HEADER_SIZE

V4_MAX_PAYLOAD = 65535 - 20 - HEADER_SIZE
V6_MAX_PAYLOAD = 65535 - HEADER_SIZE

NEEDS_CSUM = 1  # the offload flags of a packet whose checksum is not to be looked at (virtio 1.4 §5.1.9.4)
DATA_VALID = 2


class UdpEndpoint(DatagramEndpoint):
    """A UDP socket below the system calls. Made by `Udp.open`."""

    protocol = PROTOCOL

    def __init__(self, udp: Udp, ip: IpEngine, family: int, config: NetConfig) -> None:
        super().__init__(ip, family, config)
        self._udp = udp
        self._address_fixed = False  # by bind, so that disconnect leaves it
        self._port_fixed = False

    def bind(self, addr: int, port: int, interface: Interface | None = None) -> int:
        if self.closed:
            return errno.EBADF
        failed = self._may_bind(addr, interface)
        if failed:
            return failed
        if self.local[1]:
            return errno.EINVAL
        device = self.options.bind_device
        if needs_zone(addr) and interface is not None:
            self.options.bind_device = interface
        failed = self._udp.ports.bind(self, addr, port)
        if failed:
            self.options.bind_device = device
            return failed
        self._address_fixed = not is_unspecified(addr)
        self._port_fixed = port != 0
        self._fix_source()
        return 0

    def _autobind(self) -> int:
        """Take a port without being asked to; 0 or EAGAIN."""
        if self.local[1] == 0 and self._udp.ports.bind(self, self.local[0], 0):
            return errno.EAGAIN
        return 0

    def connect(self, addr: int, port: int, interface: Interface | None = None) -> int:
        if self.closed:
            return errno.EBADF
        failed = self._autobind()
        if failed:
            return failed
        if self._lacks_zone(addr, interface):
            return errno.EINVAL
        failed, addr, src, _, hop = self._reach(addr, None, interface)
        if failed or hop is None:
            return failed
        local = self.local[0]
        if is_unspecified(local):
            local = hop.src if src is None else src
        if needs_zone(addr) and interface is not None:
            self.options.bind_device = interface
        self._udp.ports.move(self, local, (addr, port))
        self._fix_source()
        return 0

    def disconnect(self) -> int:
        if self.closed:
            return errno.EBADF
        address = self.local[0]
        if not self._address_fixed:
            address = V4_ANY if self.family == 4 else V6_ANY
        if self.local[1]:
            self._udp.ports.move(self, address, None)
            if not self._port_fixed:
                self._udp.ports.release(self)
        self.options.bind_device = None  # as Linux does
        self._fix_source()
        return 0

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
        if self.local[1] == 0 and self._autobind():
            return errno.EAGAIN
        size = 0
        for piece in pieces:
            size += len(piece)
        if size > 0xFFFF:
            return errno.EMSGSIZE
        if to is None:
            to = self.remote
            if to is None:
                return errno.EDESTADDRREQ
        elif to[1] == 0:
            return errno.EINVAL
        failed, dst, src, out, hop = self._reach(to[0], src, interface)
        if failed or hop is None:
            return failed
        v4 = dst >> 32 == 0xFFFF
        if size > (V4_MAX_PAYLOAD if v4 else V6_MAX_PAYLOAD):
            return errno.EMSGSIZE
        if self.error:
            return self.take_error()
        if self.shut_write:
            return errno.EPIPE
        if src is None:
            src = hop.src
        area = memoryview(bytearray(HEADROOM + HEADER_SIZE + size))
        at = HEADROOM + HEADER_SIZE
        for piece in pieces:
            end = at + len(piece)
            area[at:end] = piece
            at = end
        port = self.local[1]
        check = 0
        if not (v4 and self.options.no_check):
            total = inet_sum(area[HEADROOM + HEADER_SIZE :]) if size else 0
            # 2^16 is 1 modulo 65535, so whole addresses may be added (the pseudo-header of either family); the length
            # counts there and in the header. The result is never 0, which would say "no checksum".
            check = 0xFFFF - (total + src + dst + PROTOCOL + 2 * (size + HEADER_SIZE) + port + to[1]) % 0xFFFF
        HEADER.pack_into(area, HEADROOM, port, to[1], size + HEADER_SIZE, check)
        packet = PacketBuffer(area, HEADROOM)
        failed = self._output(packet, PROTOCOL, dst, src, hop, out, ttl, tos)
        self._udp.counters["tx_failed" if failed else "tx_packets"] += 1
        return failed

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._leave_all()
        if self.local[1]:
            self._udp.ports.release(self)
        self._queue.clear()
        self.queued_bytes = 0
        if self.on_ready is not None:
            self.on_ready()


class Udp(Layer):
    """UDP of one stack.

    Args:
        ip: the engine below.
        now: the time.
        rng: source of the key from which ports are picked.
        config: limits and times.

    Attributes:
        ports: the bound ends; iterating gives them all.
        unclaimed: asked about a datagram that is for no end, its header not pulled: whether it takes it. For proxies.
    """

    def __init__(self, ip: IpEngine, *, now: Callable[[], int], rng: random.Random, config: NetConfig) -> None:
        super().__init__("udp")
        self._ip = ip
        self._now = now
        self._config = config
        self.ports: PortTable[UdpEndpoint] = PortTable(
            rng.getrandbits(256).to_bytes(32, "big"), config.first_port, config.last_port
        )
        self.unclaimed: Callable[[PacketBuffer, IpHeader, int, int], bool] | None = None
        ip.handlers[PROTOCOL] = self.input

    def open(self, family: int) -> UdpEndpoint:
        """A new, unbound end of family 4 or 6."""
        return UdpEndpoint(self, self._ip, family, self._config)

    def __iter__(self) -> Iterator[UdpEndpoint]:
        """The bound ends, by port."""
        return iter(self.ports)

    # -- input ---------------------------------------------------------------------------------------------------

    def input(self, packet: PacketBuffer, header: IpHeader) -> None:
        """A datagram arrived, with its IP header pulled."""
        self.counters["rx_packets"] += 1
        if packet.tail - packet.data < HEADER_SIZE and not packet.pullup(HEADER_SIZE):
            self.drop(packet, "rx_dropped_short")
            return
        size = len(packet)
        src_port, dst_port, length, check = HEADER.unpack_from(packet.area, packet.data)
        if length != size:
            if length < HEADER_SIZE or length > size:
                self.drop(packet, "rx_dropped_length")
                return
            packet.trim(length)
        src = header.src
        dst = header.dst
        if dst_port == 0:
            self.drop(packet, "rx_dropped_port_zero")
            return
        if check == 0:
            if dst >> 32 != 0xFFFF:
                self.drop(packet, "rx_dropped_no_checksum")
                return
        elif packet.offload is None or not packet.offload.flags & (NEEDS_CSUM | DATA_VALID):
            if packet.frags:
                total = sum_views(packet.views())
            else:
                total = inet_sum(packet.area[packet.data : packet.tail])
            if (total + src + dst + PROTOCOL + length) % 0xFFFF:
                self.drop(packet, "rx_dropped_checksum")
                return
        if packet.cast != CAST_HOST:
            self._spread(packet, header, src_port, dst_port)
            return
        end = self.ports.find(src, src_port, dst, dst_port, header.interface)
        if end is None:
            if self.unclaimed is not None and self.unclaimed(packet, header, src_port, dst_port):
                self.counters["rx_diverted"] += 1
                return
            self.drop(packet, "rx_dropped_no_port")
            if self._ip.error is not None:
                self._ip.error(packet, header, "port", 0)
            return
        packet.data += HEADER_SIZE
        self._deliver(end, packet, header, src_port, dst_port)

    def _deliver(self, end: UdpEndpoint, packet: PacketBuffer, header: IpHeader, src_port: int, dst_port: int) -> None:
        src, dst, _, ttl, tos, _, _, interface, _, flow, *_ = header
        datagram = Datagram(packet, src, src_port, dst, dst_port, interface, ttl, tos, self._now(), flow)  # type: ignore[arg-type]  # the engine's interfaces are the stack's
        if end.deliver(datagram):
            self.counters["rx_delivered"] += 1
            if self.trace is not None:
                self.trace(self.stage, packet, f"port {src_port} > {dst_port}")
            if end.on_ready is not None:
                end.on_ready()
        else:
            self.drop(packet, "rx_dropped_rcvbuf")

    def _spread(self, packet: PacketBuffer, header: IpHeader, src_port: int, dst_port: int) -> None:
        """A copy for each, over the same bytes, of a multicast or broadcast datagram."""
        group = packet.cast == CAST_MULTICAST
        ends = self.ports.members(header.src, src_port, header.dst, dst_port, header.interface, group)
        if not ends:
            self.drop(packet, "rx_dropped_no_port")
            return
        packet.data += HEADER_SIZE
        for end in ends[1:]:
            self._deliver(end, packet.clone(), header, src_port, dst_port)
        self._deliver(ends[0], packet, header, src_port, dst_port)

    def icmp_error(self, error: IcmpError) -> bool:
        """Whether an ICMP error was about a datagram of an end that is here; then it was told. For `error_handlers`."""
        if len(error.quoted) < HEADER_SIZE:
            return False
        src_port, dst_port, _, _ = HEADER.unpack_from(error.quoted)
        end = self.ports.find(error.dst, dst_port, error.src, src_port, None)
        if end is None:
            return False
        end.report(error)
        return True
