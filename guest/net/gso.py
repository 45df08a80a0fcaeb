"""Cuts a TCP packet of several segments into segments, where a device does not: what Linux calls GSO.

TCP and IP then do their work once for up to 64 KB, and what must be done for each segment is done here, in C where it
was built: lengths, the IPv4 identification, the sequence number, flags, both checksums. RFC 9293 §3.1, RFC 791 §3.1,
RFC 8200 §3; what goes where follows virtio 1.4 §5.1.9.2. The other way round is `gro.py`.

Sections: `Cutter`, and its inner part twice, `segments_in_python` and in C.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TypeAlias

from guest.net.checksum import inet_sum
from guest.net.pbuf import Buffer, PacketBuffer
from hw.abi.virtio_net import VIRTIO_NET_HDR_GSO_ECN as GSO_ECN
from hw.abi.virtio_net import VIRTIO_NET_HDR_GSO_TCPV4 as GSO_TCPV4

PSH_FIN = 0x09
CWR = 0x80
TCP = 6
TCP_HEADER = 20
V4_HEADER = 20
V6_HEADER = 40
V4_ADDRESSES = 12  # offset in the header
V6_ADDRESSES = 8
_PAIR = struct.Struct("!HH")
_HALF = struct.Struct("!H")
_WORD = struct.Struct("!I")
Segments: TypeAlias = Callable[[bytearray, bytearray, int, int, Buffer, int], None]


class Cutter:
    """Cuts one packet after the other, in memory that is used again: fresh memory for every packet costs as much as
    cutting it (docs/performance.md).
    """

    __slots__ = ("_memory",)

    def __init__(self) -> None:
        self._memory = bytearray()

    def cut(self, packet: PacketBuffer) -> list[memoryview]:
        """The segments of a packet with its link header, if any, and an `offload` of TCP's; valid until the next call.

        PSH and FIN stand in the last segment alone, CWR in the first. The packet's IP header has no options.

        Raises:
            ValueError: the packet is not to be cut, has no payload, or is shorter than its headers.
        """
        offload = packet.offload
        if offload is None or offload.gso_size < 1:
            raise ValueError("a packet that is not to be cut")
        _, gso_type, head_size, most, start, _ = offload
        ip = start - (V4_HEADER if gso_type & ~GSO_ECN == GSO_TCPV4 else V6_HEADER)
        if ip < 0 or start + TCP_HEADER > head_size or not packet.pullup(head_size):
            raise ValueError("a packet that is shorter than its headers")
        head = bytearray(packet.area[packet.data : packet.data + head_size])
        views = packet.views()
        views[0] = views[0][head_size:]
        filled = [view for view in views if view]
        payload = filled[0] if len(filled) == 1 else b"".join(filled)
        if not payload:
            raise ValueError("a packet without payload")
        size = -(-len(payload) // most) * head_size + len(payload)
        if size > len(self._memory):
            self._memory = bytearray(size)  # not made longer: somebody may still hold a view
        _segments(self._memory, head, ip, start, payload, most)
        made = memoryview(self._memory)
        stride = head_size + most
        return [made[at : min(at + stride, size)] for at in range(0, size, stride)]


def segments_in_python(made: bytearray, head: bytearray, ip: int, start: int, payload: Buffer, most: int) -> None:
    """Fill `made` with segments.

    Args:
        made: has room for all of them.
        head: link header, if any, IP header and TCP header of the whole packet.
        ip, start: where the IP header and the TCP header start in it.
        payload: at least one byte. most: bytes of it in each segment but the last.
    """
    v4 = start - ip == V4_HEADER
    addresses = ip + (V4_ADDRESSES if v4 else V6_ADDRESSES)
    (ident,) = _HALF.unpack_from(head, ip + 4)
    (seq,) = _WORD.unpack_from(head, start + 4)
    flags = head[start + 13]
    written = 0
    for at in range(0, len(payload), most):
        piece = payload[at : at + most]
        frame = head + piece
        size = len(frame) - start
        if v4:
            _PAIR.pack_into(frame, ip + 2, len(frame) - ip, ident + at // most & 0xFFFF)
            _HALF.pack_into(frame, ip + 10, 0)
            _HALF.pack_into(frame, ip + 10, 0xFFFF - inet_sum(frame[ip:start]))
        else:
            _HALF.pack_into(frame, ip + 4, size)
        _WORD.pack_into(frame, start + 4, seq + at & 0xFFFF_FFFF)
        last = at + most >= len(payload)
        frame[start + 13] = flags & ~(CWR if at else 0) & ~(0 if last else PSH_FIN)
        _HALF.pack_into(frame, start + 16, 0)
        # The addresses, which the checksum covers too, stand right before the segment. A sum is never 0 (it has the
        # protocol and the length), so that of two ways to write nothing the checksum is 0, not 65535.
        _HALF.pack_into(frame, start + 16, -(inet_sum(frame[addresses:]) + TCP + size) % 0xFFFF)
        made[written : written + len(frame)] = frame
        written += len(frame)


def segments_in_c() -> Segments | None:
    """The same in C, or None where the extension was not built."""
    try:
        from guest._native import ffi, lib  # noqa: PLC0415  # optional: installing works without a C compiler
    except ImportError:
        return None
    from_buffer = ffi.from_buffer
    cut_in_c = lib.vring_cut

    def segments(made: bytearray, head: bytearray, ip: int, start: int, payload: Buffer, most: int) -> None:
        cut_in_c(
            from_buffer("uint8_t[]", made, require_writable=True), from_buffer("uint8_t[]", head), len(head), ip, start,
            from_buffer("uint8_t[]", payload), len(payload), most,
        )  # fmt: skip

    return segments


_segments: Segments = segments_in_c() or segments_in_python
