"""The functions and classes of a module `select` over descriptors of the host, guest's sockets among them.

The host waits; a guest's socket stands in its sets as its mirror (mirror.py). What a mirror cannot show, exceptions,
RDHUP, or an error where neither data nor room was asked for, is waited for by a further descriptor, and which events
are reported comes from the socket itself.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterable
from functools import partial
from types import TracebackType
from typing import Any, Protocol

from guest.stdlib.waiting import POLL_DEFAULT, duration, number_of, select_lists
from guest.sys import constants as c
from vring.lookalike.mirror import Mirror, Mirrors

ALWAYS = c.POLLERR | c.POLLHUP | c.POLLNVAL
SHOWN = c.POLLIN | c.POLLOUT | c.POLLRDNORM | c.POLLWRNORM  # by the mirror itself
PRIVATE = c.EPOLLET | c.EPOLLONESHOT | c.EPOLLEXCLUSIVE
SECOND = 1_000_000


class Side(Protocol):
    """What is asked of vring.lookalike.host.HostSide."""

    @property
    def mirrors(self) -> Mirrors:
        """The mirrors of the guest's sockets."""

    @property
    def in_home_thread(self) -> bool:
        """Whether this thread runs the machine."""

    def call(self, function: Callable[[], Any]) -> Any:
        """Run `function` in the home thread."""


class _Watch:
    """A guest's socket in a set: what is waited for, and the further descriptors for that."""

    __slots__ = ("mask", "mirror", "signs")

    def __init__(self, side: Side, mirror: Mirror, mask: int) -> None:
        self.mirror = mirror
        self.mask = mask
        bits = [bit for bit in (c.POLLPRI, c.POLLRDHUP) if mask & bit]
        if not mask & SHOWN:
            bits.append(ALWAYS)
        self.signs: list[int] = []
        if bits or mask & c.EPOLLET:

            def prepare() -> None:
                mirror.edges = mirror.edges or bool(mask & c.EPOLLET)
                self.signs = [mirror.sign(each) for each in bits]

            side.call(prepare)

    def events(self) -> int:
        """What to report now."""
        return self.mirror.events & (self.mask | ALWAYS)


