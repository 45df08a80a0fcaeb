"""TCP through the user wire: a guest's stack, the gateway and sockets of the host's, in one loop.

Bytes, ends, resets and refusals have to cross as if the two were connected; what does not move must not pile up.
"""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Iterator

import pytest

from guest.net.endpoint import SHUT_WR
from guest.net.tcp.state import State
from tests.user_world import HOST_OF, Pump, UserWorld, has_ipv6, no_descriptor_is_left

MB = 1_000_000
VERSIONS = pytest.mark.parametrize(
    "version", [4, pytest.param(6, marks=pytest.mark.skipif(not has_ipv6(), reason="the host has no ::1"))]
)


@pytest.fixture
def world() -> Iterator[UserWorld]:
    with no_descriptor_is_left(), UserWorld() as made:
        yield made


@VERSIONS
def test_d13_ten_megabytes_go_each_way_at_once(world: UserWorld, version: int) -> None:
    there, back = random.Random(1).randbytes(10 * MB), random.Random(2).randbytes(10 * MB)
    end, peer = world.open(version)
    pump = Pump(end, there)
    peer.write(back, end=True)

    world.need(lambda: pump.turn() and peer.ended, "the streams did not come to their ends")

    assert bytes(pump.got) == back, "the guest got other bytes than the host sent"
    assert bytes(peer.got) == there, "the host got other bytes than the guest sent"
    peer.close()
    end.close()
    world.need(world.settled, "the gateway kept the stream")


@VERSIONS
def test_d13_a_guest_that_is_refused_hears_so_at_once(world: UserWorld, version: int) -> None:
    server = world.server(version)
    server.close()
    end = world.dial(HOST_OF[version], server.port)

    world.need(lambda: end.state is State.CLOSED, "the guest's connect did not end")

    assert end.take_error() == errno.ECONNREFUSED
    assert (world.net.counters["tcp_refused"], len(world.net.streams)) == (1, 0)


def test_d13_the_guest_is_answered_only_when_the_host_is_connected(world: UserWorld) -> None:
    """A host's server whose queue is full answers nobody: so nobody answers the guest."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            end = world.dial("10.0.2.2", port)
            world.need(lambda: len(world.net.streams), "the SYN did not come")

            assert not world.run(lambda: not end.connecting, seconds=0.3), "somebody answered for the host"

            full.accept()[0].close()
            world.need(lambda: end.connected, "the host's server had room, and the guest was not connected")
            end.kill()


@pytest.mark.parametrize("first", ["guest", "host"])
def test_d13_one_direction_ends_and_the_other_goes_on(world: UserWorld, first: str) -> None:
    end, peer = world.open()
    pump = Pump(end, b"", end_after=False)
    if first == "guest":
        end.write([b"only this"])
        end.shutdown(SHUT_WR)
        world.need(lambda: peer.ended, "the guest's end did not reach the host")
        assert bytes(peer.got) == b"only this"
        peer.write(b"x" * MB, end=True)
        world.need(pump.turn, "the host could not go on")
        assert bytes(pump.got) == b"x" * MB
    else:
        peer.write(b"only this", end=True)
        world.need(lambda: pump.turn() or pump.ended, "the host's end did not reach the guest")
        assert bytes(pump.got) == b"only this"
        answer = Pump(end, b"y" * MB)
        world.need(lambda: answer.turn() and peer.ended, "the guest could not go on")
        assert bytes(peer.got) == b"y" * MB
    peer.close()
    end.close()
    world.need(world.settled, "the gateway kept the stream")


def test_d13_a_reset_of_the_guest_resets_the_host(world: UserWorld) -> None:
    end, peer = world.open()

    end.kill()

    world.need(lambda: peer.error, "the host heard nothing")
    assert isinstance(peer.error, ConnectionResetError)
    assert len(world.net.streams) == 0


def test_d13_a_reset_of_the_host_resets_the_guest(world: UserWorld) -> None:
    end, peer = world.open()

    peer.reset()

    world.need(lambda: end.error, "the guest heard nothing")
    assert end.take_error() == errno.ECONNRESET
    assert len(world.net.streams) == 0


def test_d13_what_came_before_a_reset_is_not_lost(world: UserWorld) -> None:
    """As where the two are connected: the data had arrived, and the reset comes behind it."""
    end, peer = world.open()
    peer.sock.send(b"the last words")
    peer.reset()

    world.need(lambda: end.error, "the guest heard nothing")

    assert end.read(100) == b"the last words"
    assert len(world.net.streams) == 0
