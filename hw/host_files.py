"""Descriptors of the host for whoever runs in the loop: whether they are ready now, and to be told when they are.

A guest that adopts descriptors (pipes, terminals, real sockets) waits for them through this and through nothing else.
The loop has to run on the real clock: on the virtual one there is no outside to wait for.
"""

from __future__ import annotations

import select
from collections.abc import Callable

from hw.loop import Loop


class HostFiles:
    """The host's descriptors, as a loop sees them."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def check(self) -> None:
        """Raise RuntimeError, with the reason, where host descriptors cannot be waited for."""
        if self._loop.clock.virtual:
            raise RuntimeError("a host descriptor cannot be waited for on the virtual clock; use --clock real")

    def ready(self, fd: int) -> int:
        """The POLL* events that are true now; POLLNVAL when `fd` is not open."""
        poll = select.poll()
        poll.register(fd, select.POLLIN | select.POLLPRI | select.POLLOUT | select.POLLRDHUP)
        found = poll.poll(0)
        return found[0][1] if found else 0

    def set_reader(self, fd: int, callback: Callable[[], None] | None) -> None:
        """Call `callback` while `fd` is readable; None stops that. Raises as `Loop.set_reader`."""
        self._loop.set_reader(fd, callback)

    def set_writer(self, fd: int, callback: Callable[[], None] | None) -> None:
        """Call `callback` while `fd` is writable; None stops that. Raises as `Loop.set_reader`."""
        self._loop.set_writer(fd, callback)
