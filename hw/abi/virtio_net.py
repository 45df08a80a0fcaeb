"""The virtio network device: feature bits, their dependencies, configuration space, packet header.

Source: virtio 1.4 §5.1 (§5.1.3 feature bits, §5.1.3.1 dependencies, §5.1.4 configuration layout, §5.1.9 packet
header); `linux/virtio_net.h`. Features are bit numbers.
"""

from __future__ import annotations

import struct

from hw.abi.layout import Layout

VIRTIO_NET_F_CSUM = 0
VIRTIO_NET_F_GUEST_CSUM = 1
VIRTIO_NET_F_CTRL_GUEST_OFFLOADS = 2
VIRTIO_NET_F_MTU = 3
VIRTIO_NET_F_MAC = 5
VIRTIO_NET_F_GSO = 6  # legacy
VIRTIO_NET_F_GUEST_TSO4 = 7
VIRTIO_NET_F_GUEST_TSO6 = 8
VIRTIO_NET_F_GUEST_ECN = 9
VIRTIO_NET_F_GUEST_UFO = 10
VIRTIO_NET_F_HOST_TSO4 = 11
VIRTIO_NET_F_HOST_TSO6 = 12
VIRTIO_NET_F_HOST_ECN = 13
VIRTIO_NET_F_HOST_UFO = 14
VIRTIO_NET_F_MRG_RXBUF = 15
VIRTIO_NET_F_STATUS = 16
VIRTIO_NET_F_CTRL_VQ = 17
VIRTIO_NET_F_CTRL_RX = 18
VIRTIO_NET_F_CTRL_VLAN = 19
VIRTIO_NET_F_CTRL_RX_EXTRA = 20
VIRTIO_NET_F_GUEST_ANNOUNCE = 21
VIRTIO_NET_F_MQ = 22
VIRTIO_NET_F_CTRL_MAC_ADDR = 23
VIRTIO_NET_F_DEVICE_STATS = 50
VIRTIO_NET_F_HASH_TUNNEL = 51
VIRTIO_NET_F_VQ_NOTF_COAL = 52
VIRTIO_NET_F_NOTF_COAL = 53
VIRTIO_NET_F_GUEST_USO4 = 54
VIRTIO_NET_F_GUEST_USO6 = 55
VIRTIO_NET_F_HOST_USO = 56
VIRTIO_NET_F_HASH_REPORT = 57
VIRTIO_NET_F_GUEST_HDRLEN = 59
VIRTIO_NET_F_RSS = 60
VIRTIO_NET_F_RSC_EXT = 61
VIRTIO_NET_F_STANDBY = 62
VIRTIO_NET_F_SPEED_DUPLEX = 63
VIRTIO_NET_F_RSS_CONTEXT = 64
VIRTIO_NET_F_GUEST_UDP_TUNNEL_GSO = 65
VIRTIO_NET_F_GUEST_UDP_TUNNEL_GSO_CSUM = 66
VIRTIO_NET_F_HOST_UDP_TUNNEL_GSO = 67
VIRTIO_NET_F_HOST_UDP_TUNNEL_GSO_CSUM = 68
VIRTIO_NET_F_OUT_NET_HEADER = 69
VIRTIO_NET_F_IPSEC = 70

FEATURE_NAMES = {
    value: name.removeprefix("VIRTIO_NET_F_")
    for name, value in list(globals().items())
    if name.startswith("VIRTIO_NET_F_")
}

# Bits that need other bits (§5.1.3.1): feature -> alternatives, one of which must be there whole.
FEATURE_REQUIRES: dict[int, tuple[tuple[int, ...], ...]] = {
    VIRTIO_NET_F_GUEST_TSO4: ((VIRTIO_NET_F_GUEST_CSUM,),),
    VIRTIO_NET_F_GUEST_TSO6: ((VIRTIO_NET_F_GUEST_CSUM,),),
    VIRTIO_NET_F_GUEST_ECN: ((VIRTIO_NET_F_GUEST_TSO4,), (VIRTIO_NET_F_GUEST_TSO6,)),
    VIRTIO_NET_F_GUEST_UFO: ((VIRTIO_NET_F_GUEST_CSUM,),),
    VIRTIO_NET_F_GUEST_USO4: ((VIRTIO_NET_F_GUEST_CSUM,),),
    VIRTIO_NET_F_GUEST_USO6: ((VIRTIO_NET_F_GUEST_CSUM,),),
    VIRTIO_NET_F_GUEST_UDP_TUNNEL_GSO: (
        (VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6),
    ),
    VIRTIO_NET_F_GUEST_UDP_TUNNEL_GSO_CSUM: ((VIRTIO_NET_F_GUEST_UDP_TUNNEL_GSO,),),
    VIRTIO_NET_F_HOST_TSO4: ((VIRTIO_NET_F_CSUM,),),
    VIRTIO_NET_F_HOST_TSO6: ((VIRTIO_NET_F_CSUM,),),
    VIRTIO_NET_F_HOST_ECN: ((VIRTIO_NET_F_HOST_TSO4,), (VIRTIO_NET_F_HOST_TSO6,)),
    VIRTIO_NET_F_HOST_UFO: ((VIRTIO_NET_F_CSUM,),),
    VIRTIO_NET_F_HOST_USO: ((VIRTIO_NET_F_CSUM,),),
    VIRTIO_NET_F_HOST_UDP_TUNNEL_GSO: ((VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO),),
    VIRTIO_NET_F_HOST_UDP_TUNNEL_GSO_CSUM: ((VIRTIO_NET_F_HOST_UDP_TUNNEL_GSO,),),
    VIRTIO_NET_F_CTRL_RX: ((VIRTIO_NET_F_CTRL_VQ,),),
    VIRTIO_NET_F_CTRL_VLAN: ((VIRTIO_NET_F_CTRL_VQ,),),
    VIRTIO_NET_F_GUEST_ANNOUNCE: ((VIRTIO_NET_F_CTRL_VQ,),),
    VIRTIO_NET_F_MQ: ((VIRTIO_NET_F_CTRL_VQ,),),
    VIRTIO_NET_F_CTRL_MAC_ADDR: ((VIRTIO_NET_F_CTRL_VQ,),),
    VIRTIO_NET_F_NOTF_COAL: ((VIRTIO_NET_F_CTRL_VQ,),),
    VIRTIO_NET_F_RSC_EXT: ((VIRTIO_NET_F_HOST_TSO4,), (VIRTIO_NET_F_HOST_TSO6,)),
    VIRTIO_NET_F_RSS: ((VIRTIO_NET_F_CTRL_VQ,),),
    VIRTIO_NET_F_VQ_NOTF_COAL: ((VIRTIO_NET_F_CTRL_VQ,),),
    VIRTIO_NET_F_HASH_TUNNEL: (
        (VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_RSS),
        (VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_HASH_REPORT),
    ),
    VIRTIO_NET_F_RSS_CONTEXT: ((VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_RSS),),
}

