"""The stub resolver: names to addresses and back, from the hosts table, the cache, and name servers.

    pending = resolver.query("www.example.org", 4, on_done=tell)      # A; 6 is AAAA
    pending = resolver.lookup("www.example.org", on_done=tell)        # both, ordered
    addresses = resolver.resolve(env, "www.example.org")              # in a guest process: blocks, raises ResolveError

RFC 1034 §5.3.1, RFC 1123 §6.1, RFC 2308, RFC 5452, RFC 7766.

Promises:
- Nothing blocks and nothing raises for what a server says; every question ends, with an `Answer`.
- Each try has a port of its own, which is connected: what comes from another address or port does not arrive. What
  does and is no answer to the question is counted and ignored.
- At most `pending` questions are under way and `cache` answers kept; the least recently used goes first.
- A truncated answer is asked for again over TCP, of the same server. Where that comes to nothing, the answer has what
  the datagram had, and says so; had it nothing, the next server is asked.
- dnspython loads with the first question that goes to a server.
"""

from __future__ import annotations

import random
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from guest.net import dns_wire as wire
from guest.net.address import AddressError, format_address, is_v4, parse_address
from guest.net.config import SECOND
from guest.net.dns_exchange import (
    BAD_NAME,
    BUSY,
    CANCELLED,
    NO_SERVERS,
    NODATA,
    NXDOMAIN,
    UNREACHABLE,
    Answer,
    DnsConfig,
    Exchange,
    Try,
    candidates,
)
from guest.net.dns_stream import StreamTry
from guest.net.endpoint import MessageEndpoint
from guest.net.hosts import Hosts
from guest.net.timer import Cancellable, Timers

if TYPE_CHECKING:
    from guest.net.tcp.endpoint import TcpEndpoint


class ResolveError(Exception):
    """A name has no address.

    Attributes:
        name: the name. error: why, see `Answer.error`.
    """

    def __init__(self, name: str, error: str) -> None:
        super().__init__(f"{name}: {error}")
        self.name = name
        self.error = error


class Waiter(Protocol):
    """What `resolve` blocks with; a program's `env` is one."""

    def wake(self) -> None:
        """Something happened."""

    def wait(self, ready: Callable[[], bool] | None = None, timeout: int | None = None) -> bool:
        """Block until `ready()`, which is asked again at each `wake`, or for `timeout` microseconds."""


