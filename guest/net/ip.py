"""IP: one engine for both families, keyed by 128-bit addresses. RFC 791, RFC 1122 §3, RFC 6864.

A family is a `Codec` in `codecs`; IPv4 is there, and what follows here does not know which family a packet has.

Promises:
- Every packet that comes in is handed to exactly one transport handler or counted under one `rx_dropped_…`.
- Nothing is forwarded: what is not for us is counted. Nothing is reassembled or fragmented: fragments are counted, and
  what is too large for its interface is refused with EMSGSIZE.
- No packet from a wire that claims an own, loopback, broadcast or multicast source gets past this layer.
- Identifications follow no pattern that a third party could count along (RFC 7739 §5.2: per-destination counters with
  random steps, slots chosen by a keyed hash), and are the same again for the same seed.

`output` gives 0 or an `errno` number, as a system call would.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from guest.net.address import (
    V4_ALL_HOSTS,
    V4_ANY,
    V4_BROADCAST,
    Prefix,
    format_mapped,
    is_loopback,
    is_multicast,
    is_unspecified,
    is_v4,
)
from guest.net.config import NetConfig
from guest.net.family import Codec, IpHeader
from guest.net.layer import Layer
from guest.net.pbuf import CAST_BROADCAST, CAST_HOST, CAST_MULTICAST, CAST_OTHER_HOST, PacketBuffer
from guest.net.route import RouteTable

IDENT_SLOTS = 1024
REMEMBERED_HOPS = 1024


class IpInterface(Protocol):
    """What the engine asks of an interface."""

    addresses: list[Prefix]
    mtu: int
    bare: bool  # carries IP packets without a link header: the loopback

    @property
    def is_up(self) -> bool:
        """Whether packets may be sent."""

    def send(self, packet: PacketBuffer, next_hop: int, cast: int) -> None:
        """Send an IP packet to a neighbour."""


class Hop(NamedTuple):
    """How to reach a destination: out of which interface, to which neighbour, from which address."""

    interface: IpInterface
    next_hop: int
    cast: int
    src: int
    codec: Codec
    slot: int  # of the identification counter


# Takes a packet with its IP header pulled (it starts at `packet.network`).
Handler: TypeAlias = Callable[[PacketBuffer, IpHeader], None]


class IpEngine(Layer):
    """The network layer of one stack.

    Args:
        codecs: the families.
        rng: source of identifications.
        config: limits and times.

    Attributes:
        handlers: protocol number → transport.
        routes: the routing table; call `refresh` after changing it.
        loopback: where packets to own addresses go.
        default: where packets to 255.255.255.255 and multicast groups go unless told otherwise.
        unreachable: told of packets for which there is no transport.
    """

    def __init__(self, codecs: Iterable[Codec], *, rng: random.Random, config: NetConfig) -> None:
        super().__init__("ip")
        self.codecs: dict[int, Codec] = {codec.ethertype: codec for codec in codecs}
        self.handlers: dict[int, Handler] = {}
        self.routes: RouteTable[IpInterface] = RouteTable()
        self.loopback: IpInterface | None = None
        self.default: IpInterface | None = None
        self.unreachable: Callable[[PacketBuffer, IpHeader], None] | None = None
        self._config = config
        self._rng = rng
        self._identifications = [rng.getrandbits(16) for _ in range(IDENT_SLOTS)]
        self._key = rng.getrandbits(64)
        self._local: set[int] = set()
        self._accepted: dict[int, int] = {}  # destination → the cast it is for
        self._hops: dict[int, Hop] = {}
        self.refresh(())

    def refresh(self, interfaces: Iterable[IpInterface]) -> None:
        """Addresses, routes or states of interfaces have changed."""
        self._hops.clear()
        self._local = {prefix.address for interface in interfaces for prefix in interface.addresses}
        self._accepted = {V4_BROADCAST: CAST_BROADCAST, V4_ALL_HOSTS: CAST_MULTICAST}
        for interface in interfaces:
            for prefix in interface.addresses:
                if prefix.broadcast is not None and not interface.bare:
                    self._accepted[prefix.broadcast] = CAST_BROADCAST
        for address in self._local:
            self._accepted[address] = CAST_HOST

    def is_local(self, address: int) -> bool:
        """Whether `address` is one of this host's own."""
        return address in self._local or is_loopback(address)

    # -- input ---------------------------------------------------------------------------------------------------

    def input(self, interface: IpInterface, ethertype: int, packets: Sequence[PacketBuffer]) -> None:
        """Packets of one family arrived, without link headers."""
        counters = self.counters
        counters["rx_packets"] += len(packets)
        codec = self.codecs.get(ethertype)
        if codec is None:
            for packet in packets:
                self.drop(packet, "rx_dropped_family")
            return
        from_wire = not interface.bare
        accepted = self._accepted
        handlers = self.handlers
        for packet in packets:
            if packet.cast == CAST_OTHER_HOST:
                self.drop(packet, "rx_dropped_other_host")
                continue
            header = codec.parse(packet, from_wire)
            if isinstance(header, str):
                self.drop(packet, header)
                continue
            reason = ""
            src = header.src
            dst = header.dst
            cast = accepted.get(dst)
            if cast is None and not from_wire and is_loopback(dst):
                cast = CAST_HOST
            if from_wire and accepted.get(src) is not None:
                reason = "rx_dropped_land" if src == dst else "rx_dropped_source"
            elif cast is None:
                reason = "rx_dropped_not_for_us" if packet.cast else "rx_dropped_forwarding_off"
            elif cast == CAST_HOST and (packet.cast or is_unspecified(src)):
                # RFC 1122 §3.3.6: a unicast packet in a broadcast frame; and only a broadcast may come from nobody
                reason = "rx_dropped_broadcast_frame" if packet.cast else "rx_dropped_source"
            elif header.fragment:
                reason = "rx_dropped_fragment"
            if reason or cast is None:
                self.drop(packet, reason)
                continue
            packet.cast = cast
            packet.network = packet.data
            packet.data += header.size
            packet.transport = packet.data
            if self.trace is not None:
                note = f"{format_mapped(src)} > {format_mapped(dst)} protocol {header.protocol}"
                self.trace(self.stage, packet, note)
            handler = handlers.get(header.protocol)
            if handler is not None:
                counters["rx_delivered"] += 1
                handler(packet, header)
                continue
            self.drop(packet, "rx_dropped_protocol")
            if self.unreachable is not None:
                self.unreachable(packet, header)

    # -- output --------------------------------------------------------------------------------------------------

    def output(
        self,
        packet: PacketBuffer,
        dst: int,
        protocol: int,
        *,
        src: int | None = None,
        ttl: int | None = None,
        tos: int = 0,
        dont_fragment: bool = True,
        interface: IpInterface | None = None,
    ) -> int:
        """Send a transport's packet; 0 or an errno: ENETUNREACH, EADDRNOTAVAIL (`src` is not ours), EMSGSIZE.

        The packet's headroom takes the headers. `interface` overrides the routing table.
        """
        hop = (self._hops.get(dst) if interface is None else None) or self.hop(dst, interface)
        if hop is None:
            self.drop(packet, "tx_dropped_no_route")
            return errno.ENETUNREACH
        if src is None:
            src = hop.src
        elif src != hop.src and not self._may_send_from(src, hop):
            self.drop(packet, "tx_dropped_source")
            return errno.EADDRNOTAVAIL
        codec = hop.codec
        if len(packet) + codec.header_size > min(hop.interface.mtu, codec.max_size):
            self.drop(packet, "tx_dropped_too_big")
            return errno.EMSGSIZE
        if ttl is None:
            ttl = 1 if hop.cast == CAST_MULTICAST else self._config.ttl  # RFC 1112 §6.1
        identification = self._identifications[hop.slot] + 1 + self._rng.getrandbits(3) & 0xFFFF
        self._identifications[hop.slot] = identification
        codec.build(
            packet,
            src=src,
            dst=dst,
            protocol=protocol,
            ttl=ttl,
            tos=tos,
            identification=identification,
            dont_fragment=dont_fragment,
        )
        packet.network = packet.data
        packet.protocol = codec.ethertype
        self.counters["tx_packets"] += 1
        if self.trace is not None:
            note = f"{format_mapped(src)} > {format_mapped(dst)} protocol {protocol}"
            self.trace(self.stage, packet, note)
        hop.interface.send(packet, hop.next_hop, hop.cast)
        return 0

    def hop(self, dst: int, interface: IpInterface | None = None) -> Hop | None:
        """How to reach `dst`, out of `interface` if one is given; None where nothing leads there."""
        found = self._find(dst, interface)
        if found is None or not found[0].is_up:
            return None
        out, next_hop, cast = found
        codec = self.codecs.get(0x0800 if is_v4(dst) else 0x86DD)
        src = dst if out is self.loopback and interface is None else source_address(out, next_hop)
        if src is None and dst == V4_BROADCAST:
            src = V4_ANY  # a host that has no address yet asks for one
        if codec is None or src is None:
            return None
        hop = Hop(out, next_hop, cast, src, codec, hash((dst, self._key)) % IDENT_SLOTS)
        if interface is None:
            if len(self._hops) >= REMEMBERED_HOPS:
                self._hops.clear()
            self._hops[dst] = hop
        return hop

    def _find(self, dst: int, interface: IpInterface | None) -> tuple[IpInterface, int, int] | None:
        """Interface, next hop and cast towards `dst`."""
        if is_unspecified(dst):
            return None
        if interface is None and self.is_local(dst):
            return None if self.loopback is None else (self.loopback, dst, CAST_HOST)
        cast = CAST_MULTICAST if is_multicast(dst) else self._accepted.get(dst, CAST_HOST)
        if cast == CAST_MULTICAST or dst == V4_BROADCAST:
            out = interface or self.default
            return None if out is None else (out, dst, cast)
        for route in self.routes.lookup(dst):
            if interface in (None, route.interface) and route.interface.is_up:
                return route.interface, dst if route.gateway is None else route.gateway, cast
        return None

    def _may_send_from(self, src: int, hop: Hop) -> bool:
        if is_loopback(src):
            return hop.interface.bare
        return src in self._local


def source_address(interface: IpInterface, next_hop: int) -> int | None:
    """The interface's address to use towards `next_hop`: of its family, on its network if there is one."""
    first: int | None = None
    for prefix in interface.addresses:
        if is_v4(prefix.address) != is_v4(next_hop):
            continue
        if prefix.contains(next_hop):
            return prefix.address
        if first is None:
            first = prefix.address
    return first
