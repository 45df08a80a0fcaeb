"""The front half of a Xen shared ring: requests go in, responses come out, in one page.

Promises:
- What was put on the ring is counted in private indices; `req_prod` and `rsp_event` are only ever written.
- `rsp_prod` is read once a batch and each word of a response once. A back end that answers more than it was asked, or
  takes answers back, sets `broken`, and nothing of that batch is believed; no method raises for what it wrote.
- Each index is published with a single store. Indices count messages and wrap at 2**32: `WRAP` is the only place where
  that arithmetic is written down.

The ring knows no message: a request is so many 32-bit words, a response so many, and whose answer it is, its user finds
out.

Both halves run in one thread, or see stores in program order; a back end in another process needs a fence before the
store in `publish` and behind it, and behind the store in `enable` (RING_PUSH_REQUESTS_AND_CHECK_NOTIFY,
RING_FINAL_CHECK_FOR_RESPONSES).

Read: Xen's public `io/ring.h`.
"""

from __future__ import annotations

from collections.abc import Sequence

from guest.platform import Cells, Memory
from hw.abi import xen_ring as abi
from hw.abi.xen import XEN_PAGE_SIZE

WRAP = 0xFFFFFFFF

_REQ_PROD, _REQ_EVENT, _RSP_PROD, _RSP_EVENT = (
    offset // 4 for offset in (abi.REQ_PROD, abi.REQ_EVENT, abi.RSP_PROD, abi.RSP_EVENT)
)
_SLOTS = abi.SRING_HEADER_SIZE // 4

Words = tuple[int, ...]


def passed(event: int, new: int, old: int) -> bool:
    """Whether an index that moved from `old` to `new` passed `event`, all modulo 2**32.

    That is: whether the message with which the index becomes `event` is among those that moved it.
    """
    return (new - event) & WRAP < (new - old) & WRAP


class FrontRing:
    """One ring, as its front end sees it.

    Args:
        memory: where the page is.
        page: guest-physical address of the page; it is all zeros, and nobody else has it yet.
        request_size, response_size: bytes of each message, multiples of 4.
        name: for messages.
        start_index: value that the indices start at, for tests; a back end starts at 0.

    Attributes:
        size: slots, a power of two.
        broken: why the back end is not believed any more, or None.
    """

    __slots__ = (
        "__weakref__", "_cells", "_mask", "_memory", "_published", "_put", "_request_words", "_response_words",
        "_stride", "_taken", "broken", "name", "page", "size",
    )  # fmt: skip

    _cells: Cells

    def __init__(
        self, memory: Memory, page: int, request_size: int, response_size: int, *, name: str = "", start_index: int = 0
    ) -> None:
        slot = max(request_size, response_size)
        self.name = name
        self.page = page
        self.size = abi.ring_size(XEN_PAGE_SIZE, slot)
        self.broken: str | None = None
        self._memory = memory
        self._mask = self.size - 1
        self._stride = slot // 4
        self._request_words = range(request_size // 4)
        self._response_words = range(response_size // 4)
        self._put = self._published = self._taken = start_index & WRAP
        self._reopen()
        memory.on_reopen(self._reopen)
        cells = self._cells
        cells[_REQ_PROD] = cells[_RSP_PROD] = self._put
        cells[_REQ_EVENT] = cells[_RSP_EVENT] = (self._put + abi.EVENT_INIT) & WRAP

    def _reopen(self) -> None:
        """Fetch the view again: the hook of guest RAM changed."""
        self._cells = self._memory.fields(self.page, XEN_PAGE_SIZE, "I")

    # -- requests ------------------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """Requests that can be put before a response is taken."""
        return self.size - ((self._put - self._taken) & WRAP)

    @property
    def in_flight(self) -> int:
        """Requests that the back end has been shown and whose responses were not taken."""
        return (self._published - self._taken) & WRAP

    @property
    def next_slot(self) -> int:
        """The slot that the next request goes into."""
        return self._put & self._mask

    def put(self, words: Sequence[int]) -> bool:
        """Put one request; whether there was room. The back end sees it after `publish`."""
        if self.broken is not None or (self._put - self._taken) & WRAP >= self.size:
            return False
        cells = self._cells
        at = _SLOTS + (self._put & self._mask) * self._stride
        for word in self._request_words:
            cells[at + word] = words[word]
        self._put = (self._put + 1) & WRAP
        return True

    def publish(self) -> bool:
        """Show the back end all that was put; whether it wants to be notified of that."""
        new, old = self._put, self._published
        if new == old or self.broken is not None:
            return False
        cells = self._cells
        cells[_REQ_PROD] = self._published = new
        return passed(cells[_REQ_EVENT], new, old)

    # -- responses -----------------------------------------------------------------------------------------------

    def take(self, budget: int) -> list[tuple[int, Words]]:
        """Take up to `budget` responses: the slot of each, and its words."""
        if self.broken is not None:
            return []
        cells, taken = self._cells, self._taken
        ready = (cells[_RSP_PROD] - taken) & WRAP
        if not ready:
            return []
        if ready > (self._published - taken) & WRAP:
            self.broken = f"rsp_prod is {ready} ahead, with {(self._published - taken) & WRAP} requests in flight"
            return []
        mask, stride, words = self._mask, self._stride, self._response_words
        found: list[tuple[int, Words]] = []
        for index in range(taken, taken + min(ready, budget)):
            slot = index & mask
            at = _SLOTS + slot * stride
            found.append((slot, tuple([cells[at + word] for word in words])))
        self._taken = (taken + len(found)) & WRAP
        return found

    def pending(self) -> bool:
        """Whether the back end has answered more than was taken."""
        return self.broken is None and self._cells[_RSP_PROD] != self._taken

    def enable(self, after: int = 1) -> bool:
        """Ask for an event once `after` more responses are there; True when they are already, and none may come.

        The caller that gets True looks again: this is the final check that keeps a wake-up from being lost. Without
        another call no further event is asked for, so nothing has to switch them off.
        """
        if self.broken is not None:
            return False
        cells = self._cells
        cells[_RSP_EVENT] = (self._taken + after) & WRAP
        return (cells[_RSP_PROD] - self._taken) & WRAP >= after

    # -- for people ----------------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, object]:
        """The private indices, by name, for views; nothing is read from memory."""
        return {
            "name": self.name,
            "page": self.page,
            "size": self.size,
            "req_prod": self._published,
            "req_prod_pvt": self._put,
            "rsp_cons": self._taken,
            "in_flight": self.in_flight,
            "room": self.room,
            "broken": self.broken,
        }