class Query:
    """A question under way.

    Attributes:
        name, kind: what is asked.
        answer: None until it is there.
        on_done: called with this object when the answer is there.
    """

    def __init__(self, resolver: Resolver, name: str, kind: str, on_done: Callable[[Query], None] | None) -> None:
        self.name = name
        self.kind = kind
        self.answer: Answer | None = None
        self.on_done = on_done
        self._resolver = resolver
        self._exchange: Exchange | None = None
        self._endpoint: MessageEndpoint | None = None
        self._timer: Cancellable | None = None
        self._stream: StreamTry | None = None

    @property
    def done(self) -> bool:
        """Whether the answer is there."""
        return self.answer is not None

    def cancel(self) -> None:
        """End it without an answer; `on_done` is not called. Harmless when done."""
        self.on_done = None
        if self.answer is None:
            self._finish(Answer(self.name, self.kind, CANCELLED))

    # -- driven by the resolver ----------------------------------------------------------------------------------

    def _begin(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._step(exchange.begin())

    def _step(self, what: Try | Answer | None) -> None:
        """Carry out tries until one is under way or there is an answer."""
        while isinstance(what, Try):
            what = self._send(what)
        if what is not None:
            self._finish(what)

    def _send(self, attempt: Try) -> Try | Answer | None:
        self._let_go()
        exchange, resolver = self._exchange, self._resolver
        if exchange is None:
            return None
        endpoint = resolver.open(4 if is_v4(attempt.server) else 6)
        error = endpoint.connect(attempt.server, wire.PORT) or endpoint.send([attempt.data])
        if error:
            endpoint.close()
            return exchange.failed(UNREACHABLE)
        self._endpoint = endpoint
        endpoint.on_ready = self._readable
        self._timer = resolver.timers.at(resolver.now() + attempt.wait, self._late)
        return None

    def _readable(self) -> None:
        endpoint, exchange = self._endpoint, self._exchange
        while endpoint is not None and exchange is not None and endpoint is self._endpoint:
            datagram = endpoint.receive()
            if datagram is not None:
                self._received(exchange, datagram.payload.tobytes(), datagram.src, datagram.src_port)
            elif endpoint.take_error():  # nobody listens there, says ICMP
                self._step(exchange.failed(UNREACHABLE))
            else:
                return

    def _received(self, exchange: Exchange, data: bytes, server: int, port: int) -> None:
        what = exchange.receive(data, server, port)
        if isinstance(what, Answer) and what.truncated and self._resolver.open_stream is not None:
            self._ask_over_tcp(exchange, what, server)
        elif what is not None:
            self._step(what)

    def _ask_over_tcp(self, exchange: Exchange, short: Answer, server: int) -> None:
        """Ask again for what did not fit; `short` is what did."""
        resolver = self._resolver
        self._let_go()

        def done(reply: bytes | None, error: str) -> None:
            self._stream = None
            what = None if reply is None else exchange.receive(reply, server, wire.PORT)
            if isinstance(what, Answer):
                self._step(what)
                return
            resolver.counters["rx_stream_failed"] += 1
            self._step(short if short.ok else what or exchange.failed(error or UNREACHABLE))

        resolver.counters["tx_stream_queries"] += 1
        if resolver.open_stream is not None:
            self._stream = StreamTry(
                resolver.open_stream(4 if is_v4(server) else 6), server, exchange.query, done,
                timers=resolver.timers, now=resolver.now, wait=resolver.config.stream_wait,
            )  # fmt: skip

    def _late(self) -> None:
        if self._exchange is not None:
            self._step(self._exchange.failed())

    def _let_go(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._endpoint is not None:
            self._endpoint.on_ready = None
            self._endpoint.close()
            self._endpoint = None
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None

    def _finish(self, answer: Answer) -> None:
        if self.answer is not None:
            return
        self._let_go()
        self._exchange = None
        self.answer = answer
        self._resolver.ended(self)
        if self.on_done is not None:
            self.on_done(self)


class Lookup:
    """Both families of a name, or one, under way.

    Attributes:
        done: whether all is there.
        addresses: in the order in which to try them.
        error: "" when there is an address.
        answers: of the questions that were asked.
        on_done: called with this object when it is done.
    """

    def __init__(
        self, resolver: Resolver, name: str, kinds: Sequence[str], on_done: Callable[[Lookup], None] | None
    ) -> None:
        self.name = name
        self.done = False
        self.addresses: list[int] = []
        self.error = ""
        self.answers: list[Answer] = []
        self.on_done = on_done
        self._resolver = resolver
        self._left = len(kinds)
        self._queries = [resolver.ask(name, kind, self._answered) for kind in kinds]

    def cancel(self) -> None:
        """End it; `on_done` is not called."""
        self.on_done = None
        for query in self._queries:
            query.cancel()

    def _answered(self, query: Query) -> None:
        if query.answer is not None:
            self.answers.append(query.answer)
        self._left -= 1
        if self._left:
            return
        found = [address for answer in self.answers for address in answer.addresses]
        self.addresses = self._resolver.in_order(found)
        if not found:
            errors = [answer.error for answer in self.answers]
            hard = [error for error in errors if error not in (NXDOMAIN, NODATA)]
            self.error = hard[0] if hard else NODATA if NODATA in errors else NXDOMAIN
        self.done = True
        if self.on_done is not None:
            self.on_done(self)


class Resolver:
    """The resolver of one host.

    Args:
        now: the time in microseconds.
        rng: source of identifications.
        open_endpoint: a new UDP endpoint of family 4 or 6.
        open_stream: a new TCP end likewise, for answers that a datagram does not hold; None: they stay truncated.
        timers: the kernel's.
        hosts: names that are known without asking.
        config: times and limits.
        reachable: whether an address can be reached at all; those that cannot come last.

    Attributes:
        counters: queries and replies by name, drops by reason.
    """

    def __init__(
        self,
        *,
        now: Callable[[], int],
        rng: random.Random,
        open_endpoint: Callable[[int], MessageEndpoint],
        open_stream: Callable[[int], TcpEndpoint] | None = None,
        timers: Timers,
        hosts: Hosts | None = None,
        config: DnsConfig | None = None,
        reachable: Callable[[int], bool] = lambda _address: True,
    ) -> None:
        self.now = now
        self.open = open_endpoint
        self.open_stream = open_stream
        self.timers = timers
        self.hosts = hosts if hosts is not None else Hosts()
        self.config = config or DnsConfig()
        self.counters: Counter[str] = Counter()
        self._rng = rng
        self._reachable = reachable
        self._sources: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {}
        self._cache: OrderedDict[tuple[str, str], tuple[int, Answer]] = OrderedDict()  # with its end
        self._pending: list[Query] = []

    # -- whom to ask ---------------------------------------------------------------------------------------------

    def set_servers(self, source: str, servers: Sequence[int], search: Sequence[str] = ()) -> None:
        """What `source` ("static", "dhcp eth0", …) says of name servers and search list, in place of what it said.

        Those of the source that came first are asked first; none at all takes the source away.
        """
        if servers or search:
            self._sources[source] = (tuple(servers), tuple(search))
        else:
            self._sources.pop(source, None)
        self._cache.clear()

    @property
    def servers(self) -> list[int]:
        """The name servers, in the order in which they are asked."""
        found = dict.fromkeys(server for servers, _ in self._sources.values() for server in servers)
        return list(found)[: self.config.servers]

    @property
    def search(self) -> list[str]:
        """The domains that a short name is looked for in."""
        found = dict.fromkeys(domain for _, search in self._sources.values() for domain in search)
        return list(found)[: self.config.search]

    # -- asking --------------------------------------------------------------------------------------------------

    def query(self, name: str, family: int = 4, on_done: Callable[[Query], None] | None = None) -> Query:
        """Ask for the addresses of `name` in family 4 or 6. What is known at once is there on return."""
        return self.ask(name, wire.AAAA if family == 6 else wire.A, on_done)

    def reverse(self, address: int, on_done: Callable[[Query], None] | None = None) -> Query:
        """Ask for the name of `address`: `answer.names`."""
        return self.ask(wire.reverse_name(address), wire.PTR, on_done, self.hosts.reverse(address))

    def lookup(self, name: str, family: int = 0, on_done: Callable[[Lookup], None] | None = None) -> Lookup:
        """Ask for the addresses of `name`, of both families (0) or one, best first, as getaddrinfo does."""
        kinds = {4: [wire.A], 6: [wire.AAAA]}.get(family, [wire.AAAA, wire.A])
        return Lookup(self, name, kinds, on_done)

    def resolve(self, waiter: Waiter, name: str, family: int = 0) -> list[int]:
        """The addresses of `name`, best first; at least one. Blocks with `waiter`. Raises ResolveError."""
        pending = self.lookup(name, family, lambda _pending: waiter.wake())
        try:
            waiter.wait(lambda: pending.done)
        finally:
            pending.cancel()
        if not pending.addresses:
            raise ResolveError(name, pending.error)
        return pending.addresses

    def ask(
        self, name: str, kind: str, on_done: Callable[[Query], None] | None = None, known: str | None = None
    ) -> Query:
        """Ask for records of `kind` ("A", "AAAA" or "PTR"); `known` is the answer to a PTR question, if one is."""
        query = Query(self, name, kind, on_done)
        answer = self._local(name, kind)
        if known is not None:
            answer = Answer(name, kind, names=(known,), canonical=known, source="hosts")
        names = candidates(name, [] if kind == wire.PTR else self.search, self.config.ndots)
        servers = self.servers
        if answer is None and not names:
            answer = Answer(name, kind, BAD_NAME)
        if answer is None and not servers:
            answer = Answer(name, kind, NO_SERVERS)
        if answer is None and len(self._pending) >= self.config.pending:
            self.counters["tx_dropped_busy"] += 1
            answer = Answer(name, kind, BUSY)
        if answer is not None:
            query._finish(answer)
            return query
        self._pending.append(query)
        query._begin(
            Exchange(
                name, kind, names=names, servers=servers, config=self.config, rng=self._rng,
                cached=self._cached, keep=self._keep, counters=self.counters,
            )
        )  # fmt: skip
        return query

    def ended(self, query: Query) -> None:
        """A query has its answer."""
        if query in self._pending:
            self._pending.remove(query)

    def in_order(self, addresses: Sequence[int]) -> list[int]:
        """Addresses in the order to try them: reachable ones first, then IPv6 before IPv4 (RFC 6724 rules 1 and 6)."""
        return sorted(dict.fromkeys(addresses), key=lambda address: (not self._reachable(address), is_v4(address)))

    @property
    def pending(self) -> int:
        """How many questions are under way."""
        return len(self._pending)

    def flush(self) -> None:
        """Forget what servers said."""
        self._cache.clear()

    def close(self) -> None:
        """End every question; each `on_done` is told CANCELLED."""
        for query in list(self._pending):
            query._finish(Answer(query.name, query.kind, CANCELLED))
        self._cache.clear()
        self._sources.clear()

    # -- what is known -------------------------------------------------------------------------------------------

    def _local(self, name: str, kind: str) -> Answer | None:
        """An answer for which no server is asked."""
        if kind == wire.PTR:
            return None
        family = 6 if kind == wire.AAAA else 4
        try:
            address = parse_address(name)
        except AddressError:
            pass
        else:
            fits = is_v4(address) == (family == 4)
            text = format_address(address)
            found = (address,) if fits else ()
            return Answer(name, kind, "" if fits else NODATA, found, canonical=text, source="literal")
        known = self.hosts.lookup(name, family)
        if known is None:
            return None
        return Answer(name, kind, "" if known else NODATA, tuple(known), canonical=name, source="hosts")

    def _cached(self, name: str, kind: str) -> Answer | None:
        key = (name.lower(), kind)
        entry = self._cache.get(key)
        if entry is None:
            return None
        left = entry[0] - self.now()
        if left <= 0:
            del self._cache[key]
            return None
        self._cache.move_to_end(key)
        self.counters["cache_hits"] += 1
        return replace(entry[1], ttl=-(-left // SECOND), source="cache")

    def _keep(self, name: str, kind: str, answer: Answer) -> None:
        ttl = answer.ttl if answer.ok else min(answer.ttl, self.config.max_negative_ttl)
        if ttl <= 0:
            return
        while len(self._cache) >= self.config.cache:
            self._cache.popitem(last=False)
        self._cache[name.lower(), kind] = (self.now() + ttl * SECOND, answer)
