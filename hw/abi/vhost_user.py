"""The vhost-user protocol: requests, protocol features, and the layouts of messages.

Source: QEMU's docs/interop/vhost-user (message specification, front-end message types, protocol features). Numbers are
in the machine's byte order, which is little-endian wherever vring runs. Feature names are bit numbers.
"""

from __future__ import annotations

import struct

from hw.abi.layout import Layout

# A message begins with request, flags and the length of its payload.
HEADER = struct.Struct("<III")
VHOST_USER_VERSION = 1
VHOST_USER_VERSION_MASK = 3
VHOST_USER_REPLY = 1 << 2
VHOST_USER_NEED_REPLY = 1 << 3

VHOST_USER_F_PROTOCOL_FEATURES = 30  # a feature bit that no virtio device offers

VHOST_USER_GET_FEATURES = 1
VHOST_USER_SET_FEATURES = 2
VHOST_USER_SET_OWNER = 3
VHOST_USER_RESET_OWNER = 4
VHOST_USER_SET_MEM_TABLE = 5
VHOST_USER_SET_VRING_NUM = 8
VHOST_USER_SET_VRING_ADDR = 9
VHOST_USER_SET_VRING_BASE = 10
VHOST_USER_GET_VRING_BASE = 11
VHOST_USER_SET_VRING_KICK = 12
VHOST_USER_SET_VRING_CALL = 13
VHOST_USER_SET_VRING_ERR = 14
VHOST_USER_GET_PROTOCOL_FEATURES = 15
VHOST_USER_SET_PROTOCOL_FEATURES = 16
VHOST_USER_GET_QUEUE_NUM = 17
VHOST_USER_SET_VRING_ENABLE = 18
VHOST_USER_SEND_RARP = 19
VHOST_USER_NET_SET_MTU = 20
VHOST_USER_SET_BACKEND_REQ_FD = 21
VHOST_USER_GET_CONFIG = 24
VHOST_USER_SET_CONFIG = 25
VHOST_USER_RESET_DEVICE = 34
VHOST_USER_SET_STATUS = 39
VHOST_USER_GET_STATUS = 40

REQUEST_NAMES = {
    value: name.removeprefix("VHOST_USER_")
    for name, value in list(globals().items())
    if name.startswith(tuple(f"VHOST_USER_{verb}_" for verb in ("GET", "SET", "RESET", "SEND", "NET")))
}

VHOST_USER_PROTOCOL_F_MQ = 0
VHOST_USER_PROTOCOL_F_REPLY_ACK = 3
VHOST_USER_PROTOCOL_F_BACKEND_REQ = 5
VHOST_USER_PROTOCOL_F_CONFIG = 9
VHOST_USER_PROTOCOL_F_RESET_DEVICE = 13
VHOST_USER_PROTOCOL_F_STATUS = 16

# As the kernel's vhost has them (linux/vhost_types.h).
VHOST_VRING_STATE = Layout.of("vhost_vring_state", [("index", "I"), ("num", "I")])
VHOST_VRING_ADDR = Layout.of(
    "vhost_vring_addr",
    [
        ("index", "I"),
        ("flags", "I"),
        ("desc_user_addr", "Q"),
        ("used_user_addr", "Q"),
        ("avail_user_addr", "Q"),
        ("log_guest_addr", "Q"),
    ],
)
VHOST_MEMORY_REGION = Layout.of(
    "vhost_memory_region",
    [("guest_phys_addr", "Q"), ("memory_size", "Q"), ("userspace_addr", "Q"), ("flags_padding", "Q")],
)

U64 = struct.Struct("<Q")
VRING_STATE = struct.Struct("<II")  # the same, for messages
VRING_ADDR = struct.Struct("<IIQQQQ")
MEMORY_HEAD = struct.Struct("<II")  # regions, padding
MEMORY_REGIONS_MAX = 8
CONFIG_HEAD = struct.Struct("<III")  # offset, bytes, flags; then the bytes
VRING_INDEX_MASK = 0xFF  # of the number that comes with a descriptor
VRING_NOFD_MASK = 0x100  # no descriptor comes with it
MEMORY_REGION = struct.Struct("<QQQQ")  # as the kernel's, with the offset in the descriptor at its end
