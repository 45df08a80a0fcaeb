"""TCP through the user wire: a guest's stack, the gateway and sockets of the host's, in one loop.

Bytes, ends, resets and refusals have to cross as if the two were connected; what does not move must not pile up.
"""

from __future__ import annotations

import errno
import os
import random
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest.net.address import parse_address
from guest.net.endpoint import SHUT_WR
from guest.net.tcp.endpoint import TcpEndpoint
from guest.net.tcp.state import State
from hw.wire.link import WireError
from tests.requirements import require
from tests.user_world import (
    DNS,
    DNS6,
    GUEST6,
    HOST,
    HOST_OF,
    Peer,
    Pump,
    UserWorld,
    descriptors,
    has_ipv6,
    no_descriptor_is_left,
)  # fmt: skip
from vring.usernet.gateway import WINDOW
from vring.usernet.streams import SCRATCH

MB = 1_000_000
VERSIONS = pytest.mark.parametrize(
    "version", [4, pytest.param(6, marks=pytest.mark.skipif(not has_ipv6(), reason="the host has no ::1"))]
)


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def spare() -> int:
    """A further descriptor, -1 where there is none."""
    try:
        return os.dup(0)
    except OSError:
        return -1


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


@pytest.mark.parametrize("address", [DNS, DNS6, "fe80::2"])
def test_d13_a_port_of_the_gateways_own_where_nobody_listens_refuses(world: UserWorld, address: str) -> None:
    """An address that stands for nothing of the host's is a host like any other."""
    interface = world.eth.interface if address.startswith("fe80") else None
    end = world.stack.tcp.open(6 if ":" in address else 4)
    end.connect(parse_address(address), 80, interface=interface)
    datagrams = world.stack.udp.open(end.family)
    datagrams.connect(parse_address(address), 80, interface=interface)
    datagrams.send([b"hello"])

    world.need(lambda: end.state is State.CLOSED and datagrams.error, "the guest was not told")

    assert (end.take_error(), datagrams.take_error()) == (errno.ECONNREFUSED, errno.ECONNREFUSED)
    assert not world.net.counters, "something was looked for outside"


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


def test_d13_what_came_before_a_reset_of_the_guest_is_not_lost(world: UserWorld) -> None:
    """Both in one batch."""
    end, peer = world.open()
    end.write([b"the last words"])
    end.kill()

    world.need(lambda: peer.error, "the host heard nothing")

    assert bytes(peer.got) == b"the last words"


def test_d13_what_came_before_a_reset_of_the_host_is_not_lost(world: UserWorld) -> None:
    """As where the two are connected: the data had arrived, and the reset comes behind it."""
    end, peer = world.open()
    peer.sock.send(b"the last words")
    peer.reset()

    world.need(lambda: end.error, "the guest heard nothing")

    assert end.read(100) == b"the last words"
    assert len(world.net.streams) == 0


# -- nothing piles up ------------------------------------------------------------------------------------------------


def test_d13_a_server_that_never_reads_stops_the_guest(world: UserWorld) -> None:
    """The kernel's buffers and the gateway's fill, and that is all: the rest stays with the guest."""
    end, peer = world.open()
    peer.read(False)
    pump = Pump(end, bytes(64 * MB))
    before = resident()

    ours = next(stream.end for stream in world.net.streams if stream.end is not None)

    def stuck() -> bool:
        pump.turn()
        return ours.unread > WINDOW * 7 // 8

    world.need(stuck, "the gateway reads on")
    world.run(lambda: pump.turn() and False, seconds=0.3)

    assert ours.unread <= WINDOW * 9 // 8, "the gateway holds more than it offered"
    assert resident() - before < 16 * MB, "memory grows with what is not read"

    peer.read(True)
    world.need(lambda: pump.turn() or len(peer.got) == 64 * MB, "it did not go on when the server read again")


