"""Wires through sockets: streams and datagrams as QEMU has them, and a port of a real VDE switch."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw.clock import SECOND, RealClock, VirtualClock
from hw.loop import Loop
from hw.wire.dgram import DatagramLink
from hw.wire.link import FRAME_MAX, Frame, Link, Receiver, WireError, frame_bytes
from hw.wire.stream import LENGTH, StreamLink
from hw.wire.vde import VdeLink
from tests.requirements import require_program
from vring.config import Board, ConfigError, GuestSpec, NicSpec, WireSpec

PATIENCE = 10 * SECOND


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop(RealClock())
    yield loop
    loop.close()


class End(Receiver):
    """A NIC played by the test: keeps what comes, as long as it has room."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.frames: list[bytes] = []
        self.room = 1 << 30
        self.may_write = 0
        link.attach(self)

    def receive(self, frames: Sequence[Frame]) -> int:
        taken = min(self.room, len(frames))
        self.room -= taken
        self.frames += map(frame_bytes, frames[:taken])
        return taken

    def writable(self) -> None:
        self.may_write += 1

    def send(self, *frames: bytes) -> int:
        return self.link.transmit([(None, [frame[:14], frame[14:]]) for frame in frames])


def wait(loop: Loop, until: Callable[[], bool], what: str) -> None:
    assert loop.run(until, deadline=loop.clock.now() + PATIENCE), f"waited in vain for {what}"


def frames_of(rng: random.Random, count: int, longest: int = 1514) -> list[bytes]:
    return [rng.randbytes(rng.randint(60, longest)) for _ in range(count)]


# -- streams -----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["path", "127.0.0.1", "[::1]"])
def pair(loop: Loop, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[End, End]]:
    """A server and a client that have found each other."""
    where = str(tmp_path / "s") if request.param == "path" else f"{request.param}:0"
    server = StreamLink(loop, where, server=True)
    client = StreamLink(loop, where if request.param == "path" else f"{request.param}:{server.port}")
    wait(loop, lambda: server.carrier and client.carrier, "the connection")
    yield End(server), End(client)
    client.close()
    server.close()


def test_frames_go_both_ways_whole_and_in_order(loop: Loop, pair: tuple[End, End]) -> None:
    server, client = pair
    there, back = frames_of(random.Random(1), 300), frames_of(random.Random(2), 300, FRAME_MAX)

    for at in range(0, 300, 20):
        assert client.send(*there[at : at + 20]) == 20
        wait(loop, lambda: len(server.frames) == at + 20, "a batch there")  # noqa: B023
        assert server.send(*back[at : at + 20]) == 20
        wait(loop, lambda: len(client.frames) == at + 20, "a batch back")  # noqa: B023

    assert (server.frames, client.frames) == (there, back)
    assert server.link.counters["rx_bytes"] == client.link.counters["tx_bytes"] == sum(map(len, there))


def test_a_peer_that_does_not_read_stops_the_sender_and_loses_nothing(loop: Loop, pair: tuple[End, End]) -> None:
    server, client = pair
    server.room = 0
    sent: list[bytes] = []
    numbers = iter(range(1 << 30))
    while client.may_write == 0:
        batch = [next(numbers).to_bytes(4, "big") + bytes(1400) for _ in range(64)]
        taken = client.send(*batch)
        sent += batch[:taken]
        loop.run(deadline=loop.clock.now() + 1000)
        if taken == 0:
            break
    assert client.link.counters["tx_blocked"] >= 1
    assert client.send(bytes(60)) == 0

    server.room = 1 << 30
    server.link.resume()
    wait(loop, lambda: len(server.frames) == len(sent), "the rest")

    assert server.frames == sent
    assert client.may_write >= 1


def test_a_peer_that_leaves_takes_the_carrier_and_the_next_brings_it_back(loop: Loop, tmp_path: Path) -> None:
    server = StreamLink(loop, str(tmp_path / "s"), server=True)
    end = End(server)
    for number in range(2):
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(tmp_path / "s"))
            wait(loop, lambda: server.carrier, "the peer")
            frame = bytes([number]) * 60
            peer.sendall(LENGTH.pack(60) + frame)
            wait(loop, lambda: len(end.frames) == number + 1, "its frame")  # noqa: B023
        wait(loop, lambda: not server.carrier, "the peer to be missed")
    end.send(bytes(60))

    assert end.frames == [bytes(60), b"\1" * 60]
    assert server.counters["tx_dropped_no_peer"] == 1
    server.close()
    assert not (tmp_path / "s").exists()


