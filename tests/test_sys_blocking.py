"""Calls that block: until data comes, until their time has passed to the microsecond, or until they are interrupted."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from guest.sys.constants import (
    AF_INET,
    F_SETFL,
    IPPROTO_TCP,
    MSG_DONTWAIT,
    MSG_PEEK,
    O_NONBLOCK,
    POLLIN,
    SHUT_RD,
    SIG_BLOCK,
    SIG_SETMASK,
    SIG_UNBLOCK,
    SIGALRM,
    SIGINT,
    SO_LINGER,
    SO_RCVTIMEO,
    SOCK_DGRAM,
    SOCK_STREAM,
    SOL_SOCKET,
    TCP_QUICKACK,
)
from guest.sys.scheduler import EX_KILLED, Process
from tests.sys_world import SECOND, World

HERE = ("127.0.0.1", 7)


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


@pytest.fixture
def fd(world: World) -> int:
    """A socket on port 7."""
    made = world.calls.socket(AF_INET, SOCK_DGRAM)
    world.calls.bind(made, HERE)
    return made


def sender(world: World, when: int, data: bytes = b"hello") -> Callable[[], None]:
    """A process that sends a datagram to port 7 at `when`."""

    def main() -> None:
        fd = world.calls.socket(AF_INET, SOCK_DGRAM)
        world.scheduler.sleep(when)
        world.calls.sendto(fd, data, HERE)
        world.calls.close(fd)

    return main


def test_recv_blocks_until_something_comes_and_the_others_run_meanwhile(world: World, fd: int) -> None:
    got: list[tuple[bytes, int]] = []
    ticks: list[int] = []

    def reader() -> None:
        got.append((world.calls.recv(fd, 100), world.clock.time))

    def ticker() -> None:
        for _ in range(4):
            world.scheduler.sleep(10)
            ticks.append(world.clock.time)

    world.run(reader, ticker, sender(world, 25))

    assert got == [(b"hello", 25)]
    assert ticks == [10, 20, 30, 40]


def test_the_longest_waiting_reader_is_served_first(world: World, fd: int) -> None:
    got: list[tuple[str, bytes]] = []

    def reader(name: str) -> Callable[[], None]:
        return lambda: got.append((name, world.calls.recv(fd, 100)))

    world.run(reader("first"), reader("second"), sender(world, 5, b"one"), sender(world, 9, b"two"))

    assert got == [("first", b"one"), ("second", b"two")]


def test_one_datagram_ends_one_wait(world: World, fd: int) -> None:
    ends: list[int] = []

    def reader() -> None:
        world.calls.recv(fd, 100)
        ends.append(world.clock.time)

    world.run(reader, reader, sender(world, 5), sender(world, 50))

    assert ends == [5, 50]


def test_a_timeout_ends_at_its_microsecond(world: World, fd: int) -> None:
    ended: list[int] = []

    def main() -> None:
        world.calls.set_timeout(fd, 1_234_567)
        assert world.calls.get_timeout(fd) == 1_234_567
        with pytest.raises(TimeoutError, match="timed out"):
            world.calls.recv(fd, 100)
        ended.append(world.clock.time)
        world.calls.set_timeout(fd, None)
        assert world.calls.recv(fd, 100) == b"hello"
        ended.append(world.clock.time)

    world.run(main, sender(world, 3 * SECOND))

    assert ended == [1_234_567, 3 * SECOND]


def test_a_timeout_counts_from_the_call_although_others_take_the_data(world: World, fd: int) -> None:
    ended: list[int] = []

    def robber() -> None:
        assert world.calls.recv(fd, 100) == b"hello"

    def robbed() -> None:
        world.calls.set_timeout(fd, 100)
        with pytest.raises(TimeoutError):
            world.calls.recv(fd, 100)
        ended.append(world.clock.time)

    for when in (30, 60, 90):
        world.start(robber)
        world.start(sender(world, when))
    world.run(robbed)

    assert ended == [100]


def test_so_rcvtimeo_ends_with_eagain(world: World, fd: int) -> None:
    ended: list[int] = []

    def main() -> None:
        world.calls.setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, struct.pack("qq", 2, 500_000))
        with pytest.raises(BlockingIOError, match="temporarily unavailable"):
            world.calls.recv(fd, 100)
        ended.append(world.clock.time)

    world.run(main)

    assert ended == [2_500_000]


def test_what_must_not_block_does_not(world: World, fd: int) -> None:
    def main() -> None:
        with pytest.raises(BlockingIOError):
            world.calls.recv(fd, 100, MSG_DONTWAIT)
        world.calls.fcntl(fd, F_SETFL, O_NONBLOCK)
        assert world.calls.get_timeout(fd) == 0
        with pytest.raises(BlockingIOError):
            world.calls.recv(fd, 100)
        with pytest.raises(BlockingIOError):
            world.calls.read(fd, 100)

    world.run(main)

    assert world.clock.time == 0


def test_a_peek_blocks_too_and_leaves_the_datagram(world: World, fd: int) -> None:
    got: list[bytes] = []

    def main() -> None:
        got.append(world.calls.recv(fd, 2, MSG_PEEK))
        got.append(world.calls.recv(fd, 100))

    world.run(main, sender(world, 10))

    assert got == [b"he", b"hello"]


def test_shutdown_ends_a_blocked_recv_with_nothing(world: World, fd: int) -> None:
    got: list[tuple[bytes, object]] = []

    def reader() -> None:
        got.append(world.calls.recvfrom(fd, 100))

    def closer() -> None:
        world.scheduler.sleep(10)
        with pytest.raises(OSError, match="not connected"):
            world.calls.shutdown(fd, SHUT_RD)

    world.run(reader, closer)

    assert got == [(b"", None)]


def test_an_error_from_outside_ends_a_blocked_recv(world: World, fd: int) -> None:
    def main() -> None:
        other = world.calls.socket(AF_INET, SOCK_DGRAM)
        world.calls.connect(other, ("127.0.0.1", 9))
        world.calls.send(other, b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            world.calls.recv(other, 100)

    world.run(main)


def test_close_does_not_pull_the_socket_from_under_a_reader(world: World, fd: int) -> None:
    got: list[bytes] = []

    def closer() -> None:
        world.scheduler.sleep(10)
        world.calls.close(fd)
        with pytest.raises(OSError, match="Bad file"):
            world.calls.getsockname(fd)

    world.run(lambda: got.append(world.calls.recv(fd, 100)), closer, sender(world, 20))

    assert got == [b"hello"]
    assert world.leftovers() == [], "the reader was the last who held it"


def test_a_killed_reader_lets_go(world: World, fd: int) -> None:
    process = world.start(lambda: world.calls.recv(fd, 100))
    world.settle()
    world.calls.close(fd)
    assert len(world.leftovers()) == 1

    world.scheduler.kill(process)

    assert process.exit_status == EX_KILLED
    assert world.leftovers() == []


# -- signals -----------------------------------------------------------------------------------------------------------


def after(world: World, when: int, call: Callable[[], object]) -> Callable[[], None]:
    def main() -> None:
        world.scheduler.sleep(when)
        call()

    return main


def blocked(world: World, call: Callable[[], object], ended: list[int]) -> Process:
    """A process in a call that ends with EINTR."""

    def main() -> None:
        with pytest.raises(InterruptedError):
            call()
        ended.append(world.clock.time)

    return world.start(main)


def test_a_signal_interrupts_what_blocks(world: World, fd: int) -> None:
    ended: list[int] = []
    one = blocked(world, lambda: world.calls.recv(fd, 100), ended)
    two = blocked(world, lambda: world.calls.poll([(fd, POLLIN)]), ended)

    for when, process in ((10, one), (20, two)):
        world.start(after(world, when, partial(world.calls.interrupt, process)))
    world.pass_time(30)

    assert ended == [10, 20]
    assert (one.exit_status, two.exit_status) == (0, 0)


def test_a_signal_that_finds_nobody_blocked_is_gone(world: World, fd: int) -> None:
    def main() -> None:
        world.calls.interrupt(world.scheduler.this())
        world.scheduler.sleep(50)
        assert world.calls.recv(fd, 100) == b"hello"

    process = world.start(main)
    world.run(after(world, 10, lambda: world.calls.interrupt(process)), sender(world, 100))

    assert process.exit_status == 0


def test_a_masked_signal_waits_for_ppoll_to_let_it_through(world: World, fd: int) -> None:
    ended: list[int] = []

    def main() -> None:
        calls = world.calls
        assert calls.sigmask(SIG_BLOCK, {SIGINT}) == frozenset()
        assert calls.poll([(fd, POLLIN)], 100) == [], "the mask keeps the signal out, and it stays pending"
        ended.append(world.clock.time)
        assert calls.ppoll([(fd, POLLIN)], 100, {SIGINT}) == []
        ended.append(world.clock.time)
        with pytest.raises(InterruptedError):
            calls.ppoll([(fd, POLLIN)], 100, {SIGALRM})
        ended.append(world.clock.time)
        assert calls.ppoll([(fd, POLLIN)], 100, ()) == [], "it came once"
        ended.append(world.clock.time)

    process = world.start(main)
    world.run(after(world, 10, lambda: world.calls.interrupt(process, SIGINT)), seconds=1)
    world.pass_time(1000)

    assert ended == [100, 200, 200, 300]


def test_pselect_swaps_the_mask_only_while_it_waits(world: World, fd: int) -> None:
    ended: list[int] = []

    def main() -> None:
        calls = world.calls
        assert calls.pselect([fd], [], [], 100, {SIGINT}) == ([], [], [])
        ended.append(world.clock.time)
        assert calls.pselect([fd], [], [], 100, ()) == ([], [], [])
        ended.append(world.clock.time)
        assert calls.sigmask(SIG_UNBLOCK, ()) == frozenset()
        assert calls.sigmask(SIG_SETMASK, {SIGALRM}) == frozenset()
        assert calls.sigmask(SIG_UNBLOCK, {SIGALRM}) == {SIGALRM}
        with pytest.raises(OSError, match="Invalid argument"):
            calls.sigmask(9, ())

    process = world.start(main)
    world.run(after(world, 10, lambda: world.calls.interrupt(process)))
    world.pass_time(1000)

    assert ended == [100, 200], "the one that came under the mask was let through when the mask was gone, to nobody"
    assert process.exit_status == 0


# -- callers that are no guest process ---------------------------------------------------------------------------------


def test_who_is_no_guest_process_may_look_but_not_wait(world: World, fd: int) -> None:
    assert world.calls.poll([(fd, POLLIN)], 0) == []
    with pytest.raises(BlockingIOError):
        world.calls.recv(fd, 100, MSG_DONTWAIT)
    with pytest.raises(RuntimeError, match="only a guest process can block here"):
        world.calls.recv(fd, 100)
    with pytest.raises(RuntimeError, match="no door"):
        world.calls.poll([(fd, POLLIN)])


def test_the_door_is_asked_to_wait_for_others(world: World, fd: int) -> None:
    asked: list[int | None] = []

    def door(ready: Callable[[], bool], timeout: int | None) -> bool:
        asked.append(timeout)
        assert not ready()
        if timeout is None:
            world.run(sender(world, 10))
        else:
            world.pass_time(timeout)
        return ready()

    world.calls.block = door

    assert world.calls.recv(fd, 100) == b"hello"
    world.calls.set_timeout(fd, 500)
    with pytest.raises(TimeoutError):
        world.calls.recv(fd, 100)
    assert world.calls.poll([(fd, POLLIN)], 70) == []
    assert asked == [None, 500, 70]
    assert world.clock.time == 580


def test_the_time_of_a_call_goes_on_when_the_door_was_too_optimistic(world: World, fd: int) -> None:
    asked: list[int | None] = []

    def door(_ready: Callable[[], bool], timeout: int | None) -> bool:
        asked.append(timeout)
        world.pass_time(300)
        return len(asked) == 1  # it was ready, but somebody else has taken the datagram

    world.calls.block = door
    world.calls.set_timeout(fd, 500)
    with pytest.raises(TimeoutError):
        world.calls.recv(fd, 100)

    assert asked == [500, 200]


def connected(world: World) -> tuple[int, int]:
    """Both ends of a stream over the loopback; for a process."""
    calls = world.calls
    listening, client = calls.socket(AF_INET, SOCK_STREAM), calls.socket(AF_INET, SOCK_STREAM)
    calls.bind(listening, HERE)
    calls.listen(listening, 1)
    calls.connect(client, HERE)
    server, _ = calls.accept(listening)
    calls.close(listening)
    return client, server


@pytest.mark.parametrize(("reads_after", "closed_after"), [(2 * SECOND, 2 * SECOND), (20 * SECOND, 10 * SECOND)])
def test_so_linger_blocks_close_until_the_peer_has_everything_or_so_long(
    world: World, reads_after: int, closed_after: int
) -> None:
    calls = world.calls
    closed: list[int] = []

    def main() -> None:
        client, server = connected(world)
        world.scheduler.spawn(lambda: reader(server))
        calls.setsockopt(client, SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 10))
        calls.send(client, bytes(120_000))  # more than the other end has room for
        calls.close(client)
        closed.append(world.clock.time)

    def reader(server: int) -> int:
        world.scheduler.sleep(reads_after)
        while calls.recv(server, 65536):
            pass
        calls.close(server)
        return 0

    world.run(main)

    assert closed == [closed_after]


@pytest.mark.parametrize(("on", "least", "most"), [(1, 0, 1_000), (0, 40_000, 41_000)])
def test_tcp_quickack_decides_when_a_byte_is_acknowledged(world: World, on: int, least: int, most: int) -> None:
    took: list[int] = []

    def main() -> None:
        client, server = connected(world)
        world.calls.setsockopt(server, IPPROTO_TCP, TCP_QUICKACK, on)
        begun = world.clock.time
        world.calls.send(client, b"x")
        while any(end.unacked for end in world.stack.tcp.ends):
            world.scheduler.sleep(1000)
        took.append(world.clock.time - begun)

    world.run(main)

    assert least <= took[0] <= most
