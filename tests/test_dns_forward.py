"""The forwarder of a name server: it asks another server, again where it must, and believes nobody else."""

from __future__ import annotations

import pytest
from scapy.layers.dns import DNS, DNSQR, DNSRR

from guest.net.address import parse_address
from guest.net.dns_forward import IGNORED, PENDING, DnsForwarder
from guest.net.endpoint import Datagram
from tests.net_world import SECOND
from tests.server_world import Street

QUERY = bytes(DNS(id=0x1234, rd=1, qd=DNSQR(qname="example.com")))


class World(Street):
    """A forwarder at 10.0.0.1, and servers at .53 and .54 that answer when the test says."""

    def __init__(self, *servers: str) -> None:
        super().__init__()
        self.near = self.host("52:54:00:00:00:01", "10.0.0.1/24")
        self.far = self.host("52:54:00:00:00:02", "10.0.0.53/24", "10.0.0.54/24")
        self.forwarder = DnsForwarder(self.near.stack, servers or ["10.0.0.53"], timers=self.timers)
        self.server = self.far.stack.udp.open(4)
        self.answers: list[bytes | None] = []

    def listen(self) -> None:
        assert self.server.bind(0xFFFF << 32, 53) == 0

    def ask(self, raw: bytes = QUERY) -> None:
        self.forwarder(raw, self.answers.append)
        self.run(0.01)

    def next_query(self) -> Datagram:
        datagram = self.server.receive()
        assert datagram is not None, "the server was not asked"
        return datagram

    def say(self, to: Datagram, raw: bytes) -> None:
        self.server.send([raw], (to.src, to.src_port), src=to.dst)
        self.run(0.01)


def reply(to: Datagram, **fields: object) -> bytes:
    asked = DNS(to.payload.tobytes())
    told = {"id": asked.id, "qr": 1, "qd": asked.qd, "an": DNSRR(rrname="example.com", rdata="192.0.2.1")} | fields
    return bytes(DNS(**told))


@pytest.fixture
def world() -> World:
    return World()


def test_a_query_is_asked_under_another_identification_and_its_answer_has_the_first_again(world: World) -> None:
    world.listen()
    world.ask()
    asked = world.next_query()
    world.say(asked, reply(asked))

    assert asked.payload.tobytes()[2:] == QUERY[2:], "another question was asked"
    assert asked.payload.tobytes()[:2] != QUERY[:2], "whoever guesses the client's identification can forge the answer"
    (answer,) = world.answers
    assert answer is not None
    assert (DNS(answer).id, DNS(answer).an[0].rdata) == (0x1234, "192.0.2.1")
    assert not world.forwarder.pending
    assert not list(world.near.stack.udp.ports), "a port was not given back"


def test_a_server_that_is_silent_is_asked_again_from_a_new_port_and_then_given_up(world: World) -> None:
    world.listen()
    world.ask()
    world.run(10)

    asked = [world.next_query() for _ in range(3)]
    assert world.server.receive() is None
    assert len({one.src_port for one in asked}) == 3, "tries share a port"
    assert len({one.payload.tobytes()[:2] for one in asked}) == 3, "tries share an identification"
    assert world.answers == [None]
    assert world.forwarder.counters["timeouts"] == 3


def test_the_second_server_is_asked_where_nobody_listens_at_the_first() -> None:
    world = World("10.0.0.53", "10.0.0.54")
    assert world.server.bind(parse_address("10.0.0.54"), 53) == 0

    world.ask()
    asked = world.next_query()
    world.say(asked, reply(asked))

    assert len(world.answers) == 1
    assert world.answers[0] is not None
    assert world.forwarder.counters["timeouts"] == 0, "the refusal was not heard"


def test_a_network_that_leads_nowhere_is_an_answer_too() -> None:
    world = World("192.0.2.53")

    world.ask()
    world.run(30)

    assert world.answers == [None]
    assert not world.forwarder.pending


@pytest.mark.parametrize(
    "forged",
    [
        lambda asked: reply(asked, id=DNS(asked.payload.tobytes()).id ^ 1),
        lambda asked: reply(asked, qr=0),
        lambda asked: b"",
        lambda asked: asked.payload.tobytes()[:2] + b"\x80",
    ],
    ids=["other identification", "a query", "nothing", "short"],
)
def test_what_is_no_answer_is_dropped_and_the_real_one_counts(world: World, forged) -> None:
    world.listen()
    world.ask()
    asked = world.next_query()
    world.say(asked, forged(asked))
    assert world.answers == []

    world.say(asked, reply(asked))

    assert len(world.answers) == 1
    assert world.answers[0] is not None
    assert world.forwarder.counters["rx_dropped_answer"] == 1


def test_an_answer_from_another_host_is_not_heard(world: World) -> None:
    world.listen()
    world.ask()
    asked = world.next_query()
    world.server.send([reply(asked)], (asked.src, asked.src_port), src=parse_address("10.0.0.54"))
    world.run(0.01)

    assert world.answers == []


def test_a_flood_of_forgeries_costs_a_try_and_no_more(world: World) -> None:
    world.listen()
    world.ask()
    asked = world.next_query()
    for number in range(IGNORED):
        world.say(asked, reply(asked, id=(DNS(asked.payload.tobytes()).id + 1 + number) & 0xFFFF))

    again = world.next_query()
    assert again.src_port != asked.src_port
    world.say(again, reply(again))
    assert world.answers[0] is not None


def test_queries_under_way_are_bounded_and_the_next_hears_so_at_once(world: World) -> None:
    world.listen()
    for _ in range(PENDING):
        world.forwarder(QUERY, world.answers.append)
    assert world.answers == []

    world.forwarder(QUERY, world.answers.append)

    assert world.answers == [None]
    assert world.forwarder.counters["refused_busy"] == 1
    world.run(30)
    assert world.answers == [None] * (PENDING + 1)
    assert not list(world.near.stack.udp.ports), "ports were not given back"


def test_who_is_closed_asks_nobody_any_more(world: World) -> None:
    world.listen()
    world.ask()
    world.forwarder.close()
    world.next_query()
    world.run(30)

    assert (world.answers, world.server.receive()) == ([], None)
    assert not list(world.near.stack.udp.ports)


def test_a_forwarder_needs_a_server(world: World) -> None:
    with pytest.raises(ValueError, match="server"):
        DnsForwarder(world.near.stack, [], timers=world.timers, wait=SECOND)
