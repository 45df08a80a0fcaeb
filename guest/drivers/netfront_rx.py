"""The receive side of a Xen network interface: pages that the back end may write, for as long as it is connected.

Promises:
- A request's id is its slot, and a response is believed only when it names the slot that it comes in (`io/netif.h`: a
  back end answers in the slot of the request).
- A frame is copied out before its pages go back to the ring; the back end could still write to them. Only bytes that
  the back end says it wrote, inside one page, are ever looked at.
- A frame of several slots may be answered in parts; it is bounded, and dropped whole when one part is wrong. What no
  honest back end answers breaks the ring. Every drop is counted with its reason.

Read: Xen's public `io/netif.h`, "Guest receive" and "Extra Info".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from guest.dma import PAGE, DmaPool
from guest.drivers.netfront_offload import GSO_TYPES, NetFeatures, checksum_place
from guest.net.pbuf import HEADROOM, Offload, PacketBuffer
from guest.ring.xen import FrontRing
from guest.xen.grants import GrantedPages, GrantPort
from hw.abi import virtio_net as net
from hw.abi import xen_netif as abi

_BLANK = abi.NETRXF_csum_blank
_VALIDATED = abi.NETRXF_data_validated
_MORE = abi.NETRXF_more_data
_EXTRA = abi.NETRXF_extra_info


class _Frame:
    """A frame whose last slot has not been seen yet."""

    __slots__ = ("bad", "extra", "flags", "gso", "length", "pieces")

    def __init__(self, flags: int) -> None:
        self.flags = flags  # of the first slot
        self.pieces: list[memoryview] = []
        self.length = 0
        self.bad = ""  # why it will be dropped
        self.extra = bool(flags & _EXTRA)  # the next slot is extra information
        self.gso: tuple[int, int] | None = None  # kind and segment size


class ReceiveSide:
    """One receive ring and its pages.

    Args:
        grants, dma: where the pages come from.
        domid: the back end's domain.
        pages: how many are posted, up to the ring's slots.
        features: what was agreed on.
        counters: the device's.
        notify: sends the event.

    Attributes:
        ring: the ring; `ring_page` has its page and reference.

    Raises DmaError or GrantError when there is no room.
    """

    def __init__(
        self,
        grants: GrantPort,
        dma: DmaPool,
        domid: int,
        pages: int,
        features: NetFeatures,
        counters: Counter[str],
        notify: Callable[[], None],
        *,
        start_index: int = 0,
    ) -> None:
        self.ring_page = GrantedPages(grants, dma, 1, domid)
        page = self.ring_page.addresses[0]
        self.ring = FrontRing(
            dma.memory, page, abi.RX_REQUEST.size, abi.RX_RESPONSE.size, name="receive", start_index=start_index
        )
        count = min(pages, self.ring.size)
        try:
            self.pages = GrantedPages(grants, dma, count, domid)
        except Exception:
            self.ring_page.close()
            raise
        self.posted = [-1] * self.ring.size  # by slot: the page that was posted in it
        self._spare = list(range(count - 1, -1, -1))
        self._frame: _Frame | None = None
        self._held: list[int] = []  # pages of that frame
        self._slots_max = min(abi.XEN_NETIF_NR_SLOTS_MIN, count) if features.rx_sg else 1
        self._features = features
        self._counters = counters
        self._notify = notify
        self.refill()

    def close(self, forget: bool = False) -> None:
        """Take all back: the back end is gone, and so are its grants if `forget`."""
        if self._frame is not None:
            self._counters["rx_dropped_reset"] += 1
            self._frame = None
        self._held = []
        for pages in (self.ring_page, self.pages):
            if forget:
                pages.forget()
            elif kept := pages.close():
                self._counters["pages_quarantined"] += kept
        self.ring.broken = self.ring.broken or "closed"

    def refill(self) -> None:
        """Post every page that is spare, and tell the back end if it wants to be told."""
        ring, spare, posted, refs = self.ring, self._spare, self.posted, self.pages.refs
        while spare:
            slot = ring.next_slot
            if not ring.put((slot, refs[spare[-1]])):
                break
            posted[slot] = spare.pop()
        if ring.publish():
            self._counters["rx_kicks"] += 1
            self._notify()

    # -- frames --------------------------------------------------------------------------------------------------

    def collect(self, budget: int) -> tuple[list[PacketBuffer], int]:
        """The frames in up to `budget` responses, and how many responses that were."""
        answered = self.ring.take(budget)
        packets: list[PacketBuffer] = []
        posted, views, spare = self.posted, self.pages.views, self._spare
        frame = self._frame
        for slot, (first, second) in answered:
            page = posted[slot]
            posted[slot] = -1
            if frame is not None and frame.extra:
                spare.append(page)
                if not self._take_extra(frame, first, second):
                    break
                if not frame.extra and not frame.flags & _MORE:
                    self._finish(frame, packets)
                    frame = None
                continue
            size = second >> 16
            offset = first >> 16
            flags = second & 0xFFFF
            if first & 0xFFFF != slot:
                self._break(f"slot {slot} is answered with id {first & 0xFFFF}")
                break
            if frame is None:
                frame = self._frame = _Frame(flags)
            if size >= 0x8000 or not size:  # a signed number; an honest back end says -1 or -2
                frame.bad = frame.bad or ("rx_dropped_empty" if not size else "rx_dropped_refused")
            elif offset + size > PAGE:
                self._break(f"slot {slot} is answered with {size} bytes at offset {offset} of a page")
                break
            else:
                frame.pieces.append(views[page][offset : offset + size])
                frame.length += size
            self._held.append(page)
            if len(self._held) > self._slots_max:
                self._break(f"a frame has more than {self._slots_max} slots")
                break
            # `more` of the first slot counts behind its extra information.
            if frame.extra:
                continue
            if not flags & _MORE:
                self._finish(frame, packets)
                frame = None
        self._frame = frame
        if self.ring.broken is not None and frame is not None:
            self._frame = None
            self._counters["rx_dropped_broken"] += 1
        self._counters["rx_packets"] += len(packets)
        return packets, len(answered)

    def _break(self, reason: str) -> None:
        self.ring.broken = reason

    def _take_extra(self, frame: _Frame, first: int, second: int) -> bool:
        """Extra information of `frame`; False when it breaks the ring. Its words: type, flags, size; kind, features."""
        kind = first & 0xFF
        if kind != abi.XEN_NETIF_EXTRA_TYPE_GSO or not self._features.rx_gso:
            self._break(f"extra information of type {kind}, which was not agreed on")
            return False
        if frame.gso is not None:
            self._break("two extra informations of one type")
            return False
        frame.gso = second & 0xFF, first >> 16
        frame.extra = bool(first >> 8 & abi.XEN_NETIF_EXTRA_FLAG_MORE)
        return True

    def _finish(self, frame: _Frame, packets: list[PacketBuffer]) -> None:
        """The last slot of a frame is there: make a packet of it, and let its pages go."""
        self._frame = None
        reason = frame.bad
        if not reason:
            area = bytearray(HEADROOM + frame.length)
            at = HEADROOM
            for piece in frame.pieces:
                area[at : at + len(piece)] = piece
                at += len(piece)
            packet = PacketBuffer(memoryview(area), HEADROOM)
            if frame.flags & (_BLANK | _VALIDATED) or frame.gso is not None:
                reason = self._offload(frame, packet)
        self._spare += self._held
        self._held = []
        if reason:
            self._counters[reason] += 1
        else:
            self._counters["rx_bytes"] += frame.length
            packets.append(packet)

    def _offload(self, frame: _Frame, packet: PacketBuffer) -> str:
        """Say in `packet` what the back end left to do; the reason to drop it when that cannot be true, or nothing.

        A checksum that is blank is blank, agreed on or not; that one was checked counts only if it was agreed on.
        """
        if not frame.flags & _BLANK and frame.gso is None:
            if self._features.rx_csum:
                packet.offload = Offload(net.VIRTIO_NET_HDR_F_DATA_VALID)
            return ""
        place = checksum_place(packet.linear)
        if place is None:
            return "rx_dropped_csum_range"
        fields = (place.start, place.offset)
        if frame.gso is None:
            packet.offload = Offload(net.VIRTIO_NET_HDR_F_NEEDS_CSUM, net.VIRTIO_NET_HDR_GSO_NONE, 0, 0, *fields)
            return ""
        kind, size = frame.gso
        version = 4 if kind == abi.XEN_NETIF_GSO_TYPE_TCPV4 else 6
        if kind not in self._features.rx_gso or not size or (place.protocol, place.version) != (6, version):
            return "rx_dropped_gso"
        packet.offload = Offload(net.VIRTIO_NET_HDR_F_NEEDS_CSUM, GSO_TYPES[kind], place.header_length, size, *fields)
        return ""
