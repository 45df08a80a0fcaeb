"""Guest receive: from frames of the wire to the slots that the guest has posted.

Promises:
- A frame is copied into the guest only when all slots that it needs are posted; until then it waits here, bounded in
  frames, bytes and time. What is beyond the bounds is dropped and counted under its reason.
- A guest that leaves a frame waiting for `STALL` is stalled: everything for it is dropped at once, until it has posted
  as many slots as the frame that could not be delivered had needed. One free slot too few is no way round that.
- The response to a request lies in that request's slot; extra information lies in the slot behind the first.
- A page that cannot be written (its grant is wrong) makes that slot's status an error; the others keep theirs.

Read first: Xen's public `io/netif.h` ("Guest receive", "Extra Info"); XSA-392 for guests that take nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import NamedTuple, Protocol

from hw.abi import virtio_net as net
from hw.abi import xen_netif as nif
from hw.abi.xen import XEN_PAGE_SIZE
from hw.abi.xen_grant import GNTST_okay
from hw.clock import SECOND, Clock, Timer
from hw.wire.link import Buffer, Frame, Views, frame_length, keep
from hw.xen.ports import GrantCopy, GrantPort
from hw.xen.ring import BackRing

BATCH = 64  # frames of the backlog delivered at once
BACKLOG_FRAMES = 1024
BACKLOG_BYTES = 4 << 20
BACKLOG_AGE = 10 * SECOND
STALL = 60 * SECOND

_GSO_TYPES = {
    net.VIRTIO_NET_HDR_GSO_TCPV4: nif.XEN_NETIF_GSO_TYPE_TCPV4,
    net.VIRTIO_NET_HDR_GSO_TCPV6: nif.XEN_NETIF_GSO_TYPE_TCPV6,
}


class _Delivery(NamedTuple):
    """A frame, its length in bytes, the kind of segments that it is cut into (0: none), the slots that it takes."""

    header: Buffer | None
    views: Views
    length: int
    gso: int
    needed: int


class RxOwner(Protocol):
    """What a receive queue needs of its card."""

    def count(self, name: str, amount: int = 1) -> None: ...
    def stalled(self) -> None: ...


class RxQueue:
    """One receive ring and the frames that wait for it.

    Args:
        owner: the card; `stalled` is called when the queue stalls or recovers.
        ring: the ring, attached.
        grants, domid: for the guest's pages.
        notify: sends an event to the front end.
        clock: for the age of what waits.
    """

    def __init__(
        self,
        owner: RxOwner,
        ring: BackRing,
        grants: GrantPort,
        domid: int,
        notify: Callable[[], None],
        clock: Clock,
    ) -> None:
        self.ring = ring
        self.is_stalled = False
        self._owner = owner
        self._grants = grants
        self._domid = domid
        self._notify = notify
        self._clock = clock
        self._backlog: deque[tuple[int, int, Frame]] = deque()  # with each frame its arrival and its bytes
        self._backlog_bytes = 0
        self._blocked_since: int | None = None  # since when the frame at the front has not been deliverable
        self._needed = 0  # slots that it lacks
        self._timer: Timer | None = None

    @property
    def backlog(self) -> int:
        """Frames that wait."""
        return len(self._backlog)

    # -- frames come in ----------------------------------------------------------------------------------------------

    def offer(self, frames: list[Frame]) -> None:
        """Deliver frames, or keep them, or drop and count them. Raises RingError."""
        if self.is_stalled and not self._recovered():
            self._owner.count("rx_dropped_stalled", len(frames))
            return
        for frame in frames if self._backlog else frames[self._deliver(frames) :]:
            self._keep(frame)

    def _keep(self, frame: Frame) -> None:
        length = frame_length(frame)
        if len(self._backlog) >= BACKLOG_FRAMES:
            self._owner.count("rx_dropped_backlog_frames")
        elif self._backlog_bytes + length > BACKLOG_BYTES:
            self._owner.count("rx_dropped_backlog_bytes")
        else:
            self._owner.count("rx_deferred")
            self._backlog.append((self._clock.now(), length, keep(frame)))
            self._backlog_bytes += length
        self._watch()

    @property
    def posted(self) -> int:
        """Slots that the guest has posted and that are free. Raises RingError."""
        return self.ring.available()

    def process(self) -> None:
        """The guest may have posted slots: deliver what waits. Raises RingError."""
        if self.is_stalled and not self._recovered():
            return
        while self._backlog:
            batch = [frame for _, _, frame in islice(self._backlog, BATCH)]
            delivered = self._deliver(batch)
            for _ in range(delivered):
                self._backlog_bytes -= self._backlog.popleft()[1]
            if delivered < len(batch):
                break
        if not self._backlog and self._blocked_since is not None and self.ring.wait_for(self._needed):
            self._blocked_since = None  # what waited was dropped for its age, and there would be room by now
        self._watch()

    # -- frames that wait --------------------------------------------------------------------------------------------

    def _recovered(self) -> bool:
        """Whether a stalled queue has the slots again that it lacked."""
        if not self.ring.wait_for(self._needed):
            return False
        self.is_stalled = False
        self._blocked_since = None
        self._owner.stalled()
        return True

    def _watch(self) -> None:
        """Have `_expire` called when something that waits becomes too old."""
        if self._timer is None and (self._backlog or self._blocked_since is not None):
            self._timer = self._clock.after(BACKLOG_AGE, self._expire)

    def _expire(self) -> None:
        """Drop what has waited too long; find out whether the guest has stalled."""
        self._timer = None
        now = self._clock.now()
        while self._backlog and now - self._backlog[0][0] >= BACKLOG_AGE:
            self._backlog_bytes -= self._backlog.popleft()[1]
            self._owner.count("rx_dropped_backlog_age")
        if self._blocked_since is not None and now - self._blocked_since >= STALL and not self.is_stalled:
            self.is_stalled = True
            self._owner.count("rx_stalls")
            self._owner.count("rx_dropped_stalled", len(self._backlog))
            self._backlog.clear()
            self._backlog_bytes = 0
            self._owner.stalled()
        elif not self.is_stalled and (self._backlog or self._blocked_since is not None):
            when = now + BACKLOG_AGE
            if self._backlog:
                when = min(when, self._backlog[0][0] + BACKLOG_AGE)
            if self._blocked_since is not None:
                when = min(when, self._blocked_since + STALL)
            self._timer = self._clock.at(when, self._expire)

    def close(self) -> None:
        """Drop what waits."""
        self._owner.count("rx_dropped_closed", len(self._backlog))
        self._backlog.clear()
        self._backlog_bytes = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- frames go out -----------------------------------------------------------------------------------------------

    def _plan(self, frames: list[Frame]) -> list[_Delivery]:
        """The first of the frames, as many as there are slots for; what the next one lacks is asked for.

        Raises RingError.
        """
        plan: list[_Delivery] = []
        left, total = self.ring.available(), 0
        for header, views in frames:
            length = sum(map(len, views))
            gso = 0 if header is None else _GSO_TYPES.get(header[1] & ~net.VIRTIO_NET_HDR_GSO_ECN, 0)
            needed = -(-length // XEN_PAGE_SIZE) + (1 if gso else 0)
            total += needed
            if total > left:
                if not self.ring.wait_for(total):
                    if plan or self._blocked_since is None:
                        self._blocked_since = self._clock.now()
                    self._needed = needed
                    return plan
                left = total
            plan.append(_Delivery(header, views, length, gso, needed))
        if plan:
            self._blocked_since = None
        return plan

    def _deliver(self, frames: list[Frame]) -> int:
        """Copy frames into the guest, as many as it has slots for; how many. Raises RingError."""
        plan = self._plan(frames)
        if not plan:
            return 0
        requests = self.ring.take_some(sum(each.needed for each in plan))
        failed = self._copy(plan, requests)
        responses: list[tuple[int, int]] = []
        packets = size = slot = 0
        for header, _, length, gso, needed in plan:
            first, rest, end = slot, length, slot + needed
            flags = _flags(header)
            while slot < end:
                status = min(rest, XEN_PAGE_SIZE) if slot not in failed else nif.NETIF_RSP_ERROR & 0xFFFF
                rest -= XEN_PAGE_SIZE
                if rest > 0:
                    flags |= nif.NETRXF_more_data
                if gso and slot == first:
                    flags |= nif.NETRXF_extra_info
                responses.append((requests[slot][0] & 0xFFFF, flags | status << 16))
                if gso and slot == first and header is not None:
                    size_word = (header[4] | header[5] << 8) << 16
                    responses.append((nif.XEN_NETIF_EXTRA_TYPE_GSO | size_word, gso))
                    slot += 1
                slot += 1
                flags = 0
            if failed.isdisjoint(range(first, end)):
                packets += 1
                size += length
        self.ring.put_some(responses)
        self._owner.count("rx_packets", packets)
        self._owner.count("rx_bytes", size)
        self._owner.count("rx_dropped_grant", len(plan) - packets)
        if self.ring.push():
            self._notify()
        return len(plan)

    def _copy(self, plan: list[_Delivery], requests: list[tuple[int, ...]]) -> set[int]:
        """Spread frames over granted pages, each filled from its start; the numbers of the slots that failed."""
        copies: list[GrantCopy] = []
        places: list[int] = []  # the slot of each copy
        first = 0
        for _, views, _, gso, needed in plan:
            slot, offset = first, 0
            for buffer in views:
                view = buffer if isinstance(buffer, memoryview) else memoryview(buffer)
                at, length = 0, len(view)
                while at < length:
                    if offset == XEN_PAGE_SIZE:
                        # The slot behind the first is for extra information, where there is some.
                        slot, offset = slot + (2 if gso and slot == first else 1), 0
                    count = min(length - at, XEN_PAGE_SIZE - offset)
                    copies.append(GrantCopy(requests[slot][1], offset, view[at : at + count], True))
                    places.append(slot)
                    at += count
                    offset += count
            first += needed
        statuses = self._grants.copy(self._domid, copies)
        return {slot for slot, status in zip(places, statuses, strict=True) if status != GNTST_okay}


def _flags(header: Buffer | None) -> int:
    """What a wire's header says of the checksum, as flags of the first slot."""
    if header is None:
        return 0
    if header[0] & net.VIRTIO_NET_HDR_F_NEEDS_CSUM:
        return nif.NETRXF_csum_blank | nif.NETRXF_data_validated
    return nif.NETRXF_data_validated if header[0] & net.VIRTIO_NET_HDR_F_DATA_VALID else 0
