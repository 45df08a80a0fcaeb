"""Statistics of a network card's queues, as the control queue answers them (virtio 1.4 §5.1.9.5.11)."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from hw.abi import virtio_net as net
from hw.abi import virtio_net_ctrl as ctrl

_WRAP = (1 << 64) - 1
RECEIVE, TRANSMIT, CONTROL = "receive", "transmit", "control"

# By type: the queues that have it, the features of which one must be negotiated (none: always), and for each counter of
# ctrl.STATS_FIELDS its name in a side's `stats`. The speed types are not supported: no card here drops for its speed.
_TYPES: dict[int, tuple[str, tuple[int, ...], tuple[str, ...]]] = {
    ctrl.VIRTIO_NET_STATS_TYPE_REPLY_RX_BASIC: (
        RECEIVE, (), ("notifications", "packets", "bytes", "interrupts", "drops", "overruns"),
    ),
    ctrl.VIRTIO_NET_STATS_TYPE_REPLY_RX_CSUM: (
        RECEIVE, (net.VIRTIO_NET_F_GUEST_CSUM,), ("csum_valid", "needs_csum", "csum_none", "csum_bad"),
    ),
    ctrl.VIRTIO_NET_STATS_TYPE_REPLY_RX_GSO: (
        RECEIVE,
        (net.VIRTIO_NET_F_GUEST_TSO4, net.VIRTIO_NET_F_GUEST_TSO6),
        ("gso_packets", "gso_bytes", "gso_coalesced", "gso_coalesced_bytes"),
    ),
    ctrl.VIRTIO_NET_STATS_TYPE_REPLY_TX_BASIC: (
        TRANSMIT, (), ("notifications", "packets", "bytes", "interrupts", "drops", "malformed"),
    ),
    ctrl.VIRTIO_NET_STATS_TYPE_REPLY_TX_CSUM: (TRANSMIT, (net.VIRTIO_NET_F_CSUM,), ("csum_none", "needs_csum")),
    ctrl.VIRTIO_NET_STATS_TYPE_REPLY_TX_GSO: (
        TRANSMIT,
        (net.VIRTIO_NET_F_HOST_TSO4, net.VIRTIO_NET_F_HOST_TSO6, net.VIRTIO_NET_F_HOST_USO),
        ("gso_packets", "gso_bytes", "gso_segments", "gso_segments_bytes", "gso_packets", "gso_bytes"),
    ),
    ctrl.VIRTIO_NET_STATS_TYPE_REPLY_CVQ: (CONTROL, (), ("command_num", "ok_num")),
}  # fmt: skip
SUPPORTED = sum(1 << kind for kind in _TYPES)


def answer_to(kind: str, index: int, types: int, negotiated: int, stats: Mapping[str, int]) -> bytes | None:
    """The replies for one queue, or None where the question is not a proper one (§5.1.9.5.11.12).

    Args:
        kind: RECEIVE, TRANSMIT or CONTROL.
        index: the queue's number.
        types: which statistics, a mask.
        negotiated: features.
        stats: its counters, by the names above; what is missing is 0.
    """
    if types & ~SUPPORTED:
        return None
    out = b""
    for number, (whose, features, fields) in _TYPES.items():
        if not types >> number & 1:
            continue
        if whose != kind or (features and not any(negotiated >> feature & 1 for feature in features)):
            return None
        values = struct.pack(f"<{len(fields)}Q", *(stats.get(field, 0) & _WRAP for field in fields))
        out += ctrl.STATS_REPLY.pack(number, index, 0, ctrl.STATS_REPLY.size + len(values)) + values
    return out
