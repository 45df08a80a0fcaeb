"""The programs over TCP: echo, discard, echoclient, nc, ss; two guests on a hub, one alone, and the host's kernel."""

from __future__ import annotations

import random
import re
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from guest.apps.env import Env
from guest.apps.streams import shown
from guest.kernel import Guest
from guest.sys.constants import AF_INET, AF_INET6, SO_LINGER, SOCK_DGRAM, SOCK_STREAM, SOL_SOCKET
from guest.sys.scheduler import Process
from tests.guest_board import Board
from tests.netns import Namespace, namespace
from tests.tap_world import FAMILY, GUEST4, GUEST6, HOST4, HOST6, STATIC, boot, has_address, make_tap
from tests.test_apps_net import Pair
from vring.session import Session


@pytest.fixture
def pair() -> Iterator[Pair]:
    board = Board()
    yield Pair(board)
    board.close()


def start(pair: Pair, line: str, guest: Guest | None = None) -> Process:
    """A program on Bob that goes on."""
    name, *words = line.split()
    process = (guest or pair.bob).spawn(name, *words)
    pair.board.run(0.1)
    return process


# -- echo and its client -------------------------------------------------------------------------------------------


def test_e45_echo_between_two_guests_over_both_families(pair: Pair) -> None:
    server = start(pair, "echo -c 4")
    assert pair.run("echoclient 10.0.0.2") == (
        0, ["5 bytes from 10.0.0.2 port 7: seq=1 time=0.000 ms", "1 sent, 1 echoed"]
    )  # fmt: skip
    assert pair.run("echoclient -6 bob 7 hey -c 3") == (0, [
        "3 bytes from fd00::2 port 7: seq=1 time=0.000 ms",
        "5 bytes from fd00::2 port 7: seq=2 time=0.000 ms",
        "5 bytes from fd00::2 port 7: seq=3 time=0.000 ms",
        "3 sent, 3 echoed",
    ])  # fmt: skip
    assert pair.run("echoclient -4 bob")[1][0].startswith("5 bytes from 10.0.0.2")
    assert server.alive is True
    assert pair.run(f"echoclient {pair.link_local(pair.bob)}%eth0")[0] == 0
    assert server.exit_status == 0
    assert pair.bob.log.output == ["echo: port 7", "echo: 4 connections taken", "echo: 28 bytes received"]


def test_e45_echo_returns_every_byte_of_what_is_more_than_all_buffers_hold(pair: Pair) -> None:
    start(pair, "echo 1000")
    data = random.Random(7).randbytes(3_000_000)
    back = bytearray()

    def reader(env: Env, words: list[Any]) -> int:
        while more := env.calls.recv(words[0], 1 << 20):
            back.extend(more)
        return 0

    def client(env: Env, _words: list[Any]) -> int:
        fd = env.calls.socket(AF_INET, SOCK_STREAM)
        env.calls.connect(fd, ("10.0.0.2", 1000))
        child = env.guest.spawn(reader, fd)
        assert env.calls.send(fd, data) == len(data)
        env.calls.shutdown(fd, 1)
        child.join()
        env.calls.close(fd)
        return 0

    process = pair.alice.spawn(client)
    pair.board.run(60)
    assert process.exit_status == 0
    assert bytes(back) == data


def test_e45_echo_serves_many_clients_at_once(pair: Pair) -> None:
    """Fifty connections that come a millisecond apart, and stay open until all were served; the backlog is five."""
    server = start(pair, "echo -c 50")
    open_now = most = 0

    def client(env: Env, words: list[Any]) -> int:
        nonlocal open_now, most
        env.sleep(words[0] * 1000)
        fd = env.calls.socket(AF_INET, SOCK_STREAM)
        env.calls.connect(fd, ("10.0.0.2", 7))
        open_now += 1
        most = max(most, open_now)
        env.calls.send(fd, b"%d" % words[0])
        back = env.calls.recv(fd, 100)
        env.sleep(2_000_000)
        open_now -= 1
        env.calls.close(fd)
        return 0 if back == b"%d" % words[0] else 1

    clients = [pair.alice.spawn(client, number) for number in range(50)]
    pair.board.run(1)
    assert len(list(pair.bob.stack.tcp.connections)) == most == 50
    pair.board.run(3)
    assert [one.exit_status for one in clients] == [0] * 50
    assert server.exit_status == 0
    assert (len(pair.bob.calls.fds), len(pair.alice.calls.fds)) == (0, 0)


