"""The features that the network driver takes where they are offered, and what each of them needs."""

from __future__ import annotations

from hw.abi import virtio as virtio_abi
from hw.abi import virtio_net as abi

REQUIRED = virtio_abi.features(virtio_abi.VIRTIO_F_VERSION_1)
WANTED = REQUIRED | virtio_abi.features(
    abi.VIRTIO_NET_F_MAC,
    abi.VIRTIO_NET_F_STATUS,
    abi.VIRTIO_NET_F_MTU,
    abi.VIRTIO_NET_F_MRG_RXBUF,
    virtio_abi.VIRTIO_RING_F_INDIRECT_DESC,
    virtio_abi.VIRTIO_RING_F_EVENT_IDX,
    virtio_abi.VIRTIO_F_RING_PACKED,
    virtio_abi.VIRTIO_F_IN_ORDER,
    virtio_abi.VIRTIO_F_NOTIFICATION_DATA,
    virtio_abi.VIRTIO_F_RING_RESET,
    abi.VIRTIO_NET_F_CSUM,
    abi.VIRTIO_NET_F_HOST_TSO4,
    abi.VIRTIO_NET_F_HOST_TSO6,
    abi.VIRTIO_NET_F_HOST_ECN,
    abi.VIRTIO_NET_F_GUEST_CSUM,
    abi.VIRTIO_NET_F_GUEST_TSO4,
    abi.VIRTIO_NET_F_GUEST_TSO6,
    abi.VIRTIO_NET_F_GUEST_ECN,
    abi.VIRTIO_NET_F_CTRL_VQ,
    abi.VIRTIO_NET_F_CTRL_RX,
    abi.VIRTIO_NET_F_CTRL_VLAN,
    abi.VIRTIO_NET_F_CTRL_MAC_ADDR,
    abi.VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
    abi.VIRTIO_NET_F_GUEST_ANNOUNCE,
    abi.VIRTIO_NET_F_MQ,
    abi.VIRTIO_NET_F_RSS,
    abi.VIRTIO_NET_F_HASH_REPORT,
    abi.VIRTIO_NET_F_NOTF_COAL,
    abi.VIRTIO_NET_F_VQ_NOTF_COAL,
    abi.VIRTIO_NET_F_DEVICE_STATS,
    abi.VIRTIO_NET_F_SPEED_DUPLEX,
)
_CONTROL = ((abi.VIRTIO_NET_F_CTRL_VQ,),)
_MERGED = ((abi.VIRTIO_NET_F_GUEST_CSUM, abi.VIRTIO_NET_F_MRG_RXBUF),)
# What the standard says, and more: some are of use only with a control queue (§5.1.4.2), and large packets are received
# only over several buffers, where otherwise each buffer would have to hold 64 KB (§5.1.9.3.1).
REQUIRES = {
    **abi.FEATURE_REQUIRES,
    abi.VIRTIO_NET_F_HASH_REPORT: _CONTROL,
    abi.VIRTIO_NET_F_DEVICE_STATS: _CONTROL,
    abi.VIRTIO_NET_F_CTRL_GUEST_OFFLOADS: _CONTROL,
    abi.VIRTIO_NET_F_GUEST_TSO4: _MERGED,
    abi.VIRTIO_NET_F_GUEST_TSO6: _MERGED,
}
