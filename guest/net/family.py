"""What differs between IPv4 and IPv6 below the transport: how a header is read and written.

The engine (ip.py) works on 128-bit addresses and holds one `Codec` for each family.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from guest.net.pbuf import PacketBuffer


class IpHeader(NamedTuple):
    """What the layers above may know of a received header.

    Attributes:
        src, dst: 128-bit addresses.
        protocol: of what follows the header.
        ttl: hops that were left. tos: type of service or traffic class.
        size: bytes of the header with its options.
        fragment: offset in 8-byte units, shifted left by one, with "more fragments" as bit 0; 0 for a whole packet.
    """

    src: int
    dst: int
    protocol: int
    ttl: int
    tos: int
    size: int
    fragment: int


class Codec(Protocol):
    """One family's header."""

    ethertype: int
    header_size: int  # bytes of a header that `build` writes
    max_size: int  # bytes of the largest packet, header included

    def parse(self, packet: PacketBuffer, from_wire: bool) -> IpHeader | str:
        """Check the header at the packet's front and trim the packet to its length; or the reason to drop it.

        `from_wire` refuses addresses that are never seen outside a host.
        """

    def build(
        self,
        packet: PacketBuffer,
        *,
        src: int,
        dst: int,
        protocol: int,
        ttl: int,
        tos: int,
        identification: int,
        dont_fragment: bool,
    ) -> None:
        """Push a header before the packet."""
