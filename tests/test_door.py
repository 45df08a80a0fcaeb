"""The door for host threads: a guest's system calls from any thread, with signals, closes and ends while they block."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import vring
from guest.sys.constants import (
    AF_INET,
    F_GETFL,
    MSG_DONTWAIT,
    O_NONBLOCK,
    POLLIN,
    POLLOUT,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
)
from hw.clock import SECOND
from vring.config import Board
from vring.session import Session, SessionError

PAIR = """
clock = "{clock}"
[[guest]]
name = "alice"
ip = "10.0.0.1"
mask = "255.255.255.0"
cmdline = "net.hosts=bob@10.0.0.2"
nic = [{{ wire = "hub:lan" }}]
[[guest]]
name = "bob"
ip = "10.0.0.2"
mask = "255.255.255.0"
nic = [{{ wire = "hub:lan" }}]
"""
ROOT = Path(__file__).parent.parent
LONG = 20.0  # seconds after which a thread that should have ended counts as lost


@pytest.fixture
def session() -> Iterator[Session]:
    """Two guests on the real clock."""
    with vring.boot(Board.parse(PAIR.format(clock="real"))) as made:
        yield made
        leaks = [leak for guest in made.guests for leak in guest.leaks]
        assert leaks == []


@pytest.fixture
def virtual() -> Iterator[Session]:
    """Two guests on the virtual clock."""
    with vring.boot(Board.parse(PAIR.format(clock="virtual"))) as made:
        yield made


def bound(calls: Any, address: str = "0.0.0.0", port: int = 0) -> int:
    fd: int = calls.socket(AF_INET, SOCK_DGRAM)
    calls.bind(fd, (address, port))
    return fd


class Caller:
    """A thread that makes one call, and what came of it."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.result: object = None
        self.error: BaseException | None = None

        def run() -> None:
            try:
                self.result = call()
            except BaseException as error:
                self.error = error

        self.thread = threading.Thread(target=run)
        self.thread.start()

    def end(self) -> Caller:
        self.thread.join(LONG)
        assert not self.thread.is_alive(), "the call has not come back"
        return self

    @property
    def errno(self) -> int:
        self.end()
        assert isinstance(self.error, OSError), repr(self.error)
        return self.error.errno or 0


def blocked(session: Session, name: str, count: int = 1) -> None:
    """Until `count` host threads are blocked in the call `name`."""
    processes = lambda: [each for guest in session.guests for each in guest.scheduler if each.name == f"host {name}"]  # noqa: E731
    assert session.run_until(lambda: len(processes()) == count, LONG)
    session.run(seconds=0.02)  # for their first slice


def echo_server(calls: Any, port: int) -> Caller:
    """A thread that sends back what comes, until its descriptor is closed."""
    fd = bound(calls, port=port)

    def serve() -> int:
        served = 0
        while True:
            try:
                data, peer = calls.recvfrom(fd, 2048)
            except OSError as error:
                if error.errno == errno.EBADF:
                    return served
                raise
            calls.sendto(fd, data, peer)
            served += 1

    caller = Caller(serve)
    caller.fd = fd  # type: ignore[attr-defined]  # for the test that closes it
    return caller


# -- many threads ----------------------------------------------------------------------------------------------------


def test_a_thread_talks_to_another_guest_by_name(session: Session) -> None:
    alice, bob = session.calls, session.calls_of("bob")
    server = echo_server(bob, 7)
    fd = alice.socket(AF_INET, SOCK_DGRAM)

    assert alice.sendto(fd, b"hello", ("bob", 7)) == 5
    assert alice.recvfrom(fd, 100) == (b"hello", ("10.0.0.2", 7))

    bob.close(server.fd)  # type: ignore[attr-defined]
    assert server.end().result == 1


def test_twenty_threads_exchange_a_hundred_datagrams_each(session: Session) -> None:
    alice, bob = session.calls, session.calls_of("bob")
    server = echo_server(bob, 7)

    def client(number: int) -> int:
        fd = alice.socket(AF_INET, SOCK_DGRAM)
        alice.connect(fd, ("10.0.0.2", 7))
        alice.set_timeout(fd, 10 * SECOND)
        right = 0
        for turn in range(100):
            data = f"{number}/{turn}".encode()
            alice.send(fd, data)
            right += alice.recv(fd, 100) == data
        alice.close(fd)
        return right

    clients = [Caller(lambda number=number: client(number)) for number in range(20)]  # type: ignore[misc]  # bound now

    assert [caller.end().result for caller in clients] == [100] * 20
    bob.close(server.fd)  # type: ignore[attr-defined]
    assert server.end().result == 2000
    assert session.call(lambda: len(session.guest.calls.fds)) == 0


