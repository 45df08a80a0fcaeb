"""Putting fragments together, for both families: RFC 791 §3.2, RFC 815, RFC 8200 §4.5, RFC 5722, RFC 1858.

Fragments belong together by source, destination, identification and, in IPv4, protocol. Policy, the same for both:

- An exact duplicate, the same bytes at the same place, is ignored.
- Any other overlap, a second end, or data behind the end discards everything that has come, and what still comes of
  that packet until its time is over (RFC 5722 §4; RFC 8200 §4.5).
- Nothing may reach beyond the largest packet; every fragment but the last is a multiple of 8 bytes; none is empty.
- 60 s after the first to arrive, what is there is dropped; if the fragment at offset 0 is among it, its sender is told.
- Memory is counted as what the fragments pin with what holding them costs. Beyond `reassembly_bytes` or
  `reassembly_sets`, the oldest packet in the making gives way.

The whole packet has a header of its own, and the fragments' memory behind it in order, uncopied; unless that would be
more than `MOST_VIEWS` pieces, or pieces of less than `LEAST_VIEW` bytes on average. Then all of it is copied to one
area, for each piece pins an object and a buffer, and a queue behind could not tell what it holds.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from operator import itemgetter
from typing import TypeAlias

from guest.net.address import is_link_local, is_multicast, is_v4
from guest.net.config import NetConfig
from guest.net.family import Codec, IpHeader, IpInterface, Refusal
from guest.net.layer import Layer
from guest.net.pbuf import HEADROOM, Lease, PacketBuffer

OVERHEAD = 512  # bytes that holding one fragment costs besides its memory, roughly; a set costs as much
MOST_VIEWS = 64  # pieces of a whole packet that is not copied
LEAST_VIEW = 256  # bytes, on average, of such pieces
CONGESTION = 3  # both ECN bits (RFC 3168 §5.3)
PAYLOAD_LENGTH_AT = 4  # in the IPv6 header

Key: TypeAlias = tuple[int, int, int, int, IpInterface | None]


class Assembly:
    """One packet in the making.

    Attributes:
        parts: (offset, end, packet from its IP header on, bytes of that header), in order.
        first: the header of the fragment at offset 0, once it is there.
        have: bytes of data that have come. total: bytes of all data, once the last fragment is there, else 0.
        size: memory that is accounted. expires: when it is given up.
        dead: an overlap was seen; everything is refused.
        congested: a fragment was marked by a router.
    """

    __slots__ = ("congested", "dead", "expires", "first", "have", "parts", "size", "total")

    def __init__(self, expires: int) -> None:
        self.parts: list[tuple[int, int, PacketBuffer, int]] = []
        self.first: IpHeader | None = None
        self.have = 0
        self.total = 0
        self.size = OVERHEAD
        self.expires = expires
        self.dead = False
        self.congested = False


class Reassembler:
    """All packets in the making of one stack.

    Args:
        now: the time.
        config: limits and times.
        layer: counts and traces drops.
        expired: told of the first fragment of a packet that was given up because its time was over.

    Attributes:
        bytes: memory that is accounted. held: fragments that wait for others.
    """

    def __init__(
        self,
        *,
        now: Callable[[], int],
        config: NetConfig,
        layer: Layer,
        expired: Callable[[PacketBuffer, IpHeader], None],
    ) -> None:
        self.bytes = 0
        self.held = 0
        self._now = now
        self._config = config
        self._layer = layer
        self._expired = expired
        self._sets: dict[Key, Assembly] = {}  # oldest first

    def __len__(self) -> int:
        return len(self._sets)

    def add(
        self, packet: PacketBuffer, header: IpHeader, codec: Codec
    ) -> tuple[PacketBuffer, IpHeader] | Refusal | None:
        """Take a fragment that starts at its IP header.

        Returns: the whole packet, why the fragment is refused, or None while others are missing.
        """
        offset = header.fragment >> 1 << 3
        more = header.fragment & 1
        size = len(packet) - header.size
        end = offset + size
        v4 = is_v4(header.dst)
        if size <= 0:
            return Refusal("rx_dropped_fragment_empty")
        if more and size & 7:
            return Refusal("rx_dropped_fragment_length", "" if v4 else "parameter", PAYLOAD_LENGTH_AT)
        if end + whole_header(header, codec) > codec.max_size:
            return Refusal("rx_dropped_fragment_beyond", "" if v4 else "parameter", header.size - 6)
        key = self._key(header, v4)
        assembly = self._sets.get(key)
        if assembly is None:
            assembly = self._sets[key] = Assembly(self._now() + self._config.reassembly_time)
            self.bytes += OVERHEAD
        elif assembly.dead:
            return Refusal("rx_dropped_fragment_overlap")
        parts = assembly.parts
        at = len(parts) if not parts or parts[-1][0] < offset else bisect_left(parts, offset, key=itemgetter(0))
        if at < len(parts) and parts[at][:2] == (offset, end) and same_data(parts[at], packet, header.size):
            return Refusal("rx_dropped_fragment_duplicate")
        if (
            (at < len(parts) and parts[at][0] < end)
            or (at and parts[at - 1][1] > offset)
            or (assembly.total and (end > assembly.total or (not more and end != assembly.total)))
            or (not more and parts and parts[-1][1] > end)
        ):
            self._kill(assembly)
            return Refusal("rx_dropped_fragment_overlap")
        packet = packet.keep()
        parts.insert(at, (offset, end, packet, header.size))
        cost = OVERHEAD + packet.end + sum(map(len, packet.frags))
        assembly.size += cost
        self.bytes += cost
        assembly.have += size
        if not more:
            assembly.total = end
        if not offset:
            assembly.first = header
        if header.tos & CONGESTION == CONGESTION:
            assembly.congested = True
        self.held += 1
        if assembly.first is not None and assembly.have == assembly.total:
            self._forget(key)
            return self._join(assembly, assembly.first, codec)
        self._shrink()
        return None

    def _key(self, header: IpHeader, v4: bool) -> Key:
        dst = header.dst
        local = is_multicast(dst) or is_link_local(dst)  # the same addresses may be in use on several links
        protocol = header.protocol if v4 else -1
        return header.src, dst, header.identification, protocol, header.interface if local else None

    def _join(self, assembly: Assembly, header: IpHeader, codec: Codec) -> tuple[PacketBuffer, IpHeader] | Refusal:
        """The whole packet, from its IP header on."""
        parts = assembly.parts
        first = parts[0][2]
        # RFC 791: the header of the first fragment may be longer than the others'
        if whole_header(header, codec) + assembly.total > codec.max_size:
            for _, _, packet, _ in parts[1:]:
                self._layer.drop(packet, "rx_dropped_fragment_beyond")
            return Refusal("rx_dropped_fragment_beyond")
        raw, whole = codec.join_header(first.area[first.data : first.data + header.size], header, assembly.total)
        views: list[memoryview] = []
        leases: list[Lease] = []
        for _, _, packet, size in parts:
            packet.data += size
            views += packet.views()
            if packet.lease is not None:
                leases.append(packet.lease)
        if len(views) > MOST_VIEWS or assembly.total < LEAST_VIEW * len(views):
            joined = PacketBuffer.from_bytes(b"".join((raw, *views)), HEADROOM)
        else:
            joined = PacketBuffer.from_bytes(raw, HEADROOM)
            joined.frags = views
            if leases:
                joined.lease = Lease(leases.clear, lambda: any(lease.scarce() for lease in leases))
        joined.device = first.device
        joined.protocol = first.protocol
        joined.cast = first.cast
        self._layer.counters["rx_fragments"] += len(parts)
        self._layer.counters["rx_reassembled"] += 1
        if assembly.congested:
            whole = whole._replace(tos=whole.tos | CONGESTION)
        return joined, whole

    # -- giving up -----------------------------------------------------------------------------------------------

    def _forget(self, key: Key) -> Assembly:
        assembly = self._sets.pop(key)
        self.bytes -= assembly.size
        self.held -= len(assembly.parts)
        return assembly

    def _kill(self, assembly: Assembly) -> None:
        """Overlap: nothing of this packet is used, and nothing more is taken."""
        for _, _, packet, _ in assembly.parts:
            self._layer.drop(packet, "rx_dropped_fragment_overlap")
        self.held -= len(assembly.parts)
        assembly.parts = []
        assembly.first = None
        assembly.dead = True
        self.bytes -= assembly.size - OVERHEAD
        assembly.size = OVERHEAD

    def _shrink(self) -> None:
        while len(self._sets) > self._config.reassembly_sets or self.bytes > self._config.reassembly_bytes:
            for _, _, packet, _ in self._forget(next(iter(self._sets))).parts:
                self._layer.drop(packet, "rx_dropped_fragment_evicted")

    def poll(self, now: int) -> bool:
        """Give up packets whose time is over; whether there was one."""
        worked = False
        while self._sets:
            key, assembly = next(iter(self._sets.items()))
            if assembly.expires > now:
                break
            worked = True
            self._forget(key)
            for offset, _, packet, _ in assembly.parts:
                self._layer.drop(packet, "rx_dropped_fragment_timeout")
                if not offset and assembly.first is not None:
                    self._expired(packet, assembly.first)
        return worked

    def poll_at(self) -> int | None:
        """When `poll` is due, or None."""
        return next(iter(self._sets.values())).expires if self._sets else None


def whole_header(header: IpHeader, codec: Codec) -> int:
    """Bytes of a fragment's header without what says that it is a fragment."""
    return header.size - (codec.fragment_size - codec.header_size)


def same_data(part: tuple[int, int, PacketBuffer, int], packet: PacketBuffer, size: int) -> bool:
    """Whether a fragment that is here and one that came in hold the same bytes behind their headers."""
    return part[2].tobytes()[part[3] :] == packet.tobytes()[size:]
