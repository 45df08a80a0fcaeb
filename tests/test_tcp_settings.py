"""TCP's values on a guest's command line: each is changed, and its effect seen on the wire (rows C23 to C26, N2)."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from guest.kernel import Guest
from guest.net.address import parse_address
from guest.net.tcp.endpoint import TcpEndpoint
from guest.net.tcp.state import State
from hw.wire.hub import Hub
from tests.guest_board import STATIC, Board, Peer

PEER = parse_address("10.0.0.1")
DAY = 24 * 3600


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board()
    yield board
    board.close()


def alone(board: Board, words: str) -> tuple[Guest, Peer]:
    """A guest whose neighbour answers ARP and no TCP."""
    link, peer = board.peer()
    peer.answers = True
    return board.boot(f"{STATIC} {words}", link), peer


def pair(board: Board, words: str) -> tuple[TcpEndpoint, TcpEndpoint]:
    """The ends of a connection between two guests, the first with `words` on its command line."""
    hub = Hub(board.loop)
    first = board.guest(f"{STATIC} {words}", hub.port("first"), name="first")
    second = board.guest(STATIC.replace("10.0.0.2", "10.0.0.1", 1), hub.port("second"), name="second")
    board.settle()
    listening = second.stack.tcp.open(4)
    assert (listening.bind(PEER, 80), listening.listen(1)) == (0, 0)
    end = first.stack.tcp.open(4)
    assert end.connect(PEER, 80) == errno.EINPROGRESS
    board.run(1)
    accepted = listening.accept()
    assert accepted is not None
    listening.close()
    return end, accepted


def syns(peer: Peer) -> list[TCP]:
    """The SYNs that a peer has seen."""
    packets = [Ether(raw) for raw in peer.frames]
    return [packet[TCP] for packet in packets if packet.haslayer(TCP) and packet[IP].proto == 6]


@pytest.mark.parametrize(("words", "window"), [("", 65535), ("net.tcp_window=16384", 16384)])
def test_c24_a_syn_offers_the_window_that_was_set(board: Board, words: str, window: int) -> None:
    guest, peer = alone(board, words)
    end = guest.stack.tcp.open(4)
    assert end.connect(PEER, 80) == errno.EINPROGRESS
    board.run(0.5)
    assert [syn.window for syn in syns(peer)] == [window]
    end.close()


@pytest.mark.parametrize(("words", "times"), [("", 5), ("net.retries=2", 2)])
def test_c25_a_syn_is_sent_again_so_often(board: Board, words: str, times: int) -> None:
    guest, peer = alone(board, words)
    end = guest.stack.tcp.open(4)
    assert end.connect(PEER, 80) == errno.EINPROGRESS
    board.run(300)
    assert (len(syns(peer)), end.take_error()) == (1 + times, errno.ETIMEDOUT)
    end.close()


@pytest.mark.parametrize(("words", "idle"), [("", 7200), ("net.keepalive=60000", 60)])
def test_c26_the_first_probe_comes_after_exactly_so_long(board: Board, words: str, idle: int) -> None:
    end, accepted = pair(board, words)
    end.options.keepalive = True
    end.settings_changed()
    tcp = board.guests[0].stack.tcp
    heard = board.loop.clock.now() - end.info().idle

    def wait_until(moment: int) -> int:
        board.loop.run(deadline=moment + 1)
        return tcp.counters["tx_keepalives"]

    assert [wait_until(heard + idle * 1_000_000 - 1000), wait_until(heard + idle * 1_000_000)] == [0, 1]
    assert accepted.connected
    end.close()
    accepted.close()
    board.run(120)


def test_n2_the_profile_phase6_has_a_fixed_window_and_no_options(board: Board) -> None:
    guest, peer = alone(board, "net.tcp_profile=phase6")
    end = guest.stack.tcp.open(4)
    end.connect(PEER, 80)
    board.run(0.5)
    (syn,) = syns(peer)
    assert (syn.window, [name for name, _ in syn.options]) == (4096, ["MSS"])
    assert end.settings.congestion == "none"
    end.close()


@pytest.mark.parametrize("words", ["net.tcp_profile=phase6", ""])
def test_n2_either_profile_moves_bytes_both_ways(board: Board, words: str) -> None:
    end, accepted = pair(board, words)
    sent = bytes(range(256)) * 400
    got = {end: bytearray(), accepted: bytearray()}
    left = {end: memoryview(sent), accepted: memoryview(sent)}
    target = bytearray(65536)
    for _ in range(2000):
        for one in (end, accepted):
            if len(left[one]) and (taken := one.write([left[one]])) > 0:
                left[one] = left[one][taken:]
            while count := one.read_into(memoryview(target)) or 0:
                got[one] += target[:count]
        if len(got[end]) == len(got[accepted]) == len(sent):
            break
        board.run(0.05)
    assert (bytes(got[end]) == sent, bytes(got[accepted]) == sent) == (True, True)
    end.close()
    accepted.close()
    board.run(DAY)
    assert [state for guest in board.guests for state in guest.stack.tcp.states() if state is not State.LISTEN] == []
