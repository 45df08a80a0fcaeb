"""Many connections: at once (row C3), one after the other (row E50), and from people who mean no good (row H62).

Guests on a hub with real cards, programs that use system calls; the flood meets a stack alone. Time is virtual.
"""

from __future__ import annotations

import errno
import random
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from guest.apps.env import Env
from guest.kernel import Guest
from guest.net.pbuf import PacketBuffer
from guest.net.tcp.state import State
from guest.sys.calls import Calls
from guest.sys.constants import SHUT_WR
from hw.wire.hub import Hub
from tests.guest_board import Board
from tests.tcp_pipe import Pair, Wire
from tests.tcp_wire import checksum
from tests.tcp_world import MS, SECOND, World, number

SERVER = "10.0.0.1"
PORT = 7


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board()
    yield board
    board.close()


def two_guests(board: Board) -> tuple[Guest, Guest]:
    """A client at 10.0.0.2 and a server at 10.0.0.1."""
    hub = Hub(board.loop)
    words = "-ipaddr {} -netmask 255.255.255.0"
    client = board.guest(words.format("10.0.0.2"), hub.port("client"), name="client", seed=2)
    server = board.guest(words.format(SERVER), hub.port("server"), name="server", seed=1)
    board.settle()
    return client, server


def run(board: Board, until: Callable[[], bool], seconds: float, what: str) -> None:
    """Let time pass until something has happened."""
    board.loop.run(until=until, deadline=board.loop.clock.now() + round(seconds * SECOND))
    assert until(), f"{what}: not after {seconds} s"


def recv_all(calls: Calls, fd: int, size: int) -> bytes:
    """`size` bytes, fewer where the stream ends."""
    found = b""
    while len(found) < size and (data := calls.recv(fd, size - len(found))):
        found += data
    return found


def echo_server(backlog: int) -> Callable[[Env, list[str]], None]:
    """A program that gives each connection a process of its own, which sends back what comes."""

    def serve(env: Env, fd: int) -> None:
        while data := env.calls.recv(fd, 4096):
            env.calls.send(fd, data)
        env.calls.close(fd)

    def main(env: Env, _argv: list[str]) -> None:
        calls = env.calls
        listening = calls.socket()
        calls.bind(listening, ("0.0.0.0", PORT))
        calls.listen(listening, backlog)
        while True:
            fd, _ = calls.accept(listening)
            env.guest.spawn(lambda env, _argv, fd=fd: serve(env, fd))

    return main


def message(which: int) -> bytes:
    """A kilobyte that nobody else has."""
    return random.Random(which).randbytes(1024)


# -- at once -------------------------------------------------------------------------------------------------------


def test_c3_a_thousand_connections_are_open_at_once_and_each_is_echoed_its_kilobyte(board: Board) -> None:
    client, server = two_guests(board)
    server.spawn(echo_server(1000))
    open_now: set[int] = set()
    echoed: dict[int, bytes] = {}
    go = False

    def talk(env: Env, argv: list[int]) -> None:
        calls = env.calls
        fd = calls.socket()
        calls.connect(fd, (SERVER, PORT))
        open_now.add(argv[0])
        while not go:
            env.sleep(100 * MS)
        calls.send(fd, message(argv[0]))
        echoed[argv[0]] = recv_all(calls, fd, 1024)
        calls.close(fd)

    for which in range(1000):
        client.spawn(talk, which)
    established = lambda guest: guest.stack.tcp.states().get(State.ESTABLISHED, 0)  # noqa: E731
    run(board, lambda: len(open_now) == 1000 == established(server), 60, "a thousand connections")
    assert established(client) == 1000
    assert len(client.calls.fds) == 1000, "each has a descriptor"
    go = True
    run(board, lambda: len(echoed) == 1000, 60, "a thousand echoes")

    assert [which for which in range(1000) if echoed[which] != message(which)] == []


# -- one after the other -------------------------------------------------------------------------------------------


def held(guest: Guest) -> dict[str, int]:
    """How much of everything that a connection takes is in use."""
    tcp, dma = guest.stack.tcp, guest.services.dma
    return {
        "connections": len(tcp.entries),
        "half open": tcp.half_open,
        "time waits": tcp.time_waits,
        "ends with a port": sum(1 for _ in tcp.ends),
        "timers": len(tcp._timers),
        "descriptors": len(guest.calls.fds),
        "mapped bytes": dma.mapped_bytes,
        "free bytes": dma.free_bytes,
    }


