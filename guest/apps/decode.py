"""One line about one Ethernet frame, for people. It reads bytes, not the stack's objects, so that it also shows what
the stack would refuse.

Promise: any bytes give a line; nothing raises.
"""

from __future__ import annotations

import struct

from guest.net.address import V4_PREFIX, format_address, format_mac

_ICMPV6 = {
    1: "unreachable", 2: "packet too big", 3: "time exceeded", 4: "parameter problem", 128: "echo request",
    129: "echo reply", 130: "listener query", 133: "router solicitation", 134: "router advertisement",
    135: "neighbour solicitation", 136: "neighbour advertisement", 137: "redirect", 143: "listener report",
}  # fmt: skip
_ICMP = {0: "echo reply", 3: "unreachable", 5: "redirect", 8: "echo request", 11: "time exceeded"}


def decode(frame: bytes) -> str:
    """A line for `frame`, a whole Ethernet frame without FCS."""
    if len(frame) < 14:
        return f"runt of {len(frame)} bytes"
    kind = int.from_bytes(frame[12:14], "big")
    body = frame[14:]
    tag = ""
    if kind == 0x8100 and len(body) >= 4:
        tag = f"VLAN {int.from_bytes(body[:2], 'big') & 0xFFF} "
        kind = int.from_bytes(body[2:4], "big")
        body = body[4:]
    if kind == 0x0806:
        text = _arp(body)
    elif kind == 0x0800:
        text = _ipv4(body)
    elif kind == 0x86DD:
        text = _ipv6(body)
    else:
        text = f"{format_mac(frame[6:12])} > {format_mac(frame[:6])} type {kind:#06x}, {len(frame)} bytes"
    return tag + text


def _v4(raw: bytes) -> str:
    return format_address(V4_PREFIX | int.from_bytes(raw, "big"))


def _arp(body: bytes) -> str:
    if len(body) < 28:
        return f"ARP, short: {len(body)} bytes"
    hardware, protocol, hlen, plen, operation = struct.unpack_from("!HHBBH", body)
    if (hardware, protocol, hlen, plen) != (1, 0x0800, 6, 4):
        return f"ARP for hardware {hardware}, protocol {protocol:#06x}"
    sender, target = _v4(body[14:18]), _v4(body[24:28])
    if operation == 1:
        return f"ARP who-has {target} tell {sender}"
    if operation == 2:
        return f"ARP {sender} is-at {format_mac(body[8:14])}"
    return f"ARP operation {operation}"


def _ipv4(body: bytes) -> str:
    header = (body[0] & 15) * 4 if body else 0
    if len(body) < 20 or header < 20 or header > len(body):
        return f"IP, short: {len(body)} bytes"
    total = int.from_bytes(body[2:4], "big")
    fragment = int.from_bytes(body[6:8], "big")
    ends = f"IP {_v4(body[12:16])} > {_v4(body[16:20])}"
    if fragment & 0x3FFF:
        return f"{ends} fragment at {(fragment & 0x1FFF) * 8}, {total} bytes"
    return f"{ends} {_transport(body[9], body[header:total])}"


def _ipv6(body: bytes) -> str:
    if len(body) < 40:
        return f"IP6, short: {len(body)} bytes"
    source, target = (format_address(int.from_bytes(body[at : at + 16], "big")) for at in (8, 24))
    ends = f"IP6 {source} > {target}"
    following = body[6]
    rest = body[40 : 40 + int.from_bytes(body[4:6], "big")]
    if following == 0 and len(rest) >= 8 and len(rest) >= (rest[1] + 1) * 8:  # hop-by-hop options, before MLD
        following, rest = rest[0], rest[(rest[1] + 1) * 8 :]
    if following == 44 and len(rest) >= 8:
        return f"{ends} fragment at {int.from_bytes(rest[2:4], 'big') & 0xFFF8}, {len(rest) - 8} bytes"
    return f"{ends} {_transport(following, rest)}"


def _transport(protocol: int, segment: bytes) -> str:
    if len(segment) < 8:
        return f"protocol {protocol}, {len(segment)} bytes"
    if protocol in (1, 58):
        kind, code = segment[0], segment[1]
        name, names = ("ICMP", _ICMP) if protocol == 1 else ("ICMPv6", _ICMPV6)
        text = f"{name} {names.get(kind, f'type {kind}')}"
        if kind in ((0, 8) if protocol == 1 else (128, 129)):
            ident, sequence = struct.unpack_from("!HH", segment, 4)
            return f"{text} id {ident} seq {sequence}, {len(segment)} bytes"
        return f"{text} code {code}, {len(segment)} bytes"
    if protocol in (6, 17):
        source, target = struct.unpack_from("!HH", segment)
        return f"{'TCP' if protocol == 6 else 'UDP'} {source} > {target}, {len(segment)} bytes"
    return f"protocol {protocol}, {len(segment)} bytes"
