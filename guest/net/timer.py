"""What the services beside the stack (DHCP, the resolver) ask of a timer service; the kernel's has this shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Cancellable(Protocol):
    """A timer that was set."""

    def cancel(self) -> None:
        """Do not fire."""


class Timers(Protocol):
    """What is asked of the kernel's timer service."""

    def at(self, when: int, callback: Callable[[], None]) -> Cancellable:
        """Call `callback` once the time has reached `when`."""
