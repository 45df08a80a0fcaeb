"""What a frame's headers say: where its checksum lies, and which queue its flow belongs to.

A Xen interface says only "the checksum is blank"; a wire's header says where it starts and where it goes. Every length
and offset here is checked against the frame before it is used.

Read first: virtio 1.4 §5.1.9.2 (csum_start, csum_offset).
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

from hw.wire.link import Buffer

ETHERNET_HEADER = 14
_VLAN = (0x8100, 0x88A8)
_TCP, _UDP = 6, 17
_CSUM_OFFSET = {_TCP: 16, _UDP: 6}
_EXTENSIONS = (0, 43, 60)  # IPv6: hop-by-hop, routing, destination options
_EXTENSIONS_MAX = 8


class Transport(NamedTuple):
    """Where things lie in a frame, in bytes from its start."""

    version: int  # of IP
    protocol: int
    network: int
    start: int  # of the transport header
    csum_offset: int  # of the checksum in it


def transport_of(frame: Buffer) -> Transport | None:
    """The TCP or UDP header of a frame, or None when it has none, or not in full, or is a later fragment."""
    size = len(frame)
    at = ETHERNET_HEADER
    if size < at:
        return None
    kind = frame[12] << 8 | frame[13]
    if kind in _VLAN and size >= at + 4:
        kind = frame[16] << 8 | frame[17]
        at += 4
    network = at
    if kind == 0x0800:
        if size < at + 20 or frame[at] >> 4 != 4 or (frame[at] & 15) < 5:
            return None
        if (frame[at + 6] & 0x1F) << 8 | frame[at + 7]:
            return None
        version, protocol = 4, frame[at + 9]
        at += (frame[at] & 15) * 4
    elif kind == 0x86DD:
        if size < at + 40 or frame[at] >> 4 != 6:
            return None
        version, protocol = 6, frame[at + 6]
        at += 40
        for _ in range(_EXTENSIONS_MAX):
            if protocol not in _EXTENSIONS or size < at + 8:
                break
            protocol = frame[at]
            at += (frame[at + 1] + 1) * 8
    else:
        return None
    csum_offset = _CSUM_OFFSET.get(protocol)
    if csum_offset is None or at + csum_offset + 2 > size:
        return None
    return Transport(version, protocol, network, at, csum_offset)


def header_length(frame: Buffer, transport: Transport) -> int:
    """Bytes of all headers, for `hdr_len` of a frame that is to be segmented; 0 when the TCP header is cut short."""
    if transport.protocol != _TCP or len(frame) < transport.start + 20:
        return 0
    length = (frame[transport.start + 12] >> 4) * 4
    end = transport.start + length
    return end if length >= 20 and end <= len(frame) else 0


def flow_hash(frame: Buffer) -> int:
    """A number that is the same for all frames of one flow: addresses, and ports where there are some."""
    transport = transport_of(frame)
    if transport is None:
        kind, size = bytes(frame[12:14]), len(frame)
        if kind == b"\x08\0" and size >= ETHERNET_HEADER + 20:
            return zlib.crc32(frame[26:34])
        if kind == b"\x86\xdd" and size >= ETHERNET_HEADER + 40:
            return zlib.crc32(frame[22:54])
        return zlib.crc32(frame[:ETHERNET_HEADER])
    low, high = (12, 20) if transport.version == 4 else (8, 40)
    addresses = frame[transport.network + low : transport.network + high]
    return zlib.crc32(frame[transport.start : transport.start + 4], zlib.crc32(addresses))
