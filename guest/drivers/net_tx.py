"""The transmit side of a virtio network driver: a slab of buffers, each with room for the header.

Promises:
- A packet is copied once, into guest RAM, and is the caller's again when `send` returns.
- Nobody waits: a frame that finds no buffer, even after what the device returned has been taken back, is dropped and
  counted.
- Used buffers cause no interrupt until three quarters of the queue are in flight (virtio 1.4 §5.1.9.2.3); they are
  taken back by the next `send`, by a poll, or by the driver's watchdog.

Read: virtio 1.4 §5.1.9.2 (packet transmission).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeAlias

from guest.dma import DmaPool
from guest.drivers.buffers import BufferPool
from guest.net.pbuf import Offload, PacketBuffer
from guest.ring.ring import Ring
from hw.abi import virtio_net as abi

BUFFER_SIZE = 2048
GSO_BUFFER_SIZE = 4096  # where a frame may have 64 KB
GSO_FRAME_MAX = 65535 + 14
CHAIN_MAX = 18  # buffers of one frame
ETHERNET_HEADER = 14
VLAN_TAG = 4

Token: TypeAlias = int | list[int]  # the buffers of a frame

GSO_KINDS = {
    abi.VIRTIO_NET_HDR_GSO_TCPV4: abi.VIRTIO_NET_F_HOST_TSO4,
    abi.VIRTIO_NET_HDR_GSO_TCPV6: abi.VIRTIO_NET_F_HOST_TSO6,
}
_GSO_FEATURES = {
    **GSO_KINDS,
    abi.VIRTIO_NET_HDR_GSO_UDP: abi.VIRTIO_NET_F_HOST_UFO,
    abi.VIRTIO_NET_HDR_GSO_UDP_L4: abi.VIRTIO_NET_F_HOST_USO,
}


class TransmitQueue:
    """The buffers of one transmit queue.

    Args:
        dma: where the slab comes from.
        ring_size: buffers in it.
        mtu: bytes of the largest IP packet; buffers are so large that its frame fits into `CHAIN_MAX` of them, and into
            half the ring (the whole of a ring of one entry).
        features: what was negotiated when the buffers were made; frames that the device segments need larger ones.
        counters: the device's.
        notify: rings the queue's doorbell.

    Attributes:
        gso_max: bytes of the largest frame that the device segments; 0 where it segments none.

    Raises DmaError when there is no memory.
    """

    ring: Ring[Token]

    def __init__(
        self,
        dma: DmaPool,
        ring_size: int,
        mtu: int,
        features: int,
        counters: Counter[str],
        notify: Callable[[], None],
    ) -> None:
        segments = any(features >> feature & 1 for feature in GSO_KINDS.values())
        size = GSO_BUFFER_SIZE if segments else BUFFER_SIZE
        # Half the ring, so that a large frame leaves room for the ARP reply that goes with it.
        chain_max = max(1, min(CHAIN_MAX, ring_size // 2))
        while size * chain_max < mtu + ETHERNET_HEADER + VLAN_TAG + 32:
            size *= 2
        self.ring_size = ring_size
        self.pool = BufferPool(dma, ring_size, size, "to-device")
        self._frame_max = mtu + ETHERNET_HEADER
        self.gso_max = min(GSO_FRAME_MAX, size * chain_max - 32) if segments else 0
        self._need = -(-(max(self.gso_max, mtu + ETHERNET_HEADER) + 32) // size)  # buffers of a full frame
        self._counters = counters
        self._notify = notify
        self._features = 0
        self._zero_header = b""
        self._crowded = ring_size - ring_size // 4
        self._watching = False

    def set_mtu(self, mtu: int) -> None:
        """Send no larger packets from now on; `mtu` is not above the one that the buffers were made for."""
        self._frame_max = mtu + ETHERNET_HEADER

    def open(self, ring: Ring[Token], features: int) -> None:
        """Use `ring`, under the negotiated `features`."""
        self.ring = ring
        self._features = features
        self._zero_header = bytes(abi.header_length(features))
        self._watching = False
        ring.disable_interrupts()

    def detach(self) -> None:
        """Take all buffers back after the device was reset, and close the ring."""
        lost = self.ring.detach()
        if lost:
            self._counters["tx_lost_reset"] += len(lost)
        self._give_back(lost)
        self.ring.close()

    def send(self, packets: Sequence[PacketBuffer]) -> int:
        """Queue frames for the device, and tell it; how many there was room for. The others are dropped and counted."""
        self.reclaim()
        counters, pool = self._counters, self.pool
        free, views, addresses, size = pool.free, pool.views, pool.addresses, pool.size
        frame_max, zero_header = self._frame_max, self._zero_header
        skip = len(zero_header)
        batch: list[tuple[int, int, Token]] = []
        sent = sent_bytes = lost = 0
        for packet in packets:
            pieces = packet.views()
            length = sum(map(len, pieces))
            if length > frame_max and (length > frame_max + VLAN_TAG or not _is_tagged(pieces)):
                if length > self.gso_max or packet.offload is None or not packet.offload.gso_type:
                    counters["tx_dropped_too_long"] += 1
                    continue
            if length < ETHERNET_HEADER:
                counters["tx_dropped_short"] += 1
                continue
            header = zero_header
            if packet.offload is not None:
                wanted = self._header(packet.offload)
                if wanted is None:
                    counters["tx_dropped_offload"] += 1
                    continue
                header = wanted
            need = 1 if skip + length <= size else -(-(skip + length) // size)
            if len(free) < need:
                lost += self._flush(batch)
                batch = []
                self.reclaim()
                if len(free) < need:
                    counters["tx_dropped_ring_full"] += 1
                    continue
            if need == 1:
                index = free.pop()
                view = views[index]
                view[:skip] = header
                at = skip
                for piece in pieces:
                    end = at + len(piece)
                    view[at:end] = piece
                    at = end
                batch.append((addresses[index], at, index))
            else:
                lost += self._flush(batch, notify=False)
                batch = []
                if not self._send_chain([free.pop() for _ in range(need)], [memoryview(header), *pieces]):
                    continue
            sent += 1
            sent_bytes += length
        lost += self._flush(batch)
        counters["tx_packets"] += sent - lost
        counters["tx_bytes"] += sent_bytes
        if self.ring.in_flight >= self._crowded:
            self.watch()
        return sent - lost

    def _flush(self, batch: list[tuple[int, int, Token]], notify: bool = True) -> int:
        """Put `batch` on the ring and show it to the device; how many did not go (only a broken ring refuses)."""
        taken = self.ring.post(batch, False) if batch else 0
        if taken < len(batch):
            self._counters["tx_dropped_broken"] += len(batch) - taken
            self._give_back([token for _, _, token in batch[taken:]])
        if notify and self.ring.publish() and self.ring.kick_needed():
            self._counters["tx_kicks"] += 1
            self._notify()
        return len(batch) - taken

    def _send_chain(self, indices: list[int], pieces: list[memoryview]) -> bool:
        """Spread `pieces` over several buffers, each but the last filled, as one chain; whether the ring took it."""
        size = self.pool.size
        elements: list[tuple[int, int]] = []
        rest = list(reversed(pieces))
        for index in indices:
            view = self.pool.views[index]
            at = 0
            while rest and at < size:
                piece = rest.pop()
                room = size - at
                if len(piece) > room:
                    rest.append(piece[room:])
                    piece = piece[:room]
                view[at : at + len(piece)] = piece
                at += len(piece)
            elements.append((self.pool.addresses[index], at))
        if self.ring.add(elements, (), indices):
            return True
        self._counters["tx_dropped_broken"] += 1
        self._give_back([indices])
        return False

    def _header(self, offload: Offload) -> bytes | None:
        """The header that asks for `offload`; None when that was not negotiated (§5.1.9.2.1)."""
        flags = offload.flags & abi.VIRTIO_NET_HDR_F_NEEDS_CSUM  # the others are the device's to set
        gso = offload.gso_type & ~abi.VIRTIO_NET_HDR_GSO_ECN
        if not flags and not gso:
            return self._zero_header
        feature = _GSO_FEATURES.get(gso, -1) if gso else abi.VIRTIO_NET_F_CSUM
        if feature < 0 or not self._features >> abi.VIRTIO_NET_F_CSUM & self._features >> feature & 1:
            return None
        fields = (offload.hdr_len, offload.gso_size, offload.csum_start, offload.csum_offset, 0)
        header = abi.NET_HEADER.pack(flags, offload.gso_type, *fields)
        return header + self._zero_header[len(header) :]

    def room(self) -> int:
        """How many frames of the MTU there are buffers for; a sixteenth is kept back."""
        free = len(self.pool.free)
        if free * 2 < self.ring_size:
            self.reclaim()
            free = len(self.pool.free)
        return max(0, free - self.ring_size // 16) // self._need

    # -- taking buffers back -------------------------------------------------------------------------------------

    def reclaim(self) -> int:
        """Take back what the device has sent; how many frames."""
        reaped = self.ring.reap(self.ring_size)
        if not reaped:
            return 0
        self._give_back([token for token, _ in reaped])
        if self._watching:
            if self.ring.in_flight >= self._crowded:
                self.watch()
            else:
                self._watching = False
                self.ring.disable_interrupts()
        return len(reaped)

    def watch(self) -> None:
        """Ask for an interrupt once half of what is in flight has been sent."""
        self._watching = True
        if self.ring.enable_interrupts(after=max(1, self.ring.in_flight // 2)):
            self.reclaim()  # so many are sent already that no interrupt may come (§2.7.14)

    def _give_back(self, tokens: Sequence[Token]) -> None:
        give_back = self.pool.give_back
        for token in tokens:
            if isinstance(token, int):
                give_back(token)
            else:
                for index in token:
                    give_back(index)


def _is_tagged(pieces: Sequence[memoryview]) -> bool:
    """Whether a frame carries a VLAN tag, which does not count against the MTU."""
    return pieces[0][12:14].tobytes() == b"\x81\x00"
