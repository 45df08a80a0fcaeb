"""The store's end of a domain's ring page: two streams of bytes that carry its messages.

Promises:
- Each index of the domain's is read once a round and checked; the own ones are kept privately, so that nothing the
  domain writes over them matters.
- A request may arrive in any pieces, an answer leaves in as many as the domain gives room for. While too much waits to
  leave, no further request is read, and a domain that does not fetch its events is cut off.
- A broken stream (an index that is more than the ring away, a payload that is too long) ends the connection with a
  reason in the page's error field; the domain may ask for a new one with the connection field.

Read first: Xen's docs/misc/xenstore-ring.txt.
"""

from __future__ import annotations

from collections.abc import Callable

from hw.abi import xen_store as xs
from hw.memory import FieldView
from hw.xen.ports import GrantedPage
from hw.xen.xenstore import Store, StoreClient

BACKLOG_SOFT = 16 << 10  # bytes of answers from which on no request is read
BACKLOG_HARD = 1 << 20  # bytes from which on the domain is cut off
ROUNDS = 64  # looks at the rings until others have their turn

_REQ_CONS = xs.REQ_CONS // 4
_REQ_PROD = xs.REQ_PROD // 4
_RSP_CONS = xs.RSP_CONS // 4
_RSP_PROD = xs.RSP_PROD // 4
_FEATURES = xs.SERVER_FEATURES // 4
_CONNECTION = xs.CONNECTION // 4
_ERROR = xs.ERROR // 4


class StoreRing:
    """A domain's connection to the store.

    Args:
        store: the server.
        domid: whose page it is.
        page: the mapped ring page.
        notify: sends an event to the domain.
        schedule: has `process` called soon, when there is something to send that no event announces.
    """

    def __init__(
        self,
        store: Store,
        domid: int,
        page: GrantedPage,
        notify: Callable[[], None],
        schedule: Callable[[Callable[[], None]], None],
    ) -> None:
        self.store = store
        self.client = StoreClient(domid, self._send)
        store.clients.append(self.client)
        self.error = xs.XENSTORE_ERROR_NONE
        self._page = page
        self._notify = notify
        self._schedule = schedule
        self._scheduled = False
        self._inside = False
        self._in = bytearray()
        self._out = bytearray()
        self._open()
        page.on_reopen(self._open)
        self._req_cons = self._words[_REQ_CONS]
        self._rsp_prod = self._words[_RSP_PROD]
        self._words[_FEATURES] = xs.XENSTORE_SERVER_FEATURE_RECONNECTION | xs.XENSTORE_SERVER_FEATURE_ERROR

    def _open(self) -> None:
        self._words: FieldView = self._page.fields("I")

    def _send(self, operation: int, req_id: int, tx_id: int, payload: bytes) -> None:
        """Queue a message to the domain."""
        if self.error:
            return
        self._out += xs.MESSAGE.pack(operation, req_id, tx_id, len(payload)) + payload
        if len(self._out) > BACKLOG_HARD:
            self._break(xs.XENSTORE_ERROR_COMM)
        if not self._inside:
            self._go_on()

    def _go_on(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._schedule(self._later)

    def _later(self) -> None:
        self._scheduled = False
        self.process()

    def _break(self, error: int) -> None:
        """The stream cannot go on: say why, and forget what was on its way."""
        self.error = error
        self._words[_ERROR] = error
        self._in.clear()
        self._out.clear()
        self.client.forget()

    def _reconnect(self) -> None:
        """The domain asks for a new beginning: empty rings, no watches, no transactions."""
        self.error = xs.XENSTORE_ERROR_NONE
        self._in.clear()
        self._out.clear()
        self.client.forget()
        self._req_cons = self._rsp_prod = 0
        for index in (_REQ_CONS, _REQ_PROD, _RSP_CONS, _RSP_PROD, _ERROR):
            self._words[index] = 0
        self._words[_CONNECTION] = xs.XENSTORE_CONNECTED

    def process(self) -> None:
        """An event came: do what the rings allow, and tell the domain if anything moved."""
        if self._words[_CONNECTION] == xs.XENSTORE_RECONNECT:
            self._reconnect()
            self._notify()
            return
        moved = False
        self._inside = True
        try:
            for _ in range(ROUNDS):
                if self.error:
                    break
                read = self._fill()
                self._handle()
                written = self._drain()
                moved = moved or read or written
                if not read and not written:
                    break
            else:
                self._go_on()
        finally:
            self._inside = False
        if moved or self.error:
            self._notify()

    def _fill(self) -> bool:
        """Take what the domain has written; whether there was any."""
        if len(self._out) > BACKLOG_SOFT:
            return False
        there = (self._words[_REQ_PROD] - self._req_cons) & 0xFFFFFFFF
        if there > xs.XENSTORE_RING_SIZE:
            self._break(xs.XENSTORE_ERROR_RINGIDX)
            return False
        if not there:
            return False
        at = self._req_cons % xs.XENSTORE_RING_SIZE
        first = min(there, xs.XENSTORE_RING_SIZE - at)
        self._in += self._page.span(xs.STORE_REQ + at, first, "to-device")
        if there > first:
            self._in += self._page.span(xs.STORE_REQ, there - first, "to-device")
        self._req_cons = (self._req_cons + there) & 0xFFFFFFFF
        self._words[_REQ_CONS] = self._req_cons
        return True

    def _handle(self) -> None:
        """Handle the requests that are there in full."""
        while len(self._in) >= xs.MESSAGE.size and len(self._out) <= BACKLOG_SOFT:
            operation, req_id, tx_id, length = xs.MESSAGE.unpack_from(self._in)
            if length > xs.XENSTORE_PAYLOAD_MAX:
                self._break(xs.XENSTORE_ERROR_PROTO)
                return
            end = xs.MESSAGE.size + length
            if len(self._in) < end:
                return
            payload = bytes(self._in[xs.MESSAGE.size : end])
            del self._in[:end]
            self.store.request(self.client, operation, req_id, tx_id, payload)

    def _drain(self) -> bool:
        """Write as much as the domain has room for; whether there was any."""
        if not self._out:
            return False
        waiting = (self._rsp_prod - self._words[_RSP_CONS]) & 0xFFFFFFFF
        if waiting > xs.XENSTORE_RING_SIZE:
            self._break(xs.XENSTORE_ERROR_RINGIDX)
            return False
        length = min(len(self._out), xs.XENSTORE_RING_SIZE - waiting)
        if not length:
            return False
        at = self._rsp_prod % xs.XENSTORE_RING_SIZE
        first = min(length, xs.XENSTORE_RING_SIZE - at)
        self._page.span(xs.STORE_RSP + at, first, "from-device")[:] = self._out[:first]
        if length > first:
            self._page.span(xs.STORE_RSP, length - first, "from-device")[:] = self._out[first:length]
        del self._out[:length]
        self._rsp_prod = (self._rsp_prod + length) & 0xFFFFFFFF
        self._words[_RSP_PROD] = self._rsp_prod
        return True

    def close(self) -> None:
        """The domain is gone."""
        self._page.unmap()
