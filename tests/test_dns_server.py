"""The name server, asked by scapy's queries and our own resolver: what it answers, forwards and drops."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.dns import DNS, DNSQR, DNSRR, DNSRROPT

from guest.net.address import AddressError, format_address, parse_address
from guest.net.dns import Query, Resolver
from guest.net.dns_server import PENDING, STREAMS, DnsServer
from guest.net.tcp.endpoint import TcpEndpoint
from guest.net.udp import UdpEndpoint
from tests.net_world import SECOND
from tests.server_world import Street

SERVER = "10.0.2.3"
NAMES = {"example.com": ["192.0.2.80", "2001:db8::80"], "gateway.lan": "10.0.2.2", "Only6.lan": "2001:db8::6"}


class Upstream:
    """What the server hands queries to; it answers when the test says."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, Callable[[bytes | None], None]]] = []

    def __call__(self, query: bytes, answer: Callable[[bytes | None], None]) -> None:
        self.asked.append((query, answer))

    def answers(self, *records: DNSRR, **fields: Any) -> None:
        """Answer the oldest query."""
        raw, answer = self.asked.pop(0)
        query = DNS(raw)
        told = {"id": query.id, "qr": 1, "ra": 1, "qd": query.qd, "an": list(records)} | fields
        answer(bytes(DNS(**told)))


class World(Street):
    """A server at 10.0.2.3, and a client at 10.0.2.15."""

    def __init__(self, upstream: Upstream | None = None) -> None:
        super().__init__()
        self.router = self.host("52:54:00:00:00:02", "10.0.2.2/24", "10.0.2.3/24", "fec0::3/64")
        self.client = self.host("52:54:00:00:00:0a", "10.0.2.15/24", "fec0::15/64")
        self.server = self.serve(SERVER, upstream)
        self.end = self.socket()

    def serve(self, address: str, upstream: Upstream | None = None) -> DnsServer:
        made = DnsServer(self.router.stack, address, timers=self.timers, names=NAMES, forward=upstream)
        assert made.start() == 0
        return made

    def socket(self, server: str = SERVER) -> UdpEndpoint:
        end = self.client.stack.udp.open(6 if ":" in server else 4)
        assert end.connect(parse_address(server), 53) == 0
        return end

    def answer(self) -> DNS | None:
        """What came back to the client."""
        self.run(0.1)
        datagram = self.end.receive()
        return None if datagram is None else DNS(datagram.payload.tobytes())

    def says(self, raw: bytes) -> DNS | None:
        assert self.end.send([raw]) == 0
        return self.answer()

    def asks(self, name: str, kind: str = "A", **fields: Any) -> DNS | None:
        return self.says(bytes(query(name, kind, **fields)))

    def stream(self) -> TcpEndpoint:
        """A connection to the server."""
        end = self.client.stack.tcp.open(4)
        end.connect(parse_address(SERVER), 53)
        self.run(0.1)
        return end

    def count(self, name: str) -> int:
        return self.server.counters[name]


def query(name: str, kind: str = "A", *, edns: int = 0, **fields: Any) -> DNS:
    return DNS(
        **({"id": 4711, "rd": 1, "qd": [DNSQR(qname=name, qtype=kind)]} | fields),
        ar=[DNSRROPT(rclass=edns, rdlen=0)] if edns else [],
    )


def records(answer: DNS | None) -> list[str]:
    """The answer section, as text."""
    assert answer is not None, "there was no answer"
    return [record.rdata if isinstance(record.rdata, str) else record.rdata.decode() for record in answer.an]


# -- own names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "found"),
    [
        ("example.com", "A", ["192.0.2.80"]),
        ("example.com", "AAAA", ["2001:db8::80"]),
        ("EXAMPLE.com.", "A", ["192.0.2.80"]),
        ("only6.lan", "AAAA", ["2001:db8::6"]),
        ("2.2.0.10.in-addr.arpa", "PTR", ["gateway.lan."]),
        (f"0.8.{'0.' * 22}8.b.d.0.1.0.0.2.ip6.arpa", "PTR", ["example.com."]),
    ],
)
def test_names_of_ours(name: str, kind: str, found: list[str]) -> None:
    answer = World().asks(name, kind)
    assert records(answer) == found
    assert answer is not None
    assert (answer.id, answer.qr, answer.aa, answer.ra, answer.rd, answer.rcode) == (4711, 1, 1, 1, 1, 0)
    assert answer.qd[0].qname.decode().lower().rstrip(".") == name.lower().rstrip(".")
    assert answer.an[0].ttl == 60


