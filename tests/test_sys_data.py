"""Data through the calls: copied once, never lost in silence, and nothing left behind."""

from __future__ import annotations

import array
import errno
import gc
import random
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from guest.net.address import V4_LOOPBACK
from guest.net.endpoint import OVERHEAD
from guest.net.pbuf import Lease, PacketBuffer
from guest.net.udp import UdpEndpoint
from guest.sys.constants import (
    AF_INET,
    AF_INET6,
    IPPROTO_ICMP,
    MSG_DONTWAIT,
    MSG_PEEK,
    MSG_TRUNC,
    SO_PROTOCOL,
    SO_RCVBUF,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
    SOCK_RAW,
    SOCK_STREAM,
    SOL_SOCKET,
)
from guest.sys.socket_file import DatagramFile
from tests.sys_world import World

HERE = ("127.0.0.1", 7)


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


@pytest.fixture
def fd(world: World) -> int:
    """A socket on port 7."""
    made = world.calls.socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK)
    world.calls.bind(made, HERE)
    return made


def test_each_received_byte_is_copied_once(world: World, fd: int) -> None:
    calls = world.calls
    payload = random.Random(1).randbytes(1000)
    for _ in range(5):
        calls.sendto(fd, payload, HERE)
    world.settle()
    buffer = bytearray(b"\xa5" * 1200)

    assert calls.recv_into(fd, buffer) == 1000
    assert buffer == payload + b"\xa5" * 200, "nothing is written behind the data"
    assert calls.counters["rx_copied_bytes"] == 1000
    assert calls.recv(fd, 300) == payload[:300]
    assert calls.counters["rx_copied_bytes"] == 1300
    assert calls.recvfrom(fd, 2000)[0] == payload
    assert calls.recvmsg(fd, 2000)[0] == payload
    parts = [bytearray(10), bytearray(2000)]
    assert calls.recvmsg_into(fd, parts)[0] == 1000
    assert parts[0] + parts[1][:990] == payload
    assert calls.counters["rx_copied_bytes"] == 4300
    assert calls.counters["rx_datagrams"] == 5
    assert calls.counters["tx_copied_bytes"] == calls.counters["tx_datagrams"] * 1000 == 5000


def test_a_payload_in_pieces_is_put_together_and_its_memory_goes_back(world: World, fd: int) -> None:
    calls = world.calls
    returned: list[int] = []
    calls.sendto(fd, b"0123456789abcdef", HERE)
    frame = world.stack._looped.remove_head()
    assert frame is not None
    whole = frame.tobytes()
    pieces = [memoryview(bytearray(whole[at : at + 9])) for at in range(0, len(whole), 9)]
    lease = Lease(lambda: returned.append(1), lambda: False)
    world.stack.loopback.input([PacketBuffer(pieces[0], frags=pieces[1:], lease=lease)])
    del lease, frame

    assert calls.recv(fd, 100, MSG_PEEK) == b"0123456789abcdef"
    buffer = bytearray(10)
    assert calls.recv_into(fd, buffer, 0, MSG_PEEK | MSG_TRUNC) == 16
    assert buffer == b"0123456789"
    gc.collect()
    assert returned == []
    assert calls.recv(fd, 11) == b"0123456789a"
    gc.collect()
    assert returned == [1], "nobody holds the memory once the data is read"


def test_what_exceeds_the_receive_buffer_is_dropped_newest_first_and_counted(world: World, fd: int) -> None:
    calls = world.calls
    calls.setsockopt(fd, SOL_SOCKET, SO_RCVBUF, 4096)
    limit = calls.getsockopt(fd, SOL_SOCKET, SO_RCVBUF)
    assert limit == 8192
    for number in range(50):
        calls.sendto(fd, bytes([number]) * 500, HERE)
        world.settle()
        file = calls.fds.file(fd)
        assert isinstance(file, DatagramFile)
        assert file.endpoint.queued_bytes <= limit

    got = []
    while True:
        try:
            got.append(calls.recv(fd, 1000)[0])
        except BlockingIOError:
            break

    assert got == list(range(len(got)))
    assert 0 < len(got) <= limit // (OVERHEAD + 500)
    assert world.stack.counters["udp"]["rx_dropped_rcvbuf"] == 50 - len(got)


