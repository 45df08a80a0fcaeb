"""What a front end takes: the features it has asked for, its multicast filter, and frames made fit for both.

Promises: a frame that the front end cannot take is made so that it can (a blank checksum is completed, a super-frame
cut), or dropped and counted under its reason. A wire's header is believed only as far as it points into the frame.
"""

from __future__ import annotations

from collections import Counter

from hw.abi import virtio_net as net
from hw.abi import xen_bus as bus
from hw.abi.xen import XEN_PAGE_SIZE
from hw.wire.finish import complete_checksum, finished
from hw.wire.link import FRAME_MAX, Frame, frame_bytes
from hw.xen.offload import ETHERNET_HEADER, transport_of
from hw.xen.store_client import StoreAccess

MULTICAST_MAX = 64  # addresses in the filter
BROADCAST = b"\xff" * 6
_KEYS = (
    bus.FEATURE_SG,
    bus.FEATURE_GSO_TCPV4,
    bus.FEATURE_GSO_TCPV6,
    bus.FEATURE_NO_CSUM_OFFLOAD,
    bus.FEATURE_IPV6_CSUM_OFFLOAD,
)


class Wishes:
    """What one front end has asked for since it connected.

    Args:
        store, frontend: where its keys are. Raises StoreError for one that is garbage.
        frame_max: bytes of the longest frame that is not to be segmented.
        counters: where drops are counted.
    """

    def __init__(self, store: StoreAccess, frontend: str, frame_max: int, counters: Counter[str]) -> None:
        asked = {key: bool(store.number(f"{frontend}/{key}", 0)) for key in _KEYS}
        sg = asked[bus.FEATURE_SG]
        self.filtering = False  # whether the multicast filter is to be used
        self._multicast: set[bytes] = set()
        self._frame_max = frame_max if sg else min(frame_max, XEN_PAGE_SIZE)
        self._csum = {4: not asked[bus.FEATURE_NO_CSUM_OFFLOAD], 6: asked[bus.FEATURE_IPV6_CSUM_OFFLOAD]}
        self._gso = {
            net.VIRTIO_NET_HDR_GSO_TCPV4: sg and asked[bus.FEATURE_GSO_TCPV4],
            net.VIRTIO_NET_HDR_GSO_TCPV6: sg and asked[bus.FEATURE_GSO_TCPV6],
        }
        self._counters = counters

    def multicast(self, address: bytes, add: bool) -> bool:
        """Change the multicast filter; False when it is full, or for an address that is none of a group."""
        if not address[0] & 1:
            return False
        if not add:
            self._multicast.discard(address)
        elif address not in self._multicast:
            if len(self._multicast) >= MULTICAST_MAX:
                return False
            self._multicast.add(address)
        return True

    def fit(self, frame: Frame) -> list[Frame]:
        """The frame as the front end takes it, in segments if it must; none when it gets nothing, which is counted."""
        header, views = frame
        length = sum(map(len, views))
        gso = header[1] if header is not None else 0
        wrong = ""
        if length < ETHERNET_HEADER:
            wrong = "runt"
        elif length > (FRAME_MAX if gso else self._frame_max):
            wrong = "too_long"
        elif self.filtering and not self._wanted(frame):
            wrong = "multicast"
        elif gso and not self._gso.get(gso & ~net.VIRTIO_NET_HDR_GSO_ECN, False):
            segments = finished(frame)
            if segments and all(len(views[0]) <= self._frame_max for _, views in segments):
                self._counters["rx_segmented"] += 1
                return segments
            wrong = "gso_not_asked"
        if not wrong:
            if gso or header is None or not header[0] & net.VIRTIO_NET_HDR_F_NEEDS_CSUM:
                return [frame]
            fit = self._with_checksum(frame)
            if fit is not None:
                return [fit]
            wrong = "csum_outside"
        self._counters["rx_dropped_" + wrong] += 1
        return []

    def _wanted(self, frame: Frame) -> bool:
        first = frame[1][0]
        target = bytes(first[:6]) if len(first) >= 6 else frame_bytes(frame)[:6]
        return not target[0] & 1 or target == BROADCAST or target in self._multicast

    def _with_checksum(self, frame: Frame) -> Frame | None:
        """The frame as it is if its checksum may stay blank, else with it in place; None when it has no place."""
        header, views = frame
        if header is None:
            return frame
        data = bytearray(b"".join(views))
        start, offset = header[6] | header[7] << 8, header[8] | header[9] << 8
        if start < ETHERNET_HEADER or start + offset + 2 > len(data):
            return None
        transport = transport_of(data)
        # A Xen front end finds the place by itself, so the wire has to mean the same one.
        if transport is not None and (start, offset) == (transport.start, transport.csum_offset):
            if self._csum[transport.version]:
                return frame
        complete_checksum(data, start, offset)
        self._counters["rx_checksums_completed"] += 1
        return None, [data]
