"""What UDP, raw and ICMP datagram ends have in common above the engine: how they send, memberships of multicast groups,
and what an ICMP error means to them. As on Linux.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING

from guest.net.address import is_multicast, is_unspecified, is_v4
from guest.net.addressed import AddressedEndpoint, needs_zone
from guest.net.endpoint import PMTUDISC_DONT, PMTUDISC_WANT, Datagram, MessageEndpoint
from guest.net.icmp_errno import meaning
from guest.net.pbuf import CAST_BROADCAST, CAST_MULTICAST, HEADROOM, Buffer, PacketBuffer

if TYPE_CHECKING:
    from guest.net.family import IpHeader
    from guest.net.icmp_error import IcmpError
    from guest.net.interface import Interface
    from guest.net.ip import Hop, IpEngine
    from guest.net.raw import Raw

MAX_SIZE = 0xFFFF  # of what is handed to one send
MEMBERSHIPS = 1024  # of one end


class DatagramEndpoint(AddressedEndpoint, MessageEndpoint):
    """An end that sends through `IpEngine.output`."""

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
