"""Guest transmit: from the slots of the transmit ring to frames on the wire.

Promises:
- Each slot's words are read once; what they say is checked before a page is touched. Data is copied out of the guest,
  so what the guest does to its pages afterwards changes no frame.
- Every request that was taken gets exactly one response in its own slot: the packet's status, NETIF_RSP_NULL for extra
  information. A packet that is wrong costs its own slots and nothing else; it is counted under its reason.
- While the wire is full, frames wait here and their responses with them, and no more is taken.

Read first: Xen's public `io/netif.h` ("Guest transmit"); XSA-39, XSA-423, XSA-432 and XSA-448 for what guests send.

Sections: `Packet`, `TxQueue`: taking, judging, sending, answering.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from hw.abi import virtio_net as net
from hw.abi import xen_netif as nif
from hw.abi.xen import XEN_PAGE_SIZE
from hw.abi.xen_grant import GNTST_okay
from hw.wire.link import Frame, keep
from hw.xen.offload import ETHERNET_HEADER, header_length, transport_of
from hw.xen.ports import GrantCopy, GrantPort
from hw.xen.ring import BackRing

BATCH = 64  # frames handed to the wire at once
ARENA_BYTES = 4 * XEN_PAGE_SIZE * nif.XEN_NETIF_NR_SLOTS_MIN
_KNOWN_EXTRAS = (
    nif.XEN_NETIF_EXTRA_TYPE_GSO,
    nif.XEN_NETIF_EXTRA_TYPE_MCAST_ADD,
    nif.XEN_NETIF_EXTRA_TYPE_MCAST_DEL,
    nif.XEN_NETIF_EXTRA_TYPE_HASH,
)
_GSO = {
    nif.XEN_NETIF_GSO_TYPE_TCPV4: (net.VIRTIO_NET_HDR_GSO_TCPV4, 4),
    nif.XEN_NETIF_GSO_TYPE_TCPV6: (net.VIRTIO_NET_HDR_GSO_TCPV6, 6),
}
_NULL = -1  # in a packet's answers: extra information


@dataclass(slots=True)
class Packet:
    """A packet as its slots described it.

    Attributes:
        answers: the id of each request taken, in order; -1 for extra information.
        slots: reference, offset and bytes of each piece.
        extras: first and second word of each extra information, by type.
        wrong: why it cannot be sent, as a counter's suffix, or an empty string.
    """

    answers: list[int]
    size: int
    flags: int
    slots: list[tuple[int, int, int]] = field(default_factory=list)
    extras: dict[int, tuple[int, int]] = field(default_factory=dict)
    wrong: str = ""


class TxOwner(Protocol):
    """What a transmit queue needs of its card."""

    sg_offered: bool
    gso_offered: frozenset[int]
    frame_max: int

    def count(self, name: str, amount: int = 1) -> None: ...
    def send(self, frames: list[Frame]) -> int: ...
    def multicast(self, address: bytes, add: bool) -> bool: ...


class TxQueue:
    """One transmit ring.

    Args:
        owner: the card.
        ring: the ring, attached.
        grants, domid: for the guest's pages.
        notify: sends an event to the front end.
    """

    def __init__(
        self, owner: TxOwner, ring: BackRing, grants: GrantPort, domid: int, notify: Callable[[], None]
    ) -> None:
        self.ring = ring
        self._owner = owner
        self._grants = grants
        self._domid = domid
        self._notify = notify
        self._arena = memoryview(bytearray(ARENA_BYTES))
        self._stalled: tuple[list[Frame], list[Packet]] | None = None

    @property
    def stalled(self) -> int:
        """Frames that wait for the wire."""
        return 0 if self._stalled is None else len(self._stalled[0])

    def process(self) -> bool:
        """Send a batch; whether there is more to do at once. Raises RingError."""
        if self._stalled is not None:
            return False
        frames: list[Frame] = []
        packets: list[Packet] = []
        used = 0
        while len(frames) < BATCH and used + nif.XEN_NETIF_MAX_TX_SIZE <= ARENA_BYTES:
            packet = self._take()
            if packet is None:
                break
            frame = self._frame(packet, used)
            if frame is None:
                # Answers keep the order of requests, so those before it must have theirs first.
                self._flush(frames, packets)
                frames, packets, used = [], [], 0
                if self._stalled is not None:
                    self._stalled[1].append(packet)
                    break
                self._answer(packet)
            else:
                frames.append(frame)
                packets.append(packet)
                used += packet.size
        self._flush(frames, packets)
        if self.ring.push():
            self._notify()
        return self._stalled is None and self.ring.final_check()

    # -- taking ----------------------------------------------------------------------------------------------------

    def _take(self) -> Packet | None:
        """The next packet's slots, all that belong to it; None when there is none. Raises RingError."""
        ring = self.ring
        left = ring.available()
        if not left:
            return None
        gref, place, last = ring.take()
        left -= 1
        flags = place >> 16
        packet = Packet([last & 0xFFFF], last >> 16, flags)
        if flags & nif.NETTXF_extra_info:
            left = self._take_extras(packet, left)
        rest = packet.size
        pieces = [(gref, place & 0xFFFF, 0)]
        while flags & nif.NETTXF_more_data:
            if not left:
                packet.wrong = packet.wrong or "unfinished"
                break
            gref, place, last = ring.take()
            left -= 1
            flags = place >> 16
            size = last >> 16
            packet.answers.append(last & 0xFFFF)
            if flags & nif.NETTXF_extra_info:
                packet.wrong = packet.wrong or "late_extra"
            if size > rest:
                packet.wrong = packet.wrong or "sizes"
            rest -= size
            pieces.append((gref, place & 0xFFFF, size))
        # The first slot says how much there is in all; what the others do not have is its own.
        packet.slots = [(pieces[0][0], pieces[0][1], max(rest, 0)), *pieces[1:]]
        return packet

    def _take_extras(self, packet: Packet, left: int) -> int:
        """The extra information behind the first slot; how many requests are left then."""
        more = True
        while more:
            if not left:
                packet.wrong = packet.wrong or "unfinished"
                break
            first, second, _ = self.ring.take()
            left -= 1
            packet.answers.append(_NULL)
            kind = first & 0xFF
            more = bool(first >> 8 & nif.XEN_NETIF_EXTRA_FLAG_MORE)
            if kind not in _KNOWN_EXTRAS:
                packet.wrong = packet.wrong or "unknown_extra"
            elif kind in packet.extras:
                packet.wrong = packet.wrong or "repeated_extra"
            packet.extras[kind] = (first, second)
        return left

    # -- judging -----------------------------------------------------------------------------------------------------

    def _frame(self, packet: Packet, at: int) -> Frame | None:
        """The packet as a frame, copied to `at` in the arena; None when it is to be answered at once."""
        if not packet.wrong and self._is_request(packet):
            return None
        wrong = packet.wrong or self._refuses(packet)
        if not wrong:
            view = self._arena[at : at + packet.size]
            header, wrong = self._copy(packet, view)
            if not wrong:
                return header, [view]
        packet.wrong = wrong
        self._owner.count("tx_dropped_" + wrong)
        return None

    def _is_request(self, packet: Packet) -> bool:
        """Whether it is no packet at all but a change of the multicast filter, which is then done."""
        for kind in (nif.XEN_NETIF_EXTRA_TYPE_MCAST_ADD, nif.XEN_NETIF_EXTRA_TYPE_MCAST_DEL):
            words = packet.extras.get(kind)
            if words is not None:
                address = ((words[1] << 16 | words[0] >> 16) & (1 << 48) - 1).to_bytes(6, "little")
                if not self._owner.multicast(address, kind == nif.XEN_NETIF_EXTRA_TYPE_MCAST_ADD):
                    packet.wrong = "multicast"
                return True
        return False

    def _refuses(self, packet: Packet) -> str:
        """Why the packet cannot be sent, from its slots alone, or an empty string."""
        slots = packet.slots
        if packet.size < ETHERNET_HEADER:
            return "runt"
        if len(slots) > nif.XEN_NETIF_NR_SLOTS_MIN:
            return "too_many_slots"
        if len(slots) > 1 and not self._owner.sg_offered:
            return "sg_not_offered"
        for _, offset, size in slots:
            if offset + size > XEN_PAGE_SIZE:
                return "crosses_page"
        gso = packet.extras.get(nif.XEN_NETIF_EXTRA_TYPE_GSO)
        if gso is None:
            return "too_long" if packet.size > self._owner.frame_max else ""
        if not gso[0] >> 16:
            return "gso_malformed"
        if gso[1] & 0xFF not in self._owner.gso_offered:
            return "gso_not_offered"
        return ""

    def _copy(self, packet: Packet, view: memoryview) -> tuple[bytes | None, str]:
        """Fetch the data; the wire's header, or why there is none."""
        at = 0
        copies = []
        for gref, offset, size in packet.slots:
            if size:
                copies.append(GrantCopy(gref, offset, view[at : at + size], False))
                at += size
        if any(status != GNTST_okay for status in self._grants.copy(self._domid, copies)):
            return None, "grant"
        return self._header(packet, view)

    def _header(self, packet: Packet, frame: memoryview) -> tuple[bytes | None, str]:
        """The wire's header for what the flags and the extra information ask, or why that cannot be done.

        That the guest says it has validated a checksum vouches for nothing, and is not passed on.
        """
        gso = packet.extras.get(nif.XEN_NETIF_EXTRA_TYPE_GSO)
        if gso is None and not packet.flags & nif.NETTXF_csum_blank:
            return None, ""
        transport = transport_of(frame)
        if transport is None:
            return None, "csum_nowhere"
        gso_type = gso_size = headers = 0
        if gso is not None:
            gso_type, version = _GSO[gso[1] & 0xFF]
            headers = header_length(frame, transport)
            if version != transport.version or not headers:
                return None, "gso_malformed"
            gso_size = gso[0] >> 16
        return (
            net.NET_HEADER.pack(
                net.VIRTIO_NET_HDR_F_NEEDS_CSUM,
                gso_type,
                headers,
                gso_size,
                transport.start,
                transport.csum_offset,
                0,
            ),
            "",
        )

    # -- sending, answering --------------------------------------------------------------------------------------------

    def _flush(self, frames: list[Frame], packets: list[Packet]) -> None:
        """Hand frames to the wire; answer those that it took, keep the others."""
        if not frames:
            return
        taken = self._owner.send(frames)
        for packet in packets[:taken]:
            self._owner.count("tx_packets")
            self._owner.count("tx_bytes", packet.size)
            self._answer(packet)
        if taken < len(frames):
            self._stalled = ([keep(frame) for frame in frames[taken:]], packets[taken:])
            self._owner.count("tx_stalls")

    def resume(self) -> None:
        """The wire has room again."""
        if self._stalled is None:
            return
        frames, packets = self._stalled
        self._stalled = None
        taken = self._owner.send(frames)
        for packet in packets[:taken]:
            self._owner.count("tx_packets")
            self._owner.count("tx_bytes", packet.size)
            self._answer(packet)
        if taken < len(frames):
            self._stalled = (frames[taken:], packets[taken:])
        else:
            # What was found wrong behind them waited for its turn to be answered.
            for packet in packets[taken:]:
                self._answer(packet)
        if self.ring.push():
            self._notify()

    def _answer(self, packet: Packet) -> None:
        status = (nif.NETIF_RSP_ERROR if packet.wrong else nif.NETIF_RSP_OKAY) & 0xFFFF
        for answer in packet.answers:
            if answer == _NULL:
                self.ring.put(nif.NETIF_RSP_NULL << 16)
            else:
                self.ring.put(answer | status << 16)