# Configuration space, §5.1.4, as far as the headers have it: `supported_tunnel_types` comes after it, for
# HASH_TUNNEL only.
VIRTIO_NET_CONFIG = Layout.of(
    "virtio_net_config",
    [
        ("mac", "6s"),
        ("status", "H"),
        ("max_virtqueue_pairs", "H"),
        ("mtu", "H"),
        ("speed", "I"),
        ("duplex", "B"),
        ("rss_max_key_size", "B"),
        ("rss_max_indirection_table_length", "H"),
        ("supported_hash_types", "I"),
    ],
)
TUNNEL_TYPES_OFFSET = VIRTIO_NET_CONFIG.size
VIRTIO_NET_S_LINK_UP = 1
VIRTIO_NET_S_ANNOUNCE = 2
# As ethtool has them, and the field's description in §5.1.4; a sentence in §5.1.4.1 has full and half the other way.
DUPLEX_HALF = 0
DUPLEX_FULL = 1
DUPLEX_UNKNOWN = 0xFF
SPEED_MAX = 0x7FFFFFFF  # Mbit/s
SPEED_UNKNOWN = 0xFFFFFFFF
MTU_MIN = 68
MTU_MAX = 65535

# Queue numbers, §5.1.2: receive and transmit queues take turns, the control queue is the last.
RECEIVEQ1 = 0
TRANSMITQ1 = 1

# Packet header, §5.1.9.
VIRTIO_NET_HDR_V1 = Layout.of(
    "virtio_net_hdr_v1",
    [
        ("flags", "B"),
        ("gso_type", "B"),
        ("hdr_len", "H"),
        ("gso_size", "H"),
        ("csum_start", "H"),
        ("csum_offset", "H"),
        ("num_buffers", "H"),
    ],
)
NET_HEADER = struct.Struct("<BBHHHHH")  # the same, for the data path
NUM_BUFFERS_OFFSET = 10
ZERO_HEADER = bytes(12)

VIRTIO_NET_HDR_V1_HASH = Layout.of(
    "virtio_net_hdr_v1_hash",
    [("hdr", "12s"), ("hash_value", "I"), ("hash_report", "H"), ("padding", "H")],
)
HASH_OFFSET = 12
HASH = struct.Struct("<IHH")  # what HASH_REPORT adds

VIRTIO_NET_HDR_F_NEEDS_CSUM = 1
VIRTIO_NET_HDR_F_DATA_VALID = 2
VIRTIO_NET_HDR_F_RSC_INFO = 4
VIRTIO_NET_HDR_GSO_NONE = 0
VIRTIO_NET_HDR_GSO_TCPV4 = 1
VIRTIO_NET_HDR_GSO_UDP = 3
VIRTIO_NET_HDR_GSO_TCPV6 = 4
VIRTIO_NET_HDR_GSO_UDP_L4 = 5
VIRTIO_NET_HDR_GSO_ECN = 0x80


def control_queue(pairs: int) -> int:
    """Index of the control queue of a device with `pairs` queue pairs negotiated (§5.1.2)."""
    return 2 * pairs


def header_length(features: int) -> int:
    """Bytes of the packet header under the negotiated `features` (a mask), §5.1.9.3.1.

    12 for every VERSION_1 device, 20 with HASH_REPORT, 24 with UDP tunnel offload, 32 with OUT_NET_HEADER or IPSEC.
    """
    if features >> VIRTIO_NET_F_OUT_NET_HEADER & 1 or features >> VIRTIO_NET_F_IPSEC & 1:
        return 32
    if features >> VIRTIO_NET_F_HOST_UDP_TUNNEL_GSO & 1 or features >> VIRTIO_NET_F_GUEST_UDP_TUNNEL_GSO & 1:
        return 24
    if features >> VIRTIO_NET_F_HASH_REPORT & 1:
        return 20
    return 12