class _Set:
    """The guests' sockets among the descriptors of a set."""

    def __init__(self, side: Callable[[], Side | None]) -> None:
        self._side = side
        self._watches: dict[int, _Watch] = {}
        self._owners: dict[int, int] = {}  # a sign → the mirror that it is for

    def __bool__(self) -> bool:
        return bool(self._watches)

    def check(self, timeout: int | None) -> None:
        """Raise RuntimeError where waiting would stop the machine that is waited for."""
        side = self._side()
        if timeout != 0 and side is not None and side.in_home_thread:
            raise RuntimeError("a wait for descriptors of the host would stop the machine; guest.select does not")

    def add(self, number: int, mask: int) -> _Watch | None:
        """Note a descriptor; what it is if it mirrors a guest's socket."""
        self.remove(number)
        side = self._side()
        mirror = None if side is None else side.mirrors.at(number)
        if side is None or mirror is None:
            return None
        watch = self._watches[number] = _Watch(side, mirror, mask)
        self._owners.update(dict.fromkeys(watch.signs, number))
        return watch

    def remove(self, number: int) -> _Watch | None:
        """Forget a descriptor; what it was."""
        self._owners.pop(number, None)  # the sign of one that is gone may have had this number
        watch = self._watches.pop(number, None)
        for sign in watch.signs if watch is not None else ():
            self._owners.pop(sign, None)
        return watch

    def get(self, number: int) -> _Watch | None:
        """The guest's socket at a number."""
        return self._watches.get(number)

    def report(self, raw: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """What the host has found, in terms of the sockets."""
        found: dict[int, int] = {}
        for number, events in raw:
            owner = self._owners.get(number, number)
            watch = self._watches.get(owner)
            if watch is None or (owner == number and events & c.POLLNVAL):
                found[number] = events
            elif owner not in found:
                now = watch.events()
                if now:
                    found[owner] = now
        return list(found.items())


class _Deadline:
    """How much is left of a timeout in microseconds."""

    def __init__(self, timeout: int | None) -> None:
        self._timeout = timeout if timeout is None or timeout >= 0 else None
        self._end = 0 if self._timeout is None else time.monotonic_ns() // 1000 + self._timeout

    def left(self) -> int | None:
        """Microseconds, None for ever."""
        return None if self._timeout is None else max(0, self._end - time.monotonic_ns() // 1000)


class Poll:
    """A `select.poll` object."""

    _side: Any  # () → the Side, or None

    def __init__(self) -> None:
        self._host = select.poll()
        self._set = _Set(self._side)

    def register(self, fd: Any, eventmask: int = POLL_DEFAULT, /) -> None:
        """Wait for a descriptor too, or for other events of it."""
        number = number_of(fd)
        self._drop(self._set.remove(number))
        self._host.register(number, eventmask)
        watch = self._set.add(number, eventmask)
        for sign in watch.signs if watch is not None else ():
            self._host.register(sign, c.POLLIN)

    def modify(self, fd: Any, eventmask: int, /) -> None:
        """Wait for other events of it. Raises OSError: ENOENT."""
        number = number_of(fd)
        self._host.modify(number, eventmask)
        self.register(number, eventmask)

    def unregister(self, fd: Any, /) -> None:
        """Leave it out. Raises KeyError."""
        number = number_of(fd)
        self._host.unregister(number)
        self._drop(self._set.remove(number))

    def _drop(self, watch: _Watch | None) -> None:
        for sign in watch.signs if watch is not None else ():
            self._host.unregister(sign)

    def poll(self, timeout: float | None = None, /) -> list[tuple[int, int]]:
        """Those that are ready, with their events; `timeout` is in milliseconds."""
        limit = duration(timeout, 1000)
        self._set.check(limit)
        if not self._set:
            return self._host.poll(timeout)
        deadline = _Deadline(limit)
        while True:
            left = deadline.left()
            raw = self._host.poll(None if left is None else left / 1000)
            found = self._set.report(raw)
            if found or not raw or left == 0:
                return found


class Epoll:
    """A `select.epoll` object."""

    _side: Any  # () → the Side, or None

    def __init__(self, sizehint: int = -1, flags: int = 0) -> None:
        self._host = select.epoll(sizehint, flags)
        self._set = _Set(self._side)

    @classmethod
    def fromfd(cls, fd: int, /) -> Any:
        """An object for the descriptor of a set."""
        made = cls.__new__(cls)
        made._host = select.epoll.fromfd(fd)
        made._set = _Set(cls._side)
        return made

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._host.closed

    def fileno(self) -> int:
        """Its descriptor. Raises ValueError when it is closed, as everything else here."""
        return self._host.fileno()

    def close(self) -> None:
        """Give the descriptor back."""
        self._host.close()

    def register(self, fd: Any, eventmask: int = POLL_DEFAULT) -> None:
        """Put a descriptor in. Raises OSError: EBADF, EEXIST, EINVAL, ELOOP, EPERM."""
        number = number_of(fd)
        self._host.register(number, eventmask)
        self._add(number, eventmask)

    def modify(self, fd: Any, eventmask: int) -> None:
        """Wait for other events of it. Raises OSError: EBADF, ENOENT."""
        number = number_of(fd)
        self._host.modify(number, eventmask)
        self._drop(self._set.remove(number))
        self._add(number, eventmask)

    def unregister(self, fd: Any) -> None:
        """Take it out. Raises OSError: EBADF, ENOENT."""
        number = number_of(fd)
        self._drop(self._set.remove(number))
        self._host.unregister(number)

    def _add(self, number: int, mask: int) -> None:
        watch = self._set.add(number, mask)
        for sign in watch.signs if watch is not None else ():
            self._host.register(sign, c.POLLIN | mask & PRIVATE)

    def _drop(self, watch: _Watch | None) -> None:
        for sign in watch.signs if watch is not None else ():
            try:
                self._host.unregister(sign)
            except OSError:
                pass  # it went with its socket

    def poll(self, timeout: float | None = None, maxevents: int = -1) -> list[tuple[int, int]]:
        """Those that are ready, with their events; `timeout` is in seconds."""
        limit = duration(timeout, SECOND)
        self._set.check(limit)
        if not self._set:
            return self._host.poll(timeout, maxevents)
        deadline = _Deadline(limit)
        while True:
            left = deadline.left()
            raw = self._host.poll(None if left is None else left / SECOND, maxevents)
            found = self._set.report(raw)
            for number, _ in found:
                self._once(number)
            if found or not raw or left == 0:
                return found

    def _once(self, number: int) -> None:
        """EPOLLONESHOT: one report switches off all descriptors that stand for a socket."""
        watch = self._set.get(number)
        if watch is not None and watch.mask & c.EPOLLONESHOT and watch.signs:
            for each in (number, *watch.signs):
                self._host.modify(each, watch.mask & c.EPOLLET)  # hang-ups alone, which signs do not have
            watch.mask &= PRIVATE

    def __enter__(self) -> Any:
        self._host.__enter__()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()


class _Sign:
    """What stands for a socket's exceptions among the readers of `select`."""

    def __init__(self, number: int, fileobj: Any) -> None:
        self._number = number
        self.fileobj = fileobj

    def fileno(self) -> int:
        """The descriptor."""
        return self._number


class SelectFunction:
    """`select.select`, as a method: what a class keeps of it is not bound once more."""

    def __init__(self, side: Callable[[], Side | None]) -> None:
        self._side = side
        self._set = _Set(side)

    def select(
        self, rlist: Iterable[Any], wlist: Iterable[Any], xlist: Iterable[Any], timeout: float | None = None, /
    ) -> tuple[list[Any], list[Any], list[Any]]:
        """Those of the objects that can be read, written, or have an exception; `timeout` is in seconds."""
        self._set.check(duration(timeout, SECOND))
        here = self._side()
        if here is None or not xlist:
            return select.select(rlist, wlist, xlist, timeout)
        lists = select_lists(rlist, wlist, xlist)
        readers: list[Any] = [each for each, _ in lists[0]]
        others: list[Any] = []
        for each, number in lists[2]:
            mirror = here.mirrors.at(number)
            if mirror is None:
                others.append(each)
            else:
                readers.append(_Sign(here.call(partial(mirror.sign, c.POLLPRI)), each))
        ready, writable, exceptions = select.select(readers, [each for each, _ in lists[1]], others, timeout)
        exceptions += [each.fileobj for each in ready if isinstance(each, _Sign)]
        return [each for each in ready if not isinstance(each, _Sign)], writable, exceptions


def select_functions(module: str, side: Callable[[], Side | None]) -> dict[str, Any]:
    """`select`, `poll` and `epoll`.

    Args:
        module: what the classes call their module.
        side: the host's side of the guest whose sockets may come; None where there is no guest yet.
    """
    own = {"__module__": module, "_side": staticmethod(side)}
    return {
        "select": SelectFunction(side).select,
        "poll": type("poll", (Poll,), dict(own)),
        "epoll": type("epoll", (Epoll,), dict(own)),
    }