def test_d13_a_guest_that_never_reads_stops_the_server(world: UserWorld) -> None:
    end, peer = world.open()
    before = resident()
    peer.write(bytes(64 * MB), end=True)
    connection = end.connection
    assert connection is not None

    world.need(lambda: connection.rcv_adv - connection.rcv_nxt < connection.rcv_mss, "the guest's window never closed")
    world.run(lambda: False, seconds=0.3)

    ours = next(stream.end for stream in world.net.streams if stream.end is not None)
    assert ours.unacked <= SCRATCH, "the gateway holds more than its send buffer"
    assert resident() - before < 64 * MB + 32 * MB, "memory grows with what is not read"  # 64 are the test's own

    pump = Pump(end)
    world.need(lambda: pump.turn() and len(pump.got) == 64 * MB, "it did not go on when the guest read again")


@pytest.mark.parametrize("who", ["guest", "host"])
def test_d13_a_reset_crosses_also_where_nothing_moves(world: UserWorld, who: str) -> None:
    """Each side is stuck with what the other does not read: a reset must not wait for that."""
    end, peer = world.open()
    peer.read(False)
    pump = Pump(end, bytes(16 * MB))
    pump.reading = False
    peer.write(bytes(16 * MB))
    world.run(lambda: pump.turn() and False, seconds=0.3)

    if who == "guest":
        end.kill()
        world.need(world.settled, "the gateway waits for the host to read")
        peer.read(True)
        world.need(lambda: peer.error, "the host heard nothing")
    else:
        peer.reset()
        world.need(lambda: end.error, "the guest heard nothing")
    assert world.settled()


def test_d13_a_reset_of_the_host_is_seen_where_nothing_is_read_or_written(world: UserWorld) -> None:
    end, peer = world.open()
    peer.write(bytes(16 * MB))
    world.run(lambda: False, seconds=0.3)  # the guest does not read, and says nothing

    peer.reset()

    world.need(lambda: end.error, "the guest heard nothing")


class Rough:
    """One end of a stream in rough use: sends a text in pieces with stalls between, and may reset halfway."""

    def __init__(self, rng: random.Random) -> None:
        self.text = rng.randbytes(rng.randrange(200_000))
        self.resets_at = rng.randrange(len(self.text) + 1) if rng.random() < 0.25 else None
        self.stalls = rng.randrange(1, 40)
        self.at = 0
        self.turns = 0
        self.rng = rng

    def piece(self) -> bytes:
        """What to send in this turn; nothing while stalling."""
        self.turns += 1
        if self.turns % self.stalls:
            return b""
        piece = self.text[self.at : self.at + self.rng.randrange(1, 20_000)]
        return piece if self.resets_at is None else piece[: max(0, self.resets_at - self.at)]

    @property
    def wants_reset(self) -> bool:
        """Whether it is time."""
        return self.resets_at is not None and self.at >= self.resets_at


class RoughPair:
    """A stream of the guest's and its peer on the host, both in rough use."""

    def __init__(self, world: UserWorld, end: TcpEndpoint, seed: int) -> None:
        self.end = end
        self.peer: Peer | None = None
        self.guest, self.host = Rough(random.Random(f"guest {seed}")), Rough(random.Random(f"host {seed}"))
        self.pump = Pump(end, end_after=False)
        self.world = world

    def turn(self) -> bool:
        """Do a bit; whether both ends are done."""
        guest, host, peer, end = self.guest, self.host, self.peer, self.end
        if end.connected and not end.error and not end.closed and not end.shut_write:
            count = end.write([guest.piece()]) if guest.at < len(guest.text) else 0
            guest.at += max(count, 0)
            if guest.wants_reset:
                end.kill()
            elif guest.at == len(guest.text):
                end.shutdown(SHUT_WR)
        if not end.closed:
            self.pump.turn()
            if self.pump.error:
                end.close()
        if peer is not None and peer.error is None and not peer.closed and not peer.done:
            piece = host.piece() if host.at < len(host.text) else b""
            host.at += len(piece)
            peer.write(piece, end=host.at == len(host.text))
            if host.wants_reset:
                peer.reset()
        return (end.closed or (self.pump.ended and end.shut_write)) and (
            peer is not None and (peer.closed or peer.error is not None or (peer.ended and peer.done))
        )

    def check(self) -> None:
        """What arrived is how the other side's text begins; all of it where nobody reset."""
        peer = self.peer
        assert peer is not None
        assert self.guest.text.startswith(bytes(peer.got)), "the host got other bytes than the guest sent"
        assert self.host.text.startswith(bytes(self.pump.got)), "the guest got other bytes than the host sent"
        if self.guest.resets_at is None and self.host.resets_at is None:
            assert (len(peer.got), len(self.pump.got)) == (len(self.guest.text), len(self.host.text))


