"""MLD: IPv6 multicast memberships told to routers. RFC 3810 (version 2), RFC 2710 (version 1).

How memberships are kept is in membership.py; the messages are ICMPv6's, their checksums right when they come here.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from guest.net.address import format_mapped, is_multicast
from guest.net.family import IpHeader
from guest.net.membership import ALL_GROUPS, Membership, Query, response_time
from guest.net.nd_wire import ALL_NODES, ALL_ROUTERS, is_link_local
from guest.net.pbuf import PacketBuffer

QUERY = 130
V1_REPORT = 131
V1_DONE = 132
V2_REPORT = 143

V1_SIZE = 24
V2_QUERY_SIZE = 28
RECORD = struct.Struct("!BBH16s")  # type, words of auxiliary data, number of sources, group
assert RECORD.size == 20

V2_REPORTERS = 0xFF02 << 112 | 0x16
MILLISECOND = 1000
LINK_SCOPE = 2


class Mld(Membership):
    """MLD of one interface; the checksums of what it sends are still zero."""

    name = "mld"
    overhead = 40 + 8 + 8  # IPv6, hop-by-hop options with the router alert, ICMPv6
    record_size = RECORD.size

    def reported(self, group: int) -> bool:
        return group != ALL_NODES and group >> 112 & 15 >= LINK_SCOPE  # RFC 3810 §6

    def read(self, packet: PacketBuffer, header: IpHeader) -> str:
        size = len(packet)
        kind = packet.area[packet.data]
        if header.ttl != 1:
            return "rx_dropped_hop_limit"  # such messages never cross a router
        if kind == V2_REPORT:
            return "rx_ignored_type"
        if size < V1_SIZE or not packet.pullup(min(size, V2_QUERY_SIZE)):
            return "rx_dropped_short"
        body = packet.area[packet.data : packet.tail]
        group = int.from_bytes(body[8:24], "big")
        if self.trace is not None:
            self.trace(self.stage, packet, f"type {kind} group {format_mapped(group)}")
        if kind == V1_REPORT:
            return self.overheard(group)
        if kind != QUERY:
            return "rx_ignored_type"
        if not is_link_local(header.src):
            return "rx_dropped_source"  # RFC 3810 §5.1.14
        if group != ALL_GROUPS and not is_multicast(group):
            return "rx_dropped_group"
        code = int.from_bytes(body[4:6], "big")
        if size == V1_SIZE:
            return self.queried(Query(group, code * MILLISECOND, True))
        if size < V2_QUERY_SIZE:
            return "rx_dropped_length"
        if size < V2_QUERY_SIZE + 16 * int.from_bytes(body[26:28], "big"):
            return "rx_dropped_sources"
        # One that names sources is answered as well: we want them all.
        return self.queried(Query(group, response_time(code, 16) * MILLISECOND, False))

    def send_report(self, records: Sequence[tuple[int, int]]) -> None:
        body = b"".join(RECORD.pack(kind, 0, 0, group.to_bytes(16, "big")) for kind, group in records)
        self._output(bytes((V2_REPORT, 0, 0, 0, 0, 0)) + len(records).to_bytes(2, "big") + body, V2_REPORTERS)

    def send_old(self, group: int, joined: bool) -> None:
        kind = V1_REPORT if joined else V1_DONE
        self._output(bytes((kind, 0, 0, 0, 0, 0, 0, 0)) + group.to_bytes(16, "big"), group if joined else ALL_ROUTERS)
