"""Cuts a TCP packet of several segments into segments, and joins segments, where a device does neither: what Linux
calls GSO and GRO.

TCP and IP then do their work once for up to 64 KB, and what must be done for each segment is done here in a few lines:
lengths, the IPv4 identification, the sequence number, flags, both checksums. RFC 9293 §3.1, RFC 791 §3.1, RFC 8200 §3;
what goes where follows virtio 1.4 §5.1.9.2.

What `join` makes, `cut` would make the same segments of again.

Sections: `cut`, `join`.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence

from guest.net.checksum import inet_sum, sum_views
from guest.net.ethernet import ETH_P_IP, ETH_P_IPV6
from guest.net.pbuf import Buffer, Lease, Offload, PacketBuffer
from hw.abi.virtio_net import VIRTIO_NET_HDR_F_DATA_VALID as DATA_VALID
from hw.abi.virtio_net import VIRTIO_NET_HDR_GSO_ECN as GSO_ECN
from hw.abi.virtio_net import VIRTIO_NET_HDR_GSO_TCPV4 as GSO_TCPV4
from hw.abi.virtio_net import VIRTIO_NET_HDR_GSO_TCPV6 as GSO_TCPV6

PSH_FIN = 0x09
PSH = 0x08
ACK = 0x10
CWR = 0x80
TCP = 6
ETHERNET = 14
V4_HEADER = 20
V6_HEADER = 40
CHECKSUM_AT = 16  # in TCP's header
LARGEST = 65535 - 64  # bytes of payload in one packet
ACK_FRAME = 14 + 40 + 20 + 12  # bytes of the largest that is nothing but an acknowledgement
TIMESTAMPS = b"\1\1\x08\n"  # how the option is laid out by everybody (RFC 7323 appendix A)
SMALLEST = 536  # shorter segments are left alone: they would pin more memory than they fill
_PAIR = struct.Struct("!HH")
_HALF = struct.Struct("!H")
_WORD = struct.Struct("!I")
# Ethernet addresses and type; version and the like, total length, identification, fragment, TTL and protocol, checksum,
# addresses; ports, sequence number, acknowledgement, header length and flags, window, checksum, urgent pointer
_V4_TCP = struct.Struct("!12sHHHHHHH8s4sIIHHHH")
# … version, class and flow label, payload length, next header and hop limit, addresses; …
_V6_TCP = struct.Struct("!12sHIHH32s4sIIHHHH")
assert (_V4_TCP.size, _V6_TCP.size) == (54, 74)


def cut(packet: PacketBuffer) -> list[list[Buffer]]:
    """The segments of a packet with its link header, if any, and an `offload` of TCP's: the pieces of each.

    The first piece of each is its headers, the others are views of the packet's own payload. PSH and FIN stand in the
    last segment alone, CWR in the first. The packet's IP header has no options.
    """
    offload = packet.offload
    if offload is None:
        raise ValueError("a packet that is not to be cut")
    _, gso_type, head_size, most, start, check_at = offload
    v4 = gso_type & ~GSO_ECN == GSO_TCPV4
    ip = start - (V4_HEADER if v4 else V6_HEADER)
    if not packet.pullup(head_size):
        raise ValueError("a packet that is shorter than its headers")
    head = bytearray(packet.area[packet.data : packet.data + head_size])
    payload = packet.views()
    payload[0] = payload[0][head_size:]
    left = sum(map(len, payload))
    (seq,) = _WORD.unpack_from(head, start + 4)
    flags = head[start + 13]
    head[start + 4 : start + 8] = bytes(4)
    head[start + 13] = 0
    check_at += start
    head[check_at : check_at + 2] = bytes(2)
    # 2^16 is 1 modulo 65535, so what differs between segments is added to what does not. A sum is never 0 (it has the
    # protocol and the length), so that of two ways to write nothing the checksum is 0, not 65535.
    tcp_sum = inet_sum(head[ip + (12 if v4 else 8) : start]) + TCP + inet_sum(head[start:])
    tcp_size = head_size - start
    ident = ip_sum = 0
    if v4:
        (ident,) = _HALF.unpack_from(head, ip + 4)
        head[ip + 2 : ip + 6] = bytes(4)
        head[ip + 10 : ip + 12] = bytes(2)
        ip_sum = inet_sum(head[ip:start])
    found: list[list[Buffer]] = []
    view = payload[0]
    at, index, end = 0, 0, len(view)
    said = flags & ~PSH_FIN
    while left > 0:
        size = most if left > most else left
        left -= size
        if not left:
            said |= flags & PSH_FIN
        stop = at + size
        if stop <= end:
            piece = view[at:stop]
            at = stop
            body_sum = inet_sum(piece)
            made: list[Buffer] = [b"", piece]
        else:
            pieces = []
            want = size
            while want:
                if at == end:
                    index += 1
                    view = payload[index]
                    at, end = 0, len(view)
                    continue
                piece = view[at : at + want]
                at += len(piece)
                want -= len(piece)
                pieces.append(piece)
            body_sum = sum_views(pieces)
            made = [b"", *pieces]
        mine = bytearray(head)
        length = tcp_size + size
        if v4:
            total = V4_HEADER + length
            _PAIR.pack_into(mine, ip + 2, total, ident)
            _HALF.pack_into(mine, ip + 10, -(ip_sum + total + ident) % 0xFFFF)
            ident = ident + 1 & 0xFFFF
        else:
            _HALF.pack_into(mine, ip + 4, length)
        _WORD.pack_into(mine, start + 4, seq)
        mine[start + 13] = said
        _HALF.pack_into(mine, check_at, -(tcp_sum + length + seq + said + body_sum) % 0xFFFF)
        made[0] = mine
        found.append(made)
        seq = seq + size & 0xFFFF_FFFF
        said &= ~CWR
    return found


# -- joining ---------------------------------------------------------------------------------------------------------


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

    Of acknowledgements without data that follow each other directly the last says what all of them say; the others are
    left out, and counted in `counters` as `rx_acks_merged`.
    """
    if len(packets) < 2:
        return packets
    found: list[PacketBuffer] = []
    run: _Run | None = None
    before: _Ack | None = None  # what the last frame found is, if it is nothing but an acknowledgement
    for packet in packets:
        area = packet.area
        base = packet.data
        size = packet.tail - base
        if size < 54 + SMALLEST or packet.frags or packet.offload is not None:
            _close(run, found)
            ack_now = _Ack.of(packet)
            if run is None and ack_now is not None and before is not None and ack_now.says_more_than(before):
                found[-1] = packet
                if counters is not None:
                    counters["rx_acks_merged"] += 1
            else:
                found.append(packet)
            run, before = None, ack_now
            continue
        before = None
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
        # In both families the addresses, which the checksum covers too, stand right before the segment.
        good = (inet_sum(area[base + start - len(addresses) : base + end]) + TCP + size_ip) % 0xFFFF == 0
        if good and kind == ETH_P_IP:
            good = inet_sum(area[base + ETHERNET : base + start]) == 0xFFFF
        if not good:
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
    return found