def test_the_machine_runs_on_while_a_thread_sleeps(session: Session) -> None:
    fd = bound(session.calls, port=7)
    sleeper = Caller(lambda: session.calls.recv(fd, 10))
    blocked(session, "recv")
    process = session.call(lambda: session.guest.spawn("ping", "10.0.0.2", "-c", "3", "-i", "0.01", "-q"))

    assert session.run_until(lambda: not process.alive, LONG)
    assert process.exit_status == 0
    assert sleeper.thread.is_alive()

    session.calls_of("bob").sendto(bound(session.calls_of("bob")), b"wake up", ("10.0.0.1", 7))
    assert sleeper.end().result == b"wake up"


# -- signals ---------------------------------------------------------------------------------------------------------


def strike(session: Session, number: int) -> threading.Thread:
    """Send a signal to this thread as soon as it is blocked in recv."""
    target = threading.get_ident()

    def later() -> None:
        blocked(session, "recv")
        signal.pthread_kill(target, number)

    thread = threading.Thread(target=later)
    thread.start()
    return thread


def test_an_interrupt_ends_recv_and_takes_the_call_back(session: Session) -> None:
    fd = bound(session.calls, port=7)
    thread = strike(session, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        session.calls.recv(fd, 10)
    thread.join()

    assert session.call(lambda: [each.name for each in session.guest.scheduler if each.name.startswith("host")]) == []
    bob = session.calls_of("bob")
    bob.sendto(bound(bob), b"for the next", ("10.0.0.1", 7))
    assert session.calls.recv(fd, 100) == b"for the next"


def test_a_handler_that_returns_leaves_the_call_asleep(session: Session) -> None:
    fd = bound(session.calls, port=7)
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _frame: seen.append(number))
    bob = session.calls_of("bob")

    def answer() -> None:
        strikes.join()
        while not seen:
            time.sleep(0.001)
        bob.sendto(bound(bob), b"later", ("10.0.0.1", 7))

    try:
        strikes = strike(session, signal.SIGUSR1)
        helper = Caller(answer)
        assert session.calls.recv(fd, 100) == b"later"
        helper.end()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [signal.SIGUSR1]


# -- the end of what a call waits for --------------------------------------------------------------------------------


def test_close_ends_the_calls_of_other_threads_with_ebadf(session: Session) -> None:
    fd, other = bound(session.calls), bound(session.calls, port=9)
    sleepers = [Caller(lambda: session.calls.recv(fd, 10)) for _ in range(3)]
    left_alone = Caller(lambda: session.calls.recv(other, 10))
    blocked(session, "recv", 4)

    session.calls.close(fd)

    assert [sleeper.errno for sleeper in sleepers] == [errno.EBADF] * 3
    assert left_alone.thread.is_alive()
    session.calls.close_all()
    assert left_alone.errno == errno.EBADF


