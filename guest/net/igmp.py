"""IGMP: IPv4 multicast memberships told to routers. RFC 3376 (version 3), RFC 2236 (version 2), RFC 1112 (version 1).

How memberships are kept is in membership.py.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from guest.net.address import V4_ALL_HOSTS, V4_BITS, V4_PREFIX, format_mapped, is_multicast
from guest.net.checksum import checksum, sum_views
from guest.net.config import SECOND
from guest.net.family import IpHeader
from guest.net.membership import ALL_GROUPS, Membership, Query, response_time
from guest.net.pbuf import PacketBuffer

PROTOCOL = 2
HEADER = struct.Struct("!BBHI")  # type, maximum response time (0.1 s), checksum, group
HEADER_SIZE = 8
assert HEADER.size == HEADER_SIZE
V3_QUERY_SIZE = 12
RECORD = struct.Struct("!BBHI")  # type, words of auxiliary data, number of sources, group
assert RECORD.size == 8

QUERY = 0x11
V1_REPORT = 0x12
V2_REPORT = 0x16
V2_LEAVE = 0x17
V3_REPORT = 0x22

ALL_ROUTERS = V4_PREFIX | 0xE000_0002
V3_REPORTERS = V4_PREFIX | 0xE000_0016  # 224.0.0.22
TOS = 0xC0  # internetwork control (RFC 3376 §4)
TENTH = SECOND // 10


class Igmp(Membership):
    """IGMP of one interface."""

    name = "igmp"
    protocol = PROTOCOL
    tos = TOS
    overhead = 24 + HEADER_SIZE  # the IP header has the router alert option
    record_size = RECORD.size

    def reported(self, group: int) -> bool:
        return group != V4_ALL_HOSTS

    def read(self, packet: PacketBuffer, header: IpHeader) -> str:
        size = len(packet)
        if not packet.pullup(min(size, V3_QUERY_SIZE)) or size < HEADER_SIZE:
            return "rx_dropped_short"
        if sum_views(packet.views()) != 0xFFFF:
            return "rx_dropped_checksum"
        kind, code, _, number = HEADER.unpack_from(packet.area, packet.data)
        if header.ttl != 1:
            return "rx_dropped_ttl"  # such messages never cross a router
        group = V4_PREFIX | number if number else ALL_GROUPS
        if self.trace is not None:
            self.trace(self.stage, packet, f"type {kind:#04x} group {format_mapped(group)}")
        if kind in (V1_REPORT, V2_REPORT):
            return self.overheard(group)
        if kind != QUERY:
            return "rx_ignored_type"
        if group != ALL_GROUPS and not is_multicast(group):
            return "rx_dropped_group"
        if size == HEADER_SIZE:  # version 2, or 1, whose time is always 10 s (RFC 3376 §7.1)
            return self.queried(Query(group, (code or 100) * TENTH, True))
        if size < V3_QUERY_SIZE:
            return "rx_dropped_length"
        sources = int.from_bytes(packet.area[packet.data + 10 : packet.data + 12], "big")
        if size < V3_QUERY_SIZE + 4 * sources:
            return "rx_dropped_sources"
        # One that names sources is answered as well: we want them all.
        return self.queried(Query(group, response_time(code, 8) * TENTH, False))

    def send_report(self, records: Sequence[tuple[int, int]]) -> None:
        body = b"".join(RECORD.pack(kind, 0, 0, group & V4_BITS) for kind, group in records)
        self._send(V3_REPORT, len(records), body, V3_REPORTERS)

    def send_old(self, group: int, joined: bool) -> None:
        if joined:
            self._send(V2_REPORT, group & V4_BITS, b"", group)
        else:
            self._send(V2_LEAVE, group & V4_BITS, b"", ALL_ROUTERS)

    def _send(self, kind: int, word: int, body: bytes, to: int) -> None:
        check = checksum((HEADER.pack(kind, 0, 0, word), body))
        self._output(HEADER.pack(kind, 0, check, word) + body, to)
