"""Files: what a descriptor refers to, and how one learns that a file is ready.

A file is shared by all descriptors that `dup` made of one, and by every call that is under way on it; it is released
with the last of them. So closing a descriptor does not pull the file from under a call that is blocked on it, as on
Linux.

Whoever waits for a file puts a watcher on it; `notify` calls the watchers in the order in which they came.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TypeAlias

from guest.sys.constants import O_NONBLOCK, O_RDWR
from guest.sys.fault import fault

Watcher: TypeAlias = Callable[[], None]


class File(AbstractContextManager["File"]):
    """An open file. As a context manager it is held: it is not released before the end.

    Attributes:
        flags: the status flags of fcntl's F_GETFL.
        refs: descriptors and calls that hold it.
        serial: counts the notifications, for edge-triggered waits.
    """

    kind = "file"

    def __init__(self, flags: int = O_RDWR) -> None:
        self.flags = flags
        self.refs = 0
        self.serial = 0
        self._watchers: dict[Watcher, None] = {}

    # -- life ----------------------------------------------------------------------------------------------------

    def hold(self) -> None:
        """One more holder."""
        self.refs += 1

    def drop(self) -> None:
        """One holder less; the last one releases the file."""
        self.refs -= 1
        if self.refs == 0:
            self.release()
            self.notify()

    def __enter__(self) -> File:
        self.refs += 1
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.drop()

    def release(self) -> None:
        """Nobody holds it any more: give everything back."""

    # -- readiness -----------------------------------------------------------------------------------------------

    @property
    def nonblocking(self) -> bool:
        """Whether calls that would block fail with EAGAIN instead."""
        return bool(self.flags & O_NONBLOCK)

    def poll(self) -> int:
        """The POLL* events that are true now."""
        return 0

    def watch(self, watcher: Watcher, _events: int) -> None:
        """Call `watcher` after each change of the file's state, until `unwatch`; only what makes one of these POLL*
        events true has to be told.
        """
        self._watchers[watcher] = None

    def unwatch(self, watcher: Watcher) -> None:
        """Stop that; harmless when it was not there."""
        self._watchers.pop(watcher, None)

    def notify(self) -> None:
        """The file's state may have changed."""
        self.serial += 1
        for watcher in tuple(self._watchers):
            watcher()

    # -- data; what a kind of file cannot do is EINVAL, as on Linux -----------------------------------------------

    def read_into(self, _target: memoryview) -> int | None:
        """Read what is there, up to the size of `target`: its length, 0 at the end, None when it would block."""
        raise fault("EINVAL")

    def write(self, _source: memoryview) -> int | None:
        """Write what fits: how much that was, None when it would block."""
        raise fault("EINVAL")
