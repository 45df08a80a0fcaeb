"""The store's wire protocol: message header, operations, error names, and the ring page between a domain and it.

Source: Xen's public `io/xs_wire.h`, Xen's docs/misc/xenstore.txt and xenstore-ring.txt. A message is a header and `len`
bytes of payload; the answer has the same `type` or XS_ERROR, and the same `req_id`. In the ring page both directions
are streams of bytes: a message may lie in it in part, and its reader takes what is there.
"""

from __future__ import annotations

import struct

from hw.abi.layout import Layout

XSD_SOCKMSG = Layout.of("xsd_sockmsg", [("type", "I"), ("req_id", "I"), ("tx_id", "I"), ("len", "I")])
MESSAGE = struct.Struct("<IIII")  # the same: type, req_id, tx_id, len

XS_CONTROL = 0
XS_DIRECTORY = 1
XS_READ = 2
XS_GET_PERMS = 3
XS_WATCH = 4
XS_UNWATCH = 5
XS_TRANSACTION_START = 6
XS_TRANSACTION_END = 7
XS_INTRODUCE = 8
XS_RELEASE = 9
XS_GET_DOMAIN_PATH = 10
XS_WRITE = 11
XS_MKDIR = 12
XS_RM = 13
XS_SET_PERMS = 14
XS_WATCH_EVENT = 15
XS_ERROR = 16
XS_IS_DOMAIN_INTRODUCED = 17
XS_RESUME = 18
XS_SET_TARGET = 19
XS_RESET_WATCHES = 21
XS_DIRECTORY_PART = 22

OPERATION_NAMES = {value: name.removeprefix("XS_") for name, value in list(globals().items()) if name.startswith("XS_")}

XSD_ERRORS = (
    "EINVAL", "EACCES", "EEXIST", "EISDIR", "ENOENT", "ENOMEM", "ENOSPC", "EIO",
    "ENOTEMPTY", "ENOSYS", "EROFS", "EBUSY", "EAGAIN", "EISCONN", "E2BIG", "EPERM",
)  # fmt: skip

XENSTORE_PAYLOAD_MAX = 4096
XENSTORE_ABS_PATH_MAX = 3072
XENSTORE_REL_PATH_MAX = 2048

# The ring page.
XENSTORE_RING_SIZE = 1024
XENSTORE_DOMAIN_INTERFACE = Layout.of(
    "xenstore_domain_interface",
    [
        ("req", "1024s"),
        ("rsp", "1024s"),
        ("req_cons", "I"),
        ("req_prod", "I"),
        ("rsp_cons", "I"),
        ("rsp_prod", "I"),
        ("server_features", "I"),
        ("connection", "I"),
        ("error", "I"),
    ],
)
STORE_REQ = 0
STORE_RSP = 1024
REQ_CONS = 2048
REQ_PROD = 2052
RSP_CONS = 2056
RSP_PROD = 2060
SERVER_FEATURES = 2064
CONNECTION = 2068
ERROR = 2072

XENSTORE_SERVER_FEATURE_RECONNECTION = 1
XENSTORE_SERVER_FEATURE_ERROR = 2
XENSTORE_CONNECTED = 0
XENSTORE_RECONNECT = 1
XENSTORE_ERROR_NONE = 0
XENSTORE_ERROR_COMM = 1
XENSTORE_ERROR_RINGIDX = 2
XENSTORE_ERROR_PROTO = 3
