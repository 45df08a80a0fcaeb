"""The IPv6 half of net_world.py: addresses, hosts that have them, and neighbour discovery as scapy writes it."""

from __future__ import annotations

import random

from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from guest.net.address import format_address, parse_address
from guest.net.config import NetConfig
from guest.net.nd_wire import solicited_node
from tests.net_world import OUR_MAC, PEER_MAC, Clock, Host

OUR_IP6 = "2001:db8::1"
PEER_IP6 = "2001:db8::2"
OUR_LINK = "fe80::5054:ff:fe00:1"  # EUI-64 of OUR_MAC
PEER_LINK = "fe80::5054:ff:fe00:2"
ROUTER_MAC = "52:54:00:00:00:fe"
ROUTER = "fe80::5054:ff:fe00:fe"
ALL_NODES = "ff02::1"
ALL_NODES_MAC = "33:33:00:00:00:01"


def host6(
    address: str | None = OUR_IP6, mac: str = OUR_MAC, *, clock: Clock | None = None, seed: int = 1, **settings: object
) -> Host:
    """A host that is up, with an IPv6 address that was not checked; what it sent on the way is gone."""
    host = Host(None, mac, clock=clock, seed=seed, config=NetConfig(**settings))  # type: ignore[arg-type]
    if address is not None:
        host.eth.add_address(address, 64, check=False)
    host.eth.set_up()
    host.wait(3_000_000)
    host.take()
    return host


def group_mac(group: str) -> str:
    """The Ethernet group of an IPv6 group."""
    return "33:33:" + ":".join(f"{byte:02x}" for byte in parse_address(group).to_bytes(16, "big")[12:])


def solicited(address: str) -> str:
    """The group in which `address` is asked for."""
    return format_address(solicited_node(parse_address(address)))


def to_group(payload: Packet, group: str, src: str, mac: str = PEER_MAC, hlim: int = 255) -> Packet:
    """An IPv6 packet to a group."""
    return Ether(dst=group_mac(group), src=mac) / IPv6(src=src, dst=group, hlim=hlim) / payload


def to_us6(payload: Packet, src: str = PEER_IP6, dst: str = OUR_IP6, mac: str = PEER_MAC, **fields: object) -> Packet:
    """An IPv6 packet for our host."""
    return Ether(dst=OUR_MAC, src=mac) / IPv6(src=src, dst=dst, **fields) / payload


def ask(target: str = OUR_IP6, src: str = PEER_IP6, mac: str = PEER_MAC) -> Packet:
    """Who has `target`, asks `src`."""
    return to_group(ICMPv6ND_NS(tgt=target) / ICMPv6NDOptSrcLLAddr(lladdr=mac), solicited(target), src, mac)


def answer(target: str, mac: str = PEER_MAC, dst: str = OUR_IP6, **flags: int) -> Packet:
    """`target` is at `mac`."""
    message = ICMPv6ND_NA(tgt=target, **({"R": 0, "S": 1, "O": 1} | flags)) / ICMPv6NDOptDstLLAddr(lladdr=mac)
    if dst == ALL_NODES:
        return to_group(message, dst, target, mac)
    return to_us6(message, target, dst, mac, hlim=255)


def meet6(host: Host, address: str = PEER_IP6, mac: str = PEER_MAC, target: str = OUR_IP6) -> None:
    """Let the neighbour be known."""
    host.receive(ask(target, address, mac))
    host.take()


def prefix(text: str = "2001:db8:1::", valid: int = 86400, preferred: int = 14400, **fields: int) -> Packet:
    """A prefix of an advertisement, on link and for addresses."""
    return ICMPv6NDOptPrefixInfo(
        prefix=text, validlifetime=valid, preferredlifetime=preferred, **({"prefixlen": 64, "L": 1, "A": 1} | fields)
    )


def advertise(*options: Packet, router: str = ROUTER, mac: str = ROUTER_MAC, **fields: int) -> Packet:
    """A router advertisement."""
    message: Packet = ICMPv6ND_RA(**({"routerlifetime": 1800, "chlim": 64} | fields)) / ICMPv6NDOptSrcLLAddr(lladdr=mac)
    for option in options:
        message = message / option
    return to_group(message, ALL_NODES, router, mac)


def ping6(payload: bytes = b"abcdefgh", ident: int = 7, seq: int = 1, **fields: object) -> Packet:
    """A ping for our host."""
    return to_us6(ICMPv6EchoRequest(id=ident, seq=seq, data=payload), **fields)  # type: ignore[arg-type]


def payloads(seed: int, count: int, most: int) -> list[bytes]:
    """Payloads of random sizes."""
    rng = random.Random(seed)
    return [rng.randbytes(rng.randrange(most + 1)) for _ in range(count)]
