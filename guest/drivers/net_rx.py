"""The receive side of a virtio network driver: buffers, refill, and frames out of used buffers.

Promises:
- The ring is refilled with every batch, from a pool larger than the ring. A frame is lent only when another buffer can
  take its place; otherwise, and for frames below 256 bytes, it is copied to the heap. So whatever readers do, the ring
  stays full.
- Only bytes that the device says it wrote are ever shown (virtio 1.4 §2.7.8.3).
- A frame that is not whole, or whose header cannot be true, is dropped and counted with its reason.

Read: virtio 1.4 §5.1.9.3 (receive buffers), §5.1.9.4 (incoming packets).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

from guest.dma import DmaPool
from guest.drivers.buffers import BufferPool
from guest.drivers.net_tx import ETHERNET_HEADER, VLAN_TAG
from guest.net.pbuf import HEADROOM, SMALL_FRAME, Lease, Offload, PacketBuffer
from guest.ring.ring import Ring
from hw.abi import virtio_net as abi

RX_BUFFER = 2048  # bytes of a buffer, at least
RX_GSO_BUFFER = 8192  # the same where frames may have 64 KB
RX_POOL_MAX = 8 << 20  # bytes; with buffers so large that a pool would be larger, fewer are posted

_KNOWN_FLAGS = abi.VIRTIO_NET_HDR_F_NEEDS_CSUM | abi.VIRTIO_NET_HDR_F_DATA_VALID
_FRAME_MAX = 65535 + 14 + 40  # the largest that a device may make of segments, §5.1.9.3

# Which negotiated feature lets the device set a gso_type, §5.1.9.4.1.
_GSO_FEATURES = {
    abi.VIRTIO_NET_HDR_GSO_TCPV4: (abi.VIRTIO_NET_F_GUEST_TSO4,),
    abi.VIRTIO_NET_HDR_GSO_TCPV6: (abi.VIRTIO_NET_F_GUEST_TSO6,),
    abi.VIRTIO_NET_HDR_GSO_UDP: (abi.VIRTIO_NET_F_GUEST_UFO,),
    abi.VIRTIO_NET_HDR_GSO_UDP_L4: (abi.VIRTIO_NET_F_GUEST_USO4, abi.VIRTIO_NET_F_GUEST_USO6),
}


def accepted_gso_types(features: int) -> frozenset[int]:
    """The gso_type values that a device may use under the negotiated `features`."""
    types = {gso for gso, bits in _GSO_FEATURES.items() if any(features >> bit & 1 for bit in bits)}
    if features >> abi.VIRTIO_NET_F_GUEST_ECN & 1:
        tcp = types & {abi.VIRTIO_NET_HDR_GSO_TCPV4, abi.VIRTIO_NET_HDR_GSO_TCPV6}
        types |= {gso | abi.VIRTIO_NET_HDR_GSO_ECN for gso in tcp}
    return frozenset(types)


def buffer_size(entries: int, features: int, mtu: int) -> int:
    """Bytes of each of `entries` buffers: one holds a whole frame, or all together do where they are merged
    (§5.1.9.3.1).
    """
    need = abi.header_length(features) + ETHERNET_HEADER + VLAN_TAG + mtu
    if features >> abi.VIRTIO_NET_F_MRG_RXBUF & 1:
        need = -(-need // entries)
    least = RX_GSO_BUFFER if accepted_gso_types(features) else RX_BUFFER
    return max(least, -(-need // 64) * 64)


def entries_that_fit(wanted: int, features: int, mtu: int) -> int:
    """How many buffers to post, of `wanted`, so that a pool of them stays within `RX_POOL_MAX`."""
    entries = wanted
    while entries > 1 and (entries + entries // 2) * buffer_size(entries, features, mtu) > RX_POOL_MAX:
        entries //= 2
    return entries


class _Merge:
    """A frame that several buffers hold, of which `missing` have not been seen yet."""

    __slots__ = ("bad", "header", "lent", "missing", "pieces", "start")

    def __init__(self, header: tuple[int, ...], missing: int) -> None:
        self.header = header
        self.missing = missing
        self.pieces: list[memoryview] = []
        self.lent: list[int] = []
        self.start = 0  # where the frame begins in the first piece
        self.bad = False


class ReceiveQueue:
    """The buffers of one receive queue and the frames in them.

    Args:
        dma: where the pool comes from.
        ring_size: buffers that are posted; the pool has half as many again.
        buffer_size: bytes of each.
        counters: the device's, for drops.

    Raises DmaError when there is no memory.
    """

    ring: Ring[int]

    def __init__(self, dma: DmaPool, ring_size: int, buffer_size: int, counters: Counter[str]) -> None:
        self.ring_size = ring_size
        self.pool = BufferPool(dma, ring_size + max(1, ring_size // 2), buffer_size, "from-device")
        self._low_water = max(1, ring_size // 8)
        self._posts = [(addr, buffer_size, at) for at, addr in enumerate(self.pool.addresses)]
        self._recycled: list[int] = []  # buffers that go straight back to the ring
        self._merge: _Merge | None = None
        self._counters = counters
        self._header = 0
        self._merge_max = 1
        self._gso: frozenset[int] = frozenset()
        self._flags = 0

    def open(self, ring: Ring[int], features: int) -> None:
        """Use `ring`, under the negotiated `features`, and fill it; the caller publishes."""
        self.ring = ring
        self._header = abi.header_length(features)
        merge = features >> abi.VIRTIO_NET_F_MRG_RXBUF & 1
        self._merge_max = min(ring.size, -(-(_FRAME_MAX + self._header) // self.pool.size)) if merge else 0
        self._gso = accepted_gso_types(features)
        # Without GUEST_CSUM nobody agreed that the device checks sums; a sum that is missing is missing all the same.
        self._flags = _KNOWN_FLAGS if features >> abi.VIRTIO_NET_F_GUEST_CSUM & 1 else abi.VIRTIO_NET_HDR_F_NEEDS_CSUM
        self.refill()

    def detach(self) -> None:
        """Take all posted buffers back after the device was reset, and close the ring."""
        if self._merge is not None:
            self._drop_merge("rx_dropped_reset")
        _give_all_back(self.pool.give_back, self.ring.detach() + self._recycled)
        self.ring.close()
        self._recycled = []

    def scarce(self) -> bool:
        """Whether so few buffers are left that queues should copy."""
        return len(self.pool.free) < self._low_water

    def refill(self) -> None:
        """Post what came back, and more from the pool as far as the ring has room; the caller publishes."""
        ring, free, posts, recycled = self.ring, self.pool.free, self._posts, self._recycled
        for _ in range(min(ring.room - len(recycled), len(free))):
            recycled.append(free.pop())
        taken = ring.post([posts[at] for at in recycled], True)
        self._recycled = recycled[taken:]

    def collect(self, budget: int) -> tuple[list[PacketBuffer], int]:
        """The frames in up to `budget` used buffers, and how many buffers that were."""
        reaped = self.ring.reap(budget)
        pool, counters, recycled = self.pool, self._counters, self._recycled
        views, spare, give_back, scarce = pool.views, len(pool.free), pool.give_back, self.scarce
        header, merge_max, unpack = self._header, self._merge_max, abi.NET_HEADER.unpack_from
        packets: list[PacketBuffer] = []
        received = 0
        for index, written in reaped:
            if self._merge is not None:
                # A further buffer of a frame has no header in front, §5.1.9.4.
                spare -= self._add_piece(self._merge, index, written, 0, spare)
                packet = self._finish_merge()
                if packet is not None:
                    packets.append(packet)
                    received += len(packet)
                continue
            if written <= header:
                counters["rx_dropped_short"] += 1
                recycled.append(index)
                continue
            view = views[index]
            fields = unpack(view)
            if merge_max and fields[6] != 1:
                if not 1 < fields[6] <= merge_max:
                    counters["rx_dropped_num_buffers"] += 1
                    recycled.append(index)
                else:
                    self._merge = _Merge(fields, fields[6] - 1)
                    spare -= self._add_piece(self._merge, index, written, header, spare)
                continue
            # Without MRG_RXBUF num_buffers has to be 1, but devices are known that leave it 0: it is not looked at.
            length = written - header
            offload = None
            if fields[0] or fields[1]:
                offload = self._offload(fields, length)
                if offload is None:
                    recycled.append(index)
                    continue
            if length < SMALL_FRAME or spare <= 0:
                area = bytearray(HEADROOM + length)
                area[HEADROOM:] = view[header:written]
                packet = PacketBuffer(memoryview(area), HEADROOM)
                recycled.append(index)
            else:
                spare -= 1
                lease = Lease(partial(give_back, index), scarce)
                packet = PacketBuffer(view[:written], header, written, None, lease)
            packet.offload = offload
            packets.append(packet)
            received += length
        if packets:
            counters["rx_packets"] += len(packets)
            counters["rx_bytes"] += received
        if not reaped and self._merge is not None:
            # The device has to return all buffers of a frame together (§5.1.9.4.1). It had one more look's time.
            self._drop_merge("rx_dropped_merge_incomplete")
        return packets, len(reaped)

    @property
    def incomplete(self) -> bool:
        """Whether a frame waits for its further buffers: poll again at once."""
        return self._merge is not None

    # -- parts of a frame ----------------------------------------------------------------------------------------

    def _offload(self, fields: tuple[int, ...], length: int) -> Offload | None:
        """The header's offload fields for a frame of `length` bytes; None when they cannot be true (and counted)."""
        flags, gso_type, hdr_len, gso_size, csum_start, csum_offset = fields[:6]
        if gso_type != abi.VIRTIO_NET_HDR_GSO_NONE and gso_type not in self._gso:
            self._counters["rx_dropped_gso"] += 1
            return None
        flags &= self._flags
        needs_sum = flags & abi.VIRTIO_NET_HDR_F_NEEDS_CSUM
        if gso_type and (not needs_sum or gso_size == 0):
            self._counters["rx_dropped_gso"] += 1  # §5.1.9.4.1: both come with segmentation
            return None
        if not needs_sum:
            return Offload(flags)
        if csum_start + csum_offset + 2 > length:
            self._counters["rx_dropped_csum_range"] += 1
            return None
        return Offload(flags, gso_type, hdr_len, gso_size, csum_start, csum_offset)

    def _add_piece(self, merge: _Merge, index: int, written: int, start: int, spare: int) -> int:
        """Take one more buffer into `merge`; how many buffers were lent for it (0 or 1)."""
        if start == 0:
            merge.missing -= 1
        view = self.pool.views[index]
        if written <= start:
            merge.bad = True
        elif not merge.bad and spare > 0:
            merge.pieces.append(view[:written])
            merge.lent.append(index)
            merge.start = start or merge.start
            return 1
        elif not merge.bad:
            copy = memoryview(bytearray(view[start:written]))
            merge.pieces.append(copy)
        self._recycled.append(index)
        return 0

    def _finish_merge(self) -> PacketBuffer | None:
        """The frame, once all its buffers are there and it is sound."""
        merge = self._merge
        if merge is None or merge.missing:
            return None
        if merge.bad:
            self._drop_merge("rx_dropped_short")
            return None
        self._merge = None
        length = sum(map(len, merge.pieces)) - merge.start
        lease = None
        if merge.lent:
            lease = Lease(partial(_give_all_back, self.pool.give_back, merge.lent), self.scarce)
        offload = None
        if merge.header[0] or merge.header[1]:
            offload = self._offload(merge.header, length)
            if offload is None:
                return None  # the lease gives the buffers back
        packet = PacketBuffer(merge.pieces[0], merge.start, None, merge.pieces[1:], lease)
        packet.offload = offload
        return packet

    def _drop_merge(self, reason: str) -> None:
        """Drop the frame that waits for its further buffers."""
        merge, self._merge = self._merge, None
        if merge is not None:
            self._counters[reason] += 1
            merge.pieces.clear()
            _give_all_back(self.pool.give_back, merge.lent)


def _give_all_back(give_back: Callable[[int], None], indices: list[int]) -> None:
    for index in indices:
        give_back(index)
