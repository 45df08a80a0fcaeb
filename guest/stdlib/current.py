"""Which guest the running program belongs to: a guest process carries its own."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guest.stdlib.network import Network

# Set by the kernel at the start of each process; a greenlet has a context of its own, and so has every other thread.
# A function, because most programs never ask.
CURRENT: ContextVar[Callable[[], Network]] = ContextVar("guest.network")


def current() -> Network:
    """The network of the guest whose process this is. Raises RuntimeError elsewhere."""
    try:
        network = CURRENT.get()
    except LookupError:
        raise RuntimeError(
            "there is no current guest: guest.socket and guest.select are for programs that run in a guest; outside "
            "use machine.guest.socket, or vring.socket"
        ) from None
    return network()
