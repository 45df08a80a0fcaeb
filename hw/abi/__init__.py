"""The data sheet: numbers and layouts that a machine and its guest agree on, and nothing else.

This package is the only part of `hw` that `guest` may import. It holds constants, field tables and sizes that are
pure functions of them. It holds no behaviour: whatever reads or writes memory or registers is written twice, once on
each side, so that each side is a witness against the other.

Names are those of the C headers (`VIRTIO_MMIO_MAGIC_VALUE`, `VRING_DESC_F_NEXT`), so that a test can compare every one
of them with what a C compiler says.

Read: `layout.py` (how a layout is written down), then `virtio.py`, `virtio_ring.py`, `virtio_packed.py`,
`virtio_mmio.py`, `virtio_net.py`, `virtio_net_ctrl.py`, `if_tun.py`.
"""
