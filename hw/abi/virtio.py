"""Virtio, what all devices share: status bits, feature bits of rings and transports, device ids.

Source: virtio 1.4 §2.1 (status), §2.2 and §6 (feature bits), §5 (device ids); `linux/virtio_config.h`,
`linux/virtio_ids.h`. Feature names are bit numbers, as in the headers; `features()` makes a mask of them. A feature
word is as wide as the highest bit needs: virtio 1.4 has bits past 63.
"""

from __future__ import annotations

# Device status, §2.1.
VIRTIO_CONFIG_S_ACKNOWLEDGE = 1
VIRTIO_CONFIG_S_DRIVER = 2
VIRTIO_CONFIG_S_DRIVER_OK = 4
VIRTIO_CONFIG_S_FEATURES_OK = 8
VIRTIO_CONFIG_S_NEEDS_RESET = 0x40
VIRTIO_CONFIG_S_FAILED = 0x80

STATUS_NAMES = {
    VIRTIO_CONFIG_S_ACKNOWLEDGE: "ACKNOWLEDGE",
    VIRTIO_CONFIG_S_DRIVER: "DRIVER",
    VIRTIO_CONFIG_S_FEATURES_OK: "FEATURES_OK",
    VIRTIO_CONFIG_S_DRIVER_OK: "DRIVER_OK",
    VIRTIO_CONFIG_S_NEEDS_RESET: "DEVICE_NEEDS_RESET",
    VIRTIO_CONFIG_S_FAILED: "FAILED",
}

# Feature bits of rings and transports, §6.
VIRTIO_F_NOTIFY_ON_EMPTY = 24  # legacy
VIRTIO_F_ANY_LAYOUT = 27  # legacy
VIRTIO_RING_F_INDIRECT_DESC = 28
VIRTIO_RING_F_EVENT_IDX = 29
VIRTIO_F_VERSION_1 = 32
VIRTIO_F_ACCESS_PLATFORM = 33
VIRTIO_F_RING_PACKED = 34
VIRTIO_F_IN_ORDER = 35
VIRTIO_F_ORDER_PLATFORM = 36
VIRTIO_F_SR_IOV = 37
VIRTIO_F_NOTIFICATION_DATA = 38
VIRTIO_F_NOTIF_CONFIG_DATA = 39
VIRTIO_F_RING_RESET = 40
VIRTIO_F_ADMIN_VQ = 41
VIRTIO_F_SUSPEND = 43

FEATURE_NAMES = {
    VIRTIO_F_NOTIFY_ON_EMPTY: "NOTIFY_ON_EMPTY",
    VIRTIO_F_ANY_LAYOUT: "ANY_LAYOUT",
    VIRTIO_RING_F_INDIRECT_DESC: "INDIRECT_DESC",
    VIRTIO_RING_F_EVENT_IDX: "EVENT_IDX",
    VIRTIO_F_VERSION_1: "VERSION_1",
    VIRTIO_F_ACCESS_PLATFORM: "ACCESS_PLATFORM",
    VIRTIO_F_RING_PACKED: "RING_PACKED",
    VIRTIO_F_IN_ORDER: "IN_ORDER",
    VIRTIO_F_ORDER_PLATFORM: "ORDER_PLATFORM",
    VIRTIO_F_SR_IOV: "SR_IOV",
    VIRTIO_F_NOTIFICATION_DATA: "NOTIFICATION_DATA",
    VIRTIO_F_NOTIF_CONFIG_DATA: "NOTIF_CONFIG_DATA",
    VIRTIO_F_RING_RESET: "RING_RESET",
    VIRTIO_F_ADMIN_VQ: "ADMIN_VQ",
    VIRTIO_F_SUSPEND: "SUSPEND",
}

# Device ids, §5.
VIRTIO_ID_NONE = 0
VIRTIO_ID_NET = 1


def features(*bits: int) -> int:
    """The mask with each of `bits` (bit numbers) set."""
    mask = 0
    for bit in bits:
        mask |= 1 << bit
    return mask
