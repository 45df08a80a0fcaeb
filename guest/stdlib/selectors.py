"""A selector as the standard library's `selectors` has them, over an `epoll` of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, NamedTuple

from guest.stdlib.waiting import number_of
from guest.sys.constants import POLLIN, POLLOUT

EVENT_READ = 1
EVENT_WRITE = 2


class SelectorKey(NamedTuple):
    """A file object of a selector, its descriptor, what is waited for, and what its owner wants to know then."""

    fileobj: Any
    fd: int
    events: int
    data: Any


class _Map(Mapping[Any, SelectorKey]):
    """File objects and descriptors → keys."""

    def __init__(self, selector: Selector) -> None:
        self._selector = selector

    def __len__(self) -> int:
        return len(self._selector._keys)

    def __iter__(self) -> Iterator[Any]:
        return iter([key.fileobj for key in self._selector._keys.values()])

    def __getitem__(self, fileobj: Any) -> SelectorKey:
        return self._selector._find(fileobj)


class Selector:
    """Waits for file objects to be readable or writable."""

    _epoll: Any  # the class of the set

    def __init__(self) -> None:
        self._set = self._epoll()
        self._keys: dict[int, SelectorKey] = {}
        self._map: _Map | None = _Map(self)

    def _find(self, fileobj: Any) -> SelectorKey:
        """The key of a file object, also of one that is closed by now. Raises KeyError."""
        try:
            number = number_of(fileobj)
        except ValueError:
            number = next((key.fd for key in self._keys.values() if key.fileobj is fileobj), -1)
        if number not in self._keys:
            raise KeyError(f"{fileobj!r} is not registered")
        return self._keys[number]

    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        """Wait for a file object too. Raises ValueError, KeyError (it is there), OSError."""
        if not events or events & ~(EVENT_READ | EVENT_WRITE):
            raise ValueError(f"Invalid events: {events!r}")
        number = number_of(fileobj)
        if number in self._keys:
            raise KeyError(f"{fileobj!r} (FD {number}) is already registered")
        self._set.register(number, _events(events))
        key = self._keys[number] = SelectorKey(fileobj, number, events, data)
        return key

    def unregister(self, fileobj: Any) -> SelectorKey:
        """Leave it out. Raises KeyError."""
        key = self._find(fileobj)
        del self._keys[key.fd]
        try:
            self._set.unregister(key.fd)
        except OSError:
            pass  # it was closed meanwhile, which has taken it out
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        """Wait for other events of it, or tell its owner something else. Raises ValueError, KeyError."""
        key = self._find(fileobj)
        if not events or events & ~(EVENT_READ | EVENT_WRITE):
            raise ValueError(f"Invalid events: {events!r}")
        if events != key.events:
            self._set.modify(key.fd, _events(events))
        key = self._keys[key.fd] = key._replace(events=events, data=data)
        return key

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """The keys that are ready, with their events; `timeout` is in seconds, and less than 0 does not wait."""
        found = self._set.poll(None if timeout is None else max(0, timeout), max(1, len(self._keys)))
        ready = []
        for number, events in found:
            key = self._keys.get(number)
            if key is not None:
                told = (EVENT_WRITE if events & ~POLLIN else 0) | (EVENT_READ if events & ~POLLOUT else 0)
                ready.append((key, told & key.events))
        return ready

    def fileno(self) -> int:
        """The descriptor of the set."""
        number: int = self._set.fileno()
        return number

    def close(self) -> None:
        """Give it back."""
        self._keys.clear()
        self._map = None
        self._set.close()

    def get_key(self, fileobj: Any) -> SelectorKey:
        """The key of a file object. Raises KeyError, RuntimeError (the selector is closed)."""
        if self._map is None:
            raise RuntimeError("Selector is closed")
        return self._find(fileobj)

    def get_map(self) -> Mapping[Any, SelectorKey] | None:
        """All keys by file object; None when the selector is closed."""
        return self._map

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()


def _events(events: int) -> int:
    return (POLLIN if events & EVENT_READ else 0) | (POLLOUT if events & EVENT_WRITE else 0)
