"""Cuts a TCP packet of several segments into segments, for a device that does not (Linux calls it GSO).

TCP and IP then do their work once for up to 64 KB, and what must be done for each segment is done here in a few lines:
lengths, the IPv4 identification, the sequence number, flags, both checksums. RFC 9293 §3.1, RFC 791 §3.1, RFC 8200 §3;
what goes where follows virtio 1.4 §5.1.9.2.
"""

from __future__ import annotations

import struct

from guest.net.checksum import inet_sum, sum_views
from guest.net.pbuf import Buffer, PacketBuffer
from hw.abi.virtio_net import VIRTIO_NET_HDR_GSO_ECN as GSO_ECN
from hw.abi.virtio_net import VIRTIO_NET_HDR_GSO_TCPV4 as GSO_TCPV4

PSH_FIN = 0x09
CWR = 0x80
TCP = 6
V4_HEADER = 20
V6_HEADER = 40
_PAIR = struct.Struct("!HH")
_HALF = struct.Struct("!H")
_WORD = struct.Struct("!I")


def cut(packet: PacketBuffer) -> list[list[Buffer]]:
    """The segments of a packet that starts at its Ethernet header and has an `offload` of TCP's: the pieces of each.

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
    # 2^16 is 1 modulo 65535, so what differs between segments is added to what does not.
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
            _HALF.pack_into(mine, ip + 10, 0xFFFF - (ip_sum + total + ident) % 0xFFFF)
            ident = ident + 1 & 0xFFFF
        else:
            _HALF.pack_into(mine, ip + 4, length)
        _WORD.pack_into(mine, start + 4, seq)
        mine[start + 13] = said
        _HALF.pack_into(mine, check_at, 0xFFFF - (tcp_sum + length + seq + said + body_sum) % 0xFFFF)
        made[0] = mine
        found.append(made)
        seq = seq + size & 0xFFFF_FFFF
        said &= ~CWR
    return found
