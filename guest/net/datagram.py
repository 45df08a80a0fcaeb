"""What UDP, raw and ICMP datagram ends have in common above the engine: which addresses they may bind, how they reach
a destination, memberships of multicast groups, and what an ICMP error means to them. As on Linux.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING

from guest.net.address import (
    V4_ANY,
    V4_BROADCAST,
    V4_LOOPBACK,
    V6_ANY,
    V6_LOOPBACK,
    is_multicast,
    is_unspecified,
    is_v4,
)
from guest.net.endpoint import PMTUDISC_DONT, PMTUDISC_WANT, Datagram, MessageEndpoint
from guest.net.icmp_errno import meaning
from guest.net.pbuf import CAST_BROADCAST, CAST_MULTICAST, HEADROOM, Buffer, PacketBuffer

if TYPE_CHECKING:
    from guest.net.config import NetConfig
    from guest.net.family import IpHeader
    from guest.net.icmp_error import IcmpError
    from guest.net.interface import Interface
    from guest.net.ip import Hop, IpEngine
    from guest.net.raw import Raw

MAX_SIZE = 0xFFFF  # of what is handed to one send
MEMBERSHIPS = 1024  # of one end


def needs_zone(address: int) -> bool:
    """Whether an address says nothing without an interface: fe80::/10, ff01::/16, ff02::/16 (RFC 4007)."""
    return address >> 118 == 0xFE80 >> 6 or (address >> 120 == 0xFF and address >> 112 & 15 in (1, 2))


class DatagramEndpoint(MessageEndpoint):
    """An end that sends through `IpEngine.output`.

    Args:
        ip: the engine.
        family: 4 or 6.
        config: sizes of buffers.
    """

    def __init__(self, ip: IpEngine, family: int, config: NetConfig) -> None:
        super().__init__(family)
        self.options.rcvbuf = config.rcvbuf
        self.options.sndbuf = config.sndbuf
        self._ip = ip
        self._source: int | None = None  # the address that what we send comes from, where bind or connect fixed one

    # -- addresses -----------------------------------------------------------------------------------------------

    def _may_bind(self, address: int, interface: Interface | None) -> int:
        """Whether this end may have `address`: 0, EAFNOSUPPORT, EINVAL or EADDRNOTAVAIL."""
        v4 = is_v4(address)
        if self.family == 4 and not v4:
            return errno.EAFNOSUPPORT
        if self.family == 6 and v4 and self.options.v6only:
            return errno.EINVAL
        if is_unspecified(address):
            return 0
        if needs_zone(address):
            zone = interface or self.options.bind_device
            if zone is None:
                return errno.EINVAL
            if is_multicast(address):
                return 0
            return 0 if zone.owns(address) else errno.EADDRNOTAVAIL
        if self._ip.is_local(address) or is_multicast(address) or self._is_broadcast(address):
            return 0
        return errno.EADDRNOTAVAIL

    def _lacks_zone(self, address: int, interface: Interface | None) -> bool:
        """Whether it is not known where a link-local address is that is to be connected to."""
        if not needs_zone(address):
            return False
        options = self.options
        return (interface or options.bind_device or (options.multicast_if if is_multicast(address) else None)) is None

    def _is_broadcast(self, address: int) -> bool:
        if not is_v4(address):
            return False
        if address == V4_BROADCAST:
            return True
        hop = self._ip.hop(address)
        return hop is not None and hop.cast == CAST_BROADCAST

    def _fix_source(self) -> None:
        """The local address has changed."""
        address = self.local[0]
        fixed = not is_unspecified(address) and not is_multicast(address) and not self._is_broadcast(address)
        self._source = address if fixed else None

    def _reach(
        self, dst: int, src: int | None, interface: Interface | None
    ) -> tuple[int, int, int | None, Interface | None, Hop | None]:
        """How to send to `dst`: (errno, dst, src, interface, hop), the last two decided by options where not given.

        The "any" address means this host. A `src` of None is the hop's to choose.
        """
        options = self.options
        v4 = dst >> 32 == 0xFFFF
        if self.family == 4:
            if not v4:
                return errno.EAFNOSUPPORT, dst, src, interface, None
        elif v4 and options.v6only:
            return errno.ENETUNREACH, dst, src, interface, None
        if src is None:
            src = self._source
        if dst in (V6_ANY, V4_ANY):
            mapped = v4 or is_v4(self.local[0])
            dst = src if src is not None and is_v4(src) == mapped else V4_LOOPBACK if mapped else V6_LOOPBACK
            v4 = mapped
        if not v4 and is_v4(self.local[0]):  # bound to a mapped address
            return errno.EAFNOSUPPORT, dst, src, interface, None
        if v4 and src is not None and not is_v4(src):
            return errno.ENETUNREACH, dst, src, interface, None
        if interface is None:
            interface = options.bind_device
            if interface is None and is_multicast(dst):
                interface = options.multicast_if
                if src is None and v4:
                    src = options.multicast_source
        hop = self._ip.hop(dst, interface)
        if hop is None:
            return errno.ENETUNREACH, dst, src, interface, None
        if hop.cast == CAST_BROADCAST and not options.broadcast:
            return errno.EACCES, dst, src, interface, hop
        return 0, dst, src, interface, hop

    def _output(
        self, packet: PacketBuffer, protocol: int, dst: int, src: int, hop: Hop, interface: Interface | None,
        ttl: int | None, tos: int | None,
    ) -> int:  # fmt: skip
        """Hand a packet whose transport header is made to the engine; 0 or an errno."""
        options = self.options
        v4 = dst >> 32 == 0xFFFF
        cast = hop.cast
        if ttl is None:
            ttl = options.multicast_ttl if cast == CAST_MULTICAST else options.ttl if v4 else options.hop_limit
        if tos is None:
            tos = options.tos if v4 else options.tclass
        discover = options.mtu_discover
        return self._ip.output(
            packet,
            dst,
            protocol,
            src=src,
            ttl=ttl,
            tos=tos,
            dont_fragment=None if discover == PMTUDISC_WANT else discover != PMTUDISC_DONT,
            interface=interface,
            loop=cast == CAST_BROADCAST or (cast == CAST_MULTICAST and options.multicast_loop),
        )

    # -- errors --------------------------------------------------------------------------------------------------

    def report(self, error: IcmpError) -> None:
        """An ICMP error about a packet of this end: fatal ones reach connected ends, all reach who asked for them."""
        options = self.options
        number, fatal = meaning(error)
        if error.too_big:
            fatal = options.mtu_discover != PMTUDISC_DONT
        if options.recverr or (fatal and self.remote is not None):
            self.fail(number, error)

    # -- groups --------------------------------------------------------------------------------------------------

    def join(self, group: int, interface: Interface | None = None) -> int:
        if self.closed:
            return errno.EBADF
        failed, found = self._group(group, interface)
        if failed or found is None:
            return failed
        if (group, found) in self.groups:
            return errno.EADDRINUSE
        if len(self.groups) >= MEMBERSHIPS:
            return errno.ENOBUFS
        self.groups.add((group, found))
        self._ip.join(found, group)
        return 0

    def leave(self, group: int, interface: Interface | None = None) -> int:
        if self.closed:
            return errno.EBADF
        if interface is None:  # whichever it was joined on
            interface = next((where for joined, where in self.groups if joined == group), None)
        failed, found = self._group(group, interface)
        if failed or found is None:
            return failed
        if (group, found) not in self.groups:
            return errno.EADDRNOTAVAIL
        self.groups.discard((group, found))
        self._ip.leave(found, group)
        return 0

    def _group(self, group: int, interface: Interface | None) -> tuple[int, Interface | None]:
        """The interface that a membership is for, or an errno."""
        if not is_multicast(group) or (self.family == 4 and not is_v4(group)):
            return errno.EINVAL, None
        if interface is None:
            interface = self.options.bind_device
        if interface is None:
            hop = self._ip.hop(group)
            if hop is None:
                return errno.ENODEV, None
            interface = hop.interface  # type: ignore[assignment]  # the engine's interfaces are the stack's
        return 0, interface

    def _leave_all(self) -> None:
        while self.groups:
            group, interface = self.groups.pop()
            self._ip.leave(interface, group)


class PortlessEndpoint(DatagramEndpoint):
    """What raw and ICMP datagram ends share: they have addresses, but no port that others could want.

    Args:
        layer: that made it.
        ip: the engine.
        family: 4 or 6; an end of family 6 never speaks IPv4.
        protocol: of its packets.
    """

    def __init__(self, layer: Raw, ip: IpEngine, family: int, protocol: int) -> None:
        super().__init__(ip, family, layer.config)
        self.protocol = protocol
        self._layer = layer
        self._any = self.local[0]
        self._address_fixed = False
        if family == 6:
            self.options.v6only = True

    def connect(self, addr: int, port: int, interface: Interface | None = None) -> int:
        if self.closed:
            return errno.EBADF
        if self._lacks_zone(addr, interface):
            return errno.EINVAL
        failed, addr, src, _, hop = self._reach(addr, None, interface)
        if failed or hop is None:
            return failed
        if is_unspecified(self.local[0]):
            self.local = (hop.src if src is None else src, self.local[1])
        if needs_zone(addr) and interface is not None:
            self.options.bind_device = interface
        self.remote = (addr, port)
        self._fix_source()
        return 0

    def disconnect(self) -> int:
        if self.closed:
            return errno.EBADF
        self.remote = None
        if not self._address_fixed:
            self.local = (self._any, self.local[1])
        self.options.bind_device = None
        self._fix_source()
        return 0

    def _bind_address(self, addr: int, interface: Interface | None) -> int:
        failed = self._may_bind(addr, interface)
        if failed:
            return failed
        if self.family == 6 and is_v4(addr):
            return errno.EADDRNOTAVAIL
        if needs_zone(addr) and interface is not None:
            self.options.bind_device = interface
        self.local = (addr, self.local[1])
        self._address_fixed = not is_unspecified(addr)
        self._fix_source()
        return 0

    @staticmethod
    def _pack(pieces: Sequence[Buffer], size: int) -> PacketBuffer:
        """A packet that holds a copy of `pieces`."""
        area = memoryview(bytearray(HEADROOM + size))
        at = HEADROOM
        for piece in pieces:
            end = at + len(piece)
            area[at:end] = piece
            at = end
        return PacketBuffer(area, HEADROOM)

    def _wants(self, packet: PacketBuffer, header: IpHeader) -> bool:
        """Whether addresses and interface of a received packet are those of this end."""
        address = self.local[0]
        if address not in (self._any, header.dst):
            return False
        options = self.options
        if options.bind_device is not None and options.bind_device is not header.interface:
            return False
        return (
            packet.cast != CAST_MULTICAST
            or options.multicast_all
            or (header.dst, header.interface) in self.groups
        )

    def _enqueue(self, payload: PacketBuffer, header: IpHeader) -> bool:
        src, dst, _, ttl, tos, _, _, interface, _, flow, *_ = header
        now = self._layer.now()
        datagram = Datagram(payload, src, 0, dst, 0, interface, ttl, tos, now, flow)  # type: ignore[arg-type]  # the engine's interfaces are the stack's
        if self.deliver(datagram):
            self._layer.counters["rx_delivered"] += 1
            if self.on_ready is not None:
                self.on_ready()
            return True
        self._layer.drop(payload, "rx_dropped_rcvbuf")
        return False

    def _closing(self) -> bool:
        """Give up all that is common; False when it was closed already."""
        if self.closed:
            return False
        self.closed = True
        self._leave_all()
        self._queue.clear()
        self.queued_bytes = 0
        if self.on_ready is not None:
            self.on_ready()
        return True
