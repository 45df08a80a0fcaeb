"""Waiting for several descriptors: poll, select and epoll over sockets of the guest."""

from __future__ import annotations

import random
import select
import socket
from collections.abc import Callable, Iterator

import pytest

from guest.sys.constants import (
    AF_INET,
    EPOLLET,
    EPOLLEXCLUSIVE,
    EPOLLONESHOT,
    POLLERR,
    POLLIN,
    POLLNVAL,
    POLLOUT,
    POLLPRI,
    SOCK_DGRAM,
)
from tests.sys_world import World


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


def bound(world: World, *ports: int) -> list[int]:
    """Sockets on these ports."""
    fds = []
    for port in ports:
        fds.append(world.calls.socket(AF_INET, SOCK_DGRAM))
        world.calls.bind(fds[-1], ("127.0.0.1", port))
    return fds


def send(world: World, port: int, data: bytes = b"x") -> None:
    """A datagram to a port, at once."""
    fd = world.calls.socket(AF_INET, SOCK_DGRAM)
    world.calls.sendto(fd, data, ("127.0.0.1", port))
    world.calls.close(fd)
    world.settle()


def later(world: World, when: int, call: Callable[[], object]) -> Callable[[], None]:
    def main() -> None:
        world.scheduler.sleep(when)
        call()

    return main


def test_poll_says_which_of_several_is_ready(world: World) -> None:
    one, two, three = bound(world, 1, 2, 3)
    found: list[list[tuple[int, int]]] = []

    def main() -> None:
        found.append(world.calls.poll([(one, POLLIN), (two, POLLIN), (three, POLLIN | POLLPRI)]))

    world.run(main, later(world, 40, lambda: send(world, 3)))

    assert found == [[(three, POLLIN)]]
    assert world.clock.time == 40


def test_poll_looks_at_what_is_ready_already_and_at_several_at_once(world: World) -> None:
    one, two = bound(world, 1, 2)
    send(world, 1)

    assert world.calls.poll([(one, POLLIN), (two, POLLIN | POLLOUT)], 0) == [(one, POLLIN), (two, POLLOUT)]
    assert world.calls.poll([], 0) == []


def test_poll_names_closed_descriptors_and_passes_over_negative_ones(world: World) -> None:
    (one,) = bound(world, 1)

    assert world.calls.poll([(99, POLLIN), (-1, POLLIN), (one, POLLIN)]) == [(99, POLLNVAL)]


def test_poll_times_out_at_its_microsecond(world: World) -> None:
    (one,) = bound(world, 1)

    def main() -> None:
        assert world.calls.poll([(one, POLLIN)], 777) == []
        assert world.calls.select([one], [], [], 111) == ([], [], [])
        assert world.calls.poll([], 112) == [], "with no descriptor it sleeps"

    world.run(main)

    assert world.clock.time == 1000


def test_an_error_is_reported_though_nobody_asked(world: World) -> None:
    (one,) = bound(world, 1)
    world.calls.connect(one, ("127.0.0.1", 9))
    world.calls.send(one, b"x")
    world.settle()

    assert world.calls.poll([(one, 0)], 0) == [(one, POLLERR)]
    assert world.calls.select([one], [], [one], 0) == ([one], [], [])


def test_select_sorts_into_its_three_lists(world: World) -> None:
    one, two = bound(world, 1, 2)
    send(world, 2)

    assert world.calls.select([one, two], [one], [two], 0) == ([two], [one], [])
    with pytest.raises(OSError, match="Bad file descriptor"):
        world.calls.select([99], [], [], 0)
    with pytest.raises(ValueError, match="out of range"):
        world.calls.select([1024], [], [], 0)


def test_a_wait_leaves_no_watcher_behind(world: World) -> None:
    (one,) = bound(world, 1)
    file = world.calls.fds.file(one)

    world.run(lambda: world.calls.poll([(one, POLLIN)] * 3, 10))

    assert len(file._watchers) == 0
    assert file.refs == 1


# -- epoll -------------------------------------------------------------------------------------------------------------


def test_level_triggered_is_reported_as_long_as_it_is_ready(world: World) -> None:
    (one,) = bound(world, 1)
    with world.calls.epoll() as epoll:
        epoll.register(one, POLLIN)
        assert epoll.poll(0) == []
        send(world, 1)
        assert epoll.poll(0) == epoll.poll(0) == [(one, POLLIN)]
        world.calls.recv(one, 9)
        assert epoll.poll(0) == []