@pytest.mark.parametrize("seed", [1, 2])
def test_d13_two_hundred_streams_with_stalls_and_resets(seed: int) -> None:
    """Nothing hangs, nothing is left, and every byte is right."""
    with no_descriptor_is_left(), UserWorld() as world:
        server = world.server()
        rng = random.Random(seed)
        pairs = [RoughPair(world, world.dial(HOST, server.port), rng.randrange(1 << 30)) for _ in range(200)]
        by_port = {pair.end.local[1]: pair for pair in pairs}
        world.need(lambda: len(server.peers) == 200, "not every connection reached the host")
        by_opening = {stream.end.remote[1]: stream for stream in world.net.streams if stream.end and stream.end.remote}
        by_name = {by_opening[port].sock.getsockname(): pair for port, pair in by_port.items() if port in by_opening}
        for peer in server.peers:
            by_name[peer.sock.getpeername()].peer = peer
        left = list(pairs)

        def over() -> bool:
            left[:] = [pair for pair in left if not pair.turn()]
            return not left

        assert world.run(over, seconds=60), f"{len(left)} streams hang; gateway: {dict(world.net.counters)}"
        for pair in pairs:
            pair.check()
            pair.end.close()
        world.need(world.settled, f"the gateway kept {len(world.net.streams)} streams")
        resets = sum(pair.guest.resets_at is not None or pair.host.resets_at is not None for pair in pairs)
        assert 40 < resets < 160, "the test does not test what it says"


def test_d13_where_no_descriptor_is_left_the_guest_tries_again(world: UserWorld) -> None:
    server = world.server()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, descriptors())) + 1, hard))
    taken: list[int] = []
    try:
        while (fd := spare()) >= 0:
            taken.append(fd)
        end = world.dial(HOST, server.port)
        world.need(lambda: world.net.counters["tcp_dropped_no_descriptor"], "a descriptor was found")
        assert world.said == [
            "user wire: no more descriptors for connections (Too many open files); raise the limit with ulimit -n"
        ]
        assert end.connecting, "the guest was told that it cannot be"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)

    world.need(lambda: end.connected, "the guest's second SYN was not answered")
    end.kill()


def test_d13_a_guest_that_gives_up_leaves_nothing(world: UserWorld) -> None:
    """It resets its half of a handshake: the host's connection ends."""
    server = world.server()
    end = world.dial(HOST, server.port)
    end.kill()

    peer = world.wait_for(server.take, "nobody came")
    world.need(lambda: peer.ended or peer.error, "the host's end stays")
    world.need(world.settled, "the gateway kept the stream")


# -- forwards --------------------------------------------------------------------------------------------------------


@VERSIONS
def test_n5_a_forward_brings_callers_to_the_guest(version: int) -> None:
    """Row N5: a rule for any port; the same host port may lead to 80 or to 7."""
    guest = {4: "", 6: f"[{GUEST6}]"}[version]
    host_side = {4: "", 6: "[::1]"}[version]
    with no_descriptor_is_left(), UserWorld(f"hostfwd=tcp:{host_side}:0-{guest}:80") as world:
        for port in (80, 7):
            rule = world.net.forwards.rules[0]
            if port == 7:
                assert world.net.forwards.remove(rule.host_side)
                rule = world.net.forwards.add(f"tcp:{host_side}:{rule.port}-{guest}:7")
            listening = world.listen(port, version)
            peer = world.call(rule.port, version)
            child = world.wait_for(listening.accept, f"nobody came to port {port}")
            assert child.remote is not None
            assert child.remote[0] == parse_address(HOST_OF[version]), "callers come from the gateway"
            peer.write(b"a question", end=True)
            pump = Pump(child, b"an answer")
            world.need(lambda pump=pump, peer=peer: pump.turn() and peer.ended, "the streams did not end")
            assert (bytes(pump.got), bytes(peer.got)) == (b"a question", b"an answer")
            child.close()
        world.need(world.settled, "the gateway kept a stream")


