"""IP: one engine for both families, keyed by 128-bit addresses.

RFC 791, RFC 1122 §3, RFC 1812 §5, RFC 8200, RFC 8201, RFC 6724, RFC 6864. A family is a `Codec` in `codecs`; what
follows here does not know which family a packet has.

Promises:
- Every packet that comes in is handed to one transport handler (`rx_delivered`), forwarded (`forwarded`), held until
  it is part of a whole one (`rx_fragments`), or counted under one `rx_dropped_…`. The whole one (`rx_reassembled`) then
  goes the same way.
- Nothing is forwarded unless `forwarding` is set, and never broadcasts, groups, loopback or link-local addresses.
- No packet from a wire that claims an own, loopback, broadcast or multicast source gets past this layer.
- Identifications are the same again for the same seed, and a third party cannot count along. IPv4: counters that groups
  of destinations share, chosen by a keyed hash; steps are random, but 1 for a packet that says "don't fragment", whose
  identification means nothing (RFC 6864 §4.1). IPv6: fragments alone have one, the keyed hash of a counter.

`output` gives 0 or an `errno` number, as a system call would. `poll` is to be called when `poll_at` says so.

Kinds of errors that the engine and the transports ask ICMP for through `error`, with their value:
    "ttl"           the hops ran out on the way through (0)
    "reassembly"    60 s were over; the packet is the first fragment (0)
    "protocol"      nothing here takes it (offset of the field that names the protocol)
    "port"          the transport has nobody there (0)
    "no_route"      nothing leads to its destination (0)
    "too_big"       it did not fit and may not be fragmented (the MTU)
    "parameter"     a field of its header is wrong (offset of the field)
    "option"        IPv6: an unknown option that asks for it, maybe in a packet to a group (offset of the option)
    "header_chain"  IPv6: the first fragment does not hold all headers (0), RFC 7112 §5
    "admin"         it is not let through (0)
    "refused"       an own packet that the guard rejected, without IP header: whoever sent it is told (0)
Otherwise the packet is as a transport handler has it: the IP header stands at `packet.network`, the data behind it.
The destination of a forwarded packet is no own address.
"""

from __future__ import annotations

import errno
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from guest.net.address import format_mapped, is_loopback, is_multicast, is_unspecified, is_v4
from guest.net.config import NetConfig
from guest.net.family import Codec, IpHeader, IpInterface, Refusal
from guest.net.fragment import slices
from guest.net.hops import IDENT_SLOTS, Hop, HopTable
from guest.net.pbuf import CAST_HOST, CAST_MULTICAST, CAST_OTHER_HOST, PacketBuffer
from guest.net.reassembly import Reassembler
from guest.net.source import source_address

if TYPE_CHECKING:
    from guest.net.guard import Guard

__all__ = ["Handler", "Hop", "IpEngine", "IpInterface", "source_address"]

LOOPED_PACKETS = 256
NO_NEXT_HEADER = 59


# Takes a packet with its IP header pulled (it starts at `packet.network`).
Handler: TypeAlias = Callable[[PacketBuffer, IpHeader], None]
# Sends a packet, which starts at its IP header, on its way.
Forward: TypeAlias = Callable[["IpEngine", PacketBuffer, IpHeader, Codec], None]


