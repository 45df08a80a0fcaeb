"""Descriptors: small integers, the lowest free one first; files that live as long as somebody holds them."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from guest.sys.constants import (
    AF_INET,
    F_DUPFD,
    F_DUPFD_CLOEXEC,
    F_GETFD,
    F_SETFD,
    FD_CLOEXEC,
    IPPROTO_UDP,
    SOCK_CLOEXEC,
    SOCK_DGRAM,
    SOCK_STREAM,
)
from guest.sys.descriptors import DescriptorTable
from guest.sys.files import File
from tests.sys_world import World


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


def test_sockets_are_small_integers_and_the_lowest_free_one_is_next(world: World) -> None:
    calls = world.calls

    assert [calls.socket(AF_INET, SOCK_DGRAM) for _ in range(4)] == [3, 4, 5, 6], "0 to 2 are the console's"
    calls.close(5)
    calls.close(3)
    assert [calls.socket(AF_INET, SOCK_DGRAM) for _ in range(3)] == [3, 5, 7]


def test_close_works_on_sockets_and_only_once(world: World) -> None:
    fd = world.calls.socket(AF_INET, SOCK_DGRAM)
    world.calls.bind(fd, ("127.0.0.1", 7))
    assert len(list(world.stack.udp)) == 1

    world.calls.close(fd)

    assert list(world.stack.udp) == [], "its port is free again"
    for call in (world.calls.close, world.calls.getsockname, world.calls.dup):
        with pytest.raises(OSError, match="Bad file descriptor"):
            call(fd)


def test_a_dup_keeps_the_socket_alive(world: World) -> None:
    fd = world.calls.socket(AF_INET, SOCK_DGRAM)
    world.calls.bind(fd, ("127.0.0.1", 7))

    twin = world.calls.dup(fd)
    world.calls.close(fd)

    assert twin == 4
    assert world.calls.getsockname(twin) == ("127.0.0.1", 7)
    assert world.calls.socket(AF_INET, SOCK_DGRAM) == 3
    world.calls.close(twin)
    assert list(world.stack.udp) == []


def test_dup2_takes_the_number_asked_for_and_closes_what_was_there(world: World) -> None:
    calls = world.calls
    one, two = (calls.socket(AF_INET, SOCK_DGRAM) for _ in range(2))
    calls.bind(one, ("127.0.0.1", 7))
    calls.bind(two, ("127.0.0.1", 8))

    assert calls.dup2(one, two) == two
    assert calls.getsockname(two) == ("127.0.0.1", 7)
    assert [end.local[1] for end in world.stack.udp] == [7]
    assert calls.dup2(one, 10) == 10
    assert calls.dup2(one, one) == one
    assert [calls.dup(one) for _ in range(6)] == [5, 6, 7, 8, 9, 11]
    with pytest.raises(OSError, match="Bad file descriptor"):
        calls.dup2(one, 1024)


def test_fcntl_dups_from_a_number_on_and_keeps_the_cloexec_flag(world: World) -> None:
    calls = world.calls
    fd = calls.socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC)

    assert calls.fcntl(fd, F_GETFD) == FD_CLOEXEC
    assert calls.fcntl(fd, F_DUPFD, 20) == 20
    assert calls.fcntl(fd, F_DUPFD, 20) == 21
    assert calls.fcntl(20, F_GETFD) == 0
    assert calls.fcntl(fd, F_DUPFD_CLOEXEC, 0) == 4
    assert calls.fcntl(4, F_GETFD) == FD_CLOEXEC
    calls.fcntl(4, F_SETFD, 0)
    assert calls.fcntl(4, F_GETFD) == 0
    with pytest.raises(OSError, match="Invalid argument"):
        calls.fcntl(fd, F_DUPFD, 1024)


def test_the_table_is_full_at_its_limit_and_nothing_leaks(world: World) -> None:
    calls = world.calls
    fds = [calls.socket(AF_INET, SOCK_DGRAM) for _ in range(3, 1024)]
    assert fds[-1] == 1023

    with pytest.raises(OSError, match="Too many open files"):
        calls.socket(AF_INET, SOCK_DGRAM)
    with pytest.raises(OSError, match="Too many open files"):
        calls.dup(3)
    with pytest.raises(OSError, match="Too many open files"):
        calls.epoll_create1()

    calls.close(500)
    assert calls.socket(AF_INET, SOCK_DGRAM) == 500
    assert calls.close_all() == 1021
    assert world.leftovers() == []


def test_a_socket_that_cannot_be_made_takes_no_descriptor(world: World) -> None:
    with pytest.raises(OSError, match="Protocol not supported"):
        world.calls.socket(AF_INET, SOCK_STREAM, IPPROTO_UDP)
    assert world.calls.socket(AF_INET, SOCK_DGRAM) == 3


def test_two_guests_have_tables_of_their_own(world: World) -> None:
    other = World()
    assert world.calls.socket(AF_INET, SOCK_DGRAM) == other.calls.socket(AF_INET, SOCK_DGRAM) == 3
    world.calls.bind(3, ("127.0.0.1", 7))
    other.calls.bind(3, ("127.0.0.1", 7))
    world.calls.close(3)
    assert other.calls.getsockname(3) == ("127.0.0.1", 7)
    other.close()


class Counted(File):
    """A file that says when it was released."""

    def __init__(self) -> None:
        super().__init__()
        self.released = 0

    def release(self) -> None:
        self.released += 1


@pytest.mark.parametrize("seed", range(5))
def test_any_order_of_calls_gives_the_lowest_free_number(seed: int) -> None:
    rng = random.Random(seed)
    table = DescriptorTable(limit=20)
    model: dict[int, Counted] = {}
    files: list[Counted] = []
    for _ in range(500):
        free = sorted(set(range(3, 20)) - set(model))
        match rng.randrange(4):
            case 0 if free:
                file = Counted()
                files.append(file)
                assert table.install(file) == free[0]
                model[free[0]] = file
            case 1 if model and free:
                fd = rng.choice(sorted(model))
                assert table.dup(fd) == free[0]
                model[free[0]] = model[fd]
            case 2 if model:
                fd, target = rng.choice(sorted(model)), rng.randrange(3, 20)
                assert table.dup2(fd, target) == target
                model[target] = model[fd]
            case 3 if model:
                fd = rng.choice(sorted(model))
                table.close(fd)
                del model[fd]
        assert list(table) == sorted(model)
        assert [file for file in files if file.released] == [file for file in files if file not in model.values()]
    assert all(file.released <= 1 for file in files)
