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
from typing import Protocol

from hw.abi import virtio_net as net
from hw.abi import xen_netif as nif
from hw.abi.xen import XEN_PAGE_SIZE
from hw.abi.xen_grant import GNTST_okay
from hw.wire.link import Frame, keep
from hw.xen.offload import ETHERNET_HEADER, header_length, transport_of
from hw.xen.ports import GrantCopy, GrantPort
from hw.xen.ring import BackRing

BATCH = 64  # requests taken at once, but for the rest of the last packet
# A packet that is sent has no more bytes than its slots have room for.
ARENA_BYTES = XEN_PAGE_SIZE * (BATCH + nif.XEN_NETIF_NR_SLOTS_MIN)
_CHAINED = nif.NETTXF_more_data | nif.NETTXF_extra_info
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
_NULL_WORDS = (nif.NETIF_RSP_NULL << 16,)

Extras = dict[int, tuple[int, int]]


class Packet:
    """A packet as its slots described it.

    Attributes:
        answers: the id of each request taken, in order; -1 for extra information.
        size, flags: of the whole, as the first slot says.
        slots: reference, offset and bytes of each piece.
        extras: first and second word of each extra information, by type; None where there is none.
        wrong: why it cannot be sent, as a counter's suffix, or an empty string.
        frame: where its bytes are, once they are fetched; None for one that is wrong or only changes the filter.
    """

    __slots__ = ("answers", "extras", "flags", "frame", "size", "slots", "wrong")

    def __init__(self, answers: list[int], size: int, flags: int, slots: list[tuple[int, int, int]]) -> None:
        self.answers = answers
        self.size = size
        self.flags = flags
        self.slots = slots
        self.extras: Extras | None = None
        self.wrong = ""
        self.frame: memoryview | None = None


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
        packets = self._take()
        if packets:
            self._fetch(packets)
            frames = [frame for each in packets if each.frame and (frame := self._header(each, each.frame))]
            self._send(frames, packets)
        return self._stalled is None and self.ring.final_check()

    # -- taking ----------------------------------------------------------------------------------------------------

    def _take(self) -> list[Packet]:
        """The next packets, each with all of the slots that belong to it. Raises RingError."""
        requests = self.ring.take_some(BATCH)
        packets: list[Packet] = []
        at = 0
        while at < len(requests):
            gref, place, last = requests[at]
            at += 1
            size = last >> 16
            packet = Packet([last & 0xFFFF], size, place >> 16, [(gref, place & 0xFFFF, size)])
            if packet.flags & _CHAINED:
                at = self._take_rest(packet, requests, at)
            packets.append(packet)
        return packets

    def _is_there(self, requests: list[tuple[int, ...]], at: int) -> bool:
        """Whether there is a request number `at`, taken now if need be. Raises RingError."""
        if at == len(requests):
            requests += self.ring.take_some(1)
        return at < len(requests)

    def _take_rest(self, packet: Packet, requests: list[tuple[int, ...]], at: int) -> int:
        """What follows the first slot of a packet, from request number `at` on; the number of the next packet's."""
        flags, rest = packet.flags, packet.size
        if flags & nif.NETTXF_extra_info:
            at = self._take_extras(packet, requests, at)
        while flags & nif.NETTXF_more_data:
            if not self._is_there(requests, at):
                packet.wrong = packet.wrong or "unfinished"
                break
            gref, place, last = requests[at]
            at += 1
            flags = place >> 16
            size = last >> 16
            packet.answers.append(last & 0xFFFF)
            if flags & nif.NETTXF_extra_info:
                packet.wrong = packet.wrong or "late_extra"
            if size > rest:
                packet.wrong = packet.wrong or "sizes"
            rest -= size
            packet.slots.append((gref, place & 0xFFFF, size))
        # The first slot says how much there is in all; what the others do not have is its own.
        gref, offset, _ = packet.slots[0]
        packet.slots[0] = gref, offset, max(rest, 0)
        return at

    def _take_extras(self, packet: Packet, requests: list[tuple[int, ...]], at: int) -> int:
        """The extra information behind the first slot, as `_take_rest`."""
        extras = packet.extras = {}
        more = True
        while more:
            if not self._is_there(requests, at):
                packet.wrong = packet.wrong or "unfinished"
                break
            first, second, _ = requests[at]
            at += 1
            packet.answers.append(_NULL)
            kind = first & 0xFF
            more = bool(first >> 8 & nif.XEN_NETIF_EXTRA_FLAG_MORE)
            if kind not in _KNOWN_EXTRAS:
                packet.wrong = packet.wrong or "unknown_extra"
            elif kind in extras:
                packet.wrong = packet.wrong or "repeated_extra"
            extras[kind] = (first, second)
        return at

    # -- judging -----------------------------------------------------------------------------------------------------

    def _fetch(self, packets: list[Packet]) -> None:
        """Judge packets by their slots, and copy those that pass into the arena."""
        copies: list[GrantCopy] = []
        owners: list[Packet] = []  # of each copy
        used = 0
        for packet in packets:
            if not packet.wrong and packet.extras and self._is_request(packet.extras):
                if not self._filter(packet.extras):
                    packet.wrong = "multicast"
                    self._drop(packet)
                continue
            packet.wrong = packet.wrong or self._refuses(packet)
            if packet.wrong:
                self._drop(packet)
                continue
            at = used
            used += packet.size
            packet.frame = self._arena[at:used]
            for gref, offset, size in packet.slots:
                if size:
                    copies.append(GrantCopy(gref, offset, self._arena[at : at + size], False))
                    owners.append(packet)
                    at += size
        statuses = self._grants.copy(self._domid, copies)
        if any(statuses):
            for packet, status in zip(owners, statuses, strict=True):
                if status != GNTST_okay and not packet.wrong:
                    packet.wrong = "grant"
                    self._drop(packet)

    def _drop(self, packet: Packet) -> None:
        """Count a packet that is wrong; it is answered in its turn."""
        packet.frame = None
        self._owner.count("tx_dropped_" + packet.wrong)

    @staticmethod
    def _is_request(extras: Extras) -> bool:
        """Whether it is no packet at all but a change of the multicast filter."""
        return nif.XEN_NETIF_EXTRA_TYPE_MCAST_ADD in extras or nif.XEN_NETIF_EXTRA_TYPE_MCAST_DEL in extras

    def _filter(self, extras: Extras) -> bool:
        """Change the multicast filter as asked; whether that could be done."""
        add = nif.XEN_NETIF_EXTRA_TYPE_MCAST_ADD in extras
        words = extras[nif.XEN_NETIF_EXTRA_TYPE_MCAST_ADD if add else nif.XEN_NETIF_EXTRA_TYPE_MCAST_DEL]
        address = ((words[1] << 16 | words[0] >> 16) & (1 << 48) - 1).to_bytes(6, "little")
        return self._owner.multicast(address, add)

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
        gso = packet.extras.get(nif.XEN_NETIF_EXTRA_TYPE_GSO) if packet.extras else None
        if gso is None:
            return "too_long" if packet.size > self._owner.frame_max else ""
        if not gso[0] >> 16:
            return "gso_malformed"
        if gso[1] & 0xFF not in self._owner.gso_offered:
            return "gso_not_offered"
        return ""

    def _header(self, packet: Packet, data: memoryview) -> Frame | None:
        """The packet as a frame for the wire; None when what its flags ask for cannot be done, which is counted.

        That the guest says it has validated a checksum vouches for nothing, and is not passed on.
        """
        gso = packet.extras.get(nif.XEN_NETIF_EXTRA_TYPE_GSO) if packet.extras else None
        if gso is None and not packet.flags & nif.NETTXF_csum_blank:
            return None, [data]
        transport = transport_of(data)
        gso_type = gso_size = headers = 0
        if transport is None:
            packet.wrong = "csum_nowhere"
        elif gso is not None:
            gso_type, version = _GSO[gso[1] & 0xFF]
            headers = header_length(data, transport)
            gso_size = gso[0] >> 16
            if version != transport.version or not headers:
                packet.wrong = "gso_malformed"
        if transport is None or packet.wrong:
            self._drop(packet)
            return None
        places = transport.start, transport.csum_offset
        return net.NET_HEADER.pack(net.VIRTIO_NET_HDR_F_NEEDS_CSUM, gso_type, headers, gso_size, *places, 0), [data]

    # -- sending, answering --------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """The wire has room again."""
        if self._stalled is not None:
            frames, packets = self._stalled
            self._stalled = None
            self._send(frames, packets)

    def _send(self, frames: list[Frame], packets: list[Packet]) -> None:
        """Hand frames to the wire, and answer their packets and those that have none; what it did not take waits.

        Answers keep the order of requests: those behind the first frame that waits wait with it.
        """
        taken = self._owner.send(frames) if frames else 0
        done, left, size = 0, taken, 0
        for packet in packets:
            if packet.frame is not None:
                if not left:
                    break
                left -= 1
                size += packet.size
            done += 1
        if taken:
            self._owner.count("tx_packets", taken)
            self._owner.count("tx_bytes", size)
        if taken < len(frames):
            self._stalled = [keep(frame) for frame in frames[taken:]], packets[done:]
            self._owner.count("tx_stalls")
        self._answer(packets[:done])

    def _answer(self, packets: list[Packet]) -> None:
        """Say what became of packets, and tell the guest if it wants to be told."""
        words: list[tuple[int]] = []
        for packet in packets:
            status = (nif.NETIF_RSP_ERROR if packet.wrong else nif.NETIF_RSP_OKAY) << 16 & 0xFFFF0000
            words += [_NULL_WORDS if answer == _NULL else (answer | status,) for answer in packet.answers]
        self.ring.put_some(words)
        if self.ring.push():
            self._notify()
