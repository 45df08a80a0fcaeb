"""The messages of a Xen network interface: transmit, receive, extra information, control.

Source: Xen's public `io/netif.h`. A packet is one or more slots. In the first slot of a transmitted packet `size` is
that of the whole packet, in a received one that of the slot. Bits 0 and 1 of the flags swap their meaning between the
two rings (`NETTXF_csum_blank`, `NETRXF_data_validated`: bit 0). An extra information takes a slot of its own, right
behind the first; on the transmit ring it is answered with NETIF_RSP_NULL.
"""

from __future__ import annotations

import struct

from hw.abi.layout import Layout
from hw.abi.xen_ring import sring_layout

# -- slots ---------------------------------------------------------------------------------------------------------

NETIF_TX_REQUEST = Layout.of(
    "netif_tx_request", [("gref", "I"), ("offset", "H"), ("flags", "H"), ("id", "H"), ("size", "H")]
)
NETIF_TX_RESPONSE = Layout.of("netif_tx_response", [("id", "H"), ("status", "h")])
NETIF_RX_REQUEST = Layout.of("netif_rx_request", [("id", "H"), ("pad", "H"), ("gref", "I")])
NETIF_RX_RESPONSE = Layout.of("netif_rx_response", [("id", "H"), ("offset", "H"), ("flags", "H"), ("status", "h")])
NETIF_EXTRA_INFO = Layout.of("netif_extra_info", [("type", "B"), ("flags", "B"), ("u", "6s")])
NETIF_EXTRA_GSO = Layout.of(
    "netif_extra_info",
    [
        ("type", "B"),
        ("flags", "B"),
        ("u.gso.size", "H"),
        ("u.gso.type", "B"),
        ("u.gso.pad", "B"),
        ("u.gso.features", "H"),
    ],
)
NETIF_EXTRA_MCAST = Layout.of("netif_extra_info", [("type", "B"), ("flags", "B"), ("u.mcast.addr", "6s")])
NETIF_EXTRA_HASH = Layout.of(
    "netif_extra_info",
    [("type", "B"), ("flags", "B"), ("u.hash.type", "B"), ("u.hash.algorithm", "B"), ("u.hash.value", "4s")],
)

# The same for the data path.
TX_REQUEST = struct.Struct("<IHHHH")  # gref, offset, flags, id, size
TX_RESPONSE = struct.Struct("<Hh")  # id, status
RX_REQUEST = struct.Struct("<HHI")  # id, pad, gref
RX_RESPONSE = struct.Struct("<HHHh")  # id, offset, flags, status
EXTRA_GSO = struct.Struct("<BBHBBH")  # type, flags, size, gso type, pad, features
EXTRA_MCAST = struct.Struct("<BB6s")  # type, flags, address
EXTRA_HASH = struct.Struct("<BBBB4s")  # type, flags, hash type, algorithm, value

# A ring's slot holds a request or a response, whichever is longer.
TX_SLOT_SIZE = 12
RX_SLOT_SIZE = 8
NETIF_TX_SRING = sring_layout("netif_tx", TX_SLOT_SIZE)
NETIF_RX_SRING = sring_layout("netif_rx", RX_SLOT_SIZE)
NET_RING_SLOTS = 256  # of either ring in one page

# -- flags, transmit ------------------------------------------------------------------------------------------------

NETTXF_csum_blank = 1 << 0  # the protocol checksum is not in the packet
NETTXF_data_validated = 1 << 1  # the protocol checksum was checked
NETTXF_more_data = 1 << 2  # the packet goes on in the next slot
NETTXF_extra_info = 1 << 3  # the next slot is extra information

# -- flags, receive: mind that bits 0 and 1 are the other way round -------------------------------------------------

NETRXF_data_validated = 1 << 0
NETRXF_csum_blank = 1 << 1
NETRXF_more_data = 1 << 2
NETRXF_extra_info = 1 << 3
NETRXF_gso_prefix = 1 << 4  # deprecated

# -- limits ---------------------------------------------------------------------------------------------------------

XEN_NETIF_NR_SLOTS_MIN = 18  # slots of one packet that every back end takes; extra information does not count
XEN_NETIF_MAX_TX_SIZE = 0xFFFF

# -- status ---------------------------------------------------------------------------------------------------------

NETIF_RSP_DROPPED = -2
NETIF_RSP_ERROR = -1
NETIF_RSP_OKAY = 0
NETIF_RSP_NULL = 1  # the answer to extra information: no answer

# -- extra information ----------------------------------------------------------------------------------------------

XEN_NETIF_EXTRA_TYPE_NONE = 0
XEN_NETIF_EXTRA_TYPE_GSO = 1
XEN_NETIF_EXTRA_TYPE_MCAST_ADD = 2
XEN_NETIF_EXTRA_TYPE_MCAST_DEL = 3
XEN_NETIF_EXTRA_TYPE_HASH = 4
XEN_NETIF_EXTRA_FLAG_MORE = 1 << 0  # more extra information follows

XEN_NETIF_GSO_TYPE_NONE = 0
XEN_NETIF_GSO_TYPE_TCPV4 = 1
XEN_NETIF_GSO_TYPE_TCPV6 = 2

# -- the control ring -----------------------------------------------------------------------------------------------

XEN_NETIF_CTRL_REQUEST = Layout.of("xen_netif_ctrl_request", [("id", "H"), ("type", "H"), ("data", "12s")])
XEN_NETIF_CTRL_RESPONSE = Layout.of(
    "xen_netif_ctrl_response", [("id", "H"), ("type", "H"), ("status", "I"), ("data", "I")]
)
CTRL_REQUEST = struct.Struct("<HHIII")  # id, type, data[3]
CTRL_RESPONSE = struct.Struct("<HHII")  # id, type, status, data
CTRL_SLOT_SIZE = 16
XEN_NETIF_CTRL_SRING = sring_layout("xen_netif_ctrl", CTRL_SLOT_SIZE)

XEN_NETIF_CTRL_TYPE_INVALID = 0
XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS = 1
XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS = 2
XEN_NETIF_CTRL_TYPE_SET_HASH_KEY = 3
XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE = 4
XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE = 5
XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING = 6
XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM = 7
XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE = 8
XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING = 9
XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING = 10

XEN_NETIF_CTRL_STATUS_SUCCESS = 0
XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED = 1
XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER = 2
XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW = 3

XEN_NETIF_CTRL_HASH_ALGORITHM_NONE = 0
XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ = 1

XEN_NETIF_CTRL_HASH_TYPE_IPV4 = 1 << 0
XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP = 1 << 1
XEN_NETIF_CTRL_HASH_TYPE_IPV6 = 1 << 2
XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP = 1 << 3