class _Ack:
    """A frame that is nothing but an acknowledgement, with timestamps or without options, and right checksums.

    Attributes:
        key: what is the same in all of a row. number: what is acknowledged.
    """

    __slots__ = ("key", "number")

    def __init__(self, key: tuple[object, ...], number: int) -> None:
        self.key = key
        self.number = number

    @classmethod
    def of(cls, packet: PacketBuffer) -> _Ack | None:
        """What `packet` is, or None for anything else."""
        area, base = packet.area, packet.data
        size = packet.tail - base
        if not _V4_TCP.size <= size <= ACK_FRAME or packet.frags or packet.offload is not None:
            return None
        macs, kind, first, size_ip, _, fragment, protocol, _, addresses, ports, seq, number, word, _, _, _ = (
            _V4_TCP.unpack_from(area, base)
        )
        start = ETHERNET + V4_HEADER
        if kind == ETH_P_IP:
            size_ip -= V4_HEADER
            plain = first >> 8 == 0x45 and not fragment & 0x3FFF and protocol & 0xFF == TCP
        elif kind == ETH_P_IPV6 and size >= _V6_TCP.size:
            macs, _, first, size_ip, protocol, addresses, ports, seq, number, word, _, _, _ = _V6_TCP.unpack_from(
                area, base
            )
            start = ETHERNET + V6_HEADER
            plain = first >> 28 == 6 and protocol >> 8 == TCP
        else:
            return None
        end = start + size_ip
        options = size_ip - 20
        if not plain or word & 0xFFF != ACK or size_ip != word >> 12 << 2 or end > size or options not in (0, 12):
            return None
        if options and area[base + start + 20 : base + start + 24] != TIMESTAMPS:
            return None
        if (inet_sum(area[base + start - len(addresses) : base + end]) + TCP + size_ip) % 0xFFFF:
            return None
        if kind == ETH_P_IP and inet_sum(area[base + ETHERNET : base + start]) != 0xFFFF:
            return None
        return cls((macs, kind, first, protocol, addresses, ports, seq, options), number)

    def says_more_than(self, other: _Ack) -> bool:
        """Whether it acknowledges more of the same stream."""
        return self.key == other.key and 0 < self.number - other.number & 0xFFFF_FFFF < 1 << 31


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
