"""Streams over a real card: what readers that stall leave of its receive buffers, and senders of its transmit ring.

Two guests with cards of each model on a hub; the wire of the client takes a millisecond each way. Time is virtual.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from guest.apps.env import Env
from guest.kernel import Guest
from guest.net.pbuf import PacketBuffer
from guest.sys.constants import SHUT_WR
from hw.wire.hub import Hub
from hw.wire.impair import ImpairedLink
from tests.guest_board import CARDS, QUEUES, SECOND, Board, posted

SERVER = "10.0.0.1"
PORT = 9
MB = 1_000_000


@pytest.fixture(params=[*CARDS, *QUEUES, "virtio-offload", "virtio-packed-offload"])
def board(request: pytest.FixtureRequest) -> Iterator[Board]:
    made = Board(request.param)
    yield made
    made.close()


def two_guests(board: Board, words: str = "") -> tuple[Guest, Guest]:
    """A client at 10.0.0.2, with `words` on its command line, and a server at 10.0.0.1."""
    hub = Hub(board.loop)
    line = "-ipaddr {} -netmask 255.255.255.0 {}"
    slow = ImpairedLink(hub.port("client"), board.loop, seed=1, delay_us=1000, limit=1 << 16)
    client = board.guest(line.format("10.0.0.2", words), slow, name="client", seed=2)
    server = board.guest(line.format(SERVER, ""), hub.port("server"), name="server", seed=1)
    board.settle()
    return client, server


def run(board: Board, until: Callable[[], bool], seconds: float, what: str) -> None:
    """Let time pass until something has happened."""
    board.loop.run(until=until, deadline=board.loop.clock.now() + round(seconds * SECOND))
    assert until(), f"{what}: not after {seconds} s"


def sink(got: dict[int, bytearray], stalled: int) -> Callable[[Env, list[str]], None]:
    """A server of whose connections the first `stalled` are never read; what the others bring is kept in `got`."""

    def read(env: Env, fd: int, into: bytearray) -> None:
        while block := env.calls.recv(fd, 65536):
            into.extend(block)
        env.calls.close(fd)

    def main(env: Env, _argv: list[str]) -> None:
        listening = env.calls.socket()
        env.calls.bind(listening, ("0.0.0.0", PORT))
        env.calls.listen(listening, 100)
        number = 0
        while True:
            fd, _ = env.calls.accept(listening)
            if number >= stalled:
                got[number] = bytearray()
                env.guest.spawn(lambda env, _argv, fd=fd, into=got[number]: read(env, fd, into))
            number += 1

    return main


def sends(data: bytes) -> Callable[[Env, list[str]], None]:
    """A client that sends all that, and waits until the server has closed."""

    def main(env: Env, _argv: list[str]) -> None:
        fd = env.calls.socket()
        env.calls.connect(fd, (SERVER, PORT))
        for at in range(0, len(data), 100_000):
            env.calls.send(fd, data[at : at + 100_000])
        env.calls.shutdown(fd, SHUT_WR)
        assert env.calls.recv(fd, 1) == b""
        env.calls.close(fd)

    return main


def stream(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def beside(board: Board, stalled: int) -> tuple[int, Guest]:
    """Microseconds that 4 MB take to a server of which `stalled` other connections are not read; and the server."""
    client, server = two_guests(board)
    got: dict[int, bytearray] = {}
    server.spawn(sink(got, stalled))
    for _ in range(stalled):
        client.spawn(sends(bytes(MB)))
    board.run(1)
    full = [end for end in server.stack.tcp.ends if not end.listening and end.unread >= 60_000]
    assert len(full) == stalled, "the receive buffers of all stalled connections are full"
    data = stream(4 * MB)
    begun = board.loop.clock.now()
    program = client.spawn(sends(data))
    run(board, lambda: not program.alive, 60, "the transfer")
    assert bytes(got[stalled]) == data
    assert client.stack.tcp.counters["tx_retransmits"] == 0, client.stack.tcp.counters
    return board.loop.clock.now() - begun, server


def test_twelve_readers_that_stall_for_ever_do_not_slow_down_a_thirteenth(board: Board) -> None:
    other = Board(board.card)
    alone, _ = beside(other, 0)
    other.close()

    took, server = beside(board, 12)

    assert took <= alone * 1.05, f"{took} µs beside them, {alone} µs alone"
    there, size = posted(server)
    assert there == size, "the ring is full of buffers to receive into"
    dropped = {name: count for name, count in server.devices[0].counters.items() if "dropped" in name}
    assert dropped == {}


def test_stalled_readers_leave_the_driver_buffers_to_lend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once few are left, what waits to be read is copied, and buffers go back. (Xen's driver lends none.)"""
    board = Board()
    _, server = beside(board, 12)
    pool = server.devices[0].rx.pool  # type: ignore[attr-defined]
    assert len(pool.free) > 0, "what waits to be read has all buffers"

    other = Board()
    monkeypatch.setattr(PacketBuffer, "keep", lambda packet: packet)
    _, greedy = beside(other, 12)
    assert len(greedy.devices[0].rx.pool.free) == 0, "this test would not notice"  # type: ignore[attr-defined]
    other.close()
    board.close()


@pytest.mark.parametrize("words", ["", "net.tx_ring=32"])
@pytest.mark.parametrize("streams", [1, 8])
def test_a_sender_does_not_overrun_its_own_ring(board: Board, words: str, streams: int) -> None:
    client, server = two_guests(board, words)
    got: dict[int, bytearray] = {}
    server.spawn(sink(got, 0))
    wanted = [stream(2 * MB, seed) for seed in range(streams)]
    programs = [client.spawn(sends(data)) for data in wanted]
    run(board, lambda: not any(program.alive for program in programs), 60, "the transfers")

    assert sorted(map(bytes, got.values())) == sorted(wanted)
    assert client.stack.tcp.counters["tx_stalls"] > 0, "the ring was never full"
    for guest in (client, server):
        assert guest.devices[0].counters["tx_dropped_ring_full"] == 0