def test_edge_triggered_is_reported_once_for_each_arrival(world: World) -> None:
    (one,) = bound(world, 1)
    with world.calls.epoll() as epoll:
        send(world, 1)
        epoll.register(one, POLLIN | EPOLLET)
        assert epoll.poll(0) == [(one, POLLIN)]
        assert epoll.poll(0) == []
        send(world, 1)
        assert epoll.poll(0) == [(one, POLLIN)], "another datagram, though the first is still there"
        assert epoll.poll(0) == []
        epoll.modify(one, POLLIN | EPOLLET)
        assert epoll.poll(0) == [(one, POLLIN)], "to modify is to look again"


def test_oneshot_is_reported_once_until_it_is_modified(world: World) -> None:
    (one,) = bound(world, 1)
    with world.calls.epoll() as epoll:
        epoll.register(one, POLLIN | EPOLLONESHOT)
        send(world, 1)
        send(world, 1)
        assert epoll.poll(0) == [(one, POLLIN)]
        assert epoll.poll(0) == []
        send(world, 1)
        assert epoll.poll(0) == []
        epoll.modify(one, POLLIN | EPOLLONESHOT)
        assert epoll.poll(0) == [(one, POLLIN)]


def test_epoll_blocks_until_its_time_or_an_arrival(world: World) -> None:
    (one,) = bound(world, 1)
    found: list[tuple[int, list[tuple[int, int]]]] = []

    def main() -> None:
        with world.calls.epoll() as epoll:
            epoll.register(one, POLLIN)
            found.append((world.clock.time, epoll.poll(30)))
            found.append((world.clock.time, epoll.poll()))
            found.append((world.clock.time, []))

    world.run(main, later(world, 50, lambda: send(world, 1)))

    assert found == [(0, []), (30, [(one, POLLIN)]), (50, [])]


def test_maxevents_goes_round(world: World) -> None:
    fds = bound(world, 1, 2, 3)
    with world.calls.epoll() as epoll:
        for fd in fds:
            epoll.register(fd, POLLIN)
        for port in (1, 2, 3):
            send(world, port)
        seen = [epoll.poll(0, 1)[0][0] for _ in range(6)]

    assert seen == fds * 2, "nobody starves"


def test_a_closed_descriptor_leaves_the_set_with_its_file(world: World) -> None:
    (one,) = bound(world, 1)
    with world.calls.epoll() as epoll:
        epoll.register(one, POLLIN)
        twin = world.calls.dup(one)
        send(world, 1)
        world.calls.close(one)
        assert epoll.poll(0) == [(one, POLLIN)], "the file is still open, so it is reported under its old number"
        world.calls.close(twin)
        assert epoll.poll(0) == []
        assert len(world.calls.fds.file(epoll.fileno())) == 0  # type: ignore[arg-type]  # it is an epoll file


def test_a_set_in_a_set_and_no_rings(world: World) -> None:
    (one,) = bound(world, 1)
    with world.calls.epoll() as inner, world.calls.epoll() as outer:
        inner.register(one, POLLIN)
        outer.register(inner.fileno(), POLLIN)
        assert outer.poll(0) == []
        send(world, 1)
        assert outer.poll(0) == [(inner.fileno(), POLLIN)]
        assert world.calls.poll([(outer.fileno(), POLLIN)], 0) == [(outer.fileno(), POLLIN)]
        with pytest.raises(OSError, match="Too many levels"):
            inner.register(outer.fileno(), POLLIN)
        with pytest.raises(OSError, match="Invalid argument"):
            outer.register(outer.fileno(), POLLIN)
        world.calls.recv(one, 9)
        assert outer.poll(0) == []


