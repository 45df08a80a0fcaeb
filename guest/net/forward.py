"""Forwarding: passing on a packet that is for somebody else. RFC 1812 §5.2.1, §5.3; RFC 8200 §3; RFC 4291 §2.5.6.

A packet that came in is lent and may be shared, so nothing is written into it: the header goes out as a copy, the rest
is the same memory. No redirects are sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guest.net.address import is_link_local, is_unspecified, is_v4
from guest.net.family import Codec, IpHeader, Refusal
from guest.net.fragment import slices
from guest.net.ipv4 import copied_options, with_fragment
from guest.net.pbuf import CAST_HOST, PacketBuffer

if TYPE_CHECKING:
    from guest.net.ip import IpEngine


def forward(engine: IpEngine, packet: PacketBuffer, header: IpHeader, codec: Codec) -> None:
    """Send a packet, which starts at its IP header, towards its destination, or drop it and say why."""
    refuse = engine.refuse
    if is_link_local(header.dst) or is_link_local(header.src) or is_unspecified(header.src):
        refuse(packet, header, Refusal("rx_dropped_link_local"))
        return
    if header.extended and codec.checks_on_way:
        checked = codec.extend(packet, header)
        if isinstance(checked, Refusal):
            refuse(packet, header, checked)
            return
    if header.ttl <= 1:
        refuse(packet, header, Refusal("rx_dropped_ttl", "ttl"))
        return
    found = engine.find(header.dst)
    if found is None or not found[0].is_up or found[0] is engine.loopback or found[2] != CAST_HOST:
        refuse(packet, header, Refusal("rx_dropped_no_route", "no_route"))
        return
    out, next_hop, cast = found
    fixed = packet.area[packet.data : packet.data + header.size]
    size = len(packet)
    v4 = is_v4(header.dst)
    mtu = out.mtu if v4 else out.mtu6
    if size > mtu and not codec.may_fragment(fixed):
        refuse(packet, header, Refusal("rx_dropped_too_big", "too_big", mtu))
        return
    if engine.guard is not None and not engine.guard.forward(engine, packet, header, out):
        return
    engine.counters["forwarded"] += 1
    fresh = _with_header(bytes(fixed), packet)
    codec.hop_passed(fresh.linear)
    packet.data += header.size
    if size <= mtu:
        fresh.frags = packet.views()
        engine.send_built(fresh, codec, out, next_hop, cast)
        return
    engine.counters["tx_fragmented"] += 1
    template = fresh.linear
    start = header.fragment >> 1 << 3
    for offset, more, views in slices(packet.views(), mtu - header.size & ~7):
        part = template if not offset else copied_options(template)
        length = len(part) + sum(map(len, views))
        place = start + offset >> 2 | (more or header.fragment & 1)
        piece = _with_header(with_fragment(part, place, length), packet)
        piece.frags = views
        engine.send_built(piece, codec, out, next_hop, cast)


def _with_header(header: bytes, packet: PacketBuffer) -> PacketBuffer:
    """A packet of a header alone, to be followed by memory of `packet`."""
    fresh = PacketBuffer.from_bytes(header)
    fresh.lease = packet.lease
    fresh.device = packet.device
    return fresh
