"""What a back end needs of Xen: three doors, thin enough that a real control domain's devices can serve them.

`hw.xen.hypervisor` serves them with the simulated Xen; a program in a real dom0 can serve them with /dev/xen/gntdev,
/dev/xen/evtchn and /dev/xen/xenbus. A back end sees a foreign domain through these and in no other way.

Whatever a front end gets wrong comes out as `GrantError`, `EventError` or `StoreError`, or as a status; nothing else
is raised for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from hw.abi.xen_grant import STATUS_NAMES
from hw.memory import Direction, FieldView, Format


class GrantError(Exception):
    """A grant cannot be used; `status` is one of GNTST_*."""

    def __init__(self, status: int, what: str) -> None:
        super().__init__(f"{what}: {STATUS_NAMES.get(status, status)}")
        self.status = status


class EventError(Exception):
    """An event channel cannot be made or used."""


class StoreError(Exception):
    """The store refused; `name` is the error's name as the wire has it, such as "ENOENT"."""

    def __init__(self, name: str, what: str = "") -> None:
        super().__init__(f"{what}: {name}" if what else name)
        self.name = name


class GrantedPage(Protocol):
    """A page of another domain, mapped."""

    def fields(self, fmt: Format) -> FieldView:
        """The whole page as cells."""

    def span(self, offset: int, length: int, direction: Direction) -> memoryview:
        """Bytes of the page that are about to be read ("to-device") or written ("from-device")."""

    def on_reopen(self, reopen: Callable[[], None]) -> None:
        """Call the bound method `reopen` when views from `fields` must be fetched again."""

    def unmap(self) -> None:
        """Give the page back; harmless when that was done. Its views must not be used any more."""


class GrantCopy(NamedTuple):
    """One copy between a granted page and memory of the back end's own; within the page.

    Attributes:
        ref: the grant.
        offset: bytes from the start of the page.
        view: own memory; its length is the number of bytes.
        to_guest: into the page instead of out of it.
    """

    ref: int
    offset: int
    view: memoryview
    to_guest: bool


class GrantPort(Protocol):
    """Access to pages that other domains granted to this one."""

    def map(self, domid: int, ref: int) -> GrantedPage:
        """Map a page for reading and writing. Raises GrantError."""

    def copy(self, domid: int, copies: Sequence[GrantCopy]) -> list[int]:
        """Do the copies in order; for each its GNTST_* status."""


class EventPort(Protocol):
    """Event channels of this domain. A handler is called a turn after an event, once for all that came meanwhile."""

    def bind(self, domid: int, remote_port: int, handler: Callable[[], None]) -> int:
        """Join the port that another domain keeps for this one; the local port. Raises EventError.

        The handler is called once at the start, for what the other side may have sent before.
        """

    def notify(self, port: int) -> None:
        """Send an event to the other end. One that nobody is bound to is lost."""

    def unbind(self, port: int) -> None:
        """Close the channel; its handler is not called any more."""


class StorePort(Protocol):
    """The store, as one client of it."""

    def request(self, operation: int, payload: bytes) -> bytes:
        """One message and the payload of its answer. Raises StoreError."""

    def on_event(self, handler: Callable[[str, str], None]) -> None:
        """Call `handler(path, token)` for each watch event, never inside `request`."""
