"""Which of several queues a packet leaves through."""

from __future__ import annotations

import zlib

from guest.net.pbuf import PacketBuffer


def flow_hash(packet: PacketBuffer) -> int:
    """A number that is the same for packets of one flow: over addresses, and the first bytes behind the IP header."""
    frame = packet.linear
    if len(frame) < 14:
        return 0
    kind = frame[12] << 8 | frame[13]
    if kind == 0x0800:  # IPv4; of a fragment only the addresses count
        whole = len(frame) >= 24 and not (frame[20] & 0x3F or frame[21])
        return zlib.crc32(frame[26 : 38 if whole else 34])
    if kind == 0x86DD:
        return zlib.crc32(frame[22:58])
    return zlib.crc32(frame[:14])
