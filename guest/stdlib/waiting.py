"""The functions and classes of a module `select`, over the descriptors of a guest.

Sockets, adopted descriptors of the host (`calls.adopt`) and epoll sets may stand in one wait. Times are the standard
library's: seconds, and milliseconds for `poll`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

from guest.stdlib.network import Network
from guest.sys import constants as c
from guest.sys.fault import fault

POLL_DEFAULT = c.POLLIN | c.POLLPRI | c.POLLOUT
SHORT = 0xFFFF  # events of poll(2) are 16 bits
FD_SETSIZE = 1024


def number_of(fileobj: Any) -> int:
    """The descriptor of a file object, or a descriptor itself. Raises TypeError, ValueError."""
    number = fileobj if isinstance(fileobj, int) else None
    if number is None:
        ask = getattr(fileobj, "fileno", None)
        if ask is None:
            raise TypeError("argument must be an int, or have a fileno() method.")
        number = ask()
        if not isinstance(number, int):
            raise TypeError("fileno() returned a non-integer")
    if number < 0:
        raise ValueError(f"file descriptor cannot be a negative integer ({number})")
    return number


def duration(timeout: float | None, unit: int) -> int | None:
    """A timeout in `unit` microseconds as microseconds, rounded up; None and, for `poll`, less than 0 are for ever."""
    if timeout is None:
        return None
    if not isinstance(timeout, (int, float)):
        raise TypeError("timeout must be a real number or None")
    return math.ceil(timeout * unit)


def select_lists(rlist: Iterable[Any], wlist: Iterable[Any], xlist: Iterable[Any]) -> list[list[tuple[Any, int]]]:
    """The objects that `select` was given, each with its descriptor. Raises TypeError, ValueError."""
    lists = []
    for given in (rlist, wlist, xlist):
        try:
            objects = list(given)
        except TypeError:
            raise TypeError("arguments 1-3 must be sequences") from None
        pairs = [(each, number_of(each)) for each in objects]
        if any(number >= FD_SETSIZE for _, number in pairs):
            raise ValueError("filedescriptor out of range in select()")
        lists.append(pairs)
    return lists


class Poll:
    """A `select.poll` object."""

    _network: Any  # () → the Network

    def __init__(self) -> None:
        self._calls = self._network().calls
        self._events: dict[int, int] = {}

    def register(self, fd: Any, eventmask: int = POLL_DEFAULT, /) -> None:
        """Wait for a descriptor too, or for other events of it."""
        self._events[number_of(fd)] = eventmask & SHORT

    def modify(self, fd: Any, eventmask: int, /) -> None:
        """Wait for other events of it. Raises OSError: ENOENT."""
        number = number_of(fd)
        if number not in self._events:
            raise fault("ENOENT")
        self._events[number] = eventmask & SHORT

    def unregister(self, fd: Any, /) -> None:
        """Leave it out. Raises KeyError."""
        del self._events[number_of(fd)]

    def poll(self, timeout: float | None = None, /) -> list[tuple[int, int]]:
        """Those that are ready, with their events; `timeout` is in milliseconds."""
        limit = duration(timeout, 1000)
        found: list[tuple[int, int]] = self._calls.poll(
            list(self._events.items()), None if limit is None or limit < 0 else limit
        )
        return found


class Epoll:
    """A `select.epoll` object."""

    _network: Any  # () → the Network

    def __init__(self, sizehint: int = -1, flags: int = 0) -> None:
        if sizehint < -1 or sizehint == 0:
            raise ValueError("negative sizehint")
        if flags & ~c.EPOLL_CLOEXEC:
            raise OSError("invalid flags")
        self._calls = self._network().calls
        self._fd: int = self._calls.epoll_create1(c.EPOLL_CLOEXEC)

    @classmethod
    def fromfd(cls, fd: int, /) -> Any:
        """An object for the descriptor of a set."""
        made = cls.__new__(cls)
        made._calls = cls._network().calls
        made._fd = fd
        return made

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._fd < 0

    def fileno(self) -> int:
        """Its descriptor. Raises ValueError when it is closed, as everything else here."""
        if self._fd < 0:
            raise ValueError("I/O operation on closed epoll object")
        return self._fd

    def close(self) -> None:
        """Give the descriptor back."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._calls.close(fd)

    def register(self, fd: Any, eventmask: int = POLL_DEFAULT) -> None:
        """Put a descriptor in. Raises OSError: EBADF, EEXIST, EINVAL, ELOOP."""
        self._calls.epoll_ctl(self.fileno(), c.EPOLL_CTL_ADD, number_of(fd), eventmask)

    def modify(self, fd: Any, eventmask: int) -> None:
        """Wait for other events of it. Raises OSError: EBADF, ENOENT."""
        self._calls.epoll_ctl(self.fileno(), c.EPOLL_CTL_MOD, number_of(fd), eventmask)

    def unregister(self, fd: Any) -> None:
        """Take it out. Raises OSError: EBADF, ENOENT."""
        self._calls.epoll_ctl(self.fileno(), c.EPOLL_CTL_DEL, number_of(fd))

    def poll(self, timeout: float | None = None, maxevents: int = -1) -> list[tuple[int, int]]:
        """Those that are ready, with their events; `timeout` is in seconds."""
        limit = duration(timeout, 1_000_000)
        if maxevents == -1:
            maxevents = FD_SETSIZE - 1
        elif maxevents <= 0:
            raise ValueError(f"maxevents must be greater than 0, got {maxevents}")
        found: list[tuple[int, int]] = self._calls.epoll_wait(
            self.fileno(), maxevents, None if limit is None or limit < 0 else limit
        )
        return found

    def __enter__(self) -> Any:
        self.fileno()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()


class SelectFunction:
    """`select.select`, as a method: what a class keeps of it is not bound once more."""

    def __init__(self, network: Callable[[], Network]) -> None:
        self._network = network

    def select(
        self, rlist: Iterable[Any], wlist: Iterable[Any], xlist: Iterable[Any], timeout: float | None = None, /
    ) -> tuple[list[Any], list[Any], list[Any]]:
        """Those of the objects that can be read, written, or have an exception; `timeout` is in seconds."""
        lists = select_lists(rlist, wlist, xlist)
        limit = duration(timeout, 1_000_000)
        if limit is not None and limit < 0:
            raise ValueError("timeout must be non-negative")
        sets = self._network().calls.select(*([number for _, number in pairs] for pairs in lists), limit)
        first, second, third = (
            [each for each, number in pairs if number in ready] for pairs, ready in zip(lists, sets, strict=True)
        )
        return first, second, third


def select_functions(module: str, network: Callable[[], Network]) -> dict[str, Any]:
    """`select`, `poll` and `epoll` for a network."""
    own = {"__module__": module, "_network": staticmethod(network)}
    return {
        "select": SelectFunction(network).select,
        "poll": type("poll", (Poll,), dict(own)),
        "epoll": type("epoll", (Epoll,), dict(own)),
    }
