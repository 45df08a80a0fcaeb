"""A guest's stack behind a user wire, with no card and no kernel, and peers on the host's loopback; all in one loop.

    with UserWorld() as world:
        server = world.server()                         # a socket of the host's that listens
        end = world.dial(HOST, server.port)             # the guest connects to 10.0.2.2
        peer = world.wait_for(server.take)              # the host's end

Both ends are served by the loop alone, so nothing here waits but the loop.
"""

from __future__ import annotations

import os
import random
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TypeVar

from guest.net.address import parse_address
from guest.net.config import NetConfig
from guest.net.tcp.endpoint import TcpEndpoint
from hw.clock import RealClock
from hw.loop import Loop
from vring.direct import DirectInterface, direct_stack
from vring.usernet.gateway import UserNet
from vring.usernet.options import UserOptions

T = TypeVar("T")

SECOND = 1_000_000
TICK = 2_000  # microseconds
GUEST, HOST, DNS = "10.0.2.15", "10.0.2.2", "10.0.2.3"
GUEST6, HOST6, DNS6 = "fec0::15", "fec0::2", "fec0::3"
GUEST_OF = {4: GUEST, 6: GUEST6}
HOST_OF = {4: HOST, 6: HOST6}
LOOPBACK_OF = {4: "127.0.0.1", 6: "::1"}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
RESET = struct.pack("ii", 1, 0)