def test_e50_ten_thousand_connections_come_and_go_and_leave_nothing(board: Board) -> None:
    """The two sides close first in turn, so both have the TIME-WAITs, of which neither keeps more than it may."""
    client, server = two_guests(board)
    cycles = 10_000
    waits: list[int] = []
    done: list[int] = []
    limit = server.stack.tcp.config.time_waits

    def serve(env: Env, _argv: list[str]) -> None:
        calls = env.calls
        listening = calls.socket()
        calls.bind(listening, ("0.0.0.0", PORT))
        calls.listen(listening, 5)
        for cycle in range(cycles):
            fd, _ = calls.accept(listening)
            calls.send(fd, recv_all(calls, fd, 100))
            if cycle % 2:
                assert calls.recv(fd, 1) == b"", "the client closes"
            calls.close(fd)
        calls.close(listening)

    def talk(env: Env, _argv: list[str]) -> None:
        calls = env.calls
        for cycle in range(cycles):
            fd = calls.socket()
            calls.connect(fd, (SERVER, PORT))
            data = cycle.to_bytes(4, "big") * 25
            calls.send(fd, data)
            assert recv_all(calls, fd, 100) == data
            if cycle % 2 == 0:
                assert calls.recv(fd, 1) == b"", "the server closes"
            calls.close(fd)
            if cycle % 100 == 0:
                env.sleep(SECOND)
                waits.append(max(client.stack.tcp.time_waits, server.stack.tcp.time_waits))
            done.append(cycle)

    before = [held(guest) for guest in (client, server)]
    programs = [server.spawn(serve), client.spawn(talk)]
    run(board, lambda: not any(program.alive for program in programs), 3600, "ten thousand cycles")
    assert [program.exit_status for program in programs] == [0, 0], "\n".join(client.log.lines + server.log.lines)
    board.run(130)

    assert len(done) == cycles
    assert 1000 < max(waits) <= limit
    assert [held(guest) for guest in (client, server)] == before
    for guest in (client, server):
        counters = guest.stack.tcp.counters
        assert counters["tx_resets"] == counters["rx_resets"] == 0, counters
        assert counters["closed"] == cycles


# -- people who mean no good -----------------------------------------------------------------------------------------


