"""The ring that was negotiated (virtio 1.4 §2.6: split or packed)."""

from __future__ import annotations

from typing import Any

from guest.dma import DmaPool
from guest.ring.packed import PackedRing
from guest.ring.ring import Ring
from guest.ring.split import SplitRing
from hw.abi.virtio import VIRTIO_F_RING_PACKED


def make_ring(dma: DmaPool, index: int, size: int, features: int, *, indirect_entries: int = 0) -> Ring[Any]:
    """Queue `index` with `size` entries, in the format that `features` (a mask) says.

    Raises ValueError for a size that the format cannot have, DmaError when there is no memory.
    """
    kind: Any = PackedRing if features >> VIRTIO_F_RING_PACKED & 1 else SplitRing
    ring: Ring[Any] = kind(dma, index, size, features, indirect_entries=indirect_entries)
    return ring
