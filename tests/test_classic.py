"""The calls of a small kernel by their own names: each does what the real stack does under another name.

A guest at 10.0.0.2 speaks with a peer made of bytes, or with a second guest at 10.0.0.3.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from guest.classic import Classic
from guest.kernel import Guest
from guest.sys.constants import AF_INET, SOCK_DGRAM
from hw.wire.hub import Hub
from tests.guest_board import STATIC, Board, Peer, arp, echo, internet_sum

IP, PEER, GATEWAY = 0x0A000002, 0x0A000003, 0x0A000001


class World:
    """A guest, its calls, and a peer at the other end of its cable."""

    def __init__(self) -> None:
        self.board = Board()
        link, self.peer = self.board.peer()
        self.guest = self.board.boot(STATIC, link)
        self.net = Classic(self.guest)
        self.peer.frames.clear()

    @property
    def mac(self) -> bytes:
        return self.guest.fes[0].mac

    def sent(self) -> list[bytes]:
        """What the guest has sent since this was last asked."""
        self.board.run(0.001)
        frames, self.peer.frames = self.peer.frames, []
        return frames


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.board.close()


def ip_packet(protocol: int, payload: bytes, src: int = PEER, dst: int = IP) -> bytes:
    header = struct.pack("!BBHHHBBHII", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0, src, dst)
    return header[:10] + internet_sum(header) + header[12:] + payload


# -- below TCP -----------------------------------------------------------------------------------------------------


def test_e2_e7_a_frame_goes_out_as_it_is_or_with_its_header(world: World) -> None:
    frame = Peer.mac + world.mac + b"\x88\xb5" + b"x" * 50

    assert world.net.net_send(frame) == 0
    assert world.net.eth_send(Peer.mac, 0x88B5, b"x" * 50) == 0
    assert world.sent() == [frame, frame]


def test_e3_e7_a_frame_that_arrives_is_answered(world: World) -> None:
    request = arp(1, Peer.mac, PEER.to_bytes(4, "big"), bytes(6), IP.to_bytes(4, "big"))
    answer = arp(2, world.mac, IP.to_bytes(4, "big"), Peer.mac, PEER.to_bytes(4, "big"))

    world.net.net_recv(request)
    world.net.eth_recv(request)
    world.net.arp_recv(request[14:])

    assert world.sent() == [answer] * 3
    assert world.guest.fes[0].counters["rx_packets"] == 1  # the others came in above the front end


def test_e8_arp_asks_learns_and_looks_up(world: World) -> None:
    assert world.net.arp_lookup("10.0.0.3") is None
    world.net.arp_request("10.0.0.3")
    assert [frame[12:14] + frame[38:42] for frame in world.sent()] == [b"\x08\x06" + PEER.to_bytes(4, "big")]

    world.net.arp_update(PEER, Peer.mac)
    assert world.net.arp_lookup(PEER) == Peer.mac


def test_e10_e11_ip_sends_sums_up_and_finds_the_way(world: World) -> None:
    world.net.arp_update(PEER, Peer.mac)
    world.net.ip_send(PEER, 253, b"anything")
    (frame,) = world.sent()

    assert (frame[:6], frame[23], frame[34:]) == (Peer.mac, 253, b"anything")
    assert world.net.ip_checksum(frame[14:34]) == 0
    assert world.net.ip_checksum(bytes(20)) == 0xFFFF
    assert (world.net.ip_route(PEER), world.net.ip_route("8.8.8.8")) == (PEER, GATEWAY)


def test_e20_icmp_asks_and_answers(world: World) -> None:
    world.net.arp_update(PEER, Peer.mac)
    world.net.icmp_send_echo(PEER, 7, 1, b"ping")
    source, target = PEER.to_bytes(4, "big"), IP.to_bytes(4, "big")
    request = echo(8, Peer.mac, world.mac, source, target, b"\0\x09", b"\0\x02", b"pong")
    world.net.icmp_recv(request[14:])

    asked, answered = world.sent()
    assert (asked[34:36], asked[38:42], asked[42:]) == (b"\x08\0", b"\0\x07\0\x01", b"ping")
    assert (answered[34:36], answered[38:42], answered[42:]) == (b"\0\0", b"\0\x09\0\x02", b"pong")


def test_e26_udp_binds_sends_and_receives(world: World) -> None:
    world.net.arp_update(PEER, Peer.mac)
    sock = world.guest.calls.socket(AF_INET, SOCK_DGRAM)
    world.net.udp_bind(sock, 5000)
    world.net.udp_input(ip_packet(17, struct.pack("!HHHH", 6000, 5000, 12, 0) + b"data"))

    assert world.net.udp_recv(sock, 100) == b"data"
    assert world.net.udp_send(sock, PEER, 6000, b"back") == 4
    (frame,) = world.sent()
    assert (*struct.unpack("!HHH", frame[34:40]), frame[42:]) == (5000, 6000, 12, b"back")
    world.guest.calls.close(sock)


def test_e43_addresses_are_set_and_read(world: World) -> None:
    world.net.setipaddr("10.0.2.15", 0xFFFFFF00, 0x0A000202)

    assert world.net.getipaddr() == (0x0A00020F, 0xFFFFFF00, 0x0A000202)


# -- TCP -----------------------------------------------------------------------------------------------------------


def test_e36_connect_listen_accept_send_receive_and_close() -> None:
    board = Board()
    hub = Hub(board.loop)
    alice = board.boot(STATIC, hub.port("alice"), name="alice", seed=1)
    bob = board.boot(STATIC.replace("10.0.0.2", "10.0.0.3"), hub.port("bob"), name="bob", seed=2)
    heard: list[Any] = []

    def server(env: Any, _argv: list[str]) -> int:
        net = Classic(env.guest)
        listener = net.tcp_listen(7)
        sock = net.tcp_accept(listener)
        while data := net.tcp_recv(sock, 100):
            net.tcp_send(sock, data.upper())
        net.tcp_close(sock)
        net.tcp_close(listener)
        return 0

    def client(env: Any, _argv: list[str]) -> int:
        net = Classic(env.guest)
        sock = net.tcp_connect(PEER, 7)
        heard.append(net.tcp_send(sock, b"hello"))
        heard.append(net.tcp_recv(sock, 100))
        net.tcp_close(sock)
        with pytest.raises(ConnectionRefusedError):
            net.tcp_connect("10.0.0.3", 8)
        return 0

    processes = bob.spawn(server), alice.spawn(client)
    board.run(1)

    assert heard == [5, b"HELLO"]
    assert [process.exit_status for process in processes] == [0, 0]
    board.run(120)  # until TIME_WAIT is over
    board.close()


def test_e36_a_segment_from_below_opens_a_connection_and_the_timer_can_be_made_to_fire(world: World) -> None:
    """A handshake by hand: SYN, then the ACK of what the guest has answered."""
    net, calls = world.net, world.guest.calls
    net.arp_update(PEER, Peer.mac)
    listener = net.tcp_listen(7)
    net.tcp_input(tcp(seq=100, flags="S"))
    (syn_ack,) = world.sent()
    iss = int.from_bytes(syn_ack[38:42], "big")
    net.tcp_input(tcp(seq=101, ack=iss + 1, flags="."))
    sock = net.tcp_accept(listener)

    assert net.tcp_retransmit(sock) is False  # nothing is on its way
    net.tcp_send(sock, b"once")
    assert [frame[-4:] for frame in world.sent()] == [b"once"]
    assert net.tcp_retransmit(sock) is True
    assert [frame[-4:] for frame in world.sent()] == [b"once"]

    net.tcp_input(tcp(seq=101, ack=iss + 5, flags="R"))
    with pytest.raises(ConnectionResetError):
        net.tcp_recv(sock, 1)
    for each in (sock, listener):
        net.tcp_close(each)
    assert list(calls.fds) == []


def tcp(seq: int, ack: int = 0, flags: str = "") -> bytes:
    """A segment of the peer's, port 6000 to 7, without options and data."""
    bits = sum({"S": 2, "R": 4, ".": 16}[flag] for flag in flags)
    segment = struct.pack("!HHIIBBHHH", 6000, 7, seq, ack & 0xFFFFFFFF, 0x50, bits, 8192, 0, 0)
    pseudo = struct.pack("!IIBBH", PEER, IP, 0, 6, len(segment))
    return ip_packet(6, segment[:16] + internet_sum(pseudo + segment) + segment[18:])


# -- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "number"),
    [
        (lambda net: net.arp_lookup("no address"), errno.EINVAL),
        (lambda net: net.arp_lookup("fe80::1"), errno.EINVAL),
        (lambda net: net.ip_route(1 << 32), errno.EINVAL),
        (lambda net: net.tcp_input(ip_packet(17, b"")), errno.EPROTOTYPE),
        (lambda net: net.tcp_retransmit(99), errno.EBADF),
    ],
)
def test_errors_are_those_of_linux(world: World, what: Any, number: int) -> None:
    with pytest.raises(OSError, match=r"\w") as caught:
        what(world.net)
    assert caught.value.errno == number


def test_without_a_card_there_is_no_device_and_no_way() -> None:
    board = Board()
    guest: Guest = board.boot("")
    net = Classic(guest)

    for what in (lambda: net.net_send(b"x" * 60), lambda: net.arp_request("10.0.0.1"), net.getipaddr):
        with pytest.raises(OSError, match="No such device"):
            what()
    with pytest.raises(OSError, match="unreachable"):
        net.ip_send("10.0.0.1", 253, b"")
    board.close()