class IpEngine(HopTable):
    """The network layer of one stack: moves packets to where `HopTable` says.

    Args:
        codecs: the families.
        rng: source of first identifications, random steps and keys.
        config: limits and times.
        now: the time.

    Attributes:
        handlers: protocol number → transport.
        raw: sees every packet for this host before its transport does, without changing it; whether somebody took it
            (then nobody is told that its protocol is unknown).
        error: is asked for ICMP errors about received packets, see above.
        impostor: is shown, at their IP headers, the packets from a wire that were dropped for their own source.
        guard: decides which packets go on; None lets them all.
        reassembler: the packets that are still in pieces.
        wake: called when `poll` has got something to do.
        batch_done: called when all packets that came in together have been handed on.
    """

    def __init__(
        self,
        codecs: Iterable[Codec],
        *,
        rng: random.Random,
        config: NetConfig,
        now: Callable[[], int],
    ) -> None:
        super().__init__(codecs, rng=rng, config=config, now=now)
        self.handlers: dict[int, Handler] = {}
        self.raw: Callable[[PacketBuffer, IpHeader], bool] | None = None
        self.error: Callable[[PacketBuffer, IpHeader, str, int], None] | None = None
        self.impostor: Callable[[PacketBuffer, IpHeader], None] | None = None
        self._forward: Forward | None = None
        self.guard: Guard | None = None
        self.wake: Callable[[], None] | None = None
        self.batch_done: Callable[[], None] | None = None
        self._identifications = [rng.getrandbits(16) for _ in range(IDENT_SLOTS)]
        self._fragmented = 0  # IPv6 packets that were cut
        self.reassembler = Reassembler(now=now, config=config, layer=self, expired=self._reassembly_expired)
        self._looped: deque[tuple[IpInterface, Codec, PacketBuffer]] = deque()

    @property
    def forwarding(self) -> bool:
        """Whether packets for others are passed on."""
        return self._forward is not None

    @forwarding.setter
    def forwarding(self, forwarding: bool) -> None:
        self._forward = None
        if forwarding:
            from guest.net.forward import forward  # noqa: PLC0415 - only routers need it

            self._forward = forward

    # -- input ---------------------------------------------------------------------------------------------------

    def input(self, interface: IpInterface, ethertype: int, packets: Sequence[PacketBuffer]) -> None:
        """Packets of one family arrived, without link headers."""
        codec = self.codecs.get(ethertype)
        if codec is None:
            self.counters["rx_packets"] += len(packets)
            for packet in packets:
                self.drop(packet, "rx_dropped_family")
            return
        self._receive(interface, codec, packets, interface is not self.loopback)

    def _receive(self, interface: IpInterface, codec: Codec, packets: Sequence[PacketBuffer], from_wire: bool) -> None:
        counters = self.counters
        counters["rx_packets"] += len(packets)
        accepted = self._accepted
        handlers = self.handlers
        for received in packets:
            packet = received
            if packet.cast == CAST_OTHER_HOST:
                self.drop(packet, "rx_dropped_other_host")
                continue
            header = codec.parse(packet, interface, from_wire)
            if isinstance(header, str):
                self.drop(packet, header)
                continue
            src = header.src
            dst = header.dst
            cast = accepted.get(dst)
            if cast is None:
                cast = self._other_cast(interface, dst, from_wire)
            if from_wire and accepted.get(src) is not None:
                self.drop(packet, "rx_dropped_land" if src == dst else "rx_dropped_source")
                if self.impostor is not None:
                    self.impostor(packet, header)
                continue
            if cast is None:
                self._pass_on(packet, header, codec)
                continue
            if cast == CAST_HOST:
                # RFC 1122 §3.3.6: a unicast packet in a broadcast frame; and only a broadcast may come from nobody
                if packet.cast or is_unspecified(src):
                    self.drop(packet, "rx_dropped_broadcast_frame" if packet.cast else "rx_dropped_source")
                    continue
                if dst in self._link_local and from_wire and self._link_local[dst] is not interface:
                    self.drop(packet, "rx_dropped_not_for_us")
                    continue
            packet.cast = cast
            if header.extended:
                extended = codec.extend(packet, header)
                if isinstance(extended, Refusal):
                    self.refuse(packet, header, extended)
                    continue
                header = extended
            if header.fragment:
                whole = self._join_fragments(codec, packet, header)
                if whole is None:
                    continue
                packet, header = whole
            packet.network = packet.data
            packet.data += header.size
            packet.transport = packet.data
            if self.trace is not None:
                note = f"{format_mapped(src)} > {format_mapped(dst)} protocol {header.protocol}"
                self.trace(self.stage, packet, note)
            if self.guard is not None and not self.guard.input(self, packet, header):
                continue
            handler = handlers.get(header.protocol)
            taken = self.raw is not None and self.raw(packet, header)
            if handler is not None:
                counters["rx_delivered"] += 1
                handler(packet, header)
            elif taken:
                counters["rx_delivered"] += 1
            else:
                self._unknown_protocol(packet, header)
        if self.batch_done is not None:
            self.batch_done()

    def _other_cast(self, interface: IpInterface, dst: int, from_wire: bool) -> int | None:
        """For whom a packet is that is for none of our addresses; None for somebody else."""
        if self.groups.member(interface, dst):
            return CAST_MULTICAST
        if self.transparent is not None and self.stands_for(interface, dst):
            return CAST_HOST
        return CAST_HOST if not from_wire and is_loopback(dst) else None

    def _unknown_protocol(self, packet: PacketBuffer, header: IpHeader) -> None:
        if header.protocol == NO_NEXT_HEADER and not is_v4(header.dst):
            self.drop(packet, "rx_dropped_no_next_header")
            return
        self.drop(packet, "rx_dropped_protocol")
        if self.error is not None:
            self.error(packet, header, "protocol", header.named_at)

    def refuse(self, packet: PacketBuffer, header: IpHeader, refusal: Refusal) -> None:
        """Drop a packet that starts at its IP header, and ask for the error that its sender is due."""
        packet.network = packet.data
        packet.data += header.size
        packet.transport = packet.data
        self.drop(packet, refusal.reason)
        if refusal.kind and self.error is not None:
            self.error(packet, header, refusal.kind, refusal.value)

    def _join_fragments(
        self, codec: Codec, packet: PacketBuffer, header: IpHeader
    ) -> tuple[PacketBuffer, IpHeader] | None:
        """Hold a fragment, or give the whole packet when it was the last that was missing."""
        result = self.reassembler.add(packet, header, codec)
        if result is None:
            return None
        if isinstance(result, Refusal):
            self.refuse(packet, header, result)
            return None
        whole, joined = result
        if joined.extended:
            extended = codec.extend(whole, joined, joined=True)
            if isinstance(extended, Refusal):
                self.refuse(whole, joined, extended)
                return None
            joined = extended
        return whole, joined

    def _reassembly_expired(self, packet: PacketBuffer, header: IpHeader) -> None:
        if self.error is not None:
            packet.network = packet.data
            packet.data += header.size
            packet.transport = packet.data
            self.error(packet, header, "reassembly", 0)

    def _pass_on(self, packet: PacketBuffer, header: IpHeader, codec: Codec) -> None:
        """A packet that is not for this host."""
        if packet.cast or is_multicast(header.dst):
            self.drop(packet, "rx_dropped_not_for_us")
        elif self._forward is None:
            self.drop(packet, "rx_dropped_forwarding_off")
        else:
            self._forward(self, packet, header, codec)

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
        dont_fragment: bool | None = None,
        interface: IpInterface | None = None,
        flow: int = 0,
        router_alert: bool = False,
        loop: bool = False,
    ) -> int:
        """Send a transport's packet; 0 or an errno: ENETUNREACH, EADDRNOTAVAIL (`src` is not ours), EMSGSIZE, EPERM.

        The packet's headroom takes the headers; its checksums are complete.

        Args:
            src: the best own address unless given; the unspecified address only to broadcasts and groups.
            dont_fragment: True refuses what does not fit (EMSGSIZE); False never says so; None as Linux does: what
                fits says "don't fragment", what does not is fragmented.
            interface: overrides the routing table.
            flow: label of IPv6.
            router_alert: add the option that asks routers to look.
            loop: also deliver here what goes to a broadcast address, or to a group of which the interface is a member.
        """
        hop = (self._hops.get(dst) if interface is None else None) or self.hop(dst, interface)
        if hop is not None and hop.until and self._now() >= hop.until:
            hop = self.hop(dst, interface)
        if hop is None:
            self.drop(packet, "tx_dropped_no_route")
            return errno.ENETUNREACH
        if src is None:
            src = hop.src
        elif src != hop.src and not self._may_send_from(src, hop):
            self.drop(packet, "tx_dropped_source")
            return errno.EADDRNOTAVAIL
        codec = hop.codec
        size = len(packet) + codec.header_size + (8 if router_alert else 0)
        # What the interface cuts into segments itself is not ours to fragment.
        whole = size <= hop.mtu or (packet.offload is not None and packet.offload.gso_type != 0)
        if size > codec.max_size or (dont_fragment and not whole):
            self.drop(packet, "tx_dropped_too_big")
            return errno.EMSGSIZE
        if self.guard is not None and not self.guard.output(self, packet, hop, src, dst, protocol):
            return errno.EPERM
        if ttl is None:
            ttl = hop.ttl
        if dont_fragment is None:
            dont_fragment = hop.may_say_df
        slot = hop.slot
        if not (whole and (dont_fragment or slot < 0)):
            identification = self._identify(hop)
        elif slot < 0:
            identification = 0
        else:
            self._identifications[slot] = identification = self._identifications[slot] + 1 & 0xFFFF
        if loop and hop.cast != CAST_HOST:
            self._loop(packet, hop, src, dst, protocol, ttl, tos)
        if ttl == 0 and hop.cast == CAST_MULTICAST and hop.interface is not self.loopback:
            return 0  # not beyond this host (RFC 1112 §6.1)
        if not whole:
            self._send_fragments(packet, hop, src, dst, protocol, ttl, tos, identification, flow, router_alert)
            return 0
        codec.build(
            packet,
            src=src,
            dst=dst,
            protocol=protocol,
            ttl=ttl,
            tos=tos,
            identification=identification,
            dont_fragment=dont_fragment,
            flow=flow,
            router_alert=router_alert,
        )
        packet.network = packet.data
        packet.protocol = codec.ethertype
        self.counters["tx_packets"] += 1
        if self.trace is not None:
            note = f"{format_mapped(src)} > {format_mapped(dst)} protocol {protocol}"
            self.trace(self.stage, packet, note)
        hop.interface.send(packet, hop.next_hop, hop.cast)
        return 0

    def _identify(self, hop: Hop) -> int:
        """An identification for a packet that is fragmented, or may be on its way."""
        if hop.slot < 0:
            self._fragmented += 1
            return self._hash(self._fragmented)
        identification = self._identifications[hop.slot] + 1 + self._rng.getrandbits(3) & 0xFFFF
        self._identifications[hop.slot] = identification
        return identification

    def _send_fragments(
        self, packet: PacketBuffer, hop: Hop, src: int, dst: int, protocol: int, ttl: int, tos: int,
        identification: int, flow: int, router_alert: bool,
    ) -> None:  # fmt: skip
        """Send a packet that is too big for its path in pieces that share its bytes."""
        codec = hop.codec
        self.counters["tx_fragmented"] += 1
        room = hop.mtu - codec.fragment_size - (8 if router_alert else 0) & ~7
        for offset, more, views in slices(packet.views(), room):
            piece = PacketBuffer.allocate(0)
            piece.frags = views
            piece.lease = packet.lease
            codec.build(
                piece,
                src=src,
                dst=dst,
                protocol=protocol,
                ttl=ttl,
                tos=tos,
                identification=identification,
                dont_fragment=False,
                fragment=offset >> 2 | more,
                fragmented=True,
                flow=flow,
                router_alert=router_alert,
            )
            self.send_built(piece, codec, hop.interface, hop.next_hop, hop.cast)

    def send_built(
        self, packet: PacketBuffer, codec: Codec, interface: IpInterface, next_hop: int, cast: int = CAST_HOST
    ) -> None:
        """Send a packet that has its IP header."""
        packet.network = packet.data
        packet.protocol = codec.ethertype
        self.counters["tx_packets"] += 1
        if self.trace is not None:
            self.trace(self.stage, packet, f"next hop {format_mapped(next_hop)}")
        interface.send(packet, next_hop, cast)

    def output_with_header(self, packet: PacketBuffer, dst: int, *, interface: IpInterface | None = None) -> int:
        """Send a packet that brings its IP header along (IP_HDRINCL); 0 or an errno.

        As raw(7) says: length and checksum are always filled in, source and identification where they are zero; it is
        not fragmented (EMSGSIZE). EINVAL where the header is none, EPERM where the guard stops it. The packet's linear
        part is changed.
        """
        hop = self.hop(dst, interface)
        if hop is None:
            self.drop(packet, "tx_dropped_no_route")
            return errno.ENETUNREACH
        if len(packet) > hop.mtu:
            self.drop(packet, "tx_dropped_too_big")
            return errno.EMSGSIZE
        identification = 0 if hop.slot < 0 else self._identify(hop)
        if not hop.codec.complete(packet, hop.src, identification or 1):
            self.drop(packet, "tx_dropped_header")
            return errno.EINVAL
        if self.guard is not None and not self.guard.output_built(self, packet, hop):
            return errno.EPERM
        self.send_built(packet, hop.codec, hop.interface, hop.next_hop, hop.cast)
        return 0

    def _loop(self, packet: PacketBuffer, hop: Hop, src: int, dst: int, protocol: int, ttl: int, tos: int) -> None:
        """Keep a copy of what this host sends to a group that it is in."""
        if hop.interface is self.loopback or self._other_cast(hop.interface, dst, False) is None is self._accepted.get(
            dst
        ):
            return
        copy = packet.copy()
        hop.codec.build(
            copy, src=src, dst=dst, protocol=protocol, ttl=ttl, tos=tos, identification=0, dont_fragment=True
        )
        if len(self._looped) >= LOOPED_PACKETS:
            self.drop(copy, "tx_dropped_loop_full")
            return
        copy.cast = CAST_HOST
        self._looped.append((hop.interface, hop.codec, copy))
        if self.wake is not None:
            self.wake()

    # -- time ----------------------------------------------------------------------------------------------------

    def poll(self, now: int) -> bool:
        """Deliver what was looped, and give up packets whose fragments did not come; whether there was anything."""
        worked = bool(self._looped)
        for _ in range(len(self._looped)):
            interface, codec, packet = self._looped.popleft()
            self._receive(interface, codec, (packet,), False)
        if self.guard is not None:
            worked = self.guard.poll(self) or worked
        return self.reassembler.poll(now) or worked

    def poll_at(self) -> int | None:
        """When `poll` has something to do, or None."""
        if self._looped or (self.guard is not None and self.guard.pending):
            return self._now()
        return self.reassembler.poll_at()
