"""The configuration space of a network device, as its driver reads it (virtio 1.4 §5.1.4)."""

from __future__ import annotations

import random
from typing import NamedTuple

from guest.drivers.virtio_mmio import MmioTransport, TransportError
from hw.abi import virtio_net as abi

DEFAULT_MTU = 1500


class NetConfig(NamedTuple):
    """What the device says of itself: `mac` is None where it says nothing."""

    mac: bytes | None
    link_up: bool
    mtu: int


def read_config(transport: MmioTransport, features: int) -> NetConfig:
    """The fields that exist under `features`, each as wide as it is (§4.2.2.2); to be called through `consistent`.

    Raises TransportError for an MTU below 68, which no IPv4 packet fits through (§5.1.4.1).
    """
    field, offset = transport.config, abi.VIRTIO_NET_CONFIG.offset
    mac = None
    if features >> abi.VIRTIO_NET_F_MAC & 1:
        mac = bytes(field(offset("mac") + at, 1) & 0xFF for at in range(6))
    link_up = True  # without STATUS the link is taken to be up, §5.1.4.2
    if features >> abi.VIRTIO_NET_F_STATUS & 1:
        link_up = bool(field(offset("status"), 2) & abi.VIRTIO_NET_S_LINK_UP)
    mtu = DEFAULT_MTU
    if features >> abi.VIRTIO_NET_F_MTU & 1:
        mtu = field(offset("mtu"), 2) & 0xFFFF
        if mtu < abi.MTU_MIN:
            raise TransportError(f"the device gives an MTU of {mtu}; at least {abi.MTU_MIN} is needed")
    return NetConfig(mac, link_up, mtu)


def is_station(mac: bytes) -> bool:
    """Whether `mac` can be a station's own address: not a group's, and not all zeros."""
    return not mac[0] & 1 and mac != bytes(6)


def random_station(rng: random.Random) -> bytes:
    """A random address, marked as locally administered (§5.1.4.2)."""
    raw = rng.randbytes(6)
    return bytes([raw[0] & 0xFC | 2]) + raw[1:]
