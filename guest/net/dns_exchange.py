"""One name, asked for: which question goes to which server next, and what its answer means. Sans-I/O.

The names that a short name may mean are tried in the order of RFC 1535 (a name with `ndots` dots first as it is); each
goes to every server in turn, `rounds` times, waiting twice as long each time. Every try has a new identification, and
whoever carries it is to use a new port (RFC 5452 §4.5), so that a forger has to guess both anew.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from guest.net import dns_wire as wire
from guest.net.address import AddressError
from guest.net.config import SECOND

# What `Answer.error` can be, besides names of rcodes that a server gave ("SERVFAIL", "REFUSED", …).
NXDOMAIN, NODATA, TIMEOUT = "NXDOMAIN", "NODATA", "TIMEOUT"
NO_SERVERS, BAD_NAME, BUSY, CANCELLED, UNREACHABLE = "NOSERVERS", "BADNAME", "BUSY", "CANCELLED", "UNREACHABLE"

MAX_REQUERIES = 8  # times that the end of an alias chain is asked for by itself


@dataclass(frozen=True, slots=True)
class DnsConfig:
    """Times and limits of the resolver.

    Attributes:
        wait: for an answer, in the first round over the servers; each further round waits twice as long.
        rounds: how often every server is asked.
        ndots: a name with fewer dots is first looked for in the search list.
        cache: answers that are kept. max_ttl, max_negative_ttl: seconds that one is kept at most.
        pending: questions under way at once. servers, search: how many are used.
        ignored: replies to one try that are not its answer before it counts as failed.
        stream_wait: for an answer over TCP, the connection included.
    """

    wait: int = 2 * SECOND
    rounds: int = 3
    ndots: int = 1
    cache: int = 256
    max_ttl: int = 86_400
    max_negative_ttl: int = 300
    pending: int = 128
    servers: int = 8
    search: int = 8
    ignored: int = 64
    stream_wait: int = 5 * SECOND


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a question.

    Attributes:
        name: as it was asked. kind: "A", "AAAA" or "PTR".
        error: "" for a good answer, else why there is none (see above).
        addresses: 128-bit numbers, in the server's order. names: of a PTR question.
        canonical: the name at the end of the aliases.
        ttl: seconds that it may still be kept.
        server: who said so, or None. source: "dns", "cache", "hosts" or "literal".
        truncated: there was more than the datagram took.
    """

    name: str
    kind: str
    error: str = ""
    addresses: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    canonical: str = ""
    ttl: int = 0
    server: int | None = None
    source: str = "dns"
    truncated: bool = False

    @property
    def ok(self) -> bool:
        """Whether there is anything."""
        return not self.error


class Try(NamedTuple):
    """A datagram to send to port 53 of `server` from a new port, and how long to wait for the answer."""

    server: int
    data: bytes
    wait: int


def candidates(name: str, search: Sequence[str], ndots: int) -> list[str]:
    """The full names that `name` may mean, in order, without dots at their ends; empty where it can be none."""
    plain = name.removesuffix(".")
    if name.endswith("."):
        names = [plain]
    else:
        longer = [f"{plain}.{domain.strip('.')}" for domain in search]
        names = [plain, *longer] if plain.count(".") >= ndots else [*longer, plain]
    return [one for one in dict.fromkeys(names) if wire.is_name(one)]


