"""Joins received TCP segments that follow each other into packets of up to 64 KB, where a device does not: what Linux
calls GRO.

TCP and IP then do their work once for many segments. RFC 9293 §3.1, RFC 791 §3.1, RFC 8200 §3; what a joined packet
says of itself follows virtio 1.4 §5.1.9.4. Of what `join` makes, `gso.Cutter` would make the same segments again.

Sections: `join`, segments, acknowledgements.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

from guest.net.checksum import inet_sum
from guest.net.ethernet import ETH_P_IP, ETH_P_IPV6
from guest.net.pbuf import Lease, Offload, PacketBuffer
from hw.abi.virtio_net import VIRTIO_NET_HDR_F_DATA_VALID as DATA_VALID
from hw.abi.virtio_net import VIRTIO_NET_HDR_GSO_TCPV4 as GSO_TCPV4
from hw.abi.virtio_net import VIRTIO_NET_HDR_GSO_TCPV6 as GSO_TCPV6

PSH = 0x08
ACK = 0x10
TCP = 6
ETHERNET = 14
V4_HEADER = 20
V6_HEADER = 40
CHECKSUM_AT = 16  # in TCP's header
LARGEST = 65535 - 64  # bytes of payload in one packet
ACK_FRAME = 14 + 40 + 20 + 12  # bytes of the largest that is nothing but an acknowledgement
TIMESTAMPS = b"\1\1\x08\n"  # how the option is laid out by everybody (RFC 7323 appendix A)
SMALLEST = 536  # shorter segments are left alone: they would pin more memory than they fill
_HALF = struct.Struct("!H")
# Ethernet addresses and type; version and the like, total length, identification, fragment, TTL and protocol, checksum,
# addresses; ports, sequence number, acknowledgement, header length and flags, window, checksum, urgent pointer
_V4_TCP = struct.Struct("!12sHHHHHHH8s4sIIHHHH")
# … version, class and flow label, payload length, next header and hop limit, addresses; …
_V6_TCP = struct.Struct("!12sHIHH32s4sIIHHHH")
# Of an acknowledgement what stays the same: Ethernet header, version and class; length; fragment, TTL, protocol;
# addresses, ports, sequence number; and after the acknowledgement itself header length and flags, urgent pointer
_V4_ACK = struct.Struct("!16sH2x4s2x16sIH4xH")
_V6_ACK = struct.Struct("!18sH42sIH4xH")
assert (_V4_TCP.size, _V6_TCP.size) == (_V4_ACK.size, _V6_ACK.size) == (54, 74)
Key: TypeAlias = tuple[int, bytes, int, bytes, bytes, int, int, bytes]


class _Run:
    """Segments that follow each other.

    Attributes:
        packets: in order; verified, all of them.
        key: what is the same in all of their headers. options: of the first.
        next: the sequence number that would go on. most: bytes of payload in each but the last.
        size: bytes of payload in all.
    """

    __slots__ = ("head", "key", "most", "next", "options", "packets", "size", "v4")

    def __init__(self, packet: PacketBuffer, key: tuple[object, ...], options: bytes, head: int, v4: bool) -> None:
        self.packets = [packet]
        self.key = key
        self.options = options
        self.head = head
        self.v4 = v4
        self.next = 0
        self.most = 0
        self.size = 0


def join(packets: Sequence[PacketBuffer], counters: Counter[str] | None = None) -> Sequence[PacketBuffer]:
    """Received frames, in order, those joined that are segments of one stream and follow each other directly.

    Joined are linear frames with nothing but ACK and PSH set, the same options, acknowledgement and window, whose
    checksums are right; all others, and their order, stay as they are. A joined packet has headers of its own and the
    payload in place; nothing is written into received memory, which stays lent as long as the packet is there. It says
    DATA_VALID, and in its `offload` how it came.

    Of acknowledgements without data that follow each other directly the last undamaged one says what all before it say;
    these are left out, and counted in `counters` as `rx_acks_merged`.
    """
    if len(packets) < 2:
        return packets
    found: list[PacketBuffer] = []
    run: _Run | None = None
    row = _Row()
    for packet in packets:
        area = packet.area
        base = packet.data
        size = packet.tail - base
        if size < 54 + SMALLEST or packet.frags or packet.offload is not None:
            _close(run, found)
            run = None
            if not row.take(packet, size):
                row.close(found, counters)
                if not row.take(packet, size):
                    found.append(packet)
            continue
        row.close(found, counters)
        fields = _V4_TCP.unpack_from(area, base)
        macs, kind, first, total, _, fragment, protocol, _, addresses, ports, seq, ack, word, window, _, _ = fields
        start = ETHERNET + V4_HEADER
        if kind == ETH_P_IP:
            size_ip = total - V4_HEADER
            key: tuple[object, ...] = (macs, first, fragment, protocol, addresses, ports, ack, word & ~PSH, window)
            plain = first >> 8 == 0x45 and not fragment & 0x3FFF and protocol & 0xFF == TCP
        elif kind == ETH_P_IPV6 and size >= _V6_TCP.size:
            fields6 = _V6_TCP.unpack_from(area, base)
            macs, _, flow, size_ip, protocol, addresses, ports, seq, ack, word, window, _, _ = fields6
            start = ETHERNET + V6_HEADER
            key = (macs, flow, protocol, addresses, ports, ack, word & ~PSH, window)
            plain = flow >> 28 == 6 and protocol >> 8 == TCP
        else:
            plain = False
            size_ip = 0
            key = ()
        head = start + (word >> 12 << 2)
        end = start + size_ip
        length = end - head
        if not plain or word & 0xFFF & ~PSH != ACK or end > size or length < SMALLEST or head < start + 20:
            _close(run, found)
            run = None
            found.append(packet)
            continue
        options = bytes(area[base + start + 20 : base + head])
        follows = (
            run is not None and seq == run.next and key == run.key and options == run.options
            and length <= run.most and run.size + length <= LARGEST
        )  # fmt: skip
        if not follows:
            _close(run, found)
            run = None
        if not _is_intact(packet):
            _close(run, found)
            run = None
            found.append(packet)
            continue
        packet.tail = base + end
        if run is None:
            run = _Run(packet, key, options, head, kind == ETH_P_IP)
            run.most = length
        else:
            run.packets.append(packet)
        run.size += length
        run.next = seq + length & 0xFFFF_FFFF
        if word & PSH or length < run.most:
            _close(run, found)
            run = None
    _close(run, found)
    row.close(found, counters)
    return found


def _close(run: _Run | None, found: list[PacketBuffer]) -> None:
    """Put what was joined behind what was found."""
    if run is None:
        return
    packets = run.packets
    last = packets[-1]
    if len(packets) == 1:
        found.append(last)
        return
    first, head = packets[0], run.head
    made = PacketBuffer.from_bytes(first.area[first.data : first.data + head])
    made.frags = [packet.area[packet.data + head : packet.tail] for packet in packets]
    made.device = first.device
    if any(packet.lease is not None for packet in packets):
        made.lease = _Leases([packet.lease for packet in packets if packet.lease is not None])
    area, at = made.area, made.data
    v4 = run.v4
    ip = at + ETHERNET
    start = ETHERNET + (V4_HEADER if v4 else V6_HEADER)
    if v4:
        _HALF.pack_into(area, ip + 2, head - ETHERNET + run.size)
        _HALF.pack_into(area, ip + 10, 0)
        _HALF.pack_into(area, ip + 10, 0xFFFF - inet_sum(area[ip : at + start]))
    else:
        _HALF.pack_into(area, ip + 4, head - start + run.size)
    area[at + start + 13] |= last.area[last.data + start + 13] & PSH
    made.offload = Offload(DATA_VALID, GSO_TCPV4 if v4 else GSO_TCPV6, head, run.most, start, CHECKSUM_AT)
    found.append(made)


class _Leases(Lease):
    """What several packets were lent, held together."""

    __slots__ = ("_held",)

    def __init__(self, held: list[Lease]) -> None:
        super().__init__(_nothing, held[0].scarce)
        self._held = held


def _nothing() -> None:
    """Each lease gives back what is its own."""


# -- acknowledgements ------------------------------------------------------------------------------------------------


class _Row:
    """Acknowledgements without data that follow each other, each of more than the one before.

    All are alike but for what an acknowledgement tells anew, so that the last, if it is undamaged, says what all say.
    Of the others nothing is used then, and whether they are damaged does not matter.
    """

    __slots__ = ("_key", "_number", "_packets")

    def __init__(self) -> None:
        self._key: Key | None = None
        self._number = 0
        self._packets: list[PacketBuffer] = []

    def take(self, packet: PacketBuffer, size: int) -> bool:
        """Take the frame if it goes on from the last one, or if the row is empty and it can be the first."""
        if not _V4_ACK.size <= size <= ACK_FRAME or packet.frags or packet.offload is not None:
            return False
        area, base = packet.area, packet.data
        front, length, middle, stream, number, word, urgent = _V4_ACK.unpack_from(area, base)
        v4 = front[12:14] == b"\x08\0"
        if not v4:
            if size < _V6_ACK.size:
                return False
            front, length, stream, number, word, urgent = _V6_ACK.unpack_from(area, base)
            middle = b""
        head = base + ETHERNET + (V4_HEADER if v4 else V6_HEADER) + 20
        key = (size, front, length, middle, stream, word, urgent, bytes(area[head : head + 4]))
        if self._packets:
            if key != self._key or not 0 < number - self._number & 0xFFFF_FFFF < 1 << 31:
                return False
        else:
            tcp_size = length - V4_HEADER if v4 else length
            plain = (
                (front[14] == 0x45 and not (middle[0] & 0x3F or middle[1]) and middle[3] == TCP) if v4
                else (front[12:14] == b"\x86\xdd" and front[14] >> 4 == 6 and stream[0] == TCP)
            )  # fmt: skip
            options = tcp_size - 20
            if not plain or word & 0xFFF != ACK or tcp_size != word >> 12 << 2 or options not in (0, 12):
                return False
            if head + options > base + size or (options and key[-1] != TIMESTAMPS):
                return False
            self._key = key
        self._number = number
        self._packets.append(packet)
        return True

    def close(self, found: list[PacketBuffer], counters: Counter[str] | None) -> None:
        """Put the last undamaged one, and what came after it, behind what was found; the row is empty then."""
        packets = self._packets
        if len(packets) > 1:
            good = len(packets) - 1
            while good and not _is_intact(packets[good]):
                good -= 1
            if good and counters is not None:
                counters["rx_acks_merged"] += good
            found += packets[good:]
        else:
            found += packets
        packets.clear()


def _is_intact(packet: PacketBuffer) -> bool:
    """Whether the checksums of a frame with TCP in it, whose lengths were checked, are right."""
    area, base = packet.area, packet.data
    start = base + ETHERNET
    if area[start] >> 4 == 4:
        end = start + (area[start + 2] << 8 | area[start + 3])
        addresses = start + V4_HEADER - 8
        if inet_sum(area[start : start + V4_HEADER]) != 0xFFFF:
            return False
        size = end - start - V4_HEADER
    else:
        size = area[start + 4] << 8 | area[start + 5]
        addresses = start + V6_HEADER - 32
        end = start + V6_HEADER + size
    # In both families the addresses, which the checksum covers too, stand right before the segment.
    return (inet_sum(area[addresses:end]) + TCP + size) % 0xFFFF == 0