def test_n5_a_port_of_the_guest_where_nobody_listens_resets_the_caller() -> None:
    with no_descriptor_is_left(), UserWorld("hostfwd=tcp::0-:80") as world:
        peer = world.call(world.net.forwards.rules[0].port)

        world.need(lambda: peer.error, "the caller waits for ever")

        assert isinstance(peer.error, ConnectionResetError)
        assert world.settled()


def test_d13_forwards_come_and_go_while_connections_stay(world: UserWorld) -> None:
    rule = world.net.forwards.add("tcp::0-:80")
    listening = world.listen(80)
    peer = world.call(rule.port)
    child = world.wait_for(listening.accept)

    assert not world.net.forwards.remove("tcp::1")
    assert world.net.forwards.remove(f"tcp::{rule.port}")

    with pytest.raises(ConnectionRefusedError):
        world.call(rule.port)
    peer.write(b"still here")
    world.need(lambda: child.unread == 10, "the connection ended with its forward")
    assert world.net.forwards.rules == []


def test_d13_a_forward_may_listen_on_a_socket_in_the_file_system(world: UserWorld, tmp_path: Path) -> None:
    path = tmp_path / "guest.sock"
    rule = world.net.forwards.add(f"unix:{path}-:80")
    listening = world.listen(80)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(str(path))
    peer = Peer(world.loop, sock)
    child = world.wait_for(listening.accept)
    peer.write(b"in", end=True)
    pump = Pump(child, b"out")

    world.need(lambda: pump.turn() and peer.ended, "the streams did not end")

    assert (bytes(pump.got), bytes(peer.got)) == (b"in", b"out")
    peer.close()
    assert world.net.forwards.remove(rule.host_side)
    assert not path.exists(), "the socket's file is left"


def test_d13_nothing_listens_outside_of_the_loopback_unless_it_is_asked_for() -> None:
    rules = ("hostfwd=tcp::0-:80", "hostfwd=udp::0-:53", "hostfwd=tcp:0.0.0.0:0-:81")
    with no_descriptor_is_left(), UserWorld(*rules) as world:
        names = [sock.getsockname()[0] for sock in world.net.forwards._rules.values()]

        assert names == ["127.0.0.1", "127.0.0.1", "0.0.0.0"]


# -- mistakes --------------------------------------------------------------------------------------------------------


def test_d13_a_port_in_use_is_one_line_that_says_what_to_do(world: UserWorld) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        with pytest.raises(WireError) as caught:
            world.net.forwards.add(f"tcp::{port}-:80")

    assert str(caught.value) == (
        f"hostfwd=tcp:127.0.0.1:{port}-:80: port {port} is in use by another program; "
        "choose another, or port 0 for any that is free"
    )


def test_d13_an_address_that_the_host_has_not_is_one_line(world: UserWorld) -> None:
    with pytest.raises(WireError, match=r"hostfwd=tcp:192\.0\.2\.77:8080-:80: the host has no address 192\.0\.2\.77"):
        world.net.forwards.add("tcp:192.0.2.77:8080-:80")


def test_d13_a_port_for_root_alone_is_one_line_that_says_what_to_do() -> None:
    """In a process without rights, where there is one."""
    script = (
        "import os, sys; sys.path[:0] = [sys.argv[1]]\n"
        "from vring.usernet import host; from vring.usernet.options import Forward\n"
        "from hw.wire.link import WireError\n"
        "os.geteuid() == 0 and (os.setgroups([]), os.setgid(65534), os.setuid(65534))\n"
        "try:\n    host.listen(Forward.parse('tcp::80-:80')).close()\n"
        "except WireError as error:\n    print(error)\n"
    )
    words = [sys.executable, "-c", script, str(Path(__file__).resolve().parent.parent)]
    lowest = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    require(lowest.exists() and int(lowest.read_text()) > 80, "needs a host whose port 80 is for root alone")
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout == "hostfwd=tcp:127.0.0.1:80-:80: port 80 is for root alone; choose one from 1024 on\n", done
