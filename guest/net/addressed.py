"""Ends with addresses: which ones they may bind, and how they reach a destination, as on Linux. UDP, raw, ICMP and TCP
ends are such.
"""

from __future__ import annotations

import errno
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
from guest.net.endpoint import Endpoint
from guest.net.pbuf import CAST_BROADCAST

if TYPE_CHECKING:
    from guest.net.config import NetConfig
    from guest.net.interface import Interface
    from guest.net.ip import Hop, IpEngine


def needs_zone(address: int) -> bool:
    """Whether an address says nothing without an interface: fe80::/10, ff01::/16, ff02::/16 (RFC 4007)."""
    return address >> 118 == 0xFE80 >> 6 or (address >> 120 == 0xFF and address >> 112 & 15 in (1, 2))


class AddressedEndpoint(Endpoint):
    """An end that reaches others through the engine.

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
