"""The back end's side of xenbus: the states of a device's two ends, and what each change of the other's means.

Promises:
- Every order of the front end's states ends somewhere: the back end never waits for one that may not come. A state
  that cannot be, or a value that is garbage, closes the device with a text in its error node.
- `disconnect` is called once for each `connect`, also for one that failed half-way, and before the state that says so.
- A front end may begin anew at any time by writing Initialising; the back end drops what it had and waits again.

Read first: Xen's public `io/xenbus.h`, `hw/abi/xen_bus.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter

from hw.abi import xen_bus as bus
from hw.xen.ports import EventError, GrantError, StoreError
from hw.xen.ring import RingError
from hw.xen.store_client import StoreAccess


class XenbusBackend(ABC):
    """One device's back end. Subclasses fill in `connect` and `disconnect`.

    Args:
        store: the store, as the domain of the back end.
        frontend, backend: paths of the two ends.
        error_path: where `error` is written.

    Attributes:
        state: the own state, as written last.
        error: what went wrong last, for people.
        counters: what the device did and dropped, with reasons.
    """

    def __init__(self, store: StoreAccess, frontend: str, backend: str, error_path: str) -> None:
        self.store = store
        self.frontend = frontend
        self.backend = backend
        self.error = ""
        self.counters: Counter[str] = Counter()
        self.state = bus.XenbusStateUnknown
        self._error_path = error_path
        self._attached = False
        self._token = ""

    # -- for subclasses ----------------------------------------------------------------------------------------------

    @abstractmethod
    def connect(self) -> None:
        """The front end is ready: read its keys and attach. Raises StoreError, GrantError, EventError, RingError."""

    @abstractmethod
    def disconnect(self) -> None:
        """Let go of everything of the front end's; harmless where nothing was attached."""

    def fail(self, reason: str) -> None:
        """The front end broke a rule: detach from it, say why, close. It may begin anew."""
        self.error = reason
        self.counters["failures"] += 1
        self._detach()
        try:
            self.store.write(f"{self._error_path}/{bus.ERROR}", reason)
        except StoreError:
            self.counters["error_node_failed"] += 1
        self._set_state(bus.XenbusStateClosing)
        self._set_state(bus.XenbusStateClosed)

    # -- states --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to wait for a front end."""
        self._set_state(bus.XenbusStateInitWait)
        self._token = self.store.watch(f"{self.frontend}/{bus.STATE}", self._changed)

    def stop(self) -> None:
        """The device is taken away; harmless when it was."""
        if self._token:
            self.store.unwatch(f"{self.frontend}/{bus.STATE}", self._token)
            self._token = ""
            self._detach()
            self._set_state(bus.XenbusStateClosed)

    def restart(self) -> None:
        """The guest was resumed elsewhere: forget the old front end, wait for the next as a new device."""
        self._detach()
        self._set_state(bus.XenbusStateInitWait)

    def _set_state(self, state: int) -> None:
        if state != self.state:
            self.state = state
            self.counters[f"state_{bus.STATE_NAMES[state]}"] += 1
            self.store.write(f"{self.backend}/{bus.STATE}", state)

    def _detach(self) -> None:
        if self._attached:
            self._attached = False
            self.disconnect()

    def _changed(self, path: str) -> None:
        """The front end's state may have changed."""
        try:
            state = self.store.number(f"{self.frontend}/{bus.STATE}", bus.XenbusStateUnknown)
        except StoreError as error:
            self.fail(f"reading the front end's state: {error}")
            return
        if state == bus.XenbusStateInitialising:
            if self.state != bus.XenbusStateInitWait:
                self._detach()
                self._set_state(bus.XenbusStateInitWait)
        elif state in (bus.XenbusStateInitialised, bus.XenbusStateConnected):
            if self.state == bus.XenbusStateInitWait:
                self._connect()
        elif state == bus.XenbusStateClosing:
            self._detach()
            if self.state != bus.XenbusStateClosed:
                self._set_state(bus.XenbusStateClosing)
        elif state in (bus.XenbusStateClosed, bus.XenbusStateUnknown):
            self._detach()
            self._set_state(bus.XenbusStateClosed)
        elif state not in bus.STATE_NAMES:
            self.fail(f"the front end's state is {state}")

    def _connect(self) -> None:
        self._attached = True
        try:
            self.connect()
        except (StoreError, GrantError, EventError, RingError) as error:
            self.fail(f"connecting: {error}")
            return
        if self._attached:  # it may have failed with its first look at the rings
            self._set_state(bus.XenbusStateConnected)