def test_wrong_epoll_calls_give_linuxs_errors(world: World) -> None:
    (one,) = bound(world, 1)
    calls = world.calls
    epoll = calls.epoll()
    ours: list[int | None] = []
    theirs: list[int | None] = []

    def note(into: list[int | None], call: Callable[[], object]) -> None:
        try:
            call()
            into.append(None)
        except OSError as error:
            into.append(error.errno)

    with select.epoll() as host, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for into, thing, fd in ((ours, epoll, one), (theirs, host, sock.fileno())):
            note(into, lambda: thing.register(fd, POLLIN))  # noqa: B023  # called at once
            note(into, lambda: thing.register(fd, POLLIN))  # noqa: B023
            note(into, lambda: thing.modify(fd, POLLIN | EPOLLEXCLUSIVE))  # noqa: B023
            note(into, lambda: thing.unregister(fd))  # noqa: B023
            note(into, lambda: thing.unregister(fd))  # noqa: B023
            note(into, lambda: thing.modify(fd, POLLIN))  # noqa: B023
            note(into, lambda: thing.register(1 << 20, POLLIN))  # noqa: B023
            note(into, lambda: thing.register(thing.fileno(), POLLIN))  # noqa: B023
    assert ours == theirs
    with pytest.raises(OSError, match="Invalid argument"):
        calls.epoll_wait(one, 5, 0)
    with pytest.raises(OSError, match="Invalid argument"):
        calls.epoll_wait(epoll.fileno(), 0, 0)
    with pytest.raises(OSError, match="Invalid argument"):
        calls.epoll_create1(5)
    epoll.close()
    epoll.close()
    assert epoll.closed
    with pytest.raises(ValueError, match="closed epoll"):
        epoll.poll(0)


@pytest.mark.parametrize("seed", range(3))
def test_epoll_reports_what_poll_reports(seed: int, world: World) -> None:
    rng = random.Random(seed)
    ports = [1, 2, 3, 4]
    fds = bound(world, *ports)
    epoll = world.calls.epoll()
    for fd in fds:
        epoll.register(fd, POLLIN)
    for _ in range(200):
        place = rng.randrange(4)
        if rng.random() < 0.5:
            send(world, ports[place])
        elif world.calls.poll([(fds[place], POLLIN)], 0):
            world.calls.recv(fds[place], 9)
        assert sorted(epoll.poll(0)) == world.calls.poll([(fd, POLLIN) for fd in fds], 0)
    epoll.close()


def test_a_door_may_ask_twice_and_nothing_is_lost_or_doubled(world: World) -> None:
    (one,) = bound(world, 1)
    epoll = world.calls.epoll()
    epoll.register(one, POLLIN | EPOLLET)

    def door(ready: Callable[[], bool], _timeout: int | None) -> bool:
        send(world, 1)
        return ready() and ready()

    world.calls.block = door
    assert epoll.poll() == [(one, POLLIN)]
    assert [world.calls.recv(one, 9)] == [b"x"]
    assert world.calls.poll([(one, POLLIN)]) == [(one, POLLIN)]
    epoll.close()


# -- without waiting -------------------------------------------------------------------------------------------------


def test_d10_a_subscriber_is_told_once_when_something_comes(world: World) -> None:
    (fd,) = bound(world, 1)
    told: list[str] = []

    assert world.calls.poll_subscribe(fd, POLLIN, lambda: told.append("read")) == 0, "there is nothing yet"
    send(world, 1, b"one")
    send(world, 1, b"two")

    assert told == ["read"]
    assert world.calls.recv(fd, 10) == b"one"


def test_d10_who_subscribes_to_what_is_so_is_told_at_once_and_not_called(world: World) -> None:
    (fd,) = bound(world, 1)
    told: list[str] = []
    send(world, 1)

    assert world.calls.poll_subscribe(fd, POLLIN, lambda: told.append("read")) == POLLIN
    assert world.calls.poll_subscribe(fd, POLLOUT, lambda: told.append("write")) == POLLOUT
    send(world, 1)

    assert told == []


def test_d10_a_subscription_is_taken_back_replaced_or_gone_with_its_descriptor(world: World) -> None:
    one, two = bound(world, 1, 2)
    told: list[str] = []

    def read() -> None:
        told.append("read")

    world.calls.poll_subscribe(one, POLLIN, read)
    world.calls.poll_subscribe(one, POLLIN, read)
    assert world.calls.poll_unsubscribe(one, POLLIN, read) == 0
    send(world, 1)
    assert told == [], "both were the same one, and it was taken back"
    assert world.calls.poll_unsubscribe(one, POLLIN, read) == POLLIN, "and taking back tells what is so"

    world.calls.poll_subscribe(two, POLLIN, read)
    world.calls.close(two)
    world.settle()
    assert told == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        world.calls.poll_subscribe(two, POLLIN, read)