def test_e45_a_client_that_resets_its_connection_does_not_end_the_server(pair: Pair) -> None:
    server = start(pair, "echo")

    def rude(env: Env, _words: list[Any]) -> int:
        fd = env.calls.socket(AF_INET, SOCK_STREAM)
        env.calls.connect(fd, ("10.0.0.2", 7))
        env.calls.setsockopt(fd, SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        env.calls.send(fd, b"x")
        env.calls.recv(fd, 1)
        env.calls.close(fd)
        return 0

    pair.alice.spawn(rude)
    pair.board.run(1)
    assert server.alive is True
    assert pair.bob.log.output[-1].endswith("Connection reset by peer")
    assert pair.run("echoclient bob")[0] == 0


def test_e45_connections_outlive_a_server_that_is_killed(pair: Pair) -> None:
    server = start(pair, "echo")
    client = start(pair, "nc 10.0.0.2 7 -v", pair.alice)
    pair.bob.scheduler.kill(server)
    pair.board.run(0.1)
    pair.alice.scheduler.send(client, "still there?")
    pair.alice.scheduler.send(client, "")
    pair.board.run(1)
    assert (client.exit_status, pair.alice.log.output[1]) == (0, "still there?")
    assert pair.run("echoclient bob") == (1, ["echoclient: bob port 7: Connection refused"])


def test_e45_echoclient_tells_what_is_wrong(pair: Pair) -> None:
    assert pair.run("echoclient 10.0.0.2") == (1, ["echoclient: 10.0.0.2 port 7: Connection refused"])
    assert pair.run("echoclient 10.0.0.99 -W 1") == (1, ["echoclient: 10.0.0.99 port 7: Connection timed out"])
    assert pair.run("echoclient nobody") == (1, ["echoclient: nobody port 7: Temporary failure in name resolution"])
    start(pair, "discard 7")
    assert pair.run("echoclient 10.0.0.2 -W 2") == (
        1, ["echoclient: 10.0.0.2: no echo of text 1", "1 sent, 0 echoed"]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "said"), [(b"hellO", "something else came back"), (b"hel", "has closed the connection")]
)
def test_e45_echoclient_takes_nothing_else_for_an_echo(pair: Pair, answer: bytes, said: str) -> None:
    def liar(env: Env, _argv: list[Any]) -> int:
        calls = env.calls
        fd = calls.socket(AF_INET, SOCK_STREAM)
        calls.bind(fd, ("10.0.0.2", 7))
        calls.listen(fd, 1)
        connection, _ = calls.accept(fd)
        calls.recv(connection, 100)
        calls.send(connection, answer)
        calls.close(connection)
        calls.close(fd)
        return 0

    pair.bob.spawn(liar)
    pair.board.run(0.1)
    status, output = pair.run("echoclient 10.0.0.2")
    assert status == 1
    assert said in output[0]
    assert output[-1] == "1 sent, 0 echoed"


def test_a_port_that_is_taken_is_said(pair: Pair) -> None:
    start(pair, "echo 1000")
    for line in ("echo 1000", "discard 1000", "nc -l 1000"):
        status, output = pair.run(line, guest=pair.bob)
        assert status == 1
        assert "Address already in use" in output[-1]


# -- discard -------------------------------------------------------------------------------------------------------


def test_e45_discard_takes_everything_and_copies_nothing(pair: Pair) -> None:
    server = start(pair, "discard -c 1")

    def client(env: Env, _words: list[Any]) -> int:
        fd = env.calls.socket(AF_INET6, SOCK_STREAM)
        env.calls.connect(fd, ("fd00::2", 9))
        env.calls.send(fd, bytes(1_000_000))
        env.calls.close(fd)
        return 0

    pair.alice.spawn(client)
    pair.board.run(20)
    assert server.exit_status == 0
    assert pair.bob.log.output[-1] == "discard: 1000000 bytes received"
    assert pair.bob.calls.counters["rx_copied_bytes"] == 0


