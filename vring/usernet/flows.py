"""A table of flows with a limit and a time: what UDP and pings have in common on the user wire.

A flow ends when nothing went through it for `idle`, or when its place is needed: then the one that has been silent
longest goes. Everything about its age costs O(1).
"""

from __future__ import annotations

import socket
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

from hw.clock import Timer
from hw.loop import Loop

Key = TypeVar("Key", bound=Hashable)
Thing = TypeVar("Thing")
BATCH = 64  # datagrams read from one socket in a turn


class Flow(Generic[Key, Thing]):
    """One flow.

    Attributes:
        key: under which it is found.
        thing: what it consists of.
        used: when something went through it last, microseconds.
        about: what went through it last, where its owner wants to know.
    """

    __slots__ = ("about", "key", "thing", "used")

    def __init__(self, key: Key, thing: Thing, used: int) -> None:
        self.key = key
        self.thing = thing
        self.used = used
        self.about: object = None


class FlowTable(Generic[Key, Thing]):
    """Flows by key.

    Args:
        loop: has the time.
        name: before the counters' names.
        most: flows at a time.
        idle: microseconds that a flow may be silent.
        counters: counts `…_flows`, `…_expired`, `…_evicted`.
        close: gives back what a flow consists of.
    """

    def __init__(
        self,
        loop: Loop,
        name: str,
        *,
        most: int,
        idle: int,
        counters: Counter[str],
        close: Callable[[Thing], None],
    ) -> None:
        self._clock = loop.clock
        self._name = name
        self._most = most
        self._idle = idle
        self._counters = counters
        self._close = close
        self._flows: OrderedDict[Key, Flow[Key, Thing]] = OrderedDict()  # that which was silent longest comes first
        self._timer: Timer | None = None

    def __len__(self) -> int:
        return len(self._flows)

    def __iter__(self) -> Iterator[Flow[Key, Thing]]:
        return iter(list(self._flows.values()))

    def find(self, key: Key) -> Flow[Key, Thing] | None:
        """The flow of a key, which is in use again; or None."""
        flow = self._flows.get(key)
        if flow is not None:
            self.use(flow)
        return flow

    def use(self, flow: Flow[Key, Thing]) -> None:
        """Something went through a flow. Harmless when it has ended."""
        if flow.key in self._flows:
            flow.used = self._clock.now()
            self._flows.move_to_end(flow.key)

    def add(self, key: Key, thing: Thing) -> Flow[Key, Thing]:
        """A new flow, which owns `thing`."""
        while len(self._flows) >= self._most:
            self._counters[f"{self._name}_evicted"] += 1
            self.end(next(iter(self._flows.values())))
        flow = self._flows[key] = Flow(key, thing, self._clock.now())
        self._counters[f"{self._name}_flows"] += 1
        if self._timer is None:
            self._timer = self._clock.after(self._idle, self._expire)
        return flow

    def _expire(self) -> None:
        now = self._clock.now()
        self._timer = None
        while self._flows:
            oldest = next(iter(self._flows.values()))
            if now - oldest.used < self._idle:
                self._timer = self._clock.at(oldest.used + self._idle, self._expire)
                return
            self._counters[f"{self._name}_expired"] += 1
            self.end(oldest)

    def end(self, flow: Flow[Key, Thing]) -> None:
        """End a flow. Harmless when it has ended."""
        if self._flows.get(flow.key) is flow:
            del self._flows[flow.key]
            self._close(flow.thing)

    def close(self) -> None:
        """End all."""
        for flow in self:
            self.end(flow)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def closer(loop: Loop) -> Callable[[socket.socket], None]:
    """How a socket of the host's is closed that `loop` watches."""

    def close(sock: socket.socket) -> None:
        loop.forget(sock.fileno())
        sock.close()

    return close
