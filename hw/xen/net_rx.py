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
from typing import Protocol

from hw.abi import virtio_net as net
from hw.abi import xen_netif as nif
from hw.abi.xen import XEN_PAGE_SIZE
from hw.abi.xen_grant import GNTST_okay
from hw.clock import SECOND, Clock, Timer
from hw.wire.link import Buffer, Frame, Views, frame_length, keep
from hw.xen.ports import GrantCopy, GrantPort
from hw.xen.ring import BackRing

BACKLOG_FRAMES = 1024
BACKLOG_BYTES = 4 << 20
BACKLOG_AGE = 10 * SECOND
STALL = 60 * SECOND

_GSO_TYPES = {
    net.VIRTIO_NET_HDR_GSO_TCPV4: nif.XEN_NETIF_GSO_TYPE_TCPV4,
    net.VIRTIO_NET_HDR_GSO_TCPV6: nif.XEN_NETIF_GSO_TYPE_TCPV6,
}


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
        for frame in frames:
            if self.is_stalled and not self._recovered():
                self._owner.count("rx_dropped_stalled")
            elif self._backlog or not self._deliver(frame):
                self._keep(frame)
        self.flush()

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

    def process(self) -> None:
        """The guest may have posted slots: deliver what waits. Raises RingError."""
        if self.is_stalled and not self._recovered():
            return
        while self._backlog and self._deliver(self._backlog[0][2]):
            self._backlog_bytes -= self._backlog.popleft()[1]
        if not self._backlog and self._blocked_since is not None and self.ring.wait_for(self._needed):
            self._blocked_since = None  # what waited was dropped for its age, and there would be room by now
        self._watch()
        self.flush()

    def flush(self) -> None:
        """Publish responses, with one event if the guest wants it."""
        if self.ring.push():
            self._notify()

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

    def _deliver(self, frame: Frame) -> bool:
        """Copy one frame into the guest; False when it lacks slots. Raises RingError."""
        header, views = frame
        length = frame_length(frame)
        gso = _GSO_TYPES.get(header[1] & ~net.VIRTIO_NET_HDR_GSO_ECN, 0) if header is not None else 0
        pieces = -(-length // XEN_PAGE_SIZE)
        needed = pieces + (1 if gso else 0)
        if not self.ring.wait_for(needed):
            if self._blocked_since is None:
                self._blocked_since = self._clock.now()
            self._needed = needed
            return False
        self._blocked_since = None
        requests = [self.ring.take() for _ in range(needed)]
        ids = [request[0] & 0xFFFF for request in requests]
        data = [0, *range(2, needed)] if gso else list(range(needed))  # which slots take data
        statuses = self._copy(views, [requests[at][1] for at in data])
        flags = 0
        if header is not None:
            if header[0] & net.VIRTIO_NET_HDR_F_NEEDS_CSUM:
                flags = nif.NETRXF_csum_blank | nif.NETRXF_data_validated
            elif header[0] & net.VIRTIO_NET_HDR_F_DATA_VALID:
                flags = nif.NETRXF_data_validated
        rest = length
        for number, (at, status) in enumerate(zip(data, statuses, strict=True)):
            size = min(rest, XEN_PAGE_SIZE)
            rest -= size
            more = nif.NETRXF_more_data if number + 1 < pieces else 0
            extra = nif.NETRXF_extra_info if gso and not number else 0
            word = (size if status == GNTST_okay else nif.NETIF_RSP_ERROR) & 0xFFFF
            self.ring.put(ids[at], flags | more | extra | word << 16)
            flags = 0
            if extra and header is not None:
                gso_size = header[4] | header[5] << 8
                self.ring.put(nif.XEN_NETIF_EXTRA_TYPE_GSO | gso_size << 16, gso)
        if any(status != GNTST_okay for status in statuses):
            self._owner.count("rx_dropped_grant")
        else:
            self._owner.count("rx_packets")
            self._owner.count("rx_bytes", length)
        return True

    def _copy(self, views: Views, grefs: list[int]) -> list[int]:
        """Spread a frame over granted pages, each filled from its start; a status for each page."""
        copies: list[GrantCopy] = []
        pages: list[int] = []
        page = offset = 0
        for buffer in views:
            view = _as_view(buffer)
            at = 0
            while at < len(view):
                if offset == XEN_PAGE_SIZE:
                    page, offset = page + 1, 0
                count = min(len(view) - at, XEN_PAGE_SIZE - offset)
                copies.append(GrantCopy(grefs[page], offset, view[at : at + count], True))
                pages.append(page)
                at += count
                offset += count
        statuses = [GNTST_okay] * len(grefs)
        for where, status in zip(pages, self._grants.copy(self._domid, copies), strict=True):
            if status != GNTST_okay:
                statuses[where] = status
        return statuses


def _as_view(buffer: Buffer) -> memoryview:
    return buffer if isinstance(buffer, memoryview) else memoryview(buffer)
