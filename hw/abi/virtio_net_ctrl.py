"""The network device's control queue: classes, commands, and the structures that go with them.

Source: virtio 1.4 §5.1.9.5 (commands), §5.1.9.4.3 (hash types), §5.1.9.4.4 (tunnel types), §5.1.9.4.5 (hash reports);
`linux/virtio_net.h`. A command is two readable bytes, class and command, and its data; the device answers with one byte
of acknowledgement and, for the statistics, a result. Structures that end in a table have a layout of what comes first.
"""

from __future__ import annotations

import struct

from hw.abi.layout import Layout

VIRTIO_NET_OK = 0
VIRTIO_NET_ERR = 1

# §5.1.9.5.1: each command carries one byte, 0 or 1. The first two come with CTRL_RX, the others with CTRL_RX_EXTRA.
VIRTIO_NET_CTRL_RX = 0
VIRTIO_NET_CTRL_RX_PROMISC = 0
VIRTIO_NET_CTRL_RX_ALLMULTI = 1
VIRTIO_NET_CTRL_RX_ALLUNI = 2
VIRTIO_NET_CTRL_RX_NOMULTI = 3
VIRTIO_NET_CTRL_RX_NOUNI = 4
VIRTIO_NET_CTRL_RX_NOBCAST = 5

# §5.1.9.5.2: two tables, each a 32-bit count and as many addresses; or one address.
VIRTIO_NET_CTRL_MAC = 1
VIRTIO_NET_CTRL_MAC_TABLE_SET = 0
VIRTIO_NET_CTRL_MAC_ADDR_SET = 1

# §5.1.9.5.3: a 16-bit VLAN id.
VIRTIO_NET_CTRL_VLAN = 2
VIRTIO_NET_CTRL_VLAN_ADD = 0
VIRTIO_NET_CTRL_VLAN_DEL = 1

VIRTIO_NET_CTRL_ANNOUNCE = 3  # §5.1.9.5.4
VIRTIO_NET_CTRL_ANNOUNCE_ACK = 0

# §5.1.9.5.5 to §5.1.9.5.7.
VIRTIO_NET_CTRL_MQ = 4
VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET = 0
VIRTIO_NET_CTRL_MQ_VQ_PAIRS_MIN = 1
VIRTIO_NET_CTRL_MQ_VQ_PAIRS_MAX = 0x8000
VIRTIO_NET_CTRL_MQ_RSS_CONFIG = 1
VIRTIO_NET_CTRL_MQ_HASH_CONFIG = 2

VIRTIO_NET_CTRL_GUEST_OFFLOADS = 5  # §5.1.9.5.9: a 64-bit mask of feature bits
VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET = 0

# §5.1.9.5.10.
VIRTIO_NET_CTRL_NOTF_COAL = 6
VIRTIO_NET_CTRL_NOTF_COAL_TX_SET = 0
VIRTIO_NET_CTRL_NOTF_COAL_RX_SET = 1
VIRTIO_NET_CTRL_NOTF_COAL_VQ_SET = 2
VIRTIO_NET_CTRL_NOTF_COAL_VQ_GET = 3

VIRTIO_NET_CTRL_HASH_TUNNEL = 7  # §5.1.9.4.4
VIRTIO_NET_CTRL_HASH_TUNNEL_SET = 0

# §5.1.9.5.11.
VIRTIO_NET_CTRL_STATS = 8
VIRTIO_NET_CTRL_STATS_QUERY = 0
VIRTIO_NET_CTRL_STATS_GET = 1

CLASS_NAMES = {
    VIRTIO_NET_CTRL_RX: "RX",
    VIRTIO_NET_CTRL_MAC: "MAC",
    VIRTIO_NET_CTRL_VLAN: "VLAN",
    VIRTIO_NET_CTRL_ANNOUNCE: "ANNOUNCE",
    VIRTIO_NET_CTRL_MQ: "MQ",
    VIRTIO_NET_CTRL_GUEST_OFFLOADS: "GUEST_OFFLOADS",
    VIRTIO_NET_CTRL_NOTF_COAL: "NOTF_COAL",
    VIRTIO_NET_CTRL_HASH_TUNNEL: "HASH_TUNNEL",
    VIRTIO_NET_CTRL_STATS: "STATS",
}

# Hash types (masks), §5.1.9.4.3.1; a report is 1 + the bit number of its type, §5.1.9.4.5.
VIRTIO_NET_RSS_HASH_TYPE_IPv4 = 1 << 0
VIRTIO_NET_RSS_HASH_TYPE_TCPv4 = 1 << 1
VIRTIO_NET_RSS_HASH_TYPE_UDPv4 = 1 << 2
VIRTIO_NET_RSS_HASH_TYPE_IPv6 = 1 << 3
VIRTIO_NET_RSS_HASH_TYPE_TCPv6 = 1 << 4
VIRTIO_NET_RSS_HASH_TYPE_UDPv6 = 1 << 5
VIRTIO_NET_RSS_HASH_TYPE_IP_EX = 1 << 6
VIRTIO_NET_RSS_HASH_TYPE_TCP_EX = 1 << 7
VIRTIO_NET_RSS_HASH_TYPE_UDP_EX = 1 << 8
VIRTIO_NET_HASH_REPORT_NONE = 0
VIRTIO_NET_HASH_REPORT_IPv4 = 1
VIRTIO_NET_HASH_REPORT_TCPv4 = 2
VIRTIO_NET_HASH_REPORT_UDPv4 = 3
VIRTIO_NET_HASH_REPORT_IPv6 = 4
VIRTIO_NET_HASH_REPORT_TCPv6 = 5
VIRTIO_NET_HASH_REPORT_UDPv6 = 6
VIRTIO_NET_HASH_REPORT_IPv6_EX = 7
VIRTIO_NET_HASH_REPORT_TCPv6_EX = 8
VIRTIO_NET_HASH_REPORT_UDPv6_EX = 9
HASH_TYPE_NAMES = {
    VIRTIO_NET_RSS_HASH_TYPE_IPv4: "ipv4",
    VIRTIO_NET_RSS_HASH_TYPE_TCPv4: "tcp4",
    VIRTIO_NET_RSS_HASH_TYPE_UDPv4: "udp4",
    VIRTIO_NET_RSS_HASH_TYPE_IPv6: "ipv6",
    VIRTIO_NET_RSS_HASH_TYPE_TCPv6: "tcp6",
    VIRTIO_NET_RSS_HASH_TYPE_UDPv6: "udp6",
    VIRTIO_NET_RSS_HASH_TYPE_IP_EX: "ipv6-ex",
    VIRTIO_NET_RSS_HASH_TYPE_TCP_EX: "tcp6-ex",
    VIRTIO_NET_RSS_HASH_TYPE_UDP_EX: "udp6-ex",
}
RSS_KEY_SIZE_MIN = 40  # §5.1.4.1: a device takes keys up to this at least
RSS_TABLE_LENGTH_MIN = 128  # and tables up to this

