"""The ports of a front end (`guest.xen`), and a machine to boot on, served by the devices of a real domain 0.

The guest's RAM is pages of domain 0 that the kernel has granted to domain 0 itself, all of them, for good: a page's
reference is given by its place, `grant` tells it, and `retire` ends nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from guest.platform import Cells, Format
from guest.services import Services
from guest.xen.domain import Domain
from guest.xen.events import EventError
from guest.xen.grants import GrantError
from guest.xen.store import Store
from guest.xen.store_ring import StoreError
from hw.abi.xen import DOM0, XEN_PAGE_SIZE
from hw.loop import Cpu, Loop
from tests.interop_xen.devices import EventDevice, GrantAllocator, StoreDevice

FIRST_ADDRESS = 1 << 20  # of RAM, so that an address and a place are never the same number


class GrantedRam:
    """`guest.platform.Memory` and `guest.xen.grants.GrantPort` over /dev/xen/gntalloc."""

    base = FIRST_ADDRESS

    def __init__(self, pages: int) -> None:
        allocator = GrantAllocator(DOM0, pages)
        self.size = pages * XEN_PAGE_SIZE
        self._refs = allocator.refs
        self._all = memoryview(allocator.memory)
        self.granted = 0

    def span(self, addr: int, length: int) -> memoryview:
        start = addr - self.base
        if not 0 <= start <= start + length <= self.size:
            raise IndexError(f"{length} bytes at {addr:#x} are not RAM")
        return self._all[start : start + length]

    def fields(self, addr: int, length: int, fmt: Format) -> Cells:
        return self.span(addr, length).cast(fmt)

    def on_reopen(self, reopen: Callable[[], None]) -> None:
        """Nothing ever hooks into real pages."""

    def grant(self, domid: int, addr: int, readonly: bool = False) -> int:
        place, odd = divmod(addr - self.base, XEN_PAGE_SIZE)
        if domid != DOM0 or odd or not 0 <= place < len(self._refs):
            raise GrantError(f"the page at {addr:#x} cannot be granted to domain {domid}")
        self.granted += 1
        return self._refs[place]

    def retire(self, ref: int, release: Callable[[], None]) -> bool:
        self.granted -= 1
        release()
        return True


class ChannelDevice:
    """`guest.xen.events.EventPort` over /dev/xen/evtchn.

    Attributes:
        counts: events, by port.
    """

    def __init__(self, loop: Loop) -> None:
        self._device = EventDevice()
        self._handlers: dict[int, Callable[[], None]] = {}
        self.counts: dict[int, int] = {}
        loop.set_reader(self._device.fd, self._pending)

    def open(self, domid: int, handler: Callable[[], None]) -> int:
        try:
            port = self._device.bind_unbound(domid)
        except OSError as error:
            raise EventError(f"no event channel to domain {domid}: {error}") from None
        self._handlers[port] = handler
        self.counts[port] = 0
        return port

    def notify(self, port: int) -> None:
        self._device.notify(port)

    def close(self, port: int) -> None:
        if self._handlers.pop(port, None) is not None:
            self._device.unbind(port)

    def _pending(self) -> None:
        for port in self._device.pending():
            handler = self._handlers.get(port)
            if handler is not None:
                self.counts[port] += 1
                handler()


class StoreConnection:
    """`guest.xen.store_ring.StorePort` over /dev/xen/xenbus."""

    def __init__(self) -> None:
        self._device = StoreDevice()
        self.fd = self._device.fd

    def send(self, raw: bytes) -> None:
        try:
            self._device.send(raw)
        except OSError as error:
            raise StoreError(f"the store cannot be told: {error}") from None

    def receive(self) -> bytes:
        return self._device.receive()

    def wait(self) -> bool:
        return self._device.wait()


class RealDomain(Domain):
    """Domain 0, as its front ends see it."""

    domid = DOM0

    def __init__(self, services: Services, loop: Loop, ram: GrantedRam) -> None:
        connection = StoreConnection()
        super().__init__(services, ram, ChannelDevice(loop), Store(connection, self._schedule))
        self._due = False
        loop.set_reader(connection.fd, self._dispatch_all)

    def _schedule(self) -> None:
        """A watch event came with an answer: call back from deferred work."""
        if not self._due:
            self._due = True
            self.services.deferred.add(self._dispatch)

    def _dispatch(self) -> bool:
        self._due = False
        self._dispatch_all()
        return False

    def _dispatch_all(self) -> None:
        try:
            self.store.dispatch()
        except StoreError as error:
            self.services.log(f"xen: {error}")

    def leaks(self) -> list[str]:
        count = self.grants.granted
        return [f"{count} pages are still granted"] if count else []


class NoRegisters:
    """A machine without devices in its address space, or interrupt lines."""

    def read(self, addr: int, size: int) -> int:
        return 0

    def write(self, addr: int, size: int, value: int) -> None:
        pass

    def mask(self, line: int) -> None:
        pass

    def unmask(self, line: int) -> None:
        pass


class DomainPlatform:
    """`guest.platform.Platform`: RAM of granted pages, the loop's time, and nothing else."""

    xen = None  # not natively: the ports are handed to the guest

    def __init__(self, loop: Loop, ram: GrantedRam, cmdline: str) -> None:
        self._loop = loop
        self.memory = ram
        self.mmio = self.irq = NoRegisters()
        self.cmdline = cmdline
        self.rng = random.Random(f"domain 0/{cmdline}")
        self.now = loop.clock.now
        self.cpu: Cpu | None = None

    def wake(self) -> None:
        if self.cpu is not None:
            self._loop.kick_cpu(self.cpu)
