"""One DNS query over TCP, for what did not fit a datagram: RFC 1035 §4.2.2, RFC 7766. Sans-I/O.

Each message has its length before it, in two bytes. A try has one connection for itself.

Promises:
- Whatever the server does, `on_done` is called once, at the latest when `wait` microseconds have passed, unless the try
  was cancelled: with the message, or with None and the reason.
- No more is kept than the message that its length says; what comes behind it is not read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from guest.net.dns_exchange import TIMEOUT, UNREACHABLE
from guest.net.dns_wire import PORT

if TYPE_CHECKING:
    from guest.net.tcp.endpoint import TcpEndpoint
    from guest.net.timer import Cancellable, Timers


Done: TypeAlias = Callable[["bytes | None", str], None]


class StreamTry:
    """A query on its way over a connection to port 53 of `server`.

    Args:
        end: a new end of the server's family.
        query: the message.
        on_done: told the reply and "", or None and TIMEOUT or UNREACHABLE.
        timers: where to wait. now: the time. wait: microseconds for everything.
    """

    def __init__(
        self, end: TcpEndpoint, server: int, query: bytes, on_done: Done, *, timers: Timers, now: Callable[[], int],
        wait: int,
    ) -> None:  # fmt: skip
        self._end = end
        self._on_done: Done | None = on_done
        self._now = now
        self._timers = timers
        self._unsent = memoryview(len(query).to_bytes(2, "big") + query)
        self._reply = bytearray()
        self._look_at: Cancellable | None = None
        self._deadline = timers.at(now() + wait, lambda: self._finish(None, TIMEOUT))
        self._look_soon()
        end.on_ready = self._look_soon
        end.connect(server, PORT)  # where that fails at once, so does the first write

    def cancel(self) -> None:
        """End it; `on_done` is not called. Harmless when it is over."""
        self._on_done = None
        self._let_go()

    def _look_soon(self) -> None:
        """Look from the kernel's turn: `on_ready` may be called in the middle of the connection's own work."""
        if self._look_at is None:
            self._look_at = self._timers.at(self._now(), self._look)

    def _look(self) -> None:
        self._look_at = None
        end = self._end
        if end.connecting:
            return
        while self._unsent:
            taken = end.write([self._unsent])
            if taken < 0:
                self._finish(None, UNREACHABLE)
            if taken <= 0:
                return
            self._unsent = self._unsent[taken:]
        self._receive()

    def _receive(self) -> None:
        reply = self._reply
        while True:
            size = 2 if len(reply) < 2 else 2 + int.from_bytes(reply[:2], "big")
            if 2 <= len(reply) == size:
                self._finish(bytes(reply[2:]), "")
                return
            more = self._end.read(size - len(reply))
            if more is None:
                return
            if isinstance(more, int) or not more:  # an error, or the end
                self._finish(None, UNREACHABLE)
                return
            reply += more

    def _finish(self, reply: bytes | None, error: str) -> None:
        on_done, self._on_done = self._on_done, None
        self._let_go()
        if on_done is not None:
            on_done(reply, error)

    def _let_go(self) -> None:
        self._deadline.cancel()
        if self._look_at is not None:
            self._look_at.cancel()
            self._look_at = None
        self._end.on_ready = None
        self._end.close()
