"""Descriptors of the host, adopted: a guest may read, write and wait for a pipe, a terminal or a real socket.

They enter by an explicit `adopt` and by nothing else. The file works on a duplicate, so the caller's own descriptor
stays the caller's. Nothing here blocks: data is moved only after the host has said that it can be.

On the virtual clock there is no outside to wait for: whoever hands out `HostDescriptors` refuses with a clear error.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

from guest.sys.constants import POLLERR, POLLHUP, POLLIN, POLLOUT, POLLPRI, POLLRDHUP, POLLRDNORM, POLLWRNORM
from guest.sys.files import File, Watcher

PIPE_BUF = 4096  # a descriptor that is writable takes this much without blocking (pipe(7))
READ_EVENTS = POLLIN | POLLRDNORM | POLLPRI | POLLRDHUP
WRITE_EVENTS = POLLOUT | POLLWRNORM


class HostDescriptors(Protocol):
    """What the machine's loop offers for descriptors of the host; all in the home thread."""

    def check(self) -> None:
        """Raise RuntimeError, with the reason, where host descriptors cannot be waited for."""

    def ready(self, fd: int) -> int:
        """The POLL* events that are true now."""

    def set_reader(self, fd: int, callback: Callable[[], None] | None) -> None:
        """Call `callback` while `fd` is readable; None stops that."""

    def set_writer(self, fd: int, callback: Callable[[], None] | None) -> None:
        """Call `callback` while `fd` is writable; None stops that."""


class HostFile(File):
    """A descriptor of the host.

    The host is asked to tell of readiness only while the descriptor was last seen not to be ready; so one that nobody
    reads does not keep the loop busy. An edge-triggered wait therefore sees the next edge after a read or write that
    would have blocked.

    Args:
        host: see `HostDescriptors`.
        fd: stays the caller's.

    Raises OSError: EBADF.
    """

    kind = "host"

    def __init__(self, host: HostDescriptors, fd: int) -> None:
        super().__init__()
        self._host = host
        self._fd = os.dup(fd)
        self._interest: dict[Watcher, int] = {}
        self._reading = False
        self._writing = False

    def release(self) -> None:
        self._arm(0)
        os.close(self._fd)

    # -- readiness -----------------------------------------------------------------------------------------------

    def poll(self) -> int:
        events = self._host.ready(self._fd)
        self._arm(self._wanted() & ~events if not events & (POLLERR | POLLHUP) else 0)
        return events

    def watch(self, watcher: Watcher, events: int) -> None:
        super().watch(watcher, events)
        self._interest[watcher] = self._interest.get(watcher, 0) | events
        self.poll()

    def unwatch(self, watcher: Watcher) -> None:
        super().unwatch(watcher)
        if self._interest.pop(watcher, None) is not None and self.refs:
            wanted = self._wanted()
            self._arm((wanted & READ_EVENTS if self._reading else 0) | (wanted & WRITE_EVENTS if self._writing else 0))

    def _wanted(self) -> int:
        wanted = 0
        for events in self._interest.values():
            wanted |= events
        # An error or a hang-up is told of even if nobody asked for data.
        return wanted or (POLLIN if self._interest else 0)

    def _arm(self, events: int) -> None:
        reading, writing = bool(events & READ_EVENTS), bool(events & WRITE_EVENTS)
        if reading != self._reading:
            self._reading = reading
            self._host.set_reader(self._fd, self.notify if reading else None)
        if writing != self._writing:
            self._writing = writing
            self._host.set_writer(self._fd, self.notify if writing else None)

    # -- data ----------------------------------------------------------------------------------------------------

    def read_into(self, target: memoryview) -> int | None:
        if not self.poll() & (POLLIN | POLLHUP | POLLERR):
            return None
        try:
            return os.readv(self._fd, [target]) if len(target) else 0
        except BlockingIOError:
            return None

    def write(self, source: memoryview) -> int | None:
        if not self.poll() & (POLLOUT | POLLHUP | POLLERR):
            return None
        try:
            return os.write(self._fd, source[:PIPE_BUF] if os.get_blocking(self._fd) else source)
        except BlockingIOError:
            return None
