"""This domain: its grants, events and store, as drivers are handed them, and suspend and resume.

    xen = Domain.of(services)       on Xen; a test can make one over other ports
    xen.grants  xen.events  xen.store

Promises:
- Watches call back from deferred work, one batch a turn.
- A suspend asked for in the store (`control/shutdown`) is done in deferred work; when the domain runs again, grants,
  events and store are as at boot, and then each device in `devices` is told.

Read: Xen's docs/misc/xenstore-paths.pandoc (~/control/shutdown).
"""

from __future__ import annotations

from typing import Protocol

from guest.platform import XenPlatform
from guest.services import Services
from guest.xen.events import EventChannels, EventPort
from guest.xen.grants import GrantPort, GrantTable
from guest.xen.store import Store
from guest.xen.store_ring import RingPort, StoreError

SHUTDOWN_PATH = "control/shutdown"


class Resumable(Protocol):
    """A device that lives across a suspend."""

    def resume(self) -> None:
        """All grants, event channels and watches are gone; start again."""


class Domain:
    """What drivers of Xen's devices use.

    Args:
        services: the kernel.
        grants, events, store: of this domain.

    Attributes:
        devices: told of a resume, in order.
    """

    def __init__(self, services: Services, grants: GrantPort, events: EventPort, store: Store) -> None:
        self.services = services
        self.grants = grants
        self.events = events
        self.store = store
        self.devices: list[Resumable] = []

    @staticmethod
    def of(services: Services) -> NativeDomain | None:
        """The domain that the guest is, or None when it is not on Xen."""
        xen = services.platform.xen
        return None if xen is None else NativeDomain(services, xen)

    @property
    def domid(self) -> int:
        """This domain's number; -1 where nobody says."""
        return -1

    def close(self) -> None:
        """Give everything back."""

    def leaks(self) -> list[str]:
        """What others still hold of ours, one line each."""
        return []


class NativeDomain(Domain):
    """The domain that the guest is, over the hypervisor's own table, bits and ring page."""

    grants: GrantTable
    events: EventChannels

    def __init__(self, services: Services, xen: XenPlatform) -> None:
        memory = services.platform.memory
        self._xen = xen
        self._dispatching = False
        events = EventChannels(services, xen)
        self._port = RingPort(memory, xen, events)
        grants = GrantTable(memory, xen.grant_frames, services.timers)
        super().__init__(services, grants, events, Store(self._port, self._schedule))
        self._listen()

    def _listen(self) -> None:
        self.events.adopt(self._xen.store_port, self._schedule)
        try:
            self.store.watch(SHUTDOWN_PATH, self._control)
        except StoreError as error:
            self.services.log(f"xen: {error}")

    def _schedule(self) -> None:
        if not self._dispatching:
            self._dispatching = True
            self.services.deferred.add(self._dispatch)

    def _dispatch(self) -> bool:
        self._dispatching = False
        try:
            self.store.dispatch()
        except StoreError as error:
            self.services.log(f"xen: {error}")
        return False

    def _control(self, _path: str) -> None:
        """`control/shutdown` may have changed."""
        store, log = self.store, self.services.log
        try:
            if store.get(SHUTDOWN_PATH) != "suspend":
                return
            store.write(SHUTDOWN_PATH, "")  # taken
        except StoreError as error:
            log(f"xen: suspend: {error}")
            return
        self.suspend()

    @property
    def domid(self) -> int:
        """This domain's number."""
        return self._xen.domid

    def leaks(self) -> list[str]:
        """What others still hold of ours, one line each."""
        count = self.grants.granted
        return [f"{count} pages are still granted to other domains"] if count else []

    def suspend(self) -> None:
        """Stop until the domain is resumed, and start again everything that did not last."""
        log = self.services.log
        log("xen: suspending")
        if not self._xen.suspend():
            log("xen: the suspend was cancelled")
            return
        self.events.forget()
        self.grants.reset(self._xen.grant_frames)
        self._port.restart()
        self.store.restart()
        self._listen()
        log(f"xen: resumed as domain {self._xen.domid}")
        for device in self.devices:
            device.resume()

    def close(self) -> None:
        """End watches, event channels and what can be ended of quarantined grants."""
        self.store.restart()
        self.grants.close()
        self.events.release()