def has_ipv6() -> bool:
    """Whether the host has ::1."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def descriptors() -> set[str]:
    """The descriptors of this process."""
    return set(os.listdir("/proc/self/fd"))


class Peer:
    """A connected socket of the host's: reads what comes, as far as it is let, and writes what it is told to."""

    def __init__(self, loop: Loop, sock: socket.socket) -> None:
        self._loop = loop
        self.sock = sock
        sock.setblocking(False)
        self.got = bytearray()
        self.ended = False
        self.error: OSError | None = None
        self.on_data: Callable[[], None] | None = None
        self._waiting = memoryview(b"")
        self._end_after = False
        self.closed = False
        self.read(True)

    def read(self, wanted: bool) -> None:
        """Read what comes, or leave it."""
        self._loop.set_reader(self.sock.fileno(), self._readable if wanted else None)

    def _readable(self) -> None:
        try:
            data = self.sock.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError as error:
            self._failed(error)
            return
        self.got += data
        if self.on_data is not None:
            self.on_data()
        if not data:
            self.ended = True
            self.read(False)

    def write(self, data: bytes, *, end: bool = False) -> None:
        """Send all of it in time, then the end of the stream if wanted."""
        self._waiting = memoryview(bytes(self._waiting) + data)
        self._end_after = end
        self._writable()

    def _writable(self) -> None:
        try:
            while len(self._waiting):
                self._waiting = self._waiting[self.sock.send(self._waiting[: 1 << 16]) :]
            self._loop.set_writer(self.sock.fileno(), None)
            if self._end_after:
                self.sock.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            self._loop.set_writer(self.sock.fileno(), self._writable)
        except OSError as error:
            self._failed(error)

    @property
    def done(self) -> bool:
        """Whether it has sent everything, the end included."""
        return self._end_after and not len(self._waiting)

    def _failed(self, error: OSError) -> None:
        self.error = error
        self._loop.forget(self.sock.fileno())

    def reset(self) -> None:
        """Close with a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.close()

    def close(self) -> None:
        """Close."""
        if not self.closed:
            self.closed = True
            self._loop.forget(self.sock.fileno())
            self.sock.close()


class Server:
    """A listening socket of the host's."""

    def __init__(self, loop: Loop, version: int, port: int = 0) -> None:
        self._loop = loop
        self.sock = socket.create_server((LOOPBACK_OF[version], port), family=FAMILY[version], backlog=256)
        self.sock.setblocking(False)
        self.port: int = self.sock.getsockname()[1]
        self.peers: list[Peer] = []  # that nobody has taken
        self.all: list[Peer] = []
        self.on_peer: Callable[[Peer], None] | None = None
        loop.set_reader(self.sock.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            peer = Peer(self._loop, self.sock.accept()[0])
        except BlockingIOError:
            return
        self.peers.append(peer)
        self.all.append(peer)
        if self.on_peer is not None:
            self.on_peer(peer)

    def take(self) -> Peer | None:
        """The oldest peer that nobody has taken."""
        return self.peers.pop(0) if self.peers else None

    def close(self) -> None:
        """Listen no more."""
        if self.sock.fileno() >= 0:
            self._loop.forget(self.sock.fileno())
            self.sock.close()


class UserWorld:
    """A gateway and a guest's stack that has its addresses already.

    Args:
        words: options of the user wire, as on the command line.
        settings: of the guest's stack.
    """

    def __init__(self, *words: str, **settings: object) -> None:
        self.loop = Loop(RealClock())
        self.said: list[str] = []
        self._servers: list[Server] = []
        self._peers: list[Peer] = []
        self.net = UserNet(self.loop, UserOptions.parse(words), rng=random.Random(1), complain=self.said.append)
        config = NetConfig(**settings)  # type: ignore[arg-type]
        self.stack = direct_stack(self.loop, rng=random.Random(2), config=config)
        self.eth = DirectInterface(self.stack, self.net.link, mac=bytes.fromhex("525400123456"))
        self.eth.interface.add_address(GUEST, 24)
        self.eth.interface.add_address(GUEST6, 64, check=False)
        self.eth.interface.set_up()
        self.stack.add_route("0.0.0.0", 0, HOST)
        self.stack.add_route("::", 0, HOST6)

    def __enter__(self) -> UserWorld:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.close()
            self._peers += server.all
        for peer in self._peers:
            peer.close()
        self.net.close()
        self.loop.close()

    # -- the host --------------------------------------------------------------------------------------------------

    def server(self, version: int = 4, port: int = 0) -> Server:
        """A listening socket on the host's loopback."""
        self._servers.append(Server(self.loop, version, port))
        return self._servers[-1]

    def call(self, port: int, version: int = 4) -> Peer:
        """A socket of the host's that connects to a port of the loopback."""
        sock = socket.create_connection((LOOPBACK_OF[version], port))  # in the kernel's queue, so that nobody waits
        self._peers.append(Peer(self.loop, sock))
        return self._peers[-1]

    # -- the guest -------------------------------------------------------------------------------------------------

    def dial(self, address: str, port: int) -> TcpEndpoint:
        """An end of the guest's that is connecting."""
        end = self.stack.tcp.open(6 if ":" in address else 4)
        end.connect(parse_address(address), port)
        return end

    def listen(self, port: int, version: int = 4) -> TcpEndpoint:
        """An end of the guest's that listens."""
        end = self.stack.tcp.open(version)
        end.bind(parse_address(GUEST_OF[version]), port)
        end.listen(256)
        return end

    # -- time ------------------------------------------------------------------------------------------------------

    def run(self, until: Callable[[], object], seconds: float = 20) -> bool:
        """Let the loop run until something is so; whether it is. It is looked at in each turn, and every `TICK`."""
        clock = self.loop.clock
        running = True

        def tick() -> None:
            if running:
                clock.after(TICK, tick)

        tick()
        try:
            return self.loop.run(until=lambda: bool(until()), deadline=clock.now() + round(seconds * SECOND))
        finally:
            running = False

    def need(self, until: Callable[[], object], what: str) -> None:
        """Let the loop run until something is so; a test that waits for it in vain fails with `what`."""
        if not self.run(until):
            raise AssertionError(f"{what}; gateway: {dict(self.net.counters)}")

    def wait_for(self, get: Callable[[], T | None], what: str = "nobody came") -> T:
        """Let the loop run until `get` gives something; that."""
        found: list[T] = []

        def look() -> bool:
            thing = get()
            if thing is not None:
                found.append(thing)
            return bool(found)

        self.need(look, what)
        return found[0]

    def open(self, version: int = 4) -> tuple[TcpEndpoint, Peer]:
        """A stream from the guest to the host's loopback: both ends."""
        server = self.server(version)
        end = self.dial(HOST_OF[version], server.port)
        peer = self.wait_for(server.take, "the guest's connection did not reach the host")
        joined = lambda: end.connected and all(stream.joined for stream in self.net.streams)  # noqa: E731
        self.need(joined, "the guest was not told that it is connected")
        return end, peer

    def settled(self) -> bool:
        """Whether the gateway has no stream left."""
        return len(self.net.streams) == 0


class Pump:
    """Drives an end of the guest's: writes `data` as far as it goes, then its end; collects what comes."""

    def __init__(self, end: TcpEndpoint, data: bytes = b"", *, end_after: bool = True) -> None:
        self.end = end
        self._data = memoryview(data)
        self._end_after = end_after
        self.got = bytearray()
        self.ended = False
        self.error = 0
        self.reading = True

    def turn(self) -> bool:
        """Do what can be done; whether both directions are over."""
        end = self.end
        if end.connecting or self.error:
            return bool(self.error)
        while len(self._data) and (count := end.write([self._data[: 1 << 16]])):
            if count < 0:
                self.error = -count
                return True
            self._data = self._data[count:]
        if not len(self._data) and self._end_after:
            self._end_after = False
            end.shutdown(1)
        while self.reading and not self.ended and (piece := end.read(1 << 18)) is not None:
            if isinstance(piece, int):
                self.error = -piece
                return True
            self.got += piece
            self.ended = not piece
        return self.ended and not self._end_after


@contextmanager
def no_descriptor_is_left() -> Iterator[None]:
    """What is opened inside is closed at its end."""
    before = descriptors()
    yield
    left = descriptors() - before
    assert not left, f"descriptors that were left: {left}"
