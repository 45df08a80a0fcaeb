"""Event channels: one interrupt line for all of them, and two levels of bits that say which ports are pending.

Promises:
- The upcall is acknowledged first, then the selector is taken, then each pending bit is cleared before its handler
  runs: an event that comes meanwhile makes a new upcall, so none is lost.
- An event on a port that nobody has is counted, and its port is masked.
- A handler that releases ports, its own or others', is safe.

Sections: `EventPort` (what drivers use), `EventChannels`.

Read: Xen's public `event_channel.h`; `hw/abi/xen_event.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Protocol

from guest.platform import Cells, XenPlatform
from guest.services import Services
from hw.abi import xen_event as abi

_BYTES = abi.SHARED_INFO_EVTCHN_MASK + 8 * abi.EVTCHN_WORDS
_SEL = (abi.SHARED_INFO_VCPU_INFO + abi.PENDING_SEL) // 8
_PENDING = abi.SHARED_INFO_EVTCHN_PENDING // 8
_MASK = abi.SHARED_INFO_EVTCHN_MASK // 8
_UPCALL = abi.SHARED_INFO_VCPU_INFO + abi.UPCALL_PENDING


class EventError(Exception):
    """The hypervisor gives no event channel; the text says what it answered."""


class EventPort(Protocol):
    """Event channels, wherever they come from."""

    def open(self, domid: int, handler: Callable[[], None]) -> int:
        """A port that `domid` may bind to; `handler` is called for its events. Raises EventError."""

    def notify(self, port: int) -> None:
        """Send an event to the other end."""

    def close(self, port: int) -> None:
        """Give a port up; its handler is not called any more."""


class EventChannels:
    """The event channels of this domain.

    Args:
        services: the kernel; the interrupt line is requested at once.
        xen: the hypervisor.

    Attributes:
        counters: `events`, `upcalls`, `unknown_port`, `send_failed`.
    """

    _bytes: Cells
    _words: Cells

    def __init__(self, services: Services, xen: XenPlatform) -> None:
        self._services = services
        self._xen = xen
        self._memory = services.platform.memory
        self._handlers: dict[int, Callable[[], None]] = {}
        self._irq = xen.irq
        self._closed = False
        self.counters: Counter[str] = Counter()
        self._reopen()
        self._memory.on_reopen(self._reopen)
        services.irqs.request(self._irq, self._upcall)

    def _reopen(self) -> None:
        """Fetch the views again: the hook of guest RAM changed."""
        self._bytes = self._memory.fields(self._xen.shared_info, _BYTES, "B")
        self._words = self._memory.fields(self._xen.shared_info, _BYTES, "Q")

    # -- ports ---------------------------------------------------------------------------------------------------

    def adopt(self, port: int, handler: Callable[[], None]) -> None:
        """Handle a port that is bound already, such as the store's."""
        self._handlers[port] = handler
        self._xen.evtchn_unmask(port)

    def open(self, domid: int, handler: Callable[[], None]) -> int:
        """As `EventPort.open`."""
        port = self._xen.evtchn_alloc_unbound(domid)
        if not 0 < port < abi.EVTCHN_2L_NR_CHANNELS:
            raise EventError(f"no event channel to domain {domid}: the hypervisor answered {port}")
        self.adopt(port, handler)
        return port

    def notify(self, port: int) -> None:
        """As `EventPort.notify`; a failure is counted, as nobody can act on it."""
        if self._xen.evtchn_send(port) < 0:
            self.counters["send_failed"] += 1

    def close(self, port: int) -> None:
        """As `EventPort.close`."""
        if self._handlers.pop(port, None) is not None:
            self._xen.evtchn_close(port)

    def clear(self, port: int) -> None:
        """Forget an event of `port` that has been seen to otherwise."""
        self._words[_PENDING + port // 64] &= ~(1 << port % 64)

    def forget(self) -> None:
        """After a resume: all ports are closed, and the shared page may be elsewhere."""
        self._handlers.clear()
        self._reopen()

    def release(self) -> None:
        """Close all ports and give the interrupt line back."""
        if not self._closed:
            self._closed = True
            for port in list(self._handlers):
                self.close(port)
            self._services.irqs.release(self._irq, self._upcall)

    # -- the upcall ----------------------------------------------------------------------------------------------

    def _upcall(self) -> bool:
        """The line is high; whether that was us. On another CPU each take would be an atomic exchange."""
        cells, words = self._bytes, self._words
        if not cells[_UPCALL]:
            return False
        cells[_UPCALL] = 0
        self.counters["upcalls"] += 1
        selected = words[_SEL]
        words[_SEL] = 0
        while selected:
            word = (selected & -selected).bit_length() - 1
            selected &= selected - 1
            ready = words[_PENDING + word] & ~words[_MASK + word]
            while ready:
                lowest = ready & -ready
                ready ^= lowest
                words[_PENDING + word] &= ~lowest
                self._event(64 * word + lowest.bit_length() - 1, lowest)
        return True

    def _event(self, port: int, bit: int) -> None:
        handler = self._handlers.get(port)
        if handler is None:
            self.counters["unknown_port"] += 1
            self._words[_MASK + port // 64] |= bit
            return
        self.counters["events"] += 1
        handler()