def test_a_client_tries_until_a_server_is_there_and_again_when_it_left(loop: Loop, tmp_path: Path) -> None:
    client = StreamLink(loop, str(tmp_path / "s"))
    assert not client.carrier
    for _ in range(2):
        server = StreamLink(loop, str(tmp_path / "s"), server=True)
        wait(loop, lambda: client.carrier, "the client to find it")
        server.close()
        wait(loop, lambda: not client.carrier, "the client to miss it")
    client.close()

    assert client.counters["connected"] == 2


def test_a_second_peer_is_turned_away(loop: Loop, pair: tuple[End, End], tmp_path: Path) -> None:
    server, _ = pair
    where = server.link._listener.getsockname()  # type: ignore[attr-defined]
    with socket.socket(socket.AF_UNIX if isinstance(where, str) else socket.AF_INET6 if len(where) == 4
                       else socket.AF_INET) as second:  # fmt: skip
        second.connect(where if isinstance(where, str) else where[:2])
        wait(loop, lambda: server.link.counters["turned_away"] == 1, "the second peer")
        assert second.recv(1) == b""


@pytest.mark.parametrize("length", [0, FRAME_MAX + 1, 0xFFFFFFFF])
def test_a_length_that_no_frame_has_ends_the_connection(loop: Loop, tmp_path: Path, length: int) -> None:
    server = StreamLink(loop, str(tmp_path / "s"), server=True)
    end = End(server)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(tmp_path / "s"))
        peer.sendall(LENGTH.pack(60) + bytes(60) + LENGTH.pack(length) + bytes(8))
        wait(loop, lambda: server.counters["rx_bad_length"] == 1, "the complaint")
        assert peer.recv(1) == b""

    assert end.frames == [bytes(60)], "what came before is a frame all the same"
    server.close()


@given(cuts=st.lists(st.integers(1, 400), max_size=40), seed=st.integers(0, 1 << 16))
def test_however_the_stream_is_cut_the_frames_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], seed: int
) -> None:
    where = str(tmp_path_factory.mktemp("cut") / "s")
    frames = frames_of(random.Random(seed), 5, 300)
    stream = b"".join(LENGTH.pack(len(frame)) + frame for frame in frames)
    loop = Loop(RealClock())
    server = StreamLink(loop, where, server=True)
    end = End(server)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(where)
        wait(loop, lambda: server.carrier, "the peer")
        for cut in [*cuts, len(stream)]:
            if stream:
                peer.sendall(stream[:cut])
                stream = stream[cut:]
                loop.run(deadline=loop.clock.now() + 50)
        wait(loop, lambda: len(end.frames) == 5, "all frames")
    server.close()
    loop.close()
    assert end.frames == frames


# -- datagrams ---------------------------------------------------------------------------------------------------------


def test_datagrams_go_both_ways_between_paths(loop: Loop, tmp_path: Path) -> None:
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    left = End(DatagramLink(loop, a, b))
    left.send(bytes(60))
    assert left.link.counters["tx_dropped_no_peer"] == 1, "nobody is there yet"

    right = End(DatagramLink(loop, b, a))
    frames = frames_of(random.Random(3), 200)
    for frame in frames:
        assert left.send(frame) == 1
        wait(loop, lambda: right.frames[-1:] == [frame], "a frame there")  # noqa: B023
        assert right.send(frame[::-1]) == 1
        wait(loop, lambda: left.frames[-1:] == [frame[::-1]], "a frame back")  # noqa: B023
    assert right.frames == frames

    left.link.close()
    right.link.close()
    assert not os.listdir(tmp_path)


