"""System calls that wait for several descriptors: poll(2), select(2), ppoll, pselect, epoll(7).

Sockets of the guest, adopted descriptors of the host and epoll sets may stand in one call. Times are microseconds;
None is for ever, 0 only looks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import TypeAlias

from guest.sys import constants as c
from guest.sys.core import Core
from guest.sys.epoll import EpollFile
from guest.sys.fault import fault
from guest.sys.files import File

READ_SET = c.POLLRDNORM | c.POLLRDBAND | c.POLLIN | c.POLLHUP | c.POLLERR
WRITE_SET = c.POLLWRBAND | c.POLLWRNORM | c.POLLOUT | c.POLLERR
EXCEPT_SET = c.POLLPRI
FD_SETSIZE = 1024
ALWAYS = c.POLLERR | c.POLLHUP

Found: TypeAlias = list[tuple[int, int]]
Sets: TypeAlias = tuple[list[int], list[int], list[int]]


class _Once:
    """A watcher that calls `callback` when one of `events` is so, and is gone. Two of one callback are equal."""

    __slots__ = ("callback", "events", "file")

    def __init__(self, file: File, events: int, callback: Callable[[], None]) -> None:
        self.file = file
        self.events = events
        self.callback = callback

    def __call__(self) -> None:
        if not self.file.refs:
            self.file.unwatch(self)
        elif self.file.poll() & self.events:
            self.file.unwatch(self)
            self.callback()

    def __hash__(self) -> int:
        return hash(self.callback)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Once) and self.callback == other.callback


class PollCalls(Core):
    """Calls that wait, or have somebody told."""

    def poll(self, fds: Iterable[tuple[int, int]], timeout: int | None = None) -> Found:
        """Wait until one of `fds`, (descriptor, POLL* events) each, is ready; those that are, with their events.

        A descriptor that is not open gives POLLNVAL; a negative one is passed over. Raises OSError: EINTR.
        """
        return self.ppoll(fds, timeout)

    def ppoll(
        self, fds: Iterable[tuple[int, int]], timeout: int | None = None, sigmask: Iterable[int] | None = None
    ) -> Found:
        """The same, with another signal mask while it waits; None leaves the mask."""
        entries: list[tuple[int, int, File | None]] = []
        for fd, events in fds:
            if fd >= 0:
                entries.append((fd, events, self.fds.file(fd) if fd in self.fds else None))

        def look() -> Found:
            found = []
            for fd, events, file in entries:
                happened = c.POLLNVAL if file is None else file.poll() & (events | ALWAYS)
                if happened:
                    found.append((fd, happened))
            return found

        return self._look(look, timeout, [(file, events) for _, events, file in entries if file], sigmask)

    def select(
        self, readers: Iterable[int], writers: Iterable[int], others: Iterable[int], timeout: int | None = None
    ) -> Sets:
        """Wait until a descriptor can be read, written or has an exception; the three lists of those.

        Raises OSError: EBADF, EINTR. Raises ValueError for a descriptor outside 0 to 1023.
        """
        return self.pselect(readers, writers, others, timeout)

    def pselect(
        self,
        readers: Iterable[int],
        writers: Iterable[int],
        others: Iterable[int],
        timeout: int | None = None,
        sigmask: Iterable[int] | None = None,
    ) -> Sets:
        """The same, with another signal mask while it waits; None leaves the mask."""
        kinds = ((READ_SET, c.POLLIN), (WRITE_SET, c.POLLOUT), (EXCEPT_SET, c.POLLPRI))
        entries: list[tuple[int, int, File]] = []
        watched: list[tuple[File, int]] = []
        for place, fds in enumerate((readers, writers, others)):
            for fd in fds:
                if not 0 <= fd < FD_SETSIZE:
                    raise ValueError("filedescriptor out of range in select()")
                file = self.fds.file(fd)
                entries.append((place, fd, file))
                watched.append((file, kinds[place][1]))

        def look() -> Found:
            return [(place, fd) for place, fd, file in entries if file.poll() & kinds[place][0]]

        sets: Sets = ([], [], [])
        for place, fd in self._look(look, timeout, watched, sigmask):
            sets[place].append(fd)
        return sets

    def _look(
        self,
        look: Callable[[], Found],
        timeout: int | None,
        files: Sequence[tuple[File, int]],
        sigmask: Iterable[int] | None = None,
    ) -> Found:
        """What `look` finds, as soon as that is anything."""
        found: Found = []

        def ready() -> bool:
            if not found:  # whoever waits may ask again after a yes, and an edge is seen once
                found.extend(look())
            return bool(found)

        for file, _ in files:
            file.hold()
        try:
            with self._waits.masked(sigmask):
                self._waits.until(ready, timeout, files)
        finally:
            for file, _ in files:
                file.drop()
        return found

    def sigmask(self, how: int, mask: Iterable[int]) -> frozenset[int]:
        """Change the signal mask of the current process (SIG_BLOCK, SIG_UNBLOCK, SIG_SETMASK); the one before."""
        return self._waits.sigmask(how, mask)

    # -- without waiting -----------------------------------------------------------------------------------------

    def poll_subscribe(self, fd: int, events: int, callback: Callable[[], None]) -> int:
        """Those of the POLL* `events` that are so now; where none is, `callback()` will be called once, when one is.

        A second subscription of the same callback takes the first one's place. A descriptor that is closed takes its
        subscriptions with it. The callback runs in the guest's own thread and must not block. Raises OSError: EBADF.
        """
        file = self.fds.file(fd)
        once = _Once(file, events | ALWAYS, callback)
        file.unwatch(once)
        found = file.poll() & once.events
        if not found:
            file.watch(once, events)
        return found

    def poll_unsubscribe(self, fd: int, events: int, callback: Callable[[], None]) -> int:
        """Take a subscription back; those of the events that are so now. Raises OSError: EBADF."""
        file = self.fds.file(fd)
        file.unwatch(_Once(file, events, callback))
        return file.poll() & (events | ALWAYS)

    # -- epoll ---------------------------------------------------------------------------------------------------

    def epoll(self, flags: int = 0) -> Epoll:
        """A new epoll set, as an object. Raises OSError: EINVAL, EMFILE."""
        return Epoll(self, self.epoll_create1(flags))

    def epoll_create1(self, flags: int = 0) -> int:
        """A descriptor for a new epoll set; `flags`: EPOLL_CLOEXEC. Raises OSError: EINVAL, EMFILE."""
        if flags & ~c.EPOLL_CLOEXEC:
            raise fault("EINVAL")
        return self.fds.install(EpollFile(), cloexec=bool(flags))

    def epoll_ctl(self, epfd: int, operation: int, fd: int, events: int = 0) -> None:
        """EPOLL_CTL_ADD, EPOLL_CTL_MOD or EPOLL_CTL_DEL. Raises OSError: EBADF, EINVAL, EEXIST, ENOENT, ELOOP."""
        epoll = self.fds.file(epfd)
        file = self.fds.file(fd)
        if not isinstance(epoll, EpollFile) or epoll is file:
            raise fault("EINVAL")
        if operation == c.EPOLL_CTL_ADD:
            epoll.add(fd, file, events)
        elif operation == c.EPOLL_CTL_MOD:
            epoll.modify(fd, file, events)
        elif operation == c.EPOLL_CTL_DEL:
            epoll.remove(fd, file)
        else:
            raise fault("EINVAL")

    def epoll_wait(
        self, epfd: int, most: int, timeout: int | None = None, sigmask: Iterable[int] | None = None
    ) -> Found:
        """Wait until something in the set is ready: up to `most` descriptors with their events.

        Raises OSError: EBADF, EINVAL, EINTR.
        """
        epoll = self.fds.file(epfd)
        if not isinstance(epoll, EpollFile) or most <= 0:
            raise fault("EINVAL")
        return self._look(lambda: epoll.collect(most), timeout, [(epoll, c.POLLIN)], sigmask)


class Epoll:
    """An epoll set as an object, with the methods of the standard library's `select.epoll`; times are microseconds."""

    def __init__(self, calls: PollCalls, fd: int) -> None:
        self._calls = calls
        self._fd = fd

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._fd < 0

    def fileno(self) -> int:
        """Its descriptor. Raises ValueError when it is closed, as everything else here."""
        if self._fd < 0:
            raise ValueError("I/O operation on closed epoll object")
        return self._fd

    def close(self) -> None:
        """Give the descriptor back; harmless when done before."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._calls.fds.close(fd)

    def register(self, fd: int, eventmask: int = c.POLLIN | c.POLLPRI | c.POLLOUT) -> None:
        """Put `fd` into the set. Raises OSError: EBADF, EEXIST, EINVAL, ELOOP."""
        self._calls.epoll_ctl(self.fileno(), c.EPOLL_CTL_ADD, fd, eventmask)

    def modify(self, fd: int, eventmask: int) -> None:
        """Change the events of `fd`. Raises OSError: EBADF, ENOENT."""
        self._calls.epoll_ctl(self.fileno(), c.EPOLL_CTL_MOD, fd, eventmask)

    def unregister(self, fd: int) -> None:
        """Take `fd` out of the set. Raises OSError: EBADF, ENOENT."""
        self._calls.epoll_ctl(self.fileno(), c.EPOLL_CTL_DEL, fd)

    def poll(self, timeout: int | None = None, maxevents: int = -1) -> Found:
        """Wait until something is ready. Raises OSError: EINTR, EINVAL."""
        return self._calls.epoll_wait(self.fileno(), FD_SETSIZE - 1 if maxevents == -1 else maxevents, timeout)

    def __enter__(self) -> Epoll:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()