def test_after_closing_everything_nothing_is_left(world: World) -> None:
    calls = world.calls
    refs: list[weakref.ref[object]] = []
    for round_ in range(20):
        for family, kind, protocol in (
            (AF_INET, SOCK_DGRAM, 0), (AF_INET6, SOCK_DGRAM, 0), (AF_INET, SOCK_RAW, 253),
            (AF_INET, SOCK_DGRAM, IPPROTO_ICMP),
        ):  # fmt: skip
            fd = calls.socket(family, kind, protocol)
            file = calls.fds.file(fd)
            assert isinstance(file, DatagramFile)
            refs.append(weakref.ref(file.endpoint))
            if kind == SOCK_DGRAM and not protocol:
                calls.connect(fd, ("127.0.0.1" if family == AF_INET else "::1", 9))
                calls.send(fd, b"x")
                with calls.epoll() as epoll:
                    epoll.register(fd)
        world.settle()
        assert world.leftovers() != []
        if round_ % 2:
            calls.close_all()
        else:
            for open_fd in list(calls.fds):
                calls.close(open_fd)
        assert world.leftovers() == []
        del file
    gc.collect()
    assert [ref for ref in refs if ref() is not None] == []
    assert world.stack.ip.raw is None


def test_read_and_write_work_on_sockets(world: World, fd: int) -> None:
    calls = world.calls
    calls.connect(fd, HERE)
    assert calls.write(fd, b"hello") == 5
    world.settle()
    assert calls.read(fd, 3) == b"hel"
    with pytest.raises(BlockingIOError):
        calls.read(fd, 3)
    epoll = calls.epoll()
    for call in (lambda: calls.read(epoll.fileno(), 1), lambda: calls.write(epoll.fileno(), b"x")):
        with pytest.raises(OSError, match="Invalid argument"):
            call()
    with pytest.raises(OSError, match="Socket operation on non-socket"):
        calls.recv(epoll.fileno(), 1)


def test_buffers_of_any_kind_may_be_sent(world: World, fd: int) -> None:
    numbers = array.array("I", [1, 2, 3])
    for data in (b"bytes", bytearray(b"array"), memoryview(b"view"), numbers, memoryview(numbers)):
        assert world.calls.sendto(fd, data, HERE) == len(memoryview(data).cast("B"))
        world.settle()
        assert world.calls.recv(fd, 100) == bytes(data)


def test_names_go_to_the_resolver(world: World, fd: int) -> None:
    world.calls.resolver = lambda name, _family: {"me": V4_LOOPBACK}[name]
    world.calls.sendto(fd, b"x", ("me", 7))
    world.settle()
    assert world.calls.recv(fd, 1) == b"x"


def test_another_transport_plugs_in(world: World) -> None:
    """The seam for what brings sockets of its own: an opener."""
    calls = world.calls
    calls.openers[SOCK_STREAM] = lambda _family, _protocol: "EPROTONOSUPPORT"
    with pytest.raises(OSError, match="Protocol not supported"):
        calls.socket(AF_INET, SOCK_STREAM)
    calls.openers[SOCK_STREAM] = lambda family, protocol: DatagramFile(
        world.stack.udp.open(4), family, SOCK_STREAM, protocol
    )
    fd = calls.socket(AF_INET, SOCK_STREAM, 77)
    assert calls.getsockopt(fd, SOL_SOCKET, SO_PROTOCOL) == 77


class Narrow(UdpEndpoint):
    """An end that has room for nothing until `open` is true."""

    open = False

    def send(self, *arguments: Any, **choices: Any) -> int:
        return super().send(*arguments, **choices) if self.open else errno.EAGAIN

    @property
    def writable(self) -> bool:
        return self.open


def test_a_sender_waits_for_room_and_holds_its_socket_meanwhile(world: World, fd: int) -> None:
    calls = world.calls
    narrow = world.stack.udp.open(4)
    narrow.__class__ = Narrow
    sock = calls.fds.install(DatagramFile(narrow, AF_INET, SOCK_DGRAM, 17))
    ended: list[int] = []

    def sender() -> None:
        with pytest.raises(BlockingIOError):
            calls.sendto(sock, b"x", HERE, MSG_DONTWAIT)
        calls.set_timeout(sock, 20)
        with pytest.raises(TimeoutError):
            calls.sendto(sock, b"x", HERE)
        calls.set_timeout(sock, None)
        assert calls.sendto(sock, b"hello", HERE) == 5
        ended.append(world.clock.time)

    def opener() -> None:
        world.scheduler.sleep(50)
        calls.close(sock)
        world.scheduler.sleep(50)
        assert not narrow.closed
        vars(narrow)["open"] = True
        assert narrow.on_ready is not None
        narrow.on_ready()

    world.run(sender, opener)
    world.settle()

    assert ended == [100]
    assert narrow.closed
    assert calls.recv(fd, 100) == b"hello"


def test_peeking_at_nothing_takes_no_time(world: World, fd: int) -> None:
    with pytest.raises(BlockingIOError):
        world.calls.recv(fd, 1, MSG_DONTWAIT | MSG_PEEK)
