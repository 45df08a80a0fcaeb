"""The configuration space of a network device, as its driver reads it (virtio 1.4 §5.1.4)."""

from __future__ import annotations

import random
from typing import NamedTuple

from guest.drivers.virtio_mmio import MmioTransport, TransportError
from hw.abi import virtio_net as abi
from hw.abi import virtio_net_ctrl as ctrl

DEFAULT_MTU = 1500
_DUPLEX = {abi.DUPLEX_HALF: "half", abi.DUPLEX_FULL: "full"}
_HASH_TYPES = sum(ctrl.HASH_TYPE_NAMES)  # those that have a name; a device may know more


class NetConfig(NamedTuple):
    """What the device says of itself: `mac` and `speed` are None where it says nothing.

    `speed` is in Mbit/s, `max_pairs` counts queue pairs, `key_size` bytes and `table_size` entries of RSS.
    """

    mac: bytes | None
    link_up: bool
    mtu: int
    announce: bool = False
    max_pairs: int = 1
    speed: int | None = None
    duplex: str = "unknown"
    key_size: int = 0
    table_size: int = 0
    hash_types: int = 0


def read_config(transport: MmioTransport, features: int) -> NetConfig:
    """The fields that exist under `features`, each as wide as it is (§4.2.2.2); to be called through `consistent`.

    Raises TransportError for an MTU below 68, which no IPv4 packet fits through, or for no or more queue pairs than
    there can be (§5.1.4.1).
    """
    field, offset = transport.config, abi.VIRTIO_NET_CONFIG.offset
    mac = None
    if features >> abi.VIRTIO_NET_F_MAC & 1:
        mac = bytes(field(offset("mac") + at, 1) & 0xFF for at in range(6))
    link_up, announce = True, False  # without STATUS the link is taken to be up, §5.1.4.2
    if features >> abi.VIRTIO_NET_F_STATUS & 1:
        status = field(offset("status"), 2)
        link_up, announce = bool(status & abi.VIRTIO_NET_S_LINK_UP), bool(status & abi.VIRTIO_NET_S_ANNOUNCE)
    mtu = DEFAULT_MTU
    if features >> abi.VIRTIO_NET_F_MTU & 1:
        mtu = field(offset("mtu"), 2) & 0xFFFF
        if mtu < abi.MTU_MIN:
            raise TransportError(f"the device gives an MTU of {mtu}; at least {abi.MTU_MIN} is needed")
    pairs, key_size, table_size, hash_types = 1, 0, 0, 0
    rss = features >> abi.VIRTIO_NET_F_RSS & 1
    if features >> abi.VIRTIO_NET_F_MQ & 1 or rss:
        pairs = field(offset("max_virtqueue_pairs"), 2) & 0xFFFF
        if not ctrl.VIRTIO_NET_CTRL_MQ_VQ_PAIRS_MIN <= pairs <= ctrl.VIRTIO_NET_CTRL_MQ_VQ_PAIRS_MAX:
            raise TransportError(f"the device says that it has {pairs} queue pairs")
    if rss or features >> abi.VIRTIO_NET_F_HASH_REPORT & 1:
        key_size = field(offset("rss_max_key_size"), 1) & 0xFF
        table_size = field(offset("rss_max_indirection_table_length"), 2) & 0xFFFF
        hash_types = field(offset("supported_hash_types"), 4) & _HASH_TYPES
    speed, duplex = None, "unknown"
    if features >> abi.VIRTIO_NET_F_SPEED_DUPLEX & 1:
        said = field(offset("speed"), 4)
        speed = said if said <= abi.SPEED_MAX else None
        duplex = _DUPLEX.get(field(offset("duplex"), 1), "unknown")
    return NetConfig(mac, link_up, mtu, announce, pairs, speed, duplex, key_size, table_size, hash_types)


def is_station(mac: bytes) -> bool:
    """Whether `mac` can be a station's own address: not a group's, and not all zeros."""
    return not mac[0] & 1 and mac != bytes(6)


def random_station(rng: random.Random) -> bytes:
    """A random address, marked as locally administered (§5.1.4.2)."""
    raw = rng.randbytes(6)
    return bytes([raw[0] & 0xFC | 2]) + raw[1:]