# -- nc ------------------------------------------------------------------------------------------------------------


def test_e45_nc_talks_to_nc(pair: Pair) -> None:
    server = start(pair, "nc -l 5000 -v -m welcome")
    client = start(pair, "nc 10.0.0.2 5000 -m one -v", pair.alice)
    assert pair.alice.log.output == ["nc: connection to 10.0.0.2 port 5000", "welcome"]
    pair.bob.scheduler.send(server, "bye")
    pair.alice.scheduler.send(client, "two")
    pair.board.run(1)
    assert (client.alive, server.alive) == (True, True)
    pair.alice.scheduler.send(client, "")
    pair.board.run(1)
    assert (client.exit_status, server.exit_status) == (0, 0)
    assert pair.alice.log.output[2:] == ["bye", "nc: 8 bytes sent, 12 received"]
    assert re.match(r"nc: connection from ::ffff:10.0.0.1 port \d+$", pair.bob.log.output[0])
    assert pair.bob.log.output[1:] == ["one", "two", "nc: 12 bytes sent, 8 received"]


def test_e45_nc_n_ends_its_direction_and_still_hears_the_other(pair: Pair) -> None:
    start(pair, "echo")
    assert pair.run("nc 10.0.0.2 7 -m one -m two -N") == (0, ["one", "two"])
    assert pair.run("nc 10.0.0.2 7 -N") == (0, [])


def test_e45_nc_sends_what_it_is_mailed_and_prints_nothing_that_moves_a_cursor(pair: Pair) -> None:
    start(pair, "echo")
    client = start(pair, "nc -6 bob 7", pair.alice)
    send = pair.alice.scheduler.send
    for message in ("a line", b"half of", b" one\nand \x1b[2J\xff", 7, b""):
        send(client, message)
    pair.board.run(1)
    assert client.exit_status == 0
    assert pair.alice.log.output == ["a line", "half of one", "and \\x1b[2J\\xff"]


def test_e45_nc_over_udp(pair: Pair) -> None:
    server = start(pair, "nc -u -l 5001 -w 3 -m hi")
    assert pair.run("nc -u 10.0.0.2 5001 -m one -m two -w 2 -v") == (0, [
        "nc: connection to 10.0.0.2 port 5001", "hi", "nc: 8 bytes sent, 3 received",
    ])  # fmt: skip
    assert server.exit_status == 0
    assert pair.bob.log.output == ["one", "two"]
    assert pair.run("nc -u 10.0.0.2 5001 -m one -w 2") == (1, ["nc: 10.0.0.2 port 5001: Connection refused"])


def test_e45_nc_waits_no_longer_than_w_says(pair: Pair) -> None:
    assert pair.run("nc 10.0.0.99 7 -w 1", 1.1) == (1, ["nc: 10.0.0.99 port 7: Connection timed out"])
    start(pair, "discard")
    assert pair.run("nc 10.0.0.2 9 -m x -w 2", 1.9)[0] is None
    pair.board.run(0.3)
    assert pair.run("nc 10.0.0.2 9 -m x -w 2", 2.1)[0] == 0
    assert pair.run("nc 10.0.0.2 1")[0] == 1


def test_e45_nc_is_told_of_a_reset(pair: Pair) -> None:
    server = start(pair, "nc -l 5000")
    client = start(pair, "nc 10.0.0.2 5000", pair.alice)
    pair.bob.stack.tcp.ends.__next__().kill()
    pair.board.run(1)
    assert client.exit_status == 1
    assert pair.alice.log.output == ["nc: 10.0.0.2 port 5000: Connection reset by peer"]
    assert server.alive is False