@pytest.mark.parametrize(("name", "kind"), [("gateway.lan", "AAAA"), ("only6.lan", "A"), ("example.com", "MX")])
def test_a_name_of_ours_without_such_a_record_is_no_error(name: str, kind: str) -> None:
    upstream = Upstream()
    answer = World(upstream).asks(name, kind)
    assert answer is not None
    assert (answer.rcode, records(answer)) == (0, [])
    assert upstream.asked == [], "nobody else is asked about it"


def test_other_names_do_not_exist_without_a_forwarder() -> None:
    world = World()
    answer = world.asks("nowhere.test")
    assert answer is not None
    assert answer.rcode == 3
    assert world.count("tx_nxdomain") == 1


def test_it_answers_from_the_address_that_was_asked_over_ipv6_too() -> None:
    world = World()
    world.serve("fec0::3")
    world.end = world.socket("fec0::3")
    assert records(world.asks("example.com")) == ["192.0.2.80"]


def test_a_name_can_be_added_and_replaced() -> None:
    world = World()
    world.server.add("new.lan", "10.0.2.99")
    assert records(world.asks("new.lan")) == ["10.0.2.99"]
    world.server.add("new.lan", ["10.0.2.98"])
    assert records(world.asks("new.lan")) == ["10.0.2.98"]
    with pytest.raises(AddressError):
        world.server.add("two..dots", "10.0.2.1")


# -- what others know ----------------------------------------------------------------------------------------------


def test_other_names_are_forwarded_and_the_answer_is_passed_on_as_it_is() -> None:
    upstream = Upstream()
    world = World(upstream)
    assert world.asks("www.test") is None
    assert DNS(upstream.asked[0][0]).qd[0].qname == b"www.test."
    upstream.answers(DNSRR(rrname="www.test", rdata="203.0.113.5", ttl=17))
    answer = world.answer()
    assert records(answer) == ["203.0.113.5"]
    assert answer is not None
    assert (answer.id, answer.an[0].ttl) == (4711, 17)


def test_a_forwarder_that_finds_nothing_or_lies_is_a_failure() -> None:
    upstream = Upstream()
    world = World(upstream)
    for what in ("none", "other id", "a query", "short"):
        assert world.asks("www.test") is None, what
        if what == "none":
            upstream.asked.pop(0)[1](None)
        elif what == "other id":
            upstream.answers(id=1)
        elif what == "a query":
            upstream.answers(qr=0)
        else:
            upstream.asked.pop(0)[1](b"\x12\x67")
        answer = world.answer()
        assert answer is not None, what
        assert answer.rcode == 2, what
    assert world.count("rx_dropped_answer") == 3


def test_a_second_answer_and_one_after_the_end_change_nothing() -> None:
    upstream = Upstream()
    world = World(upstream)
    world.asks("www.test")
    again = upstream.asked[0]
    upstream.answers()
    assert world.answer() is not None
    again[1](None)
    assert world.answer() is None
    assert world.count("rx_ignored_late") == 1
    world.asks("www.test")
    world.server.close()
    upstream.answers()
    assert world.answer() is None


def test_queries_that_wait_are_bounded_and_the_oldest_are_forgotten() -> None:
    upstream = Upstream()
    world = World(upstream)
    for number in range(PENDING + 5):
        world.end.send([bytes(query(f"n{number}.test"))])
        world.run(0.001)
    assert (len(upstream.asked), world.count("forgotten")) == (PENDING + 5, 5)
    upstream.answers()
    assert world.answer() is None, "forgotten"
    del upstream.asked[:-1]
    upstream.answers()
    assert world.answer() is not None


# -- sizes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edns", "addresses", "cut"), [(0, 20, False), (0, 60, True), (1232, 60, False), (4096, 90, True)]
)
def test_an_answer_that_does_not_fit_says_so(edns: int, addresses: int, cut: bool) -> None:
    world = World()
    world.server.add("many.lan", [f"10.9.0.{host}" for host in range(addresses)])
    answer = world.asks("many.lan", edns=edns)
    assert answer is not None
    assert bool(answer.tc) == cut
    assert len(records(answer)) == (0 if cut else addresses)
    assert world.count("tx_truncated") == cut