def test_a_close_that_fails_ends_nothing(session: Session) -> None:
    fd = bound(session.calls)
    sleeper = Caller(lambda: session.calls.recv(fd, 10))
    blocked(session, "recv")

    with pytest.raises(OSError, match="Bad file descriptor"):
        session.calls.close(fd + 1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        session.calls.dup2(fd + 1, fd)

    blocked(session, "recv")  # still
    assert sleeper.thread.is_alive()
    session.calls.close(fd=fd)
    assert sleeper.errno == errno.EBADF
    again = Caller(lambda: session.calls.recv(bound(session.calls), 10))
    blocked(session, "recv")
    session.calls.dup2(fd=bound(session.calls), target=fd)
    assert again.errno == errno.EBADF


def test_the_end_of_the_session_ends_calls_with_ecanceled(session: Session) -> None:
    fd = bound(session.calls)
    sleeper = Caller(lambda: session.calls.recv(fd, 10))
    blocked(session, "recv")

    session.close()

    assert sleeper.errno == errno.ECANCELED
    with pytest.raises(OSError, match="canceled"):
        session.calls.socket(AF_INET, SOCK_DGRAM)


def test_a_guest_that_halts_ends_calls_with_ecanceled(session: Session) -> None:
    fd = bound(session.calls)
    sleeper = Caller(lambda: session.calls.recv(fd, 10))
    blocked(session, "recv")

    session.call(lambda: session.guest.halt(0))

    assert sleeper.errno == errno.ECANCELED
    with pytest.raises(OSError, match="canceled"):
        session.calls.recv(fd, 10)
    assert session.calls_of("bob").socket(AF_INET, SOCK_DGRAM) == 3, "the other guest lives"


def test_a_call_before_the_boot_waits_for_it() -> None:
    with vring.boot(Board.parse(PAIR.format(clock="real")), start=False) as session:
        early = Caller(lambda: session.calls.socket(AF_INET, SOCK_DGRAM))
        time.sleep(0.05)
        assert early.thread.is_alive()

        session.start()

        assert early.end().result == 3


# -- calls as everywhere ---------------------------------------------------------------------------------------------


def test_errors_and_results_are_those_of_the_calls(session: Session) -> None:
    calls = session.calls
    fd = calls.socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK)
    with pytest.raises(BlockingIOError):
        calls.recv(fd, 10)
    assert calls.fcntl(fd, F_GETFL) & O_NONBLOCK
    with pytest.raises(OSError, match="Bad file descriptor"):
        calls.recv(99, 10)
    with pytest.raises(TypeError):
        calls.sendto(fd, b"x", "10.0.0.2")
    with pytest.raises(AttributeError, match="no system call 'reboot'"):
        calls.reboot()
    with pytest.raises(KeyError, match="there are alice, bob"):
        session.calls_of("carol")
    other = calls.socket(AF_INET, SOCK_DGRAM)
    calls.set_timeout(other, SECOND // 100)
    with pytest.raises(TimeoutError):
        calls.recv(other, 10)
    room = bytearray(10)
    calls.bind(other, ("127.0.0.1", 0))
    calls.sendto(other, b"hello", calls.getsockname(other))
    assert calls.recv_into(other, room) == 5
    assert room == b"hello" + bytes(5)


def test_poll_and_epoll_wait_for_sockets_and_for_the_hosts_pipe(session: Session) -> None:
    calls = session.calls
    fd = bound(calls, "127.0.0.1")
    reader, writer = os.pipe()
    pipe = calls.adopt(reader)
    assert calls.poll([(fd, POLLIN), (pipe, POLLIN)], 0) == []
    assert calls.poll([(fd, POLLOUT)], None) == [(fd, POLLOUT)]
    waiting = Caller(lambda: calls.poll([(fd, POLLIN), (pipe, POLLIN)], None))
    blocked(session, "poll")
    os.write(writer, b"x")
    assert waiting.end().result == [(pipe, POLLIN)]
    assert calls.read(pipe, 10) == b"x"
    with calls.epoll() as epoll:
        epoll.register(fd, POLLIN)
        assert epoll.poll(0) == []
        calls.sendto(fd, b"y", calls.getsockname(fd))
        assert epoll.poll(SECOND) == [(fd, POLLIN)]
        number = epoll.fileno()
    with pytest.raises(OSError, match="Bad file descriptor"):
        calls.epoll_ctl(number, 1, fd, POLLIN)
    os.close(reader)
    os.close(writer)


def test_in_the_home_thread_a_call_is_made_at_once(session: Session) -> None:
    assert session.call(lambda: session.calls.socket(AF_INET, SOCK_DGRAM)) == 3
    with pytest.raises(RuntimeError, match="door for host threads"):
        session.call(lambda: session.calls.recv(3, 10))


# -- the virtual clock -----------------------------------------------------------------------------------------------


def test_a_call_that_blocks_lets_virtual_time_pass(virtual: Session) -> None:
    alice, bob = virtual.calls, virtual.calls_of("bob")
    fd, server = alice.socket(AF_INET, SOCK_DGRAM), bound(bob, port=7)
    alice.sendto(fd, b"hello", ("bob", 7))
    assert bob.recvfrom(server, 100)[0] == b"hello"
    before = virtual.now()
    alice.set_timeout(fd, 3600 * SECOND)

    with pytest.raises(TimeoutError):
        alice.recv(fd, 10)

    assert virtual.now() == before + 3600 * SECOND


def test_a_program_answers_while_the_caller_is_blocked(virtual: Session) -> None:
    virtual.run(seconds=0.1)
    virtual.guests[1].spawn("udpecho", "-l", "7")
    fd = virtual.calls.socket(AF_INET, SOCK_DGRAM)
    virtual.run(seconds=0.1)

    virtual.calls.sendto(fd, b"hello", ("10.0.0.2", 7))

    assert virtual.calls.recv(fd, 10) == b"hello"


def test_what_can_never_end_says_so(virtual: Session) -> None:
    fd = bound(virtual.calls)
    with pytest.raises(OSError, match="deadlock") as error:
        virtual.calls.recv(fd, 10)
    assert error.value.errno == errno.EDEADLK


def test_only_the_home_thread_may_call_on_the_virtual_clock(virtual: Session) -> None:
    caller = Caller(lambda: virtual.calls.socket(AF_INET, SOCK_DGRAM)).end()
    assert isinstance(caller.error, SessionError)
    with pytest.raises(RuntimeError, match="virtual clock"):
        virtual.calls.adopt(0)


def test_a_call_from_inside_the_running_machine_cannot_let_time_pass(virtual: Session) -> None:
    fd = bound(virtual.calls)
    with pytest.raises(SessionError, match="inside the running machine"):
        virtual.run_until(lambda: bool(virtual.calls.recv(fd, 10)), 1)
    with pytest.raises(BlockingIOError):
        virtual.run_until(lambda: bool(virtual.calls.recv(fd, 10, MSG_DONTWAIT)), 1)


def test_a_halted_guest_takes_no_calls_on_the_virtual_clock(virtual: Session) -> None:
    fd = bound(virtual.calls)
    virtual.guest.halt(0)
    with pytest.raises(OSError, match="canceled"):
        virtual.calls.recv(fd, 10)


# -- a storm of signals, and other ways to leave -----------------------------------------------------------------

STORM = """
import random, signal, sys, time, vring
from guest.sys.constants import AF_INET, SOCK_DGRAM

class Boom(Exception):
    pass

armed = False

def handler(*_):
    if armed:
        raise Boom

signal.signal(signal.SIGALRM, handler)
rng = random.Random(7)
with vring.boot(nic="none") as machine:
    calls, torn, end = machine.calls, 0, time.monotonic() + 2
    calls.close(calls.socket(AF_INET, SOCK_DGRAM))  # it has booted
    while time.monotonic() < end:
        try:
            armed = True
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, 8e-5), float(sys.argv[1]))
            fd = calls.socket(AF_INET, SOCK_DGRAM)
            armed = False
            calls.close(fd)
        except Boom:
            armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            torn += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    calls.close(calls.socket(AF_INET, SOCK_DGRAM))  # the door still works
    print("storm over", torn > 100, machine.call(lambda: list(machine.guest.calls.fds)))
"""


@pytest.mark.parametrize("again", ["0", "2e-5"], ids=["one each", "one upon the other"])
def test_handlers_that_raise_at_any_moment_leave_the_door_working_and_lose_nothing(again: str) -> None:
    """In a process of its own, so that a machine that hangs fails this test and not the run."""
    said = subprocess.run(
        [sys.executable, "-c", STORM, again], capture_output=True, text=True, check=False, timeout=60, cwd=ROOT
    )
    assert (said.stdout, said.stderr, said.returncode) == ("storm over True []\n", "", 0)


def test_dup2_onto_itself_ends_nothing(session: Session) -> None:
    calls = session.calls
    fd = bound(calls)
    caller = Caller(lambda: calls.recvfrom(fd, 100))
    blocked(session, "recvfrom")
    assert calls.dup2(fd, fd) == fd
    calls.sendto(fd, b"still there", ("10.0.0.1", calls.getsockname(fd)[1]))
    assert caller.end().result[0] == b"still there"  # type: ignore[index]
    calls.close(fd)


def test_close_ends_a_call_made_with_keywords(session: Session) -> None:
    calls = session.calls
    fd = bound(calls)
    caller = Caller(lambda: calls.recvfrom(size=100, fd=fd))
    blocked(session, "recvfrom")
    calls.close(fd)
    assert caller.errno == errno.EBADF


@pytest.mark.parametrize("name", ["interrupt", "sigmask", "no_such_call", "_scheduler"])
def test_what_is_no_call_for_a_host_thread_is_not_there(session: Session, name: str) -> None:
    with pytest.raises(AttributeError, match=name):
        getattr(session.calls, name)
