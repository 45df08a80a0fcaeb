"""Name servers for tests, made of scapy's messages, and a resolver whose datagrams the test carries."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Sequence
from typing import Any

from scapy.layers.dns import DNS, DNSQR, DNSRR, DNSRRSOA

from guest.net.address import format_address, parse_address
from guest.net.dns import Query, Resolver
from guest.net.dns_exchange import DnsConfig
from guest.net.endpoint import Datagram, MessageEndpoint
from guest.net.hosts import Hosts
from guest.net.pbuf import PacketBuffer
from guest.services import Timers

SECOND = 1_000_000
SERVER = "10.0.0.3"


class Clock:
    """Microseconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000 * SECOND

    def __call__(self) -> int:
        return self.now


class End(MessageEndpoint):
    """A UDP endpoint whose other side is the test."""

    def __init__(self, net: Net, family: int) -> None:
        super().__init__(family)
        self.net = net
        self.sent: list[bytes] = []

    def connect(self, addr: int, port: int, interface: object = None) -> int:
        if format_address(addr) in self.net.unreachable:
            return errno.ENETUNREACH
        self.remote = (addr, port)
        self.net.ports += 1
        self.local = (0, 40000 + self.net.ports)
        return 0

    def send(self, pieces: Sequence[Any], to: object = None, **_options: object) -> int:
        self.sent.append(b"".join(pieces))
        self.net.tries.append(self)
        return 0

    def close(self) -> None:
        self.closed = True
        self.net.open.remove(self)

    def bind(self, addr: int, port: int, interface: object = None) -> int:
        raise AssertionError("a resolver connects, and binds nothing")

    def disconnect(self) -> int:
        raise AssertionError("a resolver opens a new end for each server")

    def join(self, group: int, interface: object = None) -> int:
        raise AssertionError("a resolver asks no group")

    leave = join

    # -- what the test does --

    @property
    def asked(self) -> DNS:
        """The query, as scapy reads it."""
        return DNS(self.sent[-1])

    @property
    def question(self) -> str:
        """The question, as "server: name type"."""
        assert self.remote is not None
        asked = self.asked.qd[0]
        kind = {1: "A", 12: "PTR", 28: "AAAA"}[asked.qtype]
        return f"{format_address(self.remote[0])}: {asked.qname.decode()} {kind}"

    def hears(self, raw: bytes, source: str | None = None, port: int = 53) -> None:
        """A datagram arrives at this end."""
        assert self.remote is not None
        src = self.remote[0] if source is None else parse_address(source)
        packet = PacketBuffer.from_bytes(bytes(raw))
        self.deliver(Datagram(packet, src, port, 0, self.local[1], None, 64, 0, 0, 0))  # type: ignore[arg-type]
        if self.on_ready is not None:
            self.on_ready()

    def answers(self, *records: DNSRR, **fields: Any) -> None:
        """The server's answer to the query arrives."""
        self.hears(bytes(answer(self.asked, *records, **fields)))


class Net:
    """A resolver, its clock and timers, and the datagrams that it sent."""

    def __init__(
        self, *servers: str, search: Sequence[str] = (), config: DnsConfig | None = None, seed: int = 1
    ) -> None:
        self.clock = Clock()
        self.timers = Timers(self.clock)
        self.open: list[End] = []
        self.tries: list[End] = []
        self.ports = 0
        self.unreachable: set[str] = set()
        self.resolver = Resolver(
            now=self.clock, rng=random.Random(seed), open_endpoint=self._open, timers=self.timers,
            hosts=Hosts(), config=config,
        )  # fmt: skip
        self.resolver.set_servers("static", [parse_address(one) for one in servers or (SERVER,)], search)

    def _open(self, family: int) -> MessageEndpoint:
        end = End(self, family)
        self.open.append(end)
        return end

    @property
    def last(self) -> End:
        return self.tries[-1]

    def questions(self) -> list[str]:
        """What was asked since the last time."""
        asked, self.tries = [end.question for end in self.tries], self.tries[-1:]
        return asked

    def ask(self, name: str, family: int = 4) -> Query:
        return self.resolver.query(name, family)

    def wait(self, seconds: float) -> None:
        end = self.clock.now + round(seconds * SECOND)
        while (due := self.timers.next_deadline()) is not None and due <= end:
            self.clock.now = max(due, self.clock.now)
            self.timers.run_due()
        self.clock.now = end

    def count(self, name: str) -> int:
        return self.resolver.counters[name]


def a(name: str, address: str, ttl: int = 60) -> DNSRR:
    return DNSRR(rrname=name, type="A" if ":" not in address else "AAAA", rdata=address, ttl=ttl)


def cname(name: str, target: str, ttl: int = 60) -> DNSRR:
    return DNSRR(rrname=name, type="CNAME", rdata=target, ttl=ttl)


def soa(ttl: int = 60, minimum: int = 30) -> DNSRRSOA:
    return DNSRRSOA(rrname="example.org", mname="ns.example.org", rname="x.example.org", minimum=minimum, ttl=ttl)


def answer(asked: DNS, *records: DNSRR, authority: Sequence[DNSRR] = (), **fields: Any) -> DNS:
    """A server's answer to `asked`."""
    question = asked.qd[0]
    table: dict[str, Any] = {"id": asked.id, "qr": 1, "rd": 1, "ra": 1}
    table["qd"] = [DNSQR(qname=question.qname, qtype=question.qtype)]
    table |= {"an": list(records), "ns": list(authority), "ar": []}
    return DNS(**(table | fields))


Maker = Callable[[DNS], bytes]