def test_it_answers_over_tcp_with_all_of_it_one_query_after_the_other() -> None:
    world = World()
    world.server.add("many.lan", [f"10.9.0.{host}" for host in range(90)])
    end = world.stream()
    first, second = bytes(query("many.lan")), bytes(query("example.com", id=5))
    raw = len(first).to_bytes(2, "big") + first + len(second).to_bytes(2, "big") + second
    for byte in raw:
        end.write([bytes((byte,))])
        world.run(0.05)
    got = end.read(10_000)
    assert isinstance(got, bytes)
    size = int.from_bytes(got[:2], "big")
    assert len(records(DNS(got[2 : 2 + size]))) == 90
    assert records(DNS(got[4 + size :])) == ["192.0.2.80"]
    assert DNS(got[4 + size :]).id == 5


def test_a_query_over_tcp_may_be_forwarded() -> None:
    upstream = Upstream()
    world = World(upstream)
    end = world.stream()
    raw = bytes(query("www.test"))
    end.write([len(raw).to_bytes(2, "big") + raw])
    world.run(1)
    upstream.answers(DNSRR(rrname="www.test", rdata="203.0.113.5"))
    world.run(1)
    got = end.read(10_000)
    assert isinstance(got, bytes)
    assert records(DNS(got[2:])) == ["203.0.113.5"]


@pytest.mark.parametrize("raw", [b"\0\0", b"\0\5abcde", b"\0\x0c" + bytes(12)[:2] + b"\x80" + bytes(9)])
def test_h64_a_stream_of_nonsense_is_closed(raw: bytes) -> None:
    world = World()
    end = world.stream()
    end.write([raw])
    world.run(1)
    assert end.read(100) == b"", "the end of the stream"


def test_idle_connections_make_room_for_new_ones() -> None:
    world = World()
    idle = [world.stream() for _ in range(STREAMS)]
    end = world.stream()
    raw = bytes(query("example.com"))
    end.write([len(raw).to_bytes(2, "big") + raw])
    world.run(1)
    assert isinstance(end.read(100), bytes)
    assert world.count("streams_pushed_out") == 1
    assert [each.read(100) for each in idle] == [b"", *[None] * (STREAMS - 1)]
    world.server.close()
    world.run(1)
    assert idle[1].read(100) == b""


# -- hostile -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "rx_dropped_short"),
        (bytes(11), "rx_dropped_short"),
        (bytes(query("example.com", qr=1)), "rx_dropped_response"),
        (bytes(query("example.com"))[:20], "rx_dropped_malformed"),
        (bytes.fromhex("1234 0100 0001 0000 0000 0000 c00c 0001 0001"), "rx_dropped_malformed"),  # points at itself
        (bytes.fromhex("1234 0100 0001 0000 0000 0000 c0ff 0001 0001"), "rx_dropped_malformed"),  # and past the end
        (bytes.fromhex("1234 0100 ffff 0000 0000 0000") + b"\0\0\1\0\1", "rx_dropped_malformed"),  # the count lies
    ],
)
def test_h64_what_is_no_query_is_dropped_and_counted(raw: bytes, reason: str) -> None:
    world = World(Upstream())
    assert world.says(raw) is None
    assert world.count(reason) == 1
    assert records(world.asks("example.com")) == ["192.0.2.80"], "it goes on"


@pytest.mark.parametrize(
    ("fields", "rcode"),
    [
        ({"opcode": 5, "qd": [DNSQR(qname="example.com", qtype="SOA")]}, 4),
        ({"opcode": 2}, 4),
        ({"qd": []}, 1),
        ({"qd": [DNSQR(qname="example.com"), DNSQR(qname="gateway.lan")]}, 1),
        ({"qd": [DNSQR(qname="example.com", qclass=3)]}, 5),
    ],
)
def test_h64_what_cannot_be_answered_hears_why(fields: dict[str, Any], rcode: int) -> None:
    upstream = Upstream()
    answer = World(upstream).asks("example.com", **fields)
    assert answer is not None
    assert (answer.rcode, answer.id) == (rcode, 4711)
    assert upstream.asked == []


