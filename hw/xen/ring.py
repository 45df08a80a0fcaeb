"""The back half of a shared ring: taking requests, giving responses, and when to say so.

Promises:
- Own indices are kept privately; what the front end writes over the shared ones changes nothing.
- `req_prod` is read once a look and checked: more requests than the ring holds, or an index that went back, raise
  `RingError`. A slot is read word by word, each word once, into a request of the back end's own.
- A response goes into the slot after the last response, so a response to request n lies in the slot of request n.
- Notifications follow the event indices: `push` says whether the front end wants one; `final_check` asks for one.

Read first: Xen's public `io/ring.h`. Words are 32 bits; a slot is three (transmit), two (receive) or four (control).
"""

from __future__ import annotations

from hw.abi.xen import XEN_PAGE_SIZE
from hw.abi.xen_ring import REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, SRING_HEADER_SIZE, ring_size
from hw.memory import FieldView
from hw.xen.ports import GrantedPage

_REQ_PROD = REQ_PROD // 4
_REQ_EVENT = REQ_EVENT // 4
_RSP_PROD = RSP_PROD // 4
_RSP_EVENT = RSP_EVENT // 4
_SLOTS = SRING_HEADER_SIZE // 4
_WRAP = 0xFFFFFFFF


class RingError(Exception):
    """The front end broke a rule of the ring; the text names the rule and the value."""


class BackRing:
    """The back end's view of one ring.

    Args:
        page: the mapped ring page, which the front end has initialised.
        slot_size: bytes of a slot.
        start: index to begin with, 0 on a fresh ring; tests start just below the wrap.
    """

    def __init__(self, page: GrantedPage, slot_size: int, start: int = 0) -> None:
        self.page = page
        self.slot_words = slot_size // 4
        self.size = ring_size(XEN_PAGE_SIZE, slot_size)
        self.req_cons = start
        self.rsp_prod_pvt = start
        self._pushed = start  # rsp_prod as last published
        self._known = 0  # requests seen and not yet taken
        self._mask = self.size - 1
        self._open()
        page.on_reopen(self._open)

    def _open(self) -> None:
        self._words: FieldView = self.page.fields("I")

    # -- requests --------------------------------------------------------------------------------------------------

    def available(self) -> int:
        """How many requests can be taken. Raises RingError when `req_prod` cannot be.

        Looks at `req_prod` each time: it is how the front end says that there is more of a packet.
        """
        ahead = (self._words[_REQ_PROD] - self.req_cons) & _WRAP
        outstanding = (self.req_cons - self.rsp_prod_pvt) & _WRAP
        if ahead > self.size - outstanding or ahead < self._known:
            raise RingError(
                f"req_prod is {ahead} ahead of {self.req_cons}, with {outstanding} of {self.size} requests unanswered"
            )
        self._known = ahead
        return ahead

    def take(self) -> tuple[int, ...]:
        """The words of the next request, which `available` has announced."""
        at = _SLOTS + (self.req_cons & self._mask) * self.slot_words
        words = self._words
        request = tuple([words[at + word] for word in range(self.slot_words)])
        self.req_cons = (self.req_cons + 1) & _WRAP
        self._known -= 1
        return request

    def wait_for(self, count: int) -> bool:
        """Whether `count` requests can be taken; if not, ask to be told when more come. Raises RingError."""
        while self.available() < count:
            # One more than there are is asked for, and looked at again in case it has just come.
            event = (self.req_cons + self._known + 1) & _WRAP
            self._words[_REQ_EVENT] = event
            if (self._words[_REQ_PROD] - self.req_cons) & _WRAP == self._known:
                return False
        return True

    def final_check(self) -> bool:
        """Before sleeping: whether requests are there; if not, the next one is asked to be told. Raises RingError."""
        return self.wait_for(1)

    # -- responses -------------------------------------------------------------------------------------------------

    def put(self, *words: int) -> None:
        """Write the words of the next response, in order; `push` publishes it."""
        at = _SLOTS + (self.rsp_prod_pvt & self._mask) * self.slot_words
        for offset, word in enumerate(words):
            self._words[at + offset] = word
        self.rsp_prod_pvt = (self.rsp_prod_pvt + 1) & _WRAP

    def push(self) -> bool:
        """Publish the responses written so far; whether the front end wants to be told."""
        new, old = self.rsp_prod_pvt, self._pushed
        if new == old:
            return False
        self._words[_RSP_PROD] = new
        self._pushed = new
        return (new - self._words[_RSP_EVENT]) & _WRAP < (new - old) & _WRAP
