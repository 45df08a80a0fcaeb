"""Descriptors of the host in the guest: adopted, read, written, and waited for together with the guest's sockets."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable, Iterator

import pytest

from guest.net.stack import Stack
from guest.services import Timers
from guest.sys.calls import Calls
from guest.sys.constants import (
    AF_INET,
    EPOLLET,
    F_SETFL,
    O_NONBLOCK,
    POLLHUP,
    POLLIN,
    POLLOUT,
    SIG_BLOCK,
    SIGALRM,
    SIGINT,
    SOCK_DGRAM,
)
from guest.sys.scheduler import Process, Scheduler
from hw.clock import Clock, RealClock, VirtualClock
from hw.host_files import HostFiles
from hw.loop import Loop
from tests.sys_world import World


class Home:
    """A guest without a machine in a real loop: a `hw.loop.Cpu`."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.loop = Loop(clock or RealClock())
        self.halted = False
        now = self.loop.clock.now
        self.lines: list[str] = []
        self.timers = Timers(now)
        self.scheduler = Scheduler(self.timers, lambda: self.loop.kick_cpu(self), self.lines.append)
        self.stack = Stack(now=now, rng=random.Random(1))
        self.stack.wake = lambda: self.loop.kick_cpu(self)
        self.calls = Calls(self.scheduler, self.stack, now=now, host=HostFiles(self.loop))
        self.loop.add_cpu(self)

    def interrupt(self, line: int) -> None:
        raise AssertionError("there is no device")

    def run(self) -> bool:
        self.timers.run_due()
        self.stack.poll()
        return self.scheduler.run()

    def next_deadline(self) -> int | None:
        due = [when for when in (self.timers.next_deadline(), self.stack.poll_at()) if when is not None]
        return min(due, default=None)

    def play(self, *mains: Callable[[], object]) -> None:
        """Run processes to their ends, at most for ten seconds."""
        started: list[Process] = []
        for main in mains:
            started.append(self.scheduler.spawn(lambda main=main: main() and None))  # type: ignore[misc]
        assert self.loop.run(lambda: not any(one.alive for one in started), self.loop.clock.now() + 10_000_000)
        assert self.lines == []
        assert [one.exit_status for one in started] == [0] * len(started)

    def close(self) -> None:
        self.scheduler.close()
        self.calls.close_all()
        self.loop.close()


@pytest.fixture
def home() -> Iterator[Home]:
    made = Home()
    yield made
    made.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        try:
            os.close(fd)
        except OSError:
            pass  # the test has closed it


def test_one_call_waits_for_a_socket_a_pipe_and_a_host_socket(home: Home, pipe: tuple[int, int]) -> None:
    calls = home.calls
    ours = calls.socket(AF_INET, SOCK_DGRAM)
    calls.bind(ours, ("127.0.0.1", 7))
    near, far = socket.socketpair()
    adopted_pipe, adopted_socket = calls.adopt(pipe[0]), calls.adopt(near.fileno())
    seen: list[list[tuple[int, int]]] = []
    everything = [(ours, POLLIN), (adopted_pipe, POLLIN), (adopted_socket, POLLIN)]

    def waiter() -> None:
        seen.append(calls.poll(everything, 0))
        seen.append(calls.poll(everything))
        assert calls.read(adopted_pipe, 100) == b"from the pipe"
        seen.append(calls.poll(everything))
        assert calls.read(adopted_socket, 100) == b"from the socket"
        seen.append(calls.poll(everything))
        assert calls.recv(ours, 100) == b"from the guest"
        seen.append(calls.poll(everything, 1000))

    def others() -> None:
        home.scheduler.sleep(2000)
        os.write(pipe[1], b"from the pipe")
        home.scheduler.sleep(2000)
        far.send(b"from the socket")
        home.scheduler.sleep(2000)
        fd = calls.socket(AF_INET, SOCK_DGRAM)
        calls.sendto(fd, b"from the guest", ("127.0.0.1", 7))

    with near, far:
        home.play(waiter, others)

    assert seen == [[], [(adopted_pipe, POLLIN)], [(adopted_socket, POLLIN)], [(ours, POLLIN)], []]


def test_select_and_a_timeout_over_both(home: Home, pipe: tuple[int, int]) -> None:
    calls = home.calls
    ours = calls.socket(AF_INET, SOCK_DGRAM)
    reader, writer = calls.adopt(pipe[0]), calls.adopt(pipe[1])

    def main() -> None:
        before = home.loop.clock.now()
        assert calls.select([ours, reader], [], [], 20_000) == ([], [], [])
        assert 20_000 <= home.loop.clock.now() - before < 5_000_000
        assert calls.select([ours, reader], [ours, writer], [], 20_000) == ([], [ours, writer], [])

    home.play(main)


def test_a_signal_mask_holds_for_host_descriptors_too(home: Home, pipe: tuple[int, int]) -> None:
    calls = home.calls
    reader = calls.adopt(pipe[0])
    steps: list[str] = []

    def waiter() -> None:
        calls.sigmask(SIG_BLOCK, {SIGINT})
        assert calls.ppoll([(reader, POLLIN)], 20_000, {SIGINT, SIGALRM}) == []
        steps.append("masked")
        with pytest.raises(InterruptedError):
            calls.ppoll([(reader, POLLIN)], 5_000_000, ())
        steps.append("interrupted")

    process = home.scheduler.spawn(waiter)

    def other() -> None:
        home.scheduler.sleep(5_000)
        calls.interrupt(process, SIGINT)
        process.join()

    home.play(other)
    assert steps == ["masked", "interrupted"]