def test_what_a_peer_sends_is_shown_without_its_control_characters() -> None:
    assert shown("häß\t1".encode()) == "häß\t1"
    assert shown(b"\x1b]0;x\x07\r\n\xff\xe2\x80\xae") == "\\x1b]0;x\\x07\\r\\n\\xff\\u202e"


# -- ss ------------------------------------------------------------------------------------------------------------


def test_e33_ss_shows_every_state_and_queue(pair: Pair) -> None:
    start(pair, "echo")
    start(pair, "nc -l 5000")
    calls = pair.bob.calls
    client = start(pair, "nc 10.0.0.2 7", pair.alice)
    four = calls.socket(AF_INET, SOCK_STREAM)
    calls.bind(four, ("10.0.0.2", 80))
    calls.listen(four, 3)
    udp = calls.socket(AF_INET, SOCK_DGRAM)
    calls.bind(udp, ("0.0.0.0", 53))
    talker = start(pair, "nc 10.0.0.2 80 -m hello", pair.alice)  # accepted by nobody yet

    port = {end.remote[1]: end.local[1] for end in pair.alice.stack.tcp.ends if end.remote}
    assert pair.run("ss -tln", guest=pair.bob) == (0, [
        "State   Recv-Q  Send-Q  Local Address:Port  Peer Address:Port",
        "LISTEN  0       5       *:7                 *:*",
        "LISTEN  1       3       10.0.0.2:80         0.0.0.0:*",
        "LISTEN  0       5       *:5000              *:*",
    ])  # fmt: skip
    assert sorted(" ".join(line.split()) for line in pair.run("ss -t", guest=pair.bob)[1][1:]) == sorted([
        f"ESTAB 0 0 [::ffff:10.0.0.2]:echo [::ffff:10.0.0.1]:{port[7]}",
        f"ESTAB 6 0 10.0.0.2:http 10.0.0.1:{port[80]}",
    ])  # fmt: skip
    assert [line.split()[:2] for line in pair.run("ss -l", guest=pair.bob)[1]] == [
        ["Netid", "State"], ["udp", "UNCONN"], ["tcp", "LISTEN"], ["tcp", "LISTEN"], ["tcp", "LISTEN"],
    ]  # fmt: skip
    assert [line.split()[3] for line in pair.run("ss -t4l", guest=pair.bob)[1][1:]] == ["10.0.0.2:http"]

    pair.alice.scheduler.send(client, "")  # the FIN of one side, then that of the other
    pair.alice.scheduler.kill(talker)
    pair.board.run(1)
    (row,) = pair.run("ss -tn")[1][1:]
    assert row.split() == ["FIN-WAIT-2", "0", "0", f"10.0.0.1:{port[80]}", "10.0.0.2:80"]
    assert [line.split()[0] for line in pair.run("ss -tan")[1][1:]] == ["TIME-WAIT", "FIN-WAIT-2"]
    assert [line.split()[:2] for line in pair.run("ss -tn", guest=pair.bob)[1][1:]] == [["CLOSE-WAIT", "6"]]
    calls.close_all()


def test_e33_ss_i_shows_the_variables_of_a_connection(pair: Pair) -> None:
    start(pair, "discard")
    start(pair, "nc 10.0.0.2 9 -m hello", pair.alice)
    head, row, note = pair.run("ss -tin")[1]
    assert head.startswith("State")
    assert row.startswith("ESTAB  0       0       10.0.0.1:")
    words = note.split()
    assert words[:3] == ["ts", "sack", "cubic"]
    shown_now = dict(word.split(":") for word in words[3:])
    end = next(iter(pair.alice.stack.tcp.ends))
    info = end.info()
    for name in ("snd_una", "snd_nxt", "snd_wnd", "rcv_nxt", "rcv_wnd", "mss"):
        assert int(shown_now[name]) == getattr(info, name), name
    assert int(shown_now["snd_nxt"]) - (info.snd_una - 6) == 6, "six bytes went out and were acknowledged"
    assert shown_now["cwnd"] == "10"
    assert shown_now["mss"] == "1448"
    assert float(shown_now["rto"]) == info.rto / 1000
    peer = pair.run("ss -tin", guest=pair.bob)[1][2]
    assert f"rcv_nxt:{info.snd_nxt} " in peer


