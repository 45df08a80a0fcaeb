"""What differs between IPv4 and IPv6 below the transport: how a header is read and written.

The engine (ip.py) works on 128-bit addresses and holds one `Codec` for each family. What an interface is to the engine
stands here as well, because a header says which one it came in by.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Protocol

from guest.net.address import Prefix
from guest.net.pbuf import PacketBuffer


class IpInterface(Protocol):
    """What the engine asks of an interface. Interfaces are told apart by identity and may be keys."""

    @property
    def name(self) -> str:
        """What people and rules call it."""

    @property
    def addresses(self) -> Sequence[Prefix]:
        """Own addresses with their prefixes."""

    @property
    def tentative(self) -> Collection[int]:
        """Own addresses that are still checked for duplicates: nothing is received for them, nothing sent from them."""

    @property
    def deprecated(self) -> Collection[int]:
        """Own addresses that new conversations should not start from."""

    @property
    def mtu(self) -> int:
        """Bytes of the largest IP packet."""

    @property
    def mtu6(self) -> int:
        """The same for IPv6, where a router may ask for less (RFC 4861 §6.3.4)."""

    @property
    def hop_limit(self) -> int:
        """Of IPv6 packets that do not say, where a router advertised one; 0 where none did."""

    @property
    def bare(self) -> bool:
        """Whether it carries IP packets without a link header: the loopback, and TUN-style interfaces."""

    @property
    def gso_max_size(self) -> int:
        """Bytes of the largest IPv4 packet that it cuts into segments itself; 0 where it does not."""

    @property
    def gso_max_size6(self) -> int:
        """The same for IPv6."""

    @property
    def is_up(self) -> bool:
        """Whether packets may be sent."""

    def send(self, packet: PacketBuffer, next_hop: int, cast: int) -> None:
        """Send an IP packet to a neighbour."""

    def room(self) -> int:
        """How many packets may follow each other now; 0 or less for none."""

    def hold(self) -> None:
        """Hold back what is sent until `release`, so that it leaves in one batch."""

    def release(self) -> None:
        """See `hold`."""

    def when_room(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when there is room again."""


class IpHeader(NamedTuple):
    """What the layers above may know of a received header.

    Attributes:
        src, dst: 128-bit addresses.
        protocol: of what follows the header.
        ttl: hops that were left (IPv6: hop limit). tos: type of service or traffic class.
        size: bytes of the header with its options or extension headers.
        fragment: offset in 8-byte units, shifted left by one, with "more fragments" as bit 0; 0 for a whole packet.
        interface: that received it.
        identification: of a fragment's packet.
        flow: the flow label; 0 for IPv4.
        named_at: offset, from the start of the IP header, of the field that names `protocol`.
        extended: there are options or extension headers that `Codec.extend` has not looked at yet.
    """

    src: int
    dst: int
    protocol: int
    ttl: int
    tos: int
    size: int
    fragment: int
    interface: IpInterface
    identification: int = 0
    flow: int = 0
    named_at: int = 9
    extended: bool = False


class Refusal(NamedTuple):
    """Why a received packet is dropped.

    Attributes:
        reason: the counter's name.
        kind: which ICMP error its sender is due (see `IpEngine.error`), or "" for none. value: what belongs to it.
    """

    reason: str
    kind: str = ""
    value: int = 0


class Codec(Protocol):
    """One family's header."""

    ethertype: int
    header_size: int  # bytes of a header without options
    max_size: int  # bytes of the largest packet, header included
    fragment_size: int  # bytes of a header that says "fragment"
    checks_on_way: bool  # `extend` is for routers, too

    def parse(self, packet: PacketBuffer, interface: IpInterface, from_wire: bool) -> IpHeader | str:
        """Check the header at the packet's front and trim the packet to its length; or the reason to drop it.

        `from_wire` refuses addresses that are never seen outside a host.
        """

    def extend(self, packet: PacketBuffer, header: IpHeader, *, joined: bool = False) -> IpHeader | Refusal:
        """Walk the options or extension headers of a packet for this host: the header with all of them.

        The packet starts at its IP header. `joined` says that it was put together from fragments: the walk goes on
        where it stopped at the fragment header.
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
        fragment: int = 0,
        fragmented: bool = False,
        flow: int = 0,
        router_alert: bool = False,
    ) -> None:
        """Push a header before the packet.

        Args:
            fragment: as in `IpHeader`. fragmented: the packet is one of several.
            router_alert: routers on the way should look at it (RFC 2113, RFC 2711).
        """

    def join_header(self, header: memoryview, parsed: IpHeader, size: int) -> tuple[bytes, IpHeader]:
        """The header of a whole packet with `size` bytes behind it, from that of its first fragment."""

    def complete(self, packet: PacketBuffer, src: int, identification: int) -> bool:
        """Fill in what a program may leave to us in the header that it wrote; False where it is no header."""

    def hop_passed(self, header: memoryview) -> None:
        """Count one hop, in place."""

    def may_fragment(self, header: memoryview) -> bool:
        """Whether a router may fragment this packet."""