def test_datagrams_go_between_udp_ports_and_no_stranger_is_heard(loop: Loop) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer, socket.socket(
        socket.AF_INET, socket.SOCK_DGRAM
    ) as stranger:
        peer.bind(("127.0.0.1", 0))
        link = DatagramLink(loop, "127.0.0.1:0", f"127.0.0.1:{peer.getsockname()[1]}")
        end = End(link)
        end.send(b"x" * 60)
        data, where = peer.recvfrom(100)
        assert data == b"x" * 60

        stranger.sendto(b"s" * 60, where)
        peer.sendto(b"", where)
        peer.sendto(b"y" * 60, where)
        wait(loop, lambda: bool(end.frames), "the answer")
        assert end.frames == [b"y" * 60]
        assert link.counters["rx_dropped_empty"] == 1
        link.close()


# -- a VDE switch ------------------------------------------------------------------------------------------------------


@pytest.fixture
def switch(tmp_path: Path) -> Iterator[Path]:
    program = require_program("vde_switch")
    place = tmp_path / "switch"
    # The switch ends when its standard input does.
    process = subprocess.Popen([program, "-s", str(place)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        loop = Loop(RealClock())
        wait(loop, (place / "ctl").exists, "the switch")
        loop.close()
        yield place
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)
        process.stdin.close()  # type: ignore[union-attr]


def test_two_ports_of_a_switch_are_one_network(loop: Loop, switch: Path) -> None:
    left, right = End(VdeLink(loop, str(switch))), End(VdeLink(loop, f"{switch}[7]"))
    here, there = b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"
    right.send(b"\xff" * 6 + there + b"\x88\xb5" + bytes(46))  # so that the switch knows where it is
    wait(loop, lambda: len(left.frames) == 1, "the broadcast")
    frames = [there + here + b"\x88\xb5" + frame for frame in frames_of(random.Random(4), 500, 1500)]

    for frame in frames:
        left.send(frame)
        wait(loop, lambda: right.frames[-1:] == [frame], "a frame through the switch")  # noqa: B023

    assert right.frames == frames
    left.link.close()
    right.link.close()


def test_a_switch_that_ends_takes_the_carrier_along(loop: Loop, tmp_path: Path) -> None:
    program = require_program("vde_switch")
    process = subprocess.Popen([program, "-s", str(tmp_path / "w")], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    wait(loop, (tmp_path / "w" / "ctl").exists, "the switch")
    link = VdeLink(loop, str(tmp_path / "w"))
    end = End(link)

    process.kill()
    process.communicate()

    wait(loop, lambda: not link.carrier, "the carrier to go")
    end.send(bytes(60))
    assert link.counters["tx_dropped_no_peer"] == 1
    link.close()


def test_no_switch_says_how_to_start_one(loop: Loop, tmp_path: Path) -> None:
    with pytest.raises(WireError, match=r"no VDE switch answers there: .*start one with: vde_switch -s"):
        VdeLink(loop, str(tmp_path / "nobody"))


# -- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "stream:/run/s", "stream:/run/s,server", "stream:127.0.0.1:5000", "stream:[::1]:5000,server,loss=1%",
        "dgram:/run/a,remote=/run/b", "dgram:127.0.0.1:1,remote=127.0.0.1:2", "vde:/run/vde", "vde:/run/vde[3]",
    ],
)  # fmt: skip
def test_words_say_what_they_are(text: str) -> None:
    assert str(WireSpec.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "stream", "stream:name", "stream:localhost:80", "stream:127.0.0.1:99999", "stream:/run/s,server=no", "dgram:/a",
        "dgram:/run/a,remote=", "vde", "vde:/run/vde[x]", "vde:/run/vde[99999]", "stream:/run/s,nonsense",
        "stream:/" + "x" * 120,
    ],
)  # fmt: skip
def test_words_that_cannot_be(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^wire "):
        WireSpec.parse(text)


def test_time_is_real_out_there(tmp_path: Path) -> None:
    board = Board((GuestSpec(nics=(NicSpec.parse("virtio", "stream:/run/s"),)),), clock="virtual")
    with pytest.raises(ConfigError, match="leads outside, where time is real"):
        board.check()
    loop = Loop(VirtualClock())
    with pytest.raises(WireError, match="use --clock real"):
        StreamLink(loop, str(tmp_path / "s"))
    loop.close()
