"""The transmit side of a Xen network interface: pages that the back end may read, for as long as it is connected.

Promises:
- A packet is copied once, into granted pages, and is the caller's again when `send` returns. A page holds bytes of one
  packet at a time, and nothing but packets that went to this back end.
- Nobody waits: a frame that finds no page, even after what the back end returned has been taken back, is dropped and
  counted.
- A response is believed only for a request that is outstanding, once: a second one, or one that nobody asked for,
  breaks the ring and frees nothing.
- Responses cause no event until three quarters of the pages are in flight; they are taken back by the next `send`, by a
  poll, or by the driver's watchdog.

Read: Xen's public `io/netif.h`, "Guest transmit".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from guest.dma import PAGE, DmaPool
from guest.drivers.netfront_offload import XEN_GSO_TYPES, NetFeatures, checksum_place
from guest.net.pbuf import Offload, PacketBuffer
from guest.ring.xen import FrontRing
from guest.xen.grants import GrantedPages, GrantPort
from hw.abi import virtio_net as net
from hw.abi import xen_netif as abi

ETHERNET_HEADER = 14
VLAN_TAG = 4

_OKAY = abi.NETIF_RSP_OKAY
_NULL = abi.NETIF_RSP_NULL
_HEADERS_MAX = 256  # bytes in which a packet's headers are looked for
_STATUS_NAMES = {abi.NETIF_RSP_ERROR & 0xFFFF: "error", abi.NETIF_RSP_DROPPED & 0xFFFF: "dropped"}


class TransmitSide:
    """One transmit ring and its pages.

    Args:
        grants, dma: where the pages come from.
        domid: the back end's domain.
        pages: how many requests with data may be in flight, up to the ring's slots.
        frame_max: bytes of the longest frame that is not segmented, without a VLAN tag.
        features: what was agreed on.
        counters: the device's.
        notify: sends the event.

    Attributes:
        ring: the ring; `ring_page` has its page and reference.
        gso_max: bytes of the largest frame that is segmented; 0 where none is.

    Raises DmaError or GrantError when there is no room.
    """

    def __init__(
        self,
        grants: GrantPort,
        dma: DmaPool,
        domid: int,
        pages: int,
        frame_max: int,
        features: NetFeatures,
        counters: Counter[str],
        notify: Callable[[], None],
        *,
        start_index: int = 0,
    ) -> None:
        self.ring_page = GrantedPages(grants, dma, 1, domid)
        page = self.ring_page.addresses[0]
        self.ring = FrontRing(
            dma.memory, page, abi.TX_REQUEST.size, abi.TX_RESPONSE.size, name="transmit", start_index=start_index
        )
        pages = min(pages, self.ring.size)
        try:
            self.pages = GrantedPages(grants, dma, pages, domid, readonly=True)
        except Exception:
            self.ring_page.close()
            raise
        self.free = list(range(pages - 1, -1, -1))
        self._outstanding = bytearray(pages)  # by request id, which is the page's number: 1 for in flight
        self._extras = 0  # extra informations in flight; their responses carry no id
        self._frame_max = frame_max
        self._slots_max = min(abi.XEN_NETIF_NR_SLOTS_MIN, pages) if features.tx_sg else 1
        self._features = features
        self._counters = counters
        self._notify = notify
        # A frame that is segmented gets no more than a quarter of the pages, so that one can be made while one is sent.
        self.gso_max = min(abi.XEN_NETIF_MAX_TX_SIZE, pages // 4 * PAGE) if features.tx_gso else 0
        self._need = -(-max(frame_max, self.gso_max) // PAGE)  # pages of the largest frame
        self._crowded = pages - pages // 4
        self._watching = False

    @property
    def in_flight(self) -> int:
        """Pages that the back end has not returned."""
        return len(self._outstanding) - len(self.free)

    def close(self, forget: bool = False) -> None:
        """Take all back: the back end is gone, and so are its grants if `forget`. What was in flight is lost."""
        lost = self.in_flight
        if lost:
            self._counters["tx_lost_reset"] += lost
        for pages in (self.ring_page, self.pages):
            if forget:
                pages.forget()
            elif kept := pages.close():
                self._counters["pages_quarantined"] += kept
        self.ring.broken = self.ring.broken or "closed"

    # -- sending -------------------------------------------------------------------------------------------------

    def send(self, packets: Sequence[PacketBuffer]) -> int:
        """Put frames on the ring, and tell the back end; how many there was room for. Others are dropped and counted.

        A ring that breaks on the way takes no more, and what it took is lost with it.
        """
        self.reclaim()
        counters, ring, free = self._counters, self.ring, self.free
        views, refs, outstanding = self.pages.views, self.pages.refs, self._outstanding
        frame_max, slots_max = self._frame_max, self._slots_max
        sent = sent_bytes = 0
        for packet in packets:
            pieces = packet.views()
            length = sum(map(len, pieces))
            if length < ETHERNET_HEADER:
                counters["tx_dropped_short"] += 1
                continue
            flags, gso = 0, None
            if packet.offload is not None:
                asked = self._asked(packet.offload, pieces)
                if asked is None:
                    counters["tx_dropped_offload"] += 1
                    continue
                flags, gso = asked
            slots = 1 if length <= PAGE else -(-length // PAGE)
            tagged = length <= frame_max + VLAN_TAG and pieces[0][12:14].tobytes() == b"\x81\x00"
            if slots > slots_max or length > (abi.XEN_NETIF_MAX_TX_SIZE if gso or tagged else frame_max):
                counters["tx_dropped_too_long"] += 1
                continue
            extra = 0 if gso is None else 1
            if len(free) < slots or ring.room < slots + extra:
                self._show()
                self.reclaim()
                if len(free) < slots or ring.room < slots + extra:
                    counters["tx_dropped_broken" if ring.broken is not None else "tx_dropped_ring_full"] += 1
                    continue
            if slots == 1:
                page = free.pop()
                view, at = views[page], 0
                for piece in pieces:
                    end = at + len(piece)
                    view[at:end] = piece
                    at = end
                outstanding[page] = 1
                if extra:
                    flags |= abi.NETTXF_extra_info
                ring.put((refs[page], flags << 16, page | length << 16))
                if gso is not None:
                    self._put_extra(gso)
            else:
                self._put_chain(pieces, length, flags, gso)
            sent += 1
            sent_bytes += length
        self._show()
        counters["tx_packets"] += sent
        counters["tx_bytes"] += sent_bytes
        if self.in_flight >= self._crowded:
            self.watch()
        return sent

    def _put_chain(
        self, pieces: list[memoryview], length: int, flags: int, gso: tuple[int, int, int] | None
    ) -> None:
        """Spread a frame over several pages, each but the last filled; there is room for all of it.

        The first request says the length of the whole frame, the others that of their part.
        """
        rest, left = list(reversed(pieces)), length
        size, says = length, flags if gso is None else flags | abi.NETTXF_extra_info
        while left:
            page = self.free.pop()
            view, at = self.pages.views[page], 0
            while at < PAGE and rest:
                piece = rest.pop()
                if len(piece) > PAGE - at:
                    rest.append(piece[PAGE - at :])
                    piece = piece[: PAGE - at]
                view[at : at + len(piece)] = piece
                at += len(piece)
            left -= at
            if left:
                says |= abi.NETTXF_more_data
            self._outstanding[page] = 1
            self.ring.put((self.pages.refs[page], says << 16, page | (size or at) << 16))
            if gso is not None:
                self._put_extra(gso)
            size, says, gso = 0, 0, None

    def _put_extra(self, words: tuple[int, int, int]) -> None:
        self.ring.put(words)
        self._extras += 1

    def _show(self) -> None:
        """Show the back end what was put, and tell it if it wants to be told."""
        if self.ring.publish():
            self._counters["tx_kicks"] += 1
            self._notify()

    def _asked(self, offload: Offload, pieces: list[memoryview]) -> tuple[int, tuple[int, int, int] | None] | None:
        """Flags and extra information that ask for `offload`; None when that was not agreed on, or cannot be said."""
        if not offload.flags & net.VIRTIO_NET_HDR_F_NEEDS_CSUM:
            return (0, None) if offload.gso_type == net.VIRTIO_NET_HDR_GSO_NONE else None
        features = self._features
        head = pieces[0] if len(pieces[0]) >= _HEADERS_MAX or len(pieces) == 1 else _head(pieces)
        place = checksum_place(head)
        if place is None or (place.start, place.offset) != (offload.csum_start, offload.csum_offset):
            return None  # the back end would look for the checksum elsewhere
        if not (features.tx_csum4 if place.version == 4 else features.tx_csum6):
            return None
        flags = abi.NETTXF_csum_blank | abi.NETTXF_data_validated
        if offload.gso_type == net.VIRTIO_NET_HDR_GSO_NONE:
            return flags, None
        kind = XEN_GSO_TYPES.get(offload.gso_type)
        if kind is None or kind not in features.tx_gso or not offload.gso_size:
            return None
        raw = abi.EXTRA_GSO.pack(abi.XEN_NETIF_EXTRA_TYPE_GSO, 0, offload.gso_size, kind, 0, 0)
        return flags, (int.from_bytes(raw[:4], "little"), int.from_bytes(raw[4:], "little"), 0)

    def room(self) -> int:
        """How many of the largest frames there are pages for; a sixteenth is kept back."""
        pages = len(self._outstanding)
        if len(self.free) * 2 < pages:
            self.reclaim()
        # With extra information in flight the ring may have less room than there are pages.
        return max(0, min(len(self.free), self.ring.room) - pages // 16) // self._need

    # -- taking pages back ---------------------------------------------------------------------------------------

    def reclaim(self) -> int:
        """Take back what the back end has answered; how many responses."""
        answered = self.ring.take(self.ring.size)
        if not answered:
            return 0
        outstanding, free = self._outstanding, self.free
        for _, (word,) in answered:
            status = word >> 16
            if status == _NULL:
                self._extras -= 1
                if self._extras < 0:
                    self.ring.broken = "an extra information was answered that was never sent"
                    return 0
                continue
            page = word & 0xFFFF
            if page >= len(outstanding) or not outstanding[page]:
                self.ring.broken = f"response id {page} is not in flight"
                return 0
            outstanding[page] = 0
            free.append(page)
            if status != _OKAY:
                self._refused(status)
        if self._watching:
            if self.in_flight >= self._crowded:
                self.watch()
            else:
                self._watching = False
        return len(answered)

    def _refused(self, status: int) -> None:
        """The back end did not send a slot: count why."""
        self._counters[f"tx_refused_{_STATUS_NAMES.get(status, 'unknown')}"] += 1

    def watch(self) -> None:
        """Ask for an event once half of what is in flight has been answered."""
        self._watching = True
        if self.ring.enable(after=max(1, self.ring.in_flight // 2)):
            self.reclaim()  # so many are answered already that no event may come


def _head(pieces: list[memoryview]) -> memoryview:
    """The first bytes of a frame, in one piece."""
    raw = bytearray()
    for piece in pieces:
        raw += piece[:_HEADERS_MAX]
        if len(raw) >= _HEADERS_MAX:
            break
    return memoryview(raw)
