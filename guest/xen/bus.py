"""Xenbus: one device as two directories of the store, the front end's and the back end's, each with a state.

    device/vif/0                              ours: backend, backend-id, mac …, state
    /local/domain/0/backend/vif/1/0           the other end's

Promises:
- What the other end wrote is read as what it should be, or as absent: a state that is no state is Unknown.
- `changed` is called when the back end's directory or our `backend` key may have changed; several changes may be one
  call. It is called from deferred work, and not after `close`.

Read: Xen's public `io/xenbus.h`; `hw/abi/xen_bus.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from guest.xen.domain import Domain
from guest.xen.store import parse_number
from guest.xen.store_ring import StoreError
from hw.abi import xen_bus as abi
from hw.abi.xen import DOMID_FIRST_RESERVED


class BusDevice:
    """A front end's place on the bus.

    Args:
        xen: this domain.
        path: the front end's directory, relative to the domain's.
        changed: see above.

    Attributes:
        backend, backend_id: where the other end is, and in which domain; see `find_backend`.
        state: what this end last said it is in.
    """

    def __init__(self, xen: Domain, path: str, changed: Callable[[], None]) -> None:
        self.path = path
        self.backend = ""
        self.backend_id = 0
        self.state = abi.XenbusStateUnknown
        self._xen = xen
        self._store = xen.store
        self._changed = changed
        self._watches: list[tuple[str, str]] = []
        self._due = False
        self._closed = False

    def find_backend(self) -> bool:
        """Read where the back end is; whether it is elsewhere than before. Raises StoreError when that is not said."""
        path, store = self.path, self._store
        text = store.read(f"{path}/{abi.BACKEND_ID}")
        backend = store.read(f"{path}/{abi.BACKEND}")
        backend_id = parse_number(text, -1)
        if not 0 <= backend_id < DOMID_FIRST_RESERVED:
            raise StoreError(f"{path}/{abi.BACKEND_ID} is {text!r}")
        if not backend.startswith("/"):
            raise StoreError(f"{path}/{abi.BACKEND} is {backend!r}")
        moved = (backend, backend_id) != (self.backend, self.backend_id)
        self.backend, self.backend_id = backend, backend_id
        return moved

    def watch(self) -> None:
        """Watch both ends, instead of what was watched before. Raises StoreError."""
        self.unwatch()
        for path in (f"{self.backend}/{abi.STATE}", f"{self.backend}/{abi.CARRIER}", f"{self.path}/{abi.BACKEND}"):
            self._watches.append((path, self._store.watch(path, self._event)))

    def unwatch(self) -> None:
        """Watch nothing."""
        watches, self._watches = self._watches, []
        for path, token in watches:
            try:
                self._store.unwatch(path, token)
            except StoreError:
                pass  # it is not called back in any case

    def _event(self, _path: str) -> None:
        """Several watches fire for one change, and each when it is set: look once."""
        if not self._due:
            self._due = True
            self._xen.services.deferred.add(self._look)

    def _look(self) -> bool:
        self._due = False
        if not self._closed:
            self._changed()
        return False

    # -- values --------------------------------------------------------------------------------------------------

    def own(self, key: str, default: str = "") -> str:
        """A value in our directory, or `default`. Raises StoreError when the store is gone."""
        return self._store.get(f"{self.path}/{key}", default)

    def theirs(self, key: str, default: int) -> int:
        """A number in the back end's directory, or `default`. Raises StoreError when the store is gone."""
        return self._store.number(f"{self.backend}/{key}", default)

    def backend_state(self) -> int:
        """The back end's state. Raises StoreError when the store is gone."""
        state = self.theirs(abi.STATE, abi.XenbusStateUnknown)
        return state if state in abi.STATE_NAMES else abi.XenbusStateUnknown

    def switch(self, state: int, tx: int = 0) -> None:
        """Say that this end is in `state`. Raises StoreError."""
        self._store.write(f"{self.path}/{abi.STATE}", state, tx)
        self.state = state

    def error(self, text: str) -> None:
        """Leave `text` where people look for errors of this device."""
        try:
            self._store.write(f"error/{self.path}/{abi.ERROR}", text)
        except StoreError:
            pass  # the log has it too

    def resume(self) -> None:
        """After a resume no watch is set any more."""
        self._watches = []
        self.state = abi.XenbusStateUnknown

    def close(self) -> None:
        """Call back no more."""
        self._closed = True
        self.unwatch()
