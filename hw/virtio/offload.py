"""What a packet header may ask for: the checks that a device makes before it believes one.

Read: virtio 1.4 §5.1.9.2.2 (what the driver sends), §5.1.9.4.2 (what the driver is given).
"""

from __future__ import annotations

from hw.abi import virtio_net as net

ETHERNET_HEADER = 14


class OffloadRules:
    """Which requests are acceptable in one direction.

    Args:
        csum: the feature (bit number) that allows partial checksums.
        tso4, tso6, ufo: the features that allow each kind of segmentation.
        uso: the features that allow UDP segmentation; one of them is enough.
    """

    __slots__ = ("_gso", "checksum", "segmentation")

    def __init__(self, *, csum: int, tso4: int, tso6: int, ufo: int, uso: tuple[int, ...]) -> None:
        self.checksum = 1 << csum  # mask of the feature
        self._gso = {
            net.VIRTIO_NET_HDR_GSO_TCPV4: 1 << tso4,
            net.VIRTIO_NET_HDR_GSO_TCPV6: 1 << tso6,
            net.VIRTIO_NET_HDR_GSO_UDP: 1 << ufo,
            net.VIRTIO_NET_HDR_GSO_UDP_L4: sum(1 << bit for bit in uso),
        }
        self.segmentation = sum(self._gso.values())  # mask of all features that allow super-frames

    def refuses(self, negotiated: int, header: bytes | bytearray | memoryview, length: int) -> str:
        """Why `header` is not acceptable for a frame of `length` bytes, as a counter's suffix, or an empty string.

        Unknown flags are ignored, and so are the checksum fields without NEEDS_CSUM.
        """
        flags, gso_type, _, gso_size, csum_start, csum_offset, _ = net.NET_HEADER.unpack_from(header)
        if flags & net.VIRTIO_NET_HDR_F_NEEDS_CSUM:
            if not negotiated & self.checksum:
                return "csum_not_negotiated"
            if csum_start < ETHERNET_HEADER or csum_start + csum_offset + 2 > length:
                return "csum_outside"
        if gso_type:
            if not negotiated & self._gso.get(gso_type & ~net.VIRTIO_NET_HDR_GSO_ECN, 0):
                return "gso_not_negotiated"
            if not gso_size or not flags & net.VIRTIO_NET_HDR_F_NEEDS_CSUM:
                return "gso_malformed"
        return ""


FROM_DRIVER = OffloadRules(
    csum=net.VIRTIO_NET_F_CSUM,
    tso4=net.VIRTIO_NET_F_HOST_TSO4,
    tso6=net.VIRTIO_NET_F_HOST_TSO6,
    ufo=net.VIRTIO_NET_F_HOST_UFO,
    uso=(net.VIRTIO_NET_F_HOST_USO,),
)
TO_DRIVER = OffloadRules(
    csum=net.VIRTIO_NET_F_GUEST_CSUM,
    tso4=net.VIRTIO_NET_F_GUEST_TSO4,
    tso6=net.VIRTIO_NET_F_GUEST_TSO6,
    ufo=net.VIRTIO_NET_F_GUEST_UFO,
    uso=(net.VIRTIO_NET_F_GUEST_USO4, net.VIRTIO_NET_F_GUEST_USO6),
)
