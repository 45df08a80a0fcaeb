"""The file behind an epoll descriptor: a set of files to wait for that is kept between waits. epoll(7).

An item is level-triggered unless EPOLLET is set: it is reported as long as it is ready. With EPOLLET it is reported
again only after something happened to its file; with EPOLLONESHOT once until it is modified. An item stands for a
descriptor and its file together, so it outlives the descriptor while another one refers to the file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from guest.sys.constants import EPOLLET, EPOLLEXCLUSIVE, EPOLLONESHOT, POLLERR, POLLHUP, POLLIN, POLLRDNORM
from guest.sys.fault import fault
from guest.sys.files import File

PRIVATE = EPOLLET | EPOLLONESHOT | EPOLLEXCLUSIVE  # bits that are no events
DEPTH = 5  # of sets within sets (EP_MAX_NESTS)

Key: TypeAlias = tuple[int, File]


class _Item:
    """One descriptor of a set."""

    __slots__ = ("events", "fd", "file", "told")

    def __init__(self, fd: int, file: File, events: int) -> None:
        self.fd = fd
        self.file = file
        self.events = events
        self.told: Callable[[], None]

    def ready(self) -> int:
        """Its events that are true now; none when EPOLLONESHOT has switched it off."""
        if not self.events & ~PRIVATE:
            return 0
        return self.file.poll() & (self.events | POLLERR | POLLHUP)


class EpollFile(File):
    """A set of descriptors to wait for."""

    kind = "epoll"

    def __init__(self) -> None:
        super().__init__()
        self._items: dict[Key, _Item] = {}
        self._ready: dict[_Item, None] = {}  # what may be ready, in the order in which it became so

    def __len__(self) -> int:
        return len(self._items)

    def release(self) -> None:
        for key in list(self._items):
            self._forget(key)

    def poll(self) -> int:
        for item in list(self._ready):
            if item.ready():
                return POLLIN | POLLRDNORM
            del self._ready[item]
        return 0

    # -- the set -------------------------------------------------------------------------------------------------

    def add(self, fd: int, file: File, events: int) -> None:
        """Put a descriptor in. Raises OSError: EEXIST, EINVAL (it is this set), ELOOP."""
        if file is self:
            raise fault("EINVAL")
        if (fd, file) in self._items:
            raise fault("EEXIST")
        if isinstance(file, EpollFile) and (file.holds(self) or file.depth() >= DEPTH):
            raise fault("ELOOP")
        item = self._items[fd, file] = _Item(fd, file, events | POLLERR | POLLHUP)
        item.told = lambda: self._happened(item)
        file.watch(item.told, events & ~PRIVATE)
        self._happened(item)

    def modify(self, fd: int, file: File, events: int) -> None:
        """Change the events of a descriptor. Raises OSError: ENOENT, EINVAL (EPOLLEXCLUSIVE)."""
        item = self._items.get((fd, file))
        if item is None:
            raise fault("ENOENT")
        if events & EPOLLEXCLUSIVE:
            raise fault("EINVAL")
        item.events = events | POLLERR | POLLHUP
        file.unwatch(item.told)
        file.watch(item.told, events & ~PRIVATE)
        self._happened(item)

    def remove(self, fd: int, file: File) -> None:
        """Take a descriptor out. Raises OSError: ENOENT."""
        if (fd, file) not in self._items:
            raise fault("ENOENT")
        self._forget((fd, file))

    def holds(self, other: EpollFile) -> bool:
        """Whether `other` is in this set, or in a set in it."""
        return any(
            file is other or (isinstance(file, EpollFile) and file.holds(other)) for _, file in self._items
        )

    def depth(self) -> int:
        """How many sets lie in each other, this one included."""
        return 1 + max((file.depth() for _, file in self._items if isinstance(file, EpollFile)), default=0)

    # -- what is ready -------------------------------------------------------------------------------------------

    def collect(self, most: int) -> list[tuple[int, int]]:
        """Up to `most` descriptors that are ready, with their events; those that are still ready go last next time."""
        found: list[tuple[int, int]] = []
        for item in list(self._ready):
            if len(found) >= most:
                break
            events = item.ready()
            del self._ready[item]
            if not events:
                continue
            found.append((item.fd, events))
            if item.events & EPOLLONESHOT:
                item.events &= PRIVATE
            elif not item.events & EPOLLET:
                self._ready[item] = None
        return found

    def _happened(self, item: _Item) -> None:
        """Something may have changed about an item."""
        if not item.file.refs:
            self._forget((item.fd, item.file))
            return
        if item.ready():
            self._ready[item] = None
            self.notify()

    def _forget(self, key: Key) -> None:
        item = self._items.pop(key)
        self._ready.pop(item, None)
        item.file.unwatch(item.told)
