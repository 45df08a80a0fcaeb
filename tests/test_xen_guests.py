"""Guests on cards of every model on one hub: pings, datagrams, streams, and segments that are cut on the way or not."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import pytest

from guest.apps.env import Env
from guest.kernel import Guest
from guest.sys.constants import AF_INET, AF_INET6, SHUT_WR, SOCK_DGRAM
from hw.wire.hub import Hub
from hw.wire.link import Frame, frame_length
from tests.guest_board import CARDS, SECOND, Board

MB = 1_000_000
PAIRS = [(one, two) for one in CARDS for two in (*CARDS, "xen-queues")]
NETMASK = "-netmask 255.255.255.0"


@pytest.fixture
def board() -> Iterator[Board]:
    made = Board()
    yield made
    made.close()


def pair(board: Board, one: str, two: str) -> tuple[Guest, Guest, list[int]]:
    """Guests at 10.0.0.1 and fd00::1, 10.0.0.2 and fd00::2, and the lengths of all frames that the first sends."""
    hub = Hub(board.loop, "hub")
    guests = []
    lengths: list[int] = []
    for number, card in ((1, one), (2, two)):
        port = hub.port(str(number))
        if number == 1:
            port.transmit = watched(port.transmit, lengths)  # type: ignore[method-assign]
        guests.append(board.boot(f"-ipaddr 10.0.0.{number} {NETMASK}", port, name=f"guest{number}", card=card))
    board.run(3)
    for number, guest in enumerate(guests, 1):
        assert guest.ni is not None
        guest.calls.if_add_addr("eth0", f"fd00::{number}", 64)
    board.run(3)
    return guests[0], guests[1], lengths


def watched(send: Callable[[Sequence[Frame]], int], lengths: list[int]) -> Callable[[Sequence[Frame]], int]:
    def transmit(frames: Sequence[Frame]) -> int:
        lengths.extend(map(frame_length, frames))
        return send(frames)

    return transmit


def run(board: Board, guest: Guest, what: Callable[[Env, list[str]], object] | str, *words: str) -> None:
    process = guest.spawn(what, *words)  # type: ignore[arg-type]
    board.loop.run(until=lambda: not process.alive, deadline=board.loop.clock.now() + 60 * SECOND)
    assert process.exit_status == 0, guest.log.text() + "\n".join(guest.log.output)


def sends(data: bytes, to: str, got: list[bytes]) -> Callable[[Env, list[str]], int]:
    """A client that sends all of `data` to an echo, and reads it back meanwhile."""

    def main(env: Env, _argv: list[str]) -> int:
        calls = env.calls
        fd = calls.socket(AF_INET6 if ":" in to else AF_INET)
        calls.connect(fd, (to, 7777))

        def write(env: Env, _argv: list[str]) -> int:
            for at in range(0, len(data), 100_000):
                env.calls.send(fd, data[at : at + 100_000])
            env.calls.shutdown(fd, SHUT_WR)
            return 0

        env.guest.spawn(write)
        while block := calls.recv(fd, 1 << 17):
            got.append(block)
        calls.close(fd)
        return 0

    return main


def echo(env: Env, _argv: list[str]) -> int:
    """Give one connection back what it sends, on either family."""
    calls = env.calls
    listening = calls.socket(AF_INET6)
    calls.bind(listening, ("::", 7777))
    calls.listen(listening, 1)
    fd, _ = calls.accept(listening)
    while block := calls.recv(fd, 1 << 17):
        calls.send(fd, block)
    calls.close(fd)
    calls.close(listening)
    return 0


@pytest.mark.parametrize(("one", "two"), PAIRS)
def test_p3_guests_on_different_cards_ping_each_other(board: Board, one: str, two: str) -> None:
    left, right, _ = pair(board, one, two)
    for here, there in ((left, "10.0.0.2"), (right, "10.0.0.1"), (left, "fd00::2"), (right, "fd00::1")):
        run(board, here, "ping", there, "-c", "5", "-i", "0.01")
        run(board, here, "ping", there, "-c", "3", "-i", "0.01", "-s", "20000")
    assert "3 packets transmitted, 3 received, 0% packet loss" in "\n".join(left.log.output)


@pytest.mark.parametrize(("one", "two"), PAIRS)
def test_p3_datagrams_of_all_sizes_pass_both_ways(board: Board, one: str, two: str) -> None:
    left, right, _ = pair(board, one, two)
    sizes = [0, 1, 700, 1472, 1473, 9000, 60_000]
    data = [random.Random(size).randbytes(size) for size in sizes]
    got: list[bytes] = []

    def server(env: Env, _argv: list[str]) -> int:
        fd = env.calls.socket(AF_INET, SOCK_DGRAM)
        env.calls.bind(fd, ("0.0.0.0", 7777))
        for _ in sizes:
            block, peer = env.calls.recvfrom(fd, 65535)
            env.calls.sendto(fd, block, peer)
        return 0

    def client(env: Env, _argv: list[str]) -> int:
        fd = env.calls.socket(AF_INET, SOCK_DGRAM)
        for each in data:
            env.calls.sendto(fd, each, ("10.0.0.2", 7777))
            got.append(env.calls.recvfrom(fd, 65535)[0])
        return 0

    right.spawn(server)
    board.run(0.1)
    run(board, left, client)
    assert got == data


@pytest.mark.parametrize("to", ["10.0.0.2", "fd00::2"])
@pytest.mark.parametrize(("one", "two"), PAIRS)
def test_p3_a_megabyte_goes_there_and_back(board: Board, one: str, two: str, to: str) -> None:
    left, right, lengths = pair(board, one, two)
    data = random.Random(5).randbytes(MB)
    got: list[bytes] = []
    right.spawn(echo)
    board.run(0.1)
    lengths.clear()
    run(board, left, sends(data, to, got))
    assert b"".join(got) == data
    for guest in (left, right):
        tcp = guest.stack.tcp.counters
        assert (tcp["tx_retransmits"], tcp["rx_dropped_checksum"]) == (0, 0), tcp
    if one == "xen-full":
        assert max(lengths) > 30_000, "segments leave uncut"
    else:
        assert max(lengths) <= 1514


def test_segments_that_both_ends_take_are_cut_nowhere(board: Board) -> None:
    left, right, lengths = pair(board, "xen-full", "xen-full")
    data = random.Random(6).randbytes(4 * MB)
    got: list[bytes] = []
    right.spawn(echo)
    board.run(0.1)
    lengths.clear()
    run(board, left, sends(data, "10.0.0.2", got))
    assert b"".join(got) == data
    large = [length for length in lengths if length > 1514]
    assert sum(large) > 3.9 * MB
    assert len(large) < 4 * MB / 16_000, "on average more than 16 KB each"
    for machine in board.machines.values():
        netback = machine.vifs[0].device.counters
        assert netback["rx_segmented"] == netback["rx_checksums_completed"] == 0, netback
    assert right.fes[0].device.counters["rx_dropped_gso"] == 0
    assert right.stack.tcp.counters["rx_dropped_checksum"] == 0


@pytest.mark.parametrize("withheld", ["sg", "gso", "ipv6_csum", "split"])
@pytest.mark.parametrize("to", ["10.0.0.2", "fd00::2"])
def test_a_back_end_may_withhold_any_feature(board: Board, withheld: str, to: str) -> None:
    hub = Hub(board.loop, "hub")
    guests = []
    for number in (1, 2):
        machine = board.machine(f"-ipaddr 10.0.0.{number} {NETMASK}", name=f"guest{number}", card="xen-full")
        machine.add_xen_vif(hub.port(str(number)), options={withheld: False} if number == 1 else {})
        guest = Guest(machine.platform, name=f"guest{number}")
        machine.power_on(guest)
        board.guests.append(guest)
        guests.append(guest)
    board.settle()
    board.run(3)
    for number, guest in enumerate(guests, 1):
        guest.calls.if_add_addr("eth0", f"fd00::{number}", 64)
    board.run(3)
    data = random.Random(7).randbytes(MB)
    got: list[bytes] = []
    guests[1].spawn(echo)
    board.run(0.1)
    run(board, guests[0], sends(data, to, got))
    assert b"".join(got) == data
    assert [guest.stack.tcp.counters["tx_retransmits"] for guest in guests] == [0, 0]
