"""The split virtqueue as it lies in memory: three areas, their alignments, sizes and offsets.

Source: virtio 1.4 §2.7 (areas), §2.7.5 (descriptors), §2.7.6 (available ring), §2.7.8 (used ring);
`linux/virtio_ring.h`. All fields are little-endian. `used_event` lies behind the available ring, `avail_event` behind
the used ring; both places exist whether or not EVENT_IDX is negotiated.
"""

from __future__ import annotations

from hw.abi.layout import Layout

VRING_DESC_F_NEXT = 1
VRING_DESC_F_WRITE = 2
VRING_DESC_F_INDIRECT = 4

VRING_AVAIL_F_NO_INTERRUPT = 1
VRING_USED_F_NO_NOTIFY = 1

VRING_DESC_ALIGN_SIZE = 16
VRING_AVAIL_ALIGN_SIZE = 2
VRING_USED_ALIGN_SIZE = 4

QUEUE_SIZE_MAX = 32768

VRING_DESC = Layout.of("vring_desc", [("addr", "Q"), ("len", "I"), ("flags", "H"), ("next", "H")])
VRING_USED_ELEM = Layout.of("vring_used_elem", [("id", "I"), ("len", "I")])

DESC_SIZE = VRING_DESC.size
USED_ELEM_SIZE = VRING_USED_ELEM.size

# Offsets inside the available and the used area: flags, idx, then the ring.
RING_FLAGS = 0
RING_IDX = 2
RING_ENTRIES = 4


def desc_area_size(queue_size: int) -> int:
    """Bytes of the descriptor table of a queue with `queue_size` entries (§2.7)."""
    return DESC_SIZE * queue_size


def driver_area_size(queue_size: int) -> int:
    """Bytes of the available ring, `used_event` included (§2.7)."""
    return 6 + 2 * queue_size


def device_area_size(queue_size: int) -> int:
    """Bytes of the used ring, `avail_event` included (§2.7)."""
    return 6 + USED_ELEM_SIZE * queue_size


def used_event_offset(queue_size: int) -> int:
    """Offset of `used_event` in the available ring (§2.7.6)."""
    return RING_ENTRIES + 2 * queue_size


def avail_event_offset(queue_size: int) -> int:
    """Offset of `avail_event` in the used ring (§2.7.8)."""
    return RING_ENTRIES + USED_ELEM_SIZE * queue_size
