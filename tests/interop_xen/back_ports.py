"""The ports of a back end (`hw.xen.ports`), served by the devices of a real control domain.

What the kernel refuses comes out as the ports say: GrantError, EventError, StoreError, or a status.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable, Sequence

from hw.abi import xen_grant as g
from hw.abi import xen_store as xs
from hw.abi.xen import XEN_PAGE_SIZE
from hw.loop import Loop
from hw.memory import Direction, FieldView, Format
from hw.xen.ports import EventError, GrantCopy, GrantError, StoreError
from hw.xen.store_client import StoreAccess
from tests.interop_xen.devices import EventDevice, GrantDevice, StoreDevice


class DevicePage:
    """A page of another domain, mapped by the kernel (`hw.xen.ports.GrantedPage`)."""

    def __init__(self, owner: DeviceGrants, page: mmap.mmap, index: int) -> None:
        self._owner = owner
        self._page = page
        self._index = index
        self._views: list[memoryview] = []
        self._mapped = True

    def _keep(self, view: memoryview) -> memoryview:
        self._views.append(view)
        return view

    def fields(self, fmt: Format) -> FieldView:
        return self._keep(self._keep(memoryview(self._page)).cast(fmt))

    def span(self, offset: int, length: int, direction: Direction) -> memoryview:
        return self._keep(self._keep(memoryview(self._page))[offset : offset + length])

    def on_reopen(self, reopen: Callable[[], None]) -> None:
        """Nothing ever hooks into a real page."""

    def unmap(self) -> None:
        if not self._mapped:
            return
        self._mapped = False
        for view in reversed(self._views):
            view.release()
        self._page.close()
        self._owner.unmapped(self._index)


class DeviceGrants:
    """`hw.xen.ports.GrantPort` over /dev/xen/gntdev.

    Attributes:
        maps, copies: how many of each were done.
        mapped: pages that are mapped now.
    """

    def __init__(self) -> None:
        self._device = GrantDevice()
        self.maps = self.mapped = self.copies = 0

    def map(self, domid: int, ref: int) -> DevicePage:
        try:
            page, index = self._device.map(domid, ref)
        except OSError as error:
            raise GrantError(g.GNTST_general_error, f"grant {ref} of domain {domid}: {error}") from None
        self.maps += 1
        self.mapped += 1
        return DevicePage(self, page, index)

    def unmapped(self, index: int) -> None:
        """A page's mapping was closed."""
        self._device.unmap(index)
        self.mapped -= 1

    def copy(self, domid: int, copies: Sequence[GrantCopy]) -> list[int]:
        if any(copy.offset < 0 or copy.offset + len(copy.view) > XEN_PAGE_SIZE for copy in copies):
            return [g.GNTST_bad_copy_arg] * len(copies)
        self.copies += len(copies)
        return self._device.copy(domid, [(copy.ref, copy.offset, copy.view, copy.to_guest) for copy in copies])


class DeviceEvents:
    """`hw.xen.ports.EventPort` over /dev/xen/evtchn."""

    def __init__(self, loop: Loop) -> None:
        self._device = EventDevice()
        self._handlers: dict[int, Callable[[], None]] = {}
        loop.set_reader(self._device.fd, self._pending)

    def bind(self, domid: int, remote_port: int, handler: Callable[[], None]) -> int:
        try:
            port = self._device.bind_interdomain(domid, remote_port)
        except OSError as error:
            raise EventError(f"port {remote_port} of domain {domid}: {error}") from None
        self._handlers[port] = handler
        return port

    def notify(self, port: int) -> None:
        self._device.notify(port)

    def unbind(self, port: int) -> None:
        if self._handlers.pop(port, None) is not None:
            self._device.unbind(port)

    def _pending(self) -> None:
        for port in self._device.pending():
            handler = self._handlers.get(port)
            if handler is not None:
                handler()


class DeviceStore:
    """`hw.xen.ports.StorePort` over /dev/xen/xenbus."""

    def __init__(self, loop: Loop) -> None:
        self._device = StoreDevice()
        self._loop = loop
        self._buffer = bytearray()
        self._events: deque[tuple[str, str]] = deque()
        self._handlers: list[Callable[[str, str], None]] = []
        self._serial = 0
        loop.set_reader(self._device.fd, self._readable)

    def request(self, operation: int, payload: bytes) -> bytes:
        self._serial += 1
        serial = self._serial
        self._device.send(xs.MESSAGE.pack(operation, serial, 0, len(payload)) + payload)
        while True:
            while (message := self._next()) is not None:
                kind, of, body = message
                if of != serial:
                    continue
                if kind == xs.XS_ERROR:
                    what = payload.split(b"\0")[0].decode("latin-1")
                    raise StoreError(body.rstrip(b"\0").decode("latin-1"), what)
                return body
            if not self._device.wait():
                raise StoreError("ETIMEDOUT", "the store does not answer")

    def on_event(self, handler: Callable[[str, str], None]) -> None:
        self._handlers.append(handler)

    def _next(self) -> tuple[int, int, bytes] | None:
        """The next answer that has come; watch events on the way to it are kept for later."""
        buffer, size = self._buffer, xs.MESSAGE.size
        buffer += self._device.receive()
        while len(buffer) >= size:
            kind, serial, _, length = xs.MESSAGE.unpack_from(buffer)
            if len(buffer) < size + length:
                break
            body = bytes(buffer[size : size + length])
            del buffer[: size + length]
            if kind != xs.XS_WATCH_EVENT:
                return kind, serial, body
            path, token = body.decode("latin-1").split("\0")[:2]
            if not self._events:
                self._loop.call_soon(self._tell)
            self._events.append((path, token))
        return None

    def _readable(self) -> None:
        while self._next() is not None:
            pass  # an answer that nobody waits for any more

    def _tell(self) -> None:
        events, self._events = self._events, deque()
        for path, token in events:
            for handler in self._handlers:
                handler(path, token)


class ControlDomain:
    """The doors of the control domain that this program runs in, as `hw.xen.hypervisor.Hypervisor` has its own."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.grants = DeviceGrants()
        self.events = DeviceEvents(loop)
        self.store = StoreAccess(DeviceStore(loop))

    def schedule(self, callback: Callable[[], None]) -> None:
        """Call `callback` in another turn."""
        self.loop.call_soon(callback)
