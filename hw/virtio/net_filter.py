"""Which frames a card lets in: receive modes, addresses and VLANs, as the driver sets them.

Read first: virtio 1.4 §5.1.9.5.1 (packet receive filtering), §5.1.9.5.2 (MAC addresses), §5.1.9.5.3 (VLANs).

Promises:
- Without CTRL_RX every frame passes, without CTRL_VLAN every tag (§5.1.9.5.3.1).
- A frame that is not let in is named, so that it is counted with its reason.
"""

from __future__ import annotations

from collections.abc import Iterable

from hw.abi import virtio_net as net
from hw.abi import virtio_net_ctrl as ctrl

BROADCAST = b"\xff" * 6
TAGGED = b"\x81\x00"
HEAD = 16  # bytes of a frame that decide: both addresses, a tag's type and value
VLANS = 4096

# The modes that each feature brings (§5.1.9.5.1.1).
MODES = {
    ctrl.VIRTIO_NET_CTRL_RX_PROMISC: net.VIRTIO_NET_F_CTRL_RX,
    ctrl.VIRTIO_NET_CTRL_RX_ALLMULTI: net.VIRTIO_NET_F_CTRL_RX,
    ctrl.VIRTIO_NET_CTRL_RX_ALLUNI: net.VIRTIO_NET_F_CTRL_RX_EXTRA,
    ctrl.VIRTIO_NET_CTRL_RX_NOMULTI: net.VIRTIO_NET_F_CTRL_RX_EXTRA,
    ctrl.VIRTIO_NET_CTRL_RX_NOUNI: net.VIRTIO_NET_F_CTRL_RX_EXTRA,
    ctrl.VIRTIO_NET_CTRL_RX_NOBCAST: net.VIRTIO_NET_F_CTRL_RX_EXTRA,
}


class ReceiveFilter:
    """The filter of one card.

    Args:
        mac: the card's own address, 6 bytes.

    Attributes:
        mac: the default address, which MAC_ADDR_SET changes.
        unicast, multicast: the table.
        vlans: identifiers whose tagged frames are let in.
        active: whether there is anything to check at all.
    """

    def __init__(self, mac: bytes) -> None:
        self._own = mac
        self.reset(0)

    def reset(self, features: int) -> None:
        """Empty tables and no mode, for a driver that negotiated `features`."""
        self.mac = self._own
        self.unicast: frozenset[bytes] = frozenset()
        self.multicast: frozenset[bytes] = frozenset()
        self.vlans: set[int] = set()
        self._modes: set[int] = set()
        self._by_address = bool(features >> net.VIRTIO_NET_F_CTRL_RX & 1)
        self._by_vlan = bool(features >> net.VIRTIO_NET_F_CTRL_VLAN & 1)
        self.active = self._by_address or self._by_vlan

    def set_mode(self, mode: int, on: bool) -> None:
        """Switch one of VIRTIO_NET_CTRL_RX_*."""
        (self._modes.add if on else self._modes.discard)(mode)

    def set_table(self, unicast: Iterable[bytes], multicast: Iterable[bytes]) -> None:
        """The whole table anew."""
        self.unicast, self.multicast = frozenset(unicast), frozenset(multicast)

    def refuses(self, head: bytes) -> str:
        """Why a frame that begins with `head` (`HEAD` bytes, or all of it) is not let in, or an empty string."""
        modes = self._modes
        if ctrl.VIRTIO_NET_CTRL_RX_PROMISC in modes and self._by_address:
            return ""
        if self._by_vlan and head[12:14] == TAGGED and int.from_bytes(head[14:16], "big") % VLANS not in self.vlans:
            return "vlan_filter"
        if self._by_address and not self._addressed(head[:6], modes):
            return "mac_filter"
        return ""

    def _addressed(self, to: bytes, modes: set[int]) -> bool:
        if to == BROADCAST:
            return ctrl.VIRTIO_NET_CTRL_RX_NOBCAST not in modes
        if to[0] & 1:
            if ctrl.VIRTIO_NET_CTRL_RX_NOMULTI in modes:
                return False
            return ctrl.VIRTIO_NET_CTRL_RX_ALLMULTI in modes or to in self.multicast
        if ctrl.VIRTIO_NET_CTRL_RX_NOUNI in modes:
            return False
        return ctrl.VIRTIO_NET_CTRL_RX_ALLUNI in modes or to == self.mac or to in self.unicast
