"""Xenbus: the states of the two ends of a device, and the names in the store under which a vif's ends meet.

Source: Xen's public `io/xenbus.h` and `io/netif.h`, Xen's docs/misc/xenstore-paths.pandoc. A front end writes below
`frontend_path`, a back end below `backend_path`; each watches the other's `state`. Values are decimal text.
"""

from __future__ import annotations

XenbusStateUnknown = 0
XenbusStateInitialising = 1
XenbusStateInitWait = 2
XenbusStateInitialised = 3
XenbusStateConnected = 4
XenbusStateClosing = 5
XenbusStateClosed = 6
XenbusStateReconfiguring = 7
XenbusStateReconfigured = 8

STATE_NAMES = {
    value: name.removeprefix("XenbusState") for name, value in list(globals().items()) if name.startswith("XenbusState")
}


def domain_path(domid: int) -> str:
    """Where a domain's own part of the store begins."""
    return f"/local/domain/{domid}"


def frontend_path(domid: int, handle: int) -> str:
    """The front end of vif `handle` in domain `domid`; relative to the domain it is `device/vif/<handle>`."""
    return f"/local/domain/{domid}/device/vif/{handle}"


def backend_path(backend_domid: int, domid: int, handle: int) -> str:
    """The back end, in domain `backend_domid`, of the same vif."""
    return f"/local/domain/{backend_domid}/backend/vif/{domid}/{handle}"


def error_path(domid: int, handle: int) -> str:
    """Where a front end says what failed: the key `error` below this, and the same for a back end in its domain."""
    return f"/local/domain/{domid}/error/device/vif/{handle}"


def backend_error_path(backend_domid: int, domid: int, handle: int) -> str:
    """Where a back end says what failed: the key `error` below this."""
    return f"/local/domain/{backend_domid}/error/backend/vif/{domid}/{handle}"


VIF_DIRECTORY = "device/vif"  # relative to the domain; its children are the handles
STATE = "state"
ERROR = "error"

# Written by the toolstack, at the front end's path.
BACKEND = "backend"
BACKEND_ID = "backend-id"
HANDLE = "handle"
MAC = "mac"
MTU = "mtu"

# Written by the toolstack, at the back end's path.
FRONTEND = "frontend"
FRONTEND_ID = "frontend-id"
ONLINE = "online"
BRIDGE = "bridge"

# Offered by the back end, asked for or refused by the front end; "1" or "0".
FEATURE_RX_COPY = "feature-rx-copy"
REQUEST_RX_COPY = "request-rx-copy"
FEATURE_RX_FLIP = "feature-rx-flip"
FEATURE_RX_NOTIFY = "feature-rx-notify"
FEATURE_SG = "feature-sg"
FEATURE_GSO_TCPV4 = "feature-gso-tcpv4"
FEATURE_GSO_TCPV6 = "feature-gso-tcpv6"
FEATURE_NO_CSUM_OFFLOAD = "feature-no-csum-offload"  # absent: offload of IPv4 is on
FEATURE_IPV6_CSUM_OFFLOAD = "feature-ipv6-csum-offload"  # absent: offload of IPv6 is off
FEATURE_SPLIT_EVENT_CHANNELS = "feature-split-event-channels"
FEATURE_MULTICAST_CONTROL = "feature-multicast-control"
FEATURE_DYNAMIC_MULTICAST_CONTROL = "feature-dynamic-multicast-control"
REQUEST_MULTICAST_CONTROL = "request-multicast-control"
FEATURE_CTRL_RING = "feature-ctrl-ring"
CARRIER = "carrier"  # back end; absent: up

# Queues. With one queue the keys of a queue stand at the front end's path, else below `queue-N`.
MULTI_QUEUE_MAX_QUEUES = "multi-queue-max-queues"  # back end
MULTI_QUEUE_NUM_QUEUES = "multi-queue-num-queues"  # front end
TX_RING_REF = "tx-ring-ref"
RX_RING_REF = "rx-ring-ref"
EVENT_CHANNEL = "event-channel"
EVENT_CHANNEL_TX = "event-channel-tx"
EVENT_CHANNEL_RX = "event-channel-rx"
CTRL_RING_REF = "ctrl-ring-ref"
EVENT_CHANNEL_CTRL = "event-channel-ctrl"


def queue_key(queue: int) -> str:
    """The key below which queue number `queue` of several has its own."""
    return f"queue-{queue}"