class Exchange:
    """The way from a name to its answer.

    Args:
        name, kind: the question.
        names: what `candidates` says; not empty.
        servers: not empty.
        rng: source of identifications.
        cached: what is known already of a full name, or None.
        keep: told of each answer to a full name that may be kept.
        counters: where to count.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        *,
        names: Sequence[str],
        servers: Sequence[int],
        config: DnsConfig,
        rng: random.Random,
        cached: Callable[[str, str], Answer | None],
        keep: Callable[[str, str, Answer], None],
        counters: Counter[str],
    ) -> None:
        self._name = name
        self._kind = kind
        self._names = list(names)
        self._servers = list(servers)
        self._config = config
        self._rng = rng
        self._cached = cached
        self._keep = keep
        self._counters = counters
        self._asked = ""  # the full name that is being asked for
        self._start = ""  # the candidate that led there
        self._ident = 0
        self._turn = 0  # tries for this name: round × servers + server
        self._edns = True
        self._ignored = 0
        self._requeries = 0
        self._error = TIMEOUT  # of the servers, for this name
        self._negative: Answer | None = None  # the best "no" so far
        self._query = b""

    @property
    def server(self) -> int:
        """Whom the current try goes to."""
        return self._servers[self._turn % len(self._servers)]

    @property
    def query(self) -> bytes:
        """The current try's datagram."""
        return self._query

    def begin(self) -> Try | Answer:
        """The first try, or the answer, where it is known."""
        return self._next_name()

    def failed(self, error: str = TIMEOUT) -> Try | Answer:
        """The current try came to nothing: no answer in time, or its server cannot be reached."""
        self._counters["tx_timeouts" if error == TIMEOUT else "tx_unreachable"] += 1
        if self._error == TIMEOUT:
            self._error = error
        return self._next_server()

    def receive(self, data: bytes, server: int, port: int) -> Try | Answer | None:
        """A datagram came to the current try's port; None where it is not the answer, which is still awaited."""
        counters = self._counters
        counters["rx_messages"] += 1
        try:
            if (server, port) != (self.server, wire.PORT):
                raise wire.DnsError("source")
            reply = wire.parse_reply(data, self._ident, self._asked, self._kind)
        except wire.DnsError as error:
            counters[f"rx_dropped_{error.reason}"] += 1
            self._ignored += 1
            return self.failed() if self._ignored >= self._config.ignored else None
        counters[f"rx_{reply.rcode.lower()}"] += 1
        if reply.rcode == "FORMERR" and self._edns:  # RFC 6891 §7: a server from before EDNS
            self._edns = False
            return self._try()
        if reply.rcode not in ("NOERROR", "NXDOMAIN"):
            self._error = reply.rcode
            return self._next_server()
        return self._replied(reply)

    def _replied(self, reply: wire.Reply) -> Try | Answer:
        found = bool(reply.addresses or reply.names)
        if reply.truncated:
            self._counters["rx_truncated"] += 1
        elif not found and reply.rcode == "NOERROR" and reply.canonical.lower() != self._asked.lower():
            if self._requeries < MAX_REQUERIES and wire.is_name(reply.canonical):  # the server leaves that to us
                self._requeries += 1
                return self._ask(reply.canonical)
            self._error = "SERVFAIL"
            return self._next_server()
        error = "" if found else "TRUNCATED" if reply.truncated else NODATA
        answer = Answer(
            self._name, self._kind, error if reply.rcode == "NOERROR" or found else NXDOMAIN,
            reply.addresses, reply.names, reply.canonical,
            min(reply.ttl, self._config.max_ttl), self.server, truncated=reply.truncated,
        )  # fmt: skip
        if not reply.truncated and self._requeries == 0:
            self._keep(self._start, self._kind, answer)
        return answer if found or reply.truncated else self._no(answer)

    # -- what is next --------------------------------------------------------------------------------------------

    def _no(self, answer: Answer) -> Try | Answer:
        """There is no such name, or nothing of that kind there; another candidate may do."""
        if self._negative is None or answer.error == NODATA:
            self._negative = answer
        return self._next_name()

    def _next_name(self) -> Try | Answer:
        while self._names:
            name = self._names.pop(0)
            known = self._cached(name, self._kind)
            if known is None:
                self._start = name
                self._requeries = 0
                return self._ask(name)
            if known.ok:
                return known
            if self._negative is None or known.error == NODATA:
                self._negative = known
        return self._negative or Answer(self._name, self._kind, BAD_NAME)

    def _ask(self, name: str) -> Try | Answer:
        self._asked = name
        self._turn = 0
        self._error = TIMEOUT
        self._edns = True
        return self._try()

    def _next_server(self) -> Try | Answer:
        self._turn += 1
        self._edns = True
        if self._turn < self._config.rounds * len(self._servers):
            return self._try()
        return Answer(self._name, self._kind, self._error, server=self._servers[-1])

    def _try(self) -> Try | Answer:
        self._ident = self._rng.getrandbits(16)
        self._ignored = 0
        try:
            self._query = wire.question(self._asked, self._kind, self._ident, edns=self._edns)
        except AddressError:
            return self._no(Answer(self._name, self._kind, BAD_NAME))
        self._counters["tx_queries"] += 1
        return Try(self.server, self._query, self._config.wait << self._turn // len(self._servers))
