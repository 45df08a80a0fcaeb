"""The packet buffer: the only carrier of packets between the guest's layers.

A `PacketBuffer` is a linear area, in which headers are pushed and pulled, followed by a list of further views
(fragments): the payload of a received frame that came in several pieces, or the payload of a segment to be sent.

    area    head ........ data ======== tail ........ end     then frags[0], frags[1], …
                 headroom      linear          tailroom

Promises:
- Every bounds violation raises `PacketError` and changes nothing.
- Bytes are never copied unless the name of the method says so (`copy`, `pullup`, `keep`).
- A received buffer is lent, not given: its `lease` returns the memory to the driver when the last packet that refers
  to it is gone. Whoever queues a packet calls `keep()`, which copies it to the heap once the driver is short of
  buffers.
- A clone shares bytes with its original; a layer that wants to change bytes it did not make takes a `copy`.

Sections: `Offload`, `Lease`, `PacketBuffer`, `PacketQueue`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview

HEADROOM = 128
SMALL_FRAME = 256  # shorter frames are always copied to the heap

# To whom the link layer sent a packet; the numbers are those of `pkttype` in if_packet.h.
CAST_HOST = 0
CAST_BROADCAST = 1
CAST_MULTICAST = 2
CAST_OTHER_HOST = 3


class PacketError(Exception):
    """An operation would leave the buffer; nothing was changed."""


class Offload(NamedTuple):
    """What the virtio header says of a packet (virtio 1.4 §5.1.9): checksum and segmentation still to be done."""

    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0


class Lease:
    """Memory lent by a driver. When the last packet that holds the lease is gone, `give_back` is called once.

    Args:
        give_back: returns the memory to its owner.
        scarce: says whether the owner is short of buffers.
    """

    __slots__ = ("_give_back", "scarce")

    def __init__(self, give_back: Callable[[], None], scarce: Callable[[], bool]) -> None:
        self._give_back = give_back
        self.scarce = scarce

    def __del__(self) -> None:
        self._give_back()


class PacketBuffer:
    """One packet.

    Args:
        area: writable memory for headers and linear data.
        data: offset where the packet starts in `area`.
        tail: offset where its linear part ends.
        frags: further pieces, in order.
        lease: what keeps `area` and `frags` lent, if they are.
    """

    __slots__ = (
        "area", "cast", "data", "device", "end", "frags", "lease", "network", "offload", "protocol", "tail",
        "transport",
    )

    def __init__(
        self,
        area: memoryview,
        data: int = 0,
        tail: int | None = None,
        frags: list[memoryview] | None = None,
        lease: Lease | None = None,
    ) -> None:
        self.area = area
        self.end = len(area)
        self.data = data
        self.tail = self.end if tail is None else tail
        if not 0 <= self.data <= self.tail <= self.end:
            raise PacketError(f"data {self.data} and tail {self.tail} do not lie in order inside {self.end} bytes")
        self.frags: list[memoryview] = frags if frags is not None else []
        self.lease = lease
        self.offload: Offload | None = None
        self.device: object | None = None  # the interface that received it
        self.protocol = 0  # EtherType
        self.cast = CAST_HOST
        self.network = 0  # offset in `area` of the network header, once known
        self.transport = 0  # offset in `area` of the transport header, once known

    @classmethod
    def allocate(cls, size: int, headroom: int = HEADROOM) -> PacketBuffer:
        """An empty packet on the heap with room for `size` bytes behind `headroom` bytes."""
        return cls(memoryview(bytearray(headroom + size)), headroom, headroom)

    @classmethod
    def from_bytes(cls, raw: Buffer, headroom: int = HEADROOM) -> PacketBuffer:
        """A packet on the heap that holds a copy of `raw`."""
        packet = cls.allocate(len(raw), headroom)
        packet.put(len(raw))[:] = raw
        return packet

    # -- size and content ----------------------------------------------------------------------------------------

    def __len__(self) -> int:
        total = self.tail - self.data
        for frag in self.frags:
            total += len(frag)
        return total

    @property
    def headroom(self) -> int:
        """Bytes that `push` can still take."""
        return self.data

    @property
    def tailroom(self) -> int:
        """Bytes that `put` can still take."""
        return 0 if self.frags else self.end - self.tail

    @property
    def linear(self) -> memoryview:
        """The linear part, from data to tail."""
        return self.area[self.data : self.tail]

    def views(self) -> list[memoryview]:
        """The packet's pieces in order; empty pieces are left out (a descriptor must not be empty)."""
        head = [self.area[self.data : self.tail]] if self.tail > self.data else []
        return head + [frag for frag in self.frags if len(frag)] if self.frags else head

    def tobytes(self) -> bytes:
        """A copy of the whole packet."""
        return b"".join(self.views())

    def peek(self, offset: int, count: int) -> bytes:
        """A copy of `count` bytes from `offset` on, fewer where the packet ends."""
        at = self.data + offset
        if at + count <= self.tail:
            return bytes(self.area[at : at + count])
        return self.tobytes()[offset : offset + count]

    # -- moving the ends -----------------------------------------------------------------------------------------

    def reserve(self, count: int) -> None:
        """Make `count` bytes of headroom in an empty packet."""
        if len(self) or not 0 <= count <= self.end - self.tail:
            raise PacketError(f"cannot reserve {count} bytes: the packet is not empty or has no such room")
        self.data += count
        self.tail += count

    def push(self, count: int) -> memoryview:
        """Extend the packet by `count` bytes at its front; the new bytes."""
        if not 0 <= count <= self.data:
            raise PacketError(f"push of {count} bytes into {self.data} bytes of headroom")
        self.data -= count
        return self.area[self.data : self.data + count]

    def pull(self, count: int) -> None:
        """Drop `count` bytes from the front; they must lie in the linear part (see `pullup`)."""
        if not 0 <= count <= self.tail - self.data:
            raise PacketError(f"pull of {count} bytes from {self.tail - self.data} linear bytes")
        self.data += count

    def put(self, count: int) -> memoryview:
        """Extend the linear part by `count` bytes at its end; the new bytes. Not possible behind fragments."""
        if self.frags or not 0 <= count <= self.end - self.tail:
            raise PacketError(f"put of {count} bytes into {self.tailroom} bytes of tailroom")
        start = self.tail
        self.tail += count
        return self.area[start : self.tail]

    def trim(self, length: int) -> None:
        """Cut the packet off behind its first `length` bytes."""
        size = len(self)
        if not 0 <= length <= size:
            raise PacketError(f"trim of {size} bytes to {length}")
        linear = self.tail - self.data
        if length <= linear:
            self.tail = self.data + length
            self.frags = []
            return
        rest = length - linear
        kept: list[memoryview] = []
        for frag in self.frags:
            if rest <= 0:
                break
            kept.append(frag[:rest])
            rest -= len(frag)
        self.frags = kept

    def pullup(self, count: int) -> bool:
        """Make at least the first `count` bytes linear, copying if need be; False when the packet is shorter.

        Headers that were pulled stay before the data, as far as `HEADROOM` reaches, and `network` and `transport` go
        on pointing at them.
        """
        if count <= self.tail - self.data:
            return True
        if count > len(self):
            return False
        # Whatever was lent stays lent (the lease is kept): later fragments still refer to it.
        rest = count - (self.tail - self.data)
        area = bytearray(HEADROOM + count)
        linear = self.tail - self.data
        back = min(self.data, HEADROOM)
        area[HEADROOM - back : HEADROOM + linear] = self.area[self.data - back : self.tail]
        at = HEADROOM + linear
        frags = list(self.frags)
        while rest:
            piece = frags[0][:rest]
            area[at : at + len(piece)] = piece
            at += len(piece)
            rest -= len(piece)
            frags[0] = frags[0][len(piece) :]
            if not frags[0]:
                frags.pop(0)
        shift = HEADROOM - self.data
        self.network += shift
        self.transport += shift
        self.area, self.end, self.data, self.tail, self.frags = memoryview(area), len(area), HEADROOM, at, frags
        return True

    # -- sharing and copying -------------------------------------------------------------------------------------

    def clone(self) -> PacketBuffer:
        """Another packet over the same bytes, with ends of its own."""
        twin = PacketBuffer(self.area, self.data, self.tail, list(self.frags), self.lease)
        self._tag(twin)
        return twin

    def copy(self, headroom: int = HEADROOM) -> PacketBuffer:
        """A packet on the heap with the same content, all of it linear. Pulled headers are kept as in `pullup`."""
        twin = PacketBuffer.allocate(len(self), headroom)
        back = min(self.data, headroom)
        twin.area[headroom - back : headroom] = self.area[self.data - back : self.data]
        at = twin.tail
        for view in self.views():
            twin.area[at : at + len(view)] = view
            at += len(view)
        twin.tail = at
        self._tag(twin)
        twin.network += headroom - self.data
        twin.transport += headroom - self.data
        return twin

    def _tag(self, twin: PacketBuffer) -> None:
        twin.offload = self.offload
        twin.device = self.device
        twin.protocol = self.protocol
        twin.cast = self.cast
        twin.network = self.network
        twin.transport = self.transport

    def keep(self) -> PacketBuffer:
        """The packet to put into a queue: itself, or a copy when its memory is lent and the lender is short of it."""
        if self.lease is not None and self.lease.scarce():
            return self.copy()
        return self


class PacketQueue:
    """Packets in order, with O(1) work at both ends, and the bytes they hold. A queued packet keeps its length."""

    __slots__ = ("_packets", "bytes")

    def __init__(self) -> None:
        self._packets: deque[PacketBuffer] = deque()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._packets)

    def __iter__(self) -> Iterator[PacketBuffer]:
        return iter(self._packets)

    def add_tail(self, packet: PacketBuffer) -> None:
        """Put `packet` last."""
        self._packets.append(packet)
        self.bytes += len(packet)

    def add_head(self, packet: PacketBuffer) -> None:
        """Put `packet` first."""
        self._packets.appendleft(packet)
        self.bytes += len(packet)

    def remove_head(self) -> PacketBuffer | None:
        """Take the first packet, or None."""
        if not self._packets:
            return None
        packet = self._packets.popleft()
        self.bytes -= len(packet)
        return packet

    def remove_tail(self) -> PacketBuffer | None:
        """Take the last packet, or None."""
        if not self._packets:
            return None
        packet = self._packets.pop()
        self.bytes -= len(packet)
        return packet

    def purge(self) -> int:
        """Drop all packets; how many there were."""
        count = len(self._packets)
        self._packets.clear()
        self.bytes = 0
        return count