def many_questions(count: int, opcode: int = 0) -> bytes:
    """A query with so many questions, each of 6 bytes: a pointer to some place in the first one's name, where any byte
    may be taken for a label's length. So each question is another name of up to 255 bytes."""
    rng = random.Random(1)
    labels = [bytes([62, *(rng.choice((1, 2, 3, 5, 7, 62)) for _ in range(62))]) for _ in range(3)]
    name = b"".join(labels) + bytes([50, *(rng.choice((1, 2, 3, 5)) for _ in range(50))]) + b"\0"
    head = struct.pack("!HBBHHHH", 4711, opcode << 3, 0, count, 0, 0, 0)
    rest = (struct.pack("!HHH", 0xC000 | 12 + at % 180, 1, 1) for at in range(count - 1))
    return b"".join((head, name, struct.pack("!HH", 1, 1), *rest))


@pytest.mark.parametrize("opcode", [0, 2])
@pytest.mark.parametrize("count", [2, 200, 10_500])
def test_h64_many_questions_are_not_written_out_in_the_answer(count: int, opcode: int) -> None:
    world = World(Upstream())
    heard: list[bytes | None] = []

    assert world.server.query(many_questions(count, opcode), heard.append, stream=True)

    (answer,) = heard
    assert answer is not None
    assert DNS(answer).rcode == (4 if opcode else 1)
    assert DNS(answer).id == 4711
    assert len(answer) == 12, "who asks in a few bytes must not be answered in many"


def test_pointers_of_addresses_that_a_name_no_longer_has_are_forgotten() -> None:
    world = World()
    for host in range(1, 200):
        world.server.add("moves.lan", f"10.9.0.{host}")

    gone, here = world.asks("1.0.9.10.in-addr.arpa", "PTR"), world.asks("199.0.9.10.in-addr.arpa", "PTR")

    assert gone is not None
    assert (gone.rcode, records(here)) == (3, ["moves.lan."])


def test_an_address_keeps_the_first_name_it_was_given_as_long_as_that_has_it() -> None:
    world = World()
    world.server.add("first.lan", "10.9.0.1")
    world.server.add("second.lan", "10.9.0.1")
    assert records(world.asks("1.0.9.10.in-addr.arpa", "PTR")) == ["first.lan."]

    world.server.add("first.lan", "10.9.0.2")

    assert records(world.asks("1.0.9.10.in-addr.arpa", "PTR")) == ["second.lan."]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_h64_nothing_raises_whatever_comes(data: st.DataObject) -> None:
    world = World(Upstream())
    raw = bytearray(bytes(query(data.draw(st.sampled_from(["example.com", "www.test"])), edns=1232)))
    for _ in range(data.draw(st.integers(0, 5))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    world.says(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    counted = [world.count(name) for name in world.server.counters if name.startswith("rx_")]
    assert sum(counted) == 1


def test_the_port_may_be_taken_and_is_given_back() -> None:
    world = World()
    second = DnsServer(world.router.stack, SERVER, timers=world.timers)
    assert second.start() == 98
    world.server.close()
    world.server.close()
    world.run(120)
    assert second.start() == 0
    assert DnsServer(world.router.stack, "10.0.2.77", timers=world.timers).start() == 99


# -- our own resolver ----------------------------------------------------------------------------------------------


def test_our_resolver_asks_it_and_comes_back_over_tcp_for_what_was_cut() -> None:
    world = World()
    world.server.add("many.lan", [f"10.9.0.{host}" for host in range(1, 90)])
    stack = world.client.stack
    resolver = Resolver(
        now=world.clock, rng=random.Random(1), open_endpoint=stack.udp.open, open_stream=stack.tcp.open,
        timers=world.timers,
    )  # fmt: skip
    resolver.set_servers("static", [parse_address(SERVER)])
    asked: list[Query] = [
        resolver.query("example.com", 4), resolver.query("example.com", 6), resolver.query("many.lan", 4)
    ]
    world.run(1)
    found = [[format_address(address) for address in each.answer.addresses] for each in asked if each.answer]
    assert found[:2] == [["192.0.2.80"], ["2001:db8::80"]]
    assert len(found[2]) == 64, "as many as the resolver keeps"
    assert world.count("tx_truncated") == 1
    assert world.at < 2 * SECOND