class Flooded(World):
    """A stack whose answers to 10.0.0.3 and 10.0.0.4 are only counted, as `answers`."""

    def __init__(self, **settings: Any) -> None:
        self.answers = 0
        super().__init__(**settings)

    def _collect(self, packets: Sequence[PacketBuffer]) -> None:
        theirs = [packet for packet in packets if packet.peek(16, 4) not in (b"\x0a\0\0\3", b"\x0a\0\0\4")]
        self.answers += len(packets) - len(theirs)
        super()._collect(theirs)

    def floods(self, count: int, start: int) -> None:
        """SYNs to port 80 from as many ports of those two, ten thousand a second."""
        for which in range(start, start + count):
            self.clock.now += 100
            packet = PacketBuffer.from_bytes(syn(3 + which % 2, 1024 + which // 2 % 60_000, which * 2_654_435_761))
            self.link.input([packet])
            if not which % 64:
                self.settle()


def syn(host: int, port: int, seq: int) -> bytes:
    """A SYN of 10.0.0.`host` to port 80, with an MSS option."""
    head = struct.pack("!BBHHHBBHIBBBB", 0x45, 0, 44, 1, 0x4000, 64, 6, 0, 0x0A00_0000 + host, 10, 0, 0, 1)
    body = struct.pack("!HHIIHHHHBBH", port, 80, seq % (1 << 32), 0, 6 << 12 | 2, 65535, 0, 0, 2, 4, 1460)
    body = body[:16] + checksum(head[12:] + b"\0\6\0\x18" + body).to_bytes(2, "big") + body[18:]
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + body


def test_h62_a_hundred_thousand_syns_take_no_memory_and_keep_nobody_out() -> None:
    """While they come, at every ten thousandth an honest client connects and is served."""
    world = Flooded()
    server = world.listens(80, backlog=100)
    tcp = world.stack.tcp
    blocks: list[int] = []
    for turn in range(10):
        world.floods(10_000, turn * 10_000)
        world.log.clear()
        blocks.append(sys.getallocatedblocks())
        peer = world.peer(80, 50_000 + turn)
        peer.stamps = True
        peer.sends("S", mss=1460, ws=7, sack_ok=True)
        peer.expects("S.", ack=1)
        peer.sends(".")
        program = server.accepts()
        peer.sends("P.", data=b"are you there?")
        program.reads(b"are you there?")
        program.writes(b"yes")
        peer.expects("P.", data=b"yes")
        peer.sends("R", ack=None)
        assert tcp.half_open == 100, "as many as the backlog"

    assert world.answers >= 100_000
    assert tcp.counters["rx_syn_cookies"] == 10
    assert len(tcp.entries) == tcp.half_open
    assert max(blocks[2:]) - blocks[1] < 5_000, f"memory grows: {blocks}"
    world.passes(130 * SECOND)
    assert (tcp.half_open, len(tcp.entries), tcp.counters["syn_queue_expired"]) == (0, 0, 100)
    assert tcp.poll_at() is None, "no timer is left"


def test_h62_a_server_that_is_too_slow_for_its_backlog_serves_everybody_in_the_end(board: Board) -> None:
    """A client comes each millisecond; the server has a backlog of four, and takes five for each."""
    client, server = two_guests(board)
    served: set[int] = set()

    def serve(env: Env, _argv: list[str]) -> None:
        listening = env.calls.socket()
        env.calls.bind(listening, ("0.0.0.0", PORT))
        env.calls.listen(listening, 4)
        for _ in range(60):
            fd, _ = env.calls.accept(listening)
            env.sleep(5 * MS)
            env.calls.send(fd, recv_all(env.calls, fd, 1024))
            env.calls.close(fd)

    def talk(env: Env, argv: list[int]) -> None:
        env.sleep(argv[0] * MS)
        fd = env.calls.socket()
        env.calls.connect(fd, (SERVER, PORT))
        env.calls.send(fd, message(argv[0]))
        assert recv_all(env.calls, fd, 1024) == message(argv[0])
        env.calls.close(fd)
        served.add(argv[0])

    server.spawn(serve)
    programs = [client.spawn(talk, which) for which in range(60)]
    run(board, lambda: not any(program.alive for program in programs), 300, "sixty clients")

    assert served == set(range(60)), client.log.lines[-3:]
    assert server.stack.tcp.counters["rx_dropped_accept_queue"] > 20, "the queue was hardly ever full"


def test_h62_when_every_port_is_in_time_wait_a_client_is_told_and_has_one_again_a_second_later() -> None:
    pair = Pair(first_port=40_000, last_port=40_049)
    server = pair.b.stack.tcp.open(4)
    assert (server.bind(number("0.0.0.0"), PORT), server.listen(5)) == (0, 0)
    there = number(pair.b.address)
    waits = pair.a.stack.tcp.waits

    def connects() -> int:
        client = pair.a.stack.tcp.open(4)
        code = client.connect(there, PORT)
        if code == errno.EINPROGRESS:
            pair.run(lambda: server.readable and client.connected)
            accepted = server.accept()
            assert accepted is not None
            client.close()
            pair.run(lambda: accepted.readable)
            accepted.close()
            pair.run(lambda: accepted.state is State.CLOSED)
        client.close()
        return int(code)

    pair.wire = Wire(delay=1 * MS)
    assert [connects() for _ in range(50)] == [errno.EINPROGRESS] * 50
    assert len(waits) == 50
    assert connects() == errno.EADDRNOTAVAIL, "each port has been closed less than a second ago"
    end = pair.now + SECOND
    pair.run(lambda: pair.now >= end, every=SECOND)
    assert [connects() for _ in range(50)] == [errno.EINPROGRESS] * 50, "timestamps tell old and new apart (RFC 6191)"
    end = pair.now + 61 * SECOND
    pair.run(lambda: pair.now >= end, every=SECOND)
    assert len(pair.a.stack.tcp.entries) == len(pair.b.stack.tcp.entries) == 0


# -- what is independent of what --------------------------------------------------------------------------------------


def test_a7_closing_the_raw_outlet_leaves_the_connections_of_the_interface_alive(board: Board) -> None:
    client, server = two_guests(board)
    got = bytearray()
    closed_at: list[int] = []
    data = random.Random(7).randbytes(2_000_000)

    def serve(env: Env, _argv: list[str]) -> None:
        listening = env.calls.socket()
        env.calls.bind(listening, ("0.0.0.0", PORT))
        env.calls.listen(listening, 1)
        fd, _ = env.calls.accept(listening)
        while block := env.calls.recv(fd, 65536):
            got.extend(block)
        env.calls.close(fd)

    def talk(env: Env, _argv: list[str]) -> None:
        fd = env.calls.socket()
        env.calls.connect(fd, (SERVER, PORT))
        for at in range(0, len(data), 50_000):
            env.calls.send(fd, data[at : at + 50_000])
        env.calls.shutdown(fd, SHUT_WR)
        assert env.calls.recv(fd, 1) == b""

    def listen_in(env: Env, _argv: list[str]) -> None:
        outlet = env.guest.outlets.open("eth0", owner=env.process, mailbox_limit=1 << 20)
        while len(got) < 500_000:
            env.receive()
        outlet.close()
        closed_at.append(len(got))

    programs = [server.spawn(serve), server.spawn(listen_in), client.spawn(talk)]
    run(board, lambda: not any(program.alive for program in programs), 60, "the transfer")

    assert [program.exit_status for program in programs] == [0, 0, 0]
    assert closed_at[0] < len(data), "it was closed in the middle"
    assert bytes(got) == data
