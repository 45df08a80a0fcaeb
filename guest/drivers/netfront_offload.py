"""Offload as Xen says it, and as the guest's packets say it.

Xen's flag means "the TCP or UDP checksum is blank" and leaves it to whoever completes it to find the place; a packet of
the guest carries the place (`guest.net.pbuf.Offload`). Here the headers are read, carefully: they are a peer's.

Read: Xen's public `io/netif.h`; RFC 791 §3.1, RFC 8200 §3 and §4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from hw.abi import virtio_net as net
from hw.abi import xen_netif as abi

_ETH_P_IP = 0x0800
_ETH_P_IPV6 = 0x86DD
_ETH_P_VLAN = 0x8100
_CHECKSUM_AT = {6: 16, 17: 6}  # TCP (RFC 9293 §3.1), UDP (RFC 768)
_HEADER_MIN = {6: 20, 17: 8}
_EXTENSIONS = (0, 43, 60)  # hop-by-hop, routing, destination options: a length in units of 8 octets
_EXTENSIONS_MAX = 8

GSO_TYPES = {
    abi.XEN_NETIF_GSO_TYPE_TCPV4: net.VIRTIO_NET_HDR_GSO_TCPV4,
    abi.XEN_NETIF_GSO_TYPE_TCPV6: net.VIRTIO_NET_HDR_GSO_TCPV6,
}
XEN_GSO_TYPES = {virtio: xen for xen, virtio in GSO_TYPES.items()}


@dataclass(frozen=True, slots=True)
class NetFeatures:
    """What both ends of an interface agreed on. "rx" is what the back end may do to us, "tx" what we may ask of it.

    Attributes:
        tx_sg, rx_sg: packets of several slots.
        rx_csum: packets whose checksum the back end vouches for.
        rx_gso, tx_gso: kinds of segmentation, XEN_NETIF_GSO_TYPE_*.
        tx_csum4, tx_csum6: checksums that the back end completes.
    """

    tx_sg: bool = False
    rx_sg: bool = False
    rx_csum: bool = False
    rx_gso: frozenset[int] = frozenset()
    tx_gso: frozenset[int] = frozenset()
    tx_csum4: bool = False
    tx_csum6: bool = False


class ChecksumPlace(NamedTuple):
    """Where a frame's transport checksum is.

    Attributes:
        version: of IP, 4 or 6.
        protocol: 6 or 17.
        start: offset of the transport header.
        offset: of the checksum in it.
        header_length: bytes up to the end of the transport header.
    """

    version: int
    protocol: int
    start: int
    offset: int
    header_length: int


def checksum_place(frame: memoryview) -> ChecksumPlace | None:
    """Where the checksum of the TCP or UDP packet in `frame` is; None when it has none, or its headers are cut off."""
    size = len(frame)
    if size < 14:
        return None
    kind, at = frame[12] << 8 | frame[13], 14
    if kind == _ETH_P_VLAN and size >= 18:
        kind, at = frame[16] << 8 | frame[17], 18
    if kind == _ETH_P_IP:
        if size < at + 20 or frame[at] >> 4 != 4 or frame[at + 6] & 0x3F or frame[at + 7]:
            return None  # not IPv4, or a fragment
        version, protocol, start = 4, frame[at + 9], at + 4 * (frame[at] & 15)
        if start < at + 20:
            return None
    elif kind == _ETH_P_IPV6:
        if size < at + 40 or frame[at] >> 4 != 6:
            return None
        version, protocol, start = 6, frame[at + 6], at + 40
        for _ in range(_EXTENSIONS_MAX):
            if protocol not in _EXTENSIONS or size < start + 8:
                break
            protocol, start = frame[start], start + 8 + 8 * frame[start + 1]
    else:
        return None
    if protocol not in _CHECKSUM_AT or size < start + _HEADER_MIN[protocol]:
        return None
    length = 4 * (frame[start + 12] >> 4) if protocol == 6 else 8
    return ChecksumPlace(version, protocol, start, _CHECKSUM_AT[protocol], start + length)