# A RSS configuration is its head, a table of 16-bit queue numbers (each half of a receive queue's index), the largest
# transmit queue and the key's length, and the key (§5.1.9.5.7.1). A hash configuration is its head and the key.
RSS_HEAD = struct.Struct("<IHH")  # hash_types, indirection_table_mask, unclassified_queue
RSS_TAIL = struct.Struct("<HB")  # max_tx_vq, hash_key_length
HASH_HEAD = struct.Struct("<I8sB")  # hash_types, reserved, hash_key_length

VIRTIO_NET_CTRL_COAL = Layout.of("virtio_net_ctrl_coal", [("max_packets", "I"), ("max_usecs", "I")])
VIRTIO_NET_CTRL_COAL_VQ = Layout.of(
    "virtio_net_ctrl_coal_vq", [("vqn", "H"), ("reserved", "H"), ("coal.max_packets", "I"), ("coal.max_usecs", "I")]
)
COAL = struct.Struct("<II")
COAL_VQ = struct.Struct("<HHII")

# Statistics, §5.1.9.5.11: types are bit numbers, in the mask of what is supported and in each reply.
VIRTIO_NET_STATS_TYPE_REPLY_RX_BASIC = 0
VIRTIO_NET_STATS_TYPE_REPLY_RX_CSUM = 1
VIRTIO_NET_STATS_TYPE_REPLY_RX_GSO = 2
VIRTIO_NET_STATS_TYPE_REPLY_RX_SPEED = 3
VIRTIO_NET_STATS_TYPE_REPLY_TX_BASIC = 16
VIRTIO_NET_STATS_TYPE_REPLY_TX_CSUM = 17
VIRTIO_NET_STATS_TYPE_REPLY_TX_GSO = 18
VIRTIO_NET_STATS_TYPE_REPLY_TX_SPEED = 19
VIRTIO_NET_STATS_TYPE_REPLY_CVQ = 32

STATS_WANTED = struct.Struct("<H6xQ")  # one entry of virtio_net_ctrl_queue_stats: vq_index, types_bitmap
STATS_REPLY = struct.Struct("<BxHHH")  # virtio_net_stats_reply_hdr: type, vq_index, reserved, size
VIRTIO_NET_STATS_CAPABILITIES = Layout.of("virtio_net_stats_capabilities", [("supported_stats_types", "Q")])
VIRTIO_NET_STATS_REPLY_HDR = Layout.of(
    "virtio_net_stats_reply_hdr",
    [("type", "B"), ("reserved", "B"), ("vq_index", "H"), ("reserved1", "H"), ("size", "H")],
)

# The 64-bit counters behind the reply header, by type, in order.
STATS_FIELDS: dict[int, tuple[str, ...]] = {
    VIRTIO_NET_STATS_TYPE_REPLY_CVQ: ("command_num", "ok_num"),
    VIRTIO_NET_STATS_TYPE_REPLY_RX_BASIC: (
        "rx_notifications", "rx_packets", "rx_bytes", "rx_interrupts", "rx_drops", "rx_drop_overruns",
    ),
    VIRTIO_NET_STATS_TYPE_REPLY_TX_BASIC: (
        "tx_notifications", "tx_packets", "tx_bytes", "tx_interrupts", "tx_drops", "tx_drop_malformed",
    ),
    VIRTIO_NET_STATS_TYPE_REPLY_RX_CSUM: ("rx_csum_valid", "rx_needs_csum", "rx_csum_none", "rx_csum_bad"),
    VIRTIO_NET_STATS_TYPE_REPLY_TX_CSUM: ("tx_csum_none", "tx_needs_csum"),
    VIRTIO_NET_STATS_TYPE_REPLY_RX_GSO: (
        "rx_gso_packets", "rx_gso_bytes", "rx_gso_packets_coalesced", "rx_gso_bytes_coalesced",
    ),
    VIRTIO_NET_STATS_TYPE_REPLY_TX_GSO: (
        "tx_gso_packets", "tx_gso_bytes", "tx_gso_segments", "tx_gso_segments_bytes", "tx_gso_packets_noseg",
        "tx_gso_bytes_noseg",
    ),
    VIRTIO_NET_STATS_TYPE_REPLY_RX_SPEED: ("rx_packets_allowance_exceeded", "rx_bytes_allowance_exceeded"),
    VIRTIO_NET_STATS_TYPE_REPLY_TX_SPEED: ("tx_packets_allowance_exceeded", "tx_bytes_allowance_exceeded"),
}  # fmt: skip
