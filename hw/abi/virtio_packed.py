"""The packed virtqueue as it lies in memory: one ring of descriptors that both sides write, and two event structures.

Source: virtio 1.4 §2.8 (areas), §2.8.10.1 (sizes and alignments), §2.8.13 (descriptors), §2.8.14 (event suppression);
`linux/virtio_ring.h`. All fields are little-endian. The flags NEXT, WRITE and INDIRECT are those of the split ring; as
in the header, AVAIL and USED are bit numbers, not masks.
"""

from __future__ import annotations

from hw.abi.layout import Layout

VRING_PACKED_DESC_F_AVAIL = 7
VRING_PACKED_DESC_F_USED = 15

# Event suppression, §2.8.10; 3 is reserved.
VRING_PACKED_EVENT_FLAG_ENABLE = 0
VRING_PACKED_EVENT_FLAG_DISABLE = 1
VRING_PACKED_EVENT_FLAG_DESC = 2  # only with EVENT_IDX
VRING_PACKED_EVENT_F_WRAP_CTR = 15  # bit of off_wrap

PACKED_DESC_ALIGN_SIZE = 16
PACKED_EVENT_ALIGN_SIZE = 4
PACKED_QUEUE_SIZE_MAX = 32768  # need not be a power of two

VRING_PACKED_DESC = Layout.of("vring_packed_desc", [("addr", "Q"), ("len", "I"), ("id", "H"), ("flags", "H")])
VRING_PACKED_DESC_EVENT = Layout.of("vring_packed_desc_event", [("off_wrap", "H"), ("flags", "H")])

PACKED_DESC_SIZE = VRING_PACKED_DESC.size
PACKED_EVENT_SIZE = VRING_PACKED_DESC_EVENT.size


def packed_ring_size(queue_size: int) -> int:
    """Bytes of the descriptor ring of a queue with `queue_size` entries (§2.8.10.1)."""
    return PACKED_DESC_SIZE * queue_size