def test_reading_blocks_the_process_and_not_the_loop(home: Home, pipe: tuple[int, int]) -> None:
    reader = home.calls.adopt(pipe[0])
    order: list[str] = []

    def blocked() -> None:
        assert home.calls.read(reader, 10) == b"x"
        order.append("read")
        assert home.calls.read(reader, 10) == b"", "the end"
        order.append("end")

    def others() -> None:
        for _ in range(3):
            home.scheduler.sleep(1000)
            order.append("tick")
        os.write(pipe[1], b"x")
        home.scheduler.sleep(5000)
        os.close(pipe[1])

    home.play(blocked, others)
    assert order == ["tick", "tick", "tick", "read", "end"]


def test_writing_waits_for_room(home: Home, pipe: tuple[int, int]) -> None:
    writer = home.calls.adopt(pipe[1])
    total = 200_000
    got = bytearray()

    def fill() -> None:
        left = total
        while left:
            left -= home.calls.write(writer, bytes(min(left, 50_000)))

    def drain() -> None:
        while len(got) < total:
            home.scheduler.sleep(100)
            got.extend(os.read(pipe[0], 65536))

    home.play(fill, drain)
    assert len(got) == total


def test_nonblocking_and_hang_up(home: Home, pipe: tuple[int, int]) -> None:
    calls = home.calls
    reader = calls.adopt(pipe[0])
    calls.fcntl(reader, F_SETFL, O_NONBLOCK)
    with pytest.raises(BlockingIOError):
        calls.read(reader, 10)
    assert os.get_blocking(pipe[0]), "the host's own flag is left alone"

    os.close(pipe[1])

    assert calls.poll([(reader, POLLOUT)], 0) == [(reader, POLLHUP)]
    assert calls.read(reader, 10) == b""


def test_the_guest_works_on_a_duplicate(home: Home, pipe: tuple[int, int]) -> None:
    reader = home.calls.adopt(pipe[0])
    home.calls.close(reader)
    os.write(pipe[1], b"still open")
    assert os.read(pipe[0], 100) == b"still open"
    with pytest.raises(OSError, match="Bad file descriptor"):
        home.calls.adopt(9999)
    with pytest.raises(OSError, match="non-socket"):
        home.calls.getsockname(home.calls.adopt(pipe[0]))


def test_a_descriptor_that_nobody_reads_does_not_keep_the_loop_busy(home: Home, pipe: tuple[int, int]) -> None:
    reader = home.calls.adopt(pipe[0])
    epoll = home.calls.epoll()
    epoll.register(reader, POLLIN)
    os.write(pipe[1], b"x")
    turns = 0
    run = home.run

    def counted() -> bool:
        nonlocal turns
        turns += 1
        return run()

    home.run = counted  # type: ignore[method-assign]
    home.play(lambda: home.scheduler.sleep(50_000))

    assert turns < 10
    assert epoll.poll(0) == [(reader, POLLIN)]


def test_epoll_sees_every_edge_of_a_pipe_that_is_read_empty(home: Home, pipe: tuple[int, int]) -> None:
    calls = home.calls
    reader = calls.adopt(pipe[0])
    calls.fcntl(reader, F_SETFL, O_NONBLOCK)
    got: list[bytes] = []

    def waiter() -> None:
        with calls.epoll() as epoll:
            epoll.register(reader, POLLIN | EPOLLET)
            while len(got) < 3:
                assert epoll.poll(5_000_000) == [(reader, POLLIN)]
                while True:
                    try:
                        got.append(calls.read(reader, 100))
                    except BlockingIOError:
                        break
            assert epoll.poll(1000) == []

    def writer() -> None:
        for word in (b"one", b"two", b"three"):
            home.scheduler.sleep(3000)
            os.write(pipe[1], word)

    home.play(waiter, writer)
    assert got == [b"one", b"two", b"three"]


def test_adopting_is_refused_where_nothing_waits_for_the_host(pipe: tuple[int, int]) -> None:
    still = Home(VirtualClock())
    with pytest.raises(RuntimeError, match="virtual clock"):
        still.calls.adopt(pipe[0])
    still.close()
    world = World()
    with pytest.raises(RuntimeError, match="no machine"):
        world.calls.adopt(pipe[0])
    assert len(world.calls.fds) == 0
    world.close()


def test_d10_a_subscription_of_a_pipe_is_told_once_and_ends_with_its_descriptor(
    home: Home, pipe: tuple[int, int]
) -> None:
    reader, writer = pipe
    fd = home.calls.adopt(reader)
    told: list[str] = []

    assert home.calls.poll_subscribe(fd, POLLIN, lambda: told.append("read")) == 0
    os.write(writer, b"x")
    home.loop.run(until=lambda: bool(told), deadline=home.loop.clock.now() + 5_000_000)
    assert told == ["read"]

    home.calls.read(fd, 10)
    home.calls.poll_subscribe(fd, POLLIN, lambda: told.append("again"))
    home.calls.close(fd)
    assert told == ["read"], "what is closed has no events, and nobody asks the host about it"
