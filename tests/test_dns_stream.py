"""Answers that a datagram does not hold, asked for again over TCP; a guest and its name server, who may be hostile."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest
from scapy.layers.dns import DNS, DNSRR

from guest.apps.env import Env
from guest.net.address import format_address, parse_address
from guest.net.dns import Query
from guest.sys.constants import AF_INET, AF_INET6, SO_LINGER, SOCK_DGRAM, SOCK_STREAM, SOL_SOCKET
from tests.dns_world import a, answer
from tests.guest_board import Board
from tests.test_apps_net import Pair

NAME = "www.example.org"
MANY = [f"192.0.2.{number}" for number in range(1, 201)]  # 3200 bytes of answers

MOST = 64  # that a resolver wants

# What the server does with a connection; the query is read already.
Serve = Callable[[Env, int, DNS], None]


@pytest.fixture
def pair() -> Iterator[Pair]:
    board = Board()
    made = Pair(board)
    made.alice.resolver.set_servers("static", [parse_address("10.0.0.2")])
    yield made
    board.close()


def void(_value: object) -> None:
    """A call for its effect."""


def framed(message: DNS) -> bytes:
    raw = bytes(message)
    return struct.pack("!H", len(raw)) + raw


def whole(asked: DNS) -> DNS:
    """Everything there is."""
    return answer(asked, *[a(NAME, address) for address in MANY])


def serve(pair: Pair, over_tcp: Serve | None, *short: DNSRR, address: str = "10.0.0.2") -> list[DNS]:
    """Bob is a name server: a datagram is answered with `short` and TC, a connection by `over_tcp` (None: he does not
    listen). The queries that come over TCP.
    """
    asked: list[DNS] = []
    family = AF_INET6 if ":" in address else AF_INET

    def datagrams(env: Env, _words: list[str]) -> int:
        fd = env.calls.socket(family, SOCK_DGRAM)
        env.calls.bind(fd, (address, 53))
        while True:
            data, peer = env.calls.recvfrom(fd, 2048)
            env.calls.sendto(fd, bytes(answer(DNS(data), *short, tc=1)), peer)

    def streams(env: Env, _words: list[str]) -> int:
        calls = env.calls
        fd = calls.socket(family, SOCK_STREAM)
        calls.bind(fd, (address, 53))
        calls.listen(fd, 5)
        while True:
            connection, _ = calls.accept(fd)
            raw = calls.recv(connection, 2048)
            assert struct.unpack("!H", raw[:2])[0] == len(raw) - 2, "RFC 1035 §4.2.2"
            asked.append(DNS(raw[2:]))
            if over_tcp is not None:
                over_tcp(env, connection, asked[-1])
            calls.close(connection)

    pair.bob.spawn(datagrams)
    if over_tcp is not None:
        pair.bob.spawn(streams)
    pair.board.run(0.1)
    return asked


def ask(pair: Pair, seconds: float = 1) -> Query:
    query = pair.alice.resolver.query(NAME)
    pair.board.run(seconds)
    return query


def said(query: Query) -> str:
    """The answer, as words."""
    got = query.answer
    return "pending" if got is None else got.error or " ".join(map(format_address, got.addresses))


def counted(pair: Pair, name: str) -> int:
    return pair.alice.resolver.counters[name]


@pytest.mark.parametrize("address", ["10.0.0.2", "fd00::2"])
def test_a_truncated_answer_is_asked_for_again_over_tcp(pair: Pair, address: str) -> None:
    pair.alice.resolver.set_servers("static", [parse_address(address)])
    asked = serve(
        pair, lambda env, fd, query: void(env.calls.send(fd, framed(whole(query)))), a(NAME, MANY[0]), address=address
    )
    query = ask(pair)
    assert query.answer is not None
    assert (query.answer.truncated, query.answer.error) == (False, "")
    assert said(query).split() == MANY[:MOST], "in the server's order"
    assert [one.qd[0].qname for one in asked] == [b"www.example.org."]
    assert counted(pair, "tx_stream_queries") == 1
    assert list(pair.alice.stack.tcp.ends) == []
    assert said(ask(pair, 0)) == said(query), "it is kept"
    assert len(asked) == 1


def test_the_reply_may_come_byte_by_byte_and_with_more_behind_it(pair: Pair) -> None:
    def trickle(env: Env, fd: int, query: DNS) -> None:
        raw = framed(answer(query, a(NAME, "192.0.2.7")))
        for byte in raw[:-10]:
            env.calls.send(fd, bytes([byte]))
            env.sleep(1000)
        env.calls.send(fd, raw[-10:] + b"and more")

    serve(pair, trickle)
    assert said(ask(pair, 2)) == "192.0.2.7"


def test_a_reply_before_a_reset_counts(pair: Pair) -> None:
    def reset(env: Env, fd: int, query: DNS) -> None:
        env.calls.send(fd, framed(answer(query, a(NAME, "192.0.2.7"))))
        env.calls.setsockopt(fd, SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))

    serve(pair, reset)
    assert said(ask(pair)) == "192.0.2.7"


HOSTILE: dict[str, Serve | None] = {
    "nobody listens": None,
    "closes": lambda env, fd, query: None,
    "resets": lambda env, fd, query: env.calls.setsockopt(fd, SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0)),
    "length of nothing": lambda env, fd, query: void(env.calls.send(fd, b"\0\0")),
    "length of a stump": lambda env, fd, query: void(env.calls.send(fd, b"\0\x0b" + bytes(11))),
    "length too large": lambda env, fd, query: void(env.calls.send(fd, b"\xff\xff" + bytes(whole(query)))),
    "length too small": lambda env, fd, query: void(env.calls.send(fd, b"\0\x20" + bytes(whole(query)))),
    "half a length": lambda env, fd, query: void(env.calls.send(fd, b"\0")),
    "junk": lambda env, fd, query: void(env.calls.send(fd, b"\0\x20" + b"\xff" * 32)),
    "another query's": lambda env, fd, query: void(env.calls.send(fd, framed(answer(query, id=query.id ^ 1)))),
    "another name": lambda env, fd, query: void(env.calls.send(fd, framed(DNS(id=query.id, qr=1)))),
    "says that it cannot": lambda env, fd, query: void(env.calls.send(fd, framed(answer(query, rcode=2)))),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_h64_where_tcp_comes_to_nothing_what_the_datagram_had_is_the_answer(pair: Pair, what: str) -> None:
    serve(pair, HOSTILE[what], a(NAME, "192.0.2.1"))
    query = ask(pair)
    assert said(query) == "192.0.2.1"
    assert query.answer is not None
    assert query.answer.truncated is True
    assert counted(pair, "rx_stream_failed") == 1
    assert list(pair.alice.stack.tcp.ends) == []


@pytest.mark.parametrize("what", HOSTILE)
def test_h64_without_any_answer_it_ends_with_an_error(pair: Pair, what: str) -> None:
    serve(pair, HOSTILE[what])
    query = ask(pair, 40)
    assert said(query) in ("UNREACHABLE", "SERVFAIL", "TIMEOUT")
    assert counted(pair, "tx_stream_queries") == 3, "once each round"
    assert list(pair.alice.stack.tcp.connections) == []


@pytest.mark.parametrize("drip", [False, True])
def test_h64_a_server_that_never_finishes_is_left_in_time(pair: Pair, drip: bool) -> None:
    def slow(env: Env, fd: int, _query: DNS) -> None:
        env.calls.send(fd, b"\xff\xff")
        while drip:
            env.calls.send(fd, b"\0")
            env.sleep(500_000)
        env.sleep(1_000_000_000)

    serve(pair, slow, a(NAME, "192.0.2.1"))
    query = ask(pair, 4.9)
    assert said(query) == "pending"
    pair.board.run(0.2)
    assert said(query) == "192.0.2.1"
    assert counted(pair, "tx_timeouts") == 0, "there was an answer"


def test_a_cancelled_question_leaves_no_connection(pair: Pair) -> None:
    serve(pair, lambda env, fd, query: env.sleep(1_000_000))
    query = ask(pair, 0.1)
    (end,) = pair.alice.stack.tcp.ends
    assert end.connected is True
    query.cancel()
    assert end.closed is True
    pair.board.run(3)
    assert said(query) == "CANCELLED"
    assert [*pair.alice.stack.tcp.connections, *pair.alice.stack.tcp.ends] == []
