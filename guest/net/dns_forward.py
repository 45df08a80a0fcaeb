"""Hands DNS queries on to another server, for a `DnsServer`. Sans-I/O; over UDP.

    query ─→ new port, new identification ─→ server ─ nothing in `wait` ─→ again, waiting twice as long ─→ None

Each try has a port and an identification of its own, so that a forger has to guess both anew (RFC 5452 §4.5). At most
`PENDING` queries are under way; one more hears None at once. An answer that was cut to fit a datagram is passed on as
it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from guest.net.address import is_v4, to_address
from guest.net.config import SECOND
from guest.net.dns_server import HEADER_SIZE, Answer
from guest.net.dns_wire import PORT
from guest.net.stack import Stack
from guest.net.timer import Cancellable, Timers
from guest.net.udp import UdpEndpoint

PENDING = 256
IGNORED = 64  # datagrams that are no answer before a try counts as failed


class DnsForwarder:
    """Asks `servers`, in turn; an instance is a `guest.net.dns_server.Forward`.

    Args:
        stack: whose ports are used.
        servers: addresses of name servers, at least one.
        timers: to wait with.
        wait: for an answer in the first round over the servers, microseconds; each further round waits twice as long.
        rounds: how often every server is asked.

    Attributes:
        counters: `queries`, `answers`, `tries`, `timeouts`, `rx_dropped_answer`, `refused_busy`.

    Raises AddressError, ValueError.
    """

    def __init__(
        self,
        stack: Stack,
        servers: Sequence[str | int],
        *,
        timers: Timers,
        wait: int = SECOND,
        rounds: int = 3,
    ) -> None:
        self.servers = [to_address(server) for server in servers]
        if not self.servers:
            raise ValueError("a forwarder needs a server")
        self.wait = wait
        self.rounds = rounds
        self.counters: Counter[str] = Counter()
        self.stack = stack
        self.timers = timers
        self.pending: set[_Query] = set()

    def __call__(self, raw: bytes, answer: Answer) -> None:
        """Ask; `answer` is called with what came, or None."""
        if len(self.pending) >= PENDING or len(raw) < HEADER_SIZE:
            self.counters["refused_busy"] += 1
            answer(None)
            return
        self.counters["queries"] += 1
        query = _Query(self, raw, answer)
        self.pending.add(query)
        query.ask()

    def close(self) -> None:
        """Forget what is under way; nobody is told."""
        for query in list(self.pending):
            query.end()


class _Query:
    """One query and its tries."""

    __slots__ = ("_answer", "_end", "_forwarder", "_ident", "_ignored", "_raw", "_timer", "_tries")

    def __init__(self, forwarder: DnsForwarder, raw: bytes, answer: Answer) -> None:
        self._forwarder = forwarder
        self._raw = raw
        self._answer = answer
        self._end: UdpEndpoint | None = None
        self._timer: Cancellable | None = None
        self._ident = b""
        self._ignored = 0
        self._tries = 0

    def ask(self) -> None:
        """The next try; without one left the answer is None."""
        forwarder = self._forwarder
        servers = forwarder.servers
        self._let_go()
        if self._tries >= forwarder.rounds * len(servers):
            self._done(None)
            return
        server = servers[self._tries % len(servers)]
        patience = forwarder.wait << self._tries // len(servers)
        self._tries += 1
        self._ignored = 0
        self._ident = forwarder.stack.rng.getrandbits(16).to_bytes(2, "big")
        end = self._end = forwarder.stack.udp.open(4 if is_v4(server) else 6)
        forwarder.counters["tries"] += 1
        self._timer = forwarder.timers.at(forwarder.stack.now() + patience, self._late)
        if not end.connect(server, PORT):
            end.on_ready = self._readable
            end.send([self._ident, self._raw[2:]])  # last, for an error may come at once; a failure is as a loss

    def _late(self) -> None:
        self._timer = None
        self._forwarder.counters["timeouts"] += 1
        self.ask()

    def _readable(self) -> None:
        end = self._end
        if end is None:
            return
        while (datagram := end.receive()) is not None:
            data = datagram.payload.tobytes()
            if len(data) >= HEADER_SIZE and data[:2] == self._ident and data[2] & 0x80:
                self._forwarder.counters["answers"] += 1
                self._done(self._raw[:2] + data[2:])
                return
            self._forwarder.counters["rx_dropped_answer"] += 1
            self._ignored += 1
            if self._ignored >= IGNORED:
                self.ask()
                return
        if end.take_error():  # nobody is at that port
            self.ask()

    def _done(self, raw: bytes | None) -> None:
        self.end()
        self._answer(raw)

    def _let_go(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        end, self._end = self._end, None
        if end is not None:
            end.on_ready = None
            end.close()

    def end(self) -> None:
        """Forget it."""
        self._let_go()
        self._forwarder.pending.discard(self)
