"""The way to the store: two streams of bytes in one page, and an event channel.

Promises:
- Indices that cannot be, such as a stream of more bytes than its ring holds, end the connection with `StoreError`.
- Nobody waits for ever: `send` and `wait` come back when the hypervisor says that no other domain would move.

Sections: `StoreError`, `StorePort` (what the client uses), `RingPort`.

Read: Xen's public `io/xs_wire.h`.
"""

from __future__ import annotations

from typing import Protocol

from guest.dma import PAGE
from guest.platform import Cells, Memory, XenPlatform
from guest.xen.events import EventChannels
from hw.abi import xen_store as abi

_WRAP = 0xFFFFFFFF
_SIZE = abi.XENSTORE_RING_SIZE
_REQ_CONS, _REQ_PROD, _RSP_CONS, _RSP_PROD = (
    offset // 4 for offset in (abi.REQ_CONS, abi.REQ_PROD, abi.RSP_CONS, abi.RSP_PROD)
)


class StoreError(Exception):
    """The store refused, or gives no answer.

    Attributes:
        name: the error's name as the store says it, such as "ENOENT"; empty when the store cannot be used.
    """

    def __init__(self, text: str, name: str = "") -> None:
        super().__init__(text)
        self.name = name


class StorePort(Protocol):
    """A connection to the store, whatever carries it."""

    def send(self, raw: bytes) -> None:
        """Send all of it. Raises StoreError."""

    def receive(self) -> bytes:
        """What has arrived since the last call; may be nothing. Raises StoreError."""

    def wait(self) -> bool:
        """Wait until more has arrived; False when nothing will."""


class RingPort:
    """The connection of this domain, over its ring page.

    Args:
        memory: where the page is.
        xen: knows the page and the port, and lets the store work.
        events: the store's port is theirs to handle; here it is only told and waited for.
    """

    _cells: Cells

    def __init__(self, memory: Memory, xen: XenPlatform, events: EventChannels) -> None:
        self._memory = memory
        self._xen = xen
        self._events = events
        self.broken: str | None = None
        self.restart()
        memory.on_reopen(self._reopen)

    def _reopen(self) -> None:
        """Fetch the view again: the hook of guest RAM changed."""
        self._cells = self._memory.fields(self._page, PAGE, "I")

    def restart(self) -> None:
        """Begin with the page as it is now: at boot, and after a resume. What was not read yet is skipped."""
        self._page = page = self._xen.store_page
        self._req = self._memory.span(page + abi.STORE_REQ, _SIZE)
        self._rsp = self._memory.span(page + abi.STORE_RSP, _SIZE)
        self._reopen()
        self.broken = None
        self._produced = self._cells[_REQ_PROD]
        self._consumed = self._cells[_RSP_PROD]
        self._cells[_RSP_CONS] = self._consumed

    def _break(self, reason: str) -> StoreError:
        self.broken = self.broken or reason
        return StoreError(f"the store cannot be used: {self.broken}")

    def send(self, raw: bytes) -> None:
        """As `StorePort.send`. What was sent in part cannot be taken back: then the connection is over."""
        if self.broken is not None:
            raise self._break(self.broken)
        cells, at = self._cells, 0
        while at < len(raw):
            used = (self._produced - cells[_REQ_CONS]) & _WRAP
            if used > _SIZE:
                raise self._break(f"{used} bytes of requests are said to be in a ring of {_SIZE}")
            place = self._produced % _SIZE
            count = min(_SIZE - used, _SIZE - place, len(raw) - at)
            if not count:
                if not self.wait() and (self._produced - cells[_REQ_CONS]) & _WRAP == used:
                    raise self._break("it takes no requests")
                continue
            self._req[place : place + count] = raw[at : at + count]
            at += count
            self._produced = (self._produced + count) & _WRAP
            cells[_REQ_PROD] = self._produced
            self._events.notify(self._xen.store_port)

    def receive(self) -> bytes:
        """As `StorePort.receive`."""
        if self.broken is not None:
            raise self._break(self.broken)
        ready = (self._cells[_RSP_PROD] - self._consumed) & _WRAP
        if not ready:
            return b""
        if ready > _SIZE:
            raise self._break(f"{ready} bytes of answers are said to be in a ring of {_SIZE}")
        place = self._consumed % _SIZE
        raw = bytes(self._rsp[place : place + ready])
        raw += bytes(self._rsp[: ready - len(raw)])
        self._consumed = (self._consumed + ready) & _WRAP
        self._cells[_RSP_CONS] = self._consumed
        self._events.notify(self._xen.store_port)
        return raw

    def wait(self) -> bool:
        """As `StorePort.wait`."""
        port = self._xen.store_port
        self._events.clear(port)
        if self._cells[_RSP_PROD] != self._consumed:
            return True
        return self._xen.poll(port)