# -- alone ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_a10_tcp_over_the_loopback_needs_no_network_options(host: str) -> None:
    board = Board()
    guest = board.boot(f"-s echo -c 1 -s echoclient {host} 7 round -c 2")
    board.run(5)
    assert (guest.halted, guest.exit_status) == (True, 0)
    lines = guest.log.output
    assert any(line.startswith("5 bytes from ") for line in lines)
    assert "2 sent, 2 echoed" in lines
    assert "echo: 12 bytes received" in lines
    board.close()


# -- usage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "echo x", "echo 0", "echo 65536", "echo 7 8", "echo -c 0", "echo -z", "discard 9 10", "discard -c x",
        "echoclient", "echoclient a 0", "echoclient a 7 b c", "echoclient a -c 0", "echoclient a -W 0",
        "echoclient a -W soon", "nc", "nc a", "nc a b", "nc a 7 8", "nc -l", "nc -l a", "nc -l 7 8", "nc a 7 -w 0",
        "nc a 7 -w", "nc -q a 7", "ss -t x", "ss -z",
    ],
)  # fmt: skip
def test_wrong_usage_is_status_2_with_usage_text(pair: Pair, line: str) -> None:
    status, output = pair.run(line, 0.1)
    name = line.split(maxsplit=1)[0]
    assert status == 2
    assert output[0].startswith(f"{name}: ")
    assert output[1].startswith(f"usage: {name}")


# -- the host's kernel ---------------------------------------------------------------------------------------------


@pytest.fixture
def host() -> Iterator[Namespace]:
    with namespace() as made:
        make_tap(made, "t0", f"{HOST4}/24", f"{HOST6}/64")
        yield made


@pytest.fixture
def guest(host: Namespace) -> Iterator[Session]:
    """A guest on the TAP with an address of each family, and its echo program on port 7."""
    with boot(host, f"{STATIC} -s echo") as session:
        session.calls.if_add_addr("eth0", GUEST6, 64)
        assert has_address(session, GUEST6)
        assert session.run_until(lambda: bool(list(session.guest.stack.tcp.ends)), 20)
        yield session


@pytest.mark.root
@pytest.mark.parametrize("version", [4, 6])
def test_e45_the_kernel_has_its_bytes_echoed(host: Namespace, guest: Session, version: int) -> None:
    data = random.Random(version).randbytes(100_000)
    with host.entered():
        client = socket.create_connection((GUEST4 if version == 4 else GUEST6, 7), 10)
    with client, client.makefile("rb") as back:
        for part in range(0, len(data), 10_000):
            client.sendall(data[part : part + 10_000])
            assert back.read(10_000) == data[part : part + 10_000], part
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b"", "the guest closes, too"


@pytest.mark.root
@pytest.mark.parametrize("version", [4, 6])
def test_e45_echoclient_and_nc_talk_to_a_server_of_the_kernel(host: Namespace, guest: Session, version: int) -> None:
    where = HOST4 if version == 4 else HOST6
    with host.entered():
        server = socket.create_server((where, 0), family=FAMILY[version])
    server.settimeout(10)
    port = str(server.getsockname()[1])
    log = guest.guest.log.output
    with server:
        client = guest.call(lambda: guest.guest.spawn("echoclient", where, port, "hey", "-c", "2"))
        with server.accept()[0] as connection:
            connection.settimeout(10)
            while data := connection.recv(100):
                connection.sendall(data)
        assert guest.run_until(lambda: not client.alive, 15)
        assert (client.exit_status, log[-1]) == (0, "2 sent, 2 echoed")
        client = guest.call(lambda: guest.guest.spawn("nc", where, port, "-m", "question", "-N"))
        with server.accept()[0] as connection:
            connection.settimeout(10)
            assert connection.makefile().read() == "question\n"
            connection.sendall(b"answer\n")
        assert guest.run_until(lambda: not client.alive, 15)
        assert (client.exit_status, log[-1]) == (0, "answer")
