"""Traffic through whole guests: card, ring, driver, front end, interface and outlet, and the programs on top."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import pytest

from guest.apps.env import Env
from guest.kernel import Guest
from guest.net.pbuf import PacketBuffer
from hw.wire.hub import Hub
from tests.fakes import frame
from tests.guest_board import CARDS, QUEUES, RINGS, STATIC, Board, posted


@pytest.fixture(params=dict.fromkeys([*CARDS, *RINGS, *QUEUES]))
def board(request: pytest.FixtureRequest) -> Iterator[Board]:
    made = Board(request.param)
    yield made
    made.close()


def collect(guest: Guest, name: str, into: list[bytes], limit: int = 0) -> None:
    """A program of `guest` that puts what an outlet at `name` receives into a list."""

    def collector(env: Env, argv: list[str]) -> None:
        outlet = env.guest.outlets.open(name, owner=env.process, mailbox_limit=limit)
        while True:
            match env.receive():
                case (port, ("data", bytes(raw))) if port is outlet:
                    into.append(raw)

    guest.spawn(collector)


# -- the connection points, over a real card -------------------------------------------------------------------------


def test_raw_outlets_alone_need_no_stack_configuration(board: Board) -> None:
    hub = Hub(board.loop, "hub")
    guests = [board.boot("", hub.port(name), name=name) for name in "ab"]
    got: list[bytes] = []
    collect(guests[1], "eth0", got)
    board.run(0.1)

    def sender(env: Env, argv: list[str]) -> None:
        outlet = env.guest.outlets.open("eth0", owner=env.process)
        for number in range(50):
            outlet.send(frame(number))

    guests[0].spawn(sender)
    board.run(0.1)
    assert got == [frame(number) for number in range(50)]
    assert [guest.ni for guest in guests] == [None, None]


@pytest.mark.parametrize("with_ni", [False, True], ids=["ni-off", "ni-on"])
@pytest.mark.parametrize("with_ol", [False, True], ids=["ol-off", "ol-on"])
def test_every_frame_reaches_the_connected_points(board: Board, with_ni: bool, with_ol: bool) -> None:
    near, peer = board.peer()
    guest = board.boot(STATIC if with_ni else "", near)
    got: list[bytes] = []
    if with_ol:
        collect(guest, "eth0", got)
    board.run(0.1)
    frames = [frame(number, 60 + number * 7 % 1454) for number in range(500)]
    for at in range(0, 500, 50):
        peer.send(*frames[at : at + 50])
        board.run(0.01)
    assert got == (frames if with_ol else [])
    if guest.ni is not None:
        assert guest.ni.interface.counters["rx_packets"] == 500
    fe = guest.fes[0].counters
    assert fe["rx_packets"] == 500
    assert fe["rx_dropped_disconnected"] == (0 if with_ni or with_ol else 500)


def test_three_rings_of_frames_for_nobody_leave_the_ring_full(board: Board) -> None:
    near, peer = board.peer()
    guest = board.boot("", near)
    size = posted(guest)[1]
    for at in range(3 * size):
        peer.send(frame(at, 600))
        if at % 32 == 31:
            board.run(0.001)
    board.run(0.1)
    fe = guest.fes[0]
    assert fe.counters["rx_packets"] == fe.counters["rx_dropped_disconnected"] == 3 * size
    assert posted(guest) == (size, size), "every slot is posted again"
    got: list[bytes] = []
    collect(guest, "eth0", got)
    board.run(0.1)
    peer.send(frame(4242))
    board.run(0.1)
    assert got == [frame(4242)]


def test_a_full_mailbox_does_not_stop_the_ni_of_a_whole_guest(board: Board) -> None:
    near, peer = board.peer()
    peer.answers = True
    guest = board.boot(STATIC, near)

    def stalled(env: Env, argv: list[str]) -> None:
        env.guest.outlets.open("eth0", owner=env.process, mailbox_limit=4)
        env.wait()

    guest.spawn(stalled)
    ping = guest.spawn("ping", "10.0.0.1", "-c", "20", "-i", "0.01")
    board.run(3)
    assert ping.exit_status == 0
    (outlet,) = guest.outlets
    assert outlet.counters["rx_packets"] == 4
    assert outlet.counters["rx_dropped_mailbox_full"] == guest.fes[0].counters["rx_packets"] - 4 >= 16
    assert "20 packets transmitted, 20 received, 0% packet loss" in "\n".join(guest.log.output)


def test_a_failing_ni_does_not_stop_the_outlet_of_a_whole_guest(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    near, peer = board.peer()
    guest = board.boot(STATIC, near)
    assert guest.ni is not None

    def out_of_buffers(packets: list[PacketBuffer]) -> None:
        raise MemoryError

    monkeypatch.setattr(guest.ni.interface, "input", out_of_buffers)
    got: list[bytes] = []
    collect(guest, "eth0", got)
    board.run(0.1)
    peer.send(*(frame(number, 900) for number in range(10)))
    board.run(0.1)
    assert got == [frame(number, 900) for number in range(10)]
    assert guest.fes[0].counters["rx_ni_failed"] == 10


def test_closing_the_outlet_leaves_the_interface_alive(board: Board) -> None:
    near, peer = board.peer()
    peer.answers = True
    guest = board.boot(STATIC, near)
    ping = guest.spawn("ping", "10.0.0.1", "-c", "10", "-i", "0.1")
    sniff = guest.spawn("sniff", "-c", "3")
    board.run(0.5)
    assert (sniff.exit_status, len(guest.outlets)) == (0, 0)
    assert ping.alive is True
    board.run(2)
    assert ping.exit_status == 0
    assert "10 packets transmitted, 10 received, 0% packet loss" in "\n".join(guest.log.output)


def test_eth1_carries_raw_frames_while_eth0_carries_ip(board: Board) -> None:
    hub = Hub(board.loop, "hub")
    near, peer = board.peer()
    board.boot("-ipaddr 10.0.0.1 -netmask 255.255.255.0", hub.port("a"), name="a")
    guest = board.boot(STATIC, hub.port("b"), near, name="b")
    got: list[bytes] = []

    def program(env: Env, argv: list[str]) -> None:
        outlet = env.guest.outlets.open("eth1", owner=env.process)
        outlet.send(frame(77))
        while True:
            message = env.receive()
            if isinstance(message, tuple):
                got.append(message[1][1])

    guest.spawn(program)
    ping = guest.spawn("ping", "10.0.0.1", "-c", "3", "-i", "0.1")
    board.run(0.05)
    peer.send(frame(1), frame(2))
    board.run(2)
    assert ping.exit_status == 0
    assert got == [frame(1), frame(2)]
    assert peer.frames == [frame(77)]


def test_ten_thousand_frames_of_both_sources_arrive_in_each_ones_order(board: Board) -> None:
    near, peer = board.peer()
    guest = board.boot("-ipaddr 10.0.0.2 -netmask 255.255.255.0", near)
    board.run(5)
    peer.frames.clear()
    rng = random.Random(18)

    def program(env: Env, argv: list[str]) -> None:
        outlet = env.guest.outlets.open("eth0", owner=env.process)
        fe = env.guest.fes[0]
        for number in range(10_000):
            raw = bytes(12) + (b"ol", b"ni")[number % 2] + number.to_bytes(4, "big") + bytes(rng.randrange(1400))
            if number % 2:
                fe.transmit([PacketBuffer.from_bytes(raw)], "ni")
            else:
                outlet.send(raw)
            if number % 50 == 49:
                env.sleep(10)

    guest.spawn(program)
    board.run(10)
    for source, numbers in ((b"ol", range(0, 10_000, 2)), (b"ni", range(1, 10_000, 2))):
        arrived = [int.from_bytes(raw[14:18], "big") for raw in peer.frames if raw[12:14] == source]
        assert arrived == list(numbers)


def test_without_a_transmit_buffer_frames_are_dropped_and_nobody_blocks(board: Board) -> None:
    near, peer = board.peer()
    guest = board.boot("", near)
    results: list[bool] = []

    def program(env: Env, argv: list[str]) -> None:
        outlet = env.guest.outlets.open("eth0", owner=env.process)
        results.extend(outlet.send(frame(number)) for number in range(1000))

    process = guest.spawn(program)
    board.run(0.1)
    assert process.exit_status == 0
    sent = results.count(True)
    assert 0 < sent < 1000, "the burst is longer than the ring"
    assert guest.fes[0].counters["tx_ol_packets"] == sent
    assert guest.fes[0].counters["tx_ol_dropped"] == 1000 - sent
    kept = [number for number, taken in enumerate(results) if taken]
    assert peer.frames == [frame(number) for number in kept]


# -- several guests ---------------------------------------------------------------------------------------------------


def pair(board: Board, name: str) -> Guest:
    """A guest with two front ends and its partner: pings both ways at eth0, raw frames at eth1."""
    hubs = [Hub(board.loop, f"{name}-hub{index}") for index in range(2)]
    partner = board.guest(
        "-ipaddr 10.0.0.1 -netmask 255.255.255.0 -s ping 10.0.0.2 -c 30 -i 0.03 -q -s chatter -s idle",
        *(hub.port("p") for hub in hubs), name=f"{name}-partner",
    )  # fmt: skip
    guest = board.guest(
        "-ipaddr 10.0.0.2 -netmask 255.255.255.0 -s ping 10.0.0.1 -c 20 -i 0.05 -s sniff eth1",
        *(hub.port("g") for hub in hubs), name=name,
    )  # fmt: skip

    def chatter(env: Env, argv: list[str]) -> int:
        outlet = env.guest.outlets.open("eth1", owner=env.process)
        for number in range(100):
            outlet.send(frame(number, 60 + number))
            env.sleep(7000)
        return 0

    partner.programs["chatter"] = chatter
    return guest


def counters_of(*names: str) -> dict[str, dict[str, Counter[str]]]:
    """What each of these guests counted, when they run on one board."""
    board = Board()
    guests = {name: pair(board, name) for name in names}
    board.run(5)
    found = {name: guest.counters() for name, guest in guests.items()}
    for guest in guests.values():
        assert "20 packets transmitted, 20 received, 0% packet loss" in "\n".join(guest.log.output)
    board.close()
    return found


def test_two_guests_in_one_process_share_nothing() -> None:
    alone = {name: counters_of(name)[name] for name in ("left", "right")}
    together = counters_of("left", "right")
    assert together == alone
    assert together["left"]["eth1 front end"]["rx_packets"] >= 100
    assert together["left"]["icmp"]["rx_echo_requests"] == 30


def test_two_guests_ping_each_other_over_a_hub(board: Board) -> None:
    hub = Hub(board.loop, "hub")
    left = board.guest("-ipaddr 10.0.0.1 -netmask 255.255.255.0 -s ping 10.0.0.2 -c 5", hub.port("a"), name="a")
    right = board.guest("-ipaddr 10.0.0.2 -netmask 255.255.255.0 -s ping 10.0.0.1 -c 5", hub.port("b"), name="b")
    board.run(10)
    for guest in (left, right):
        assert (guest.halted, guest.exit_status) == (True, 0)
        assert "5 packets transmitted, 5 received, 0% packet loss, time 4000ms" in guest.log.output


def test_the_loopback_works_without_networking(board: Board) -> None:
    guest = board.boot("-s 'ping 127.0.0.1 -c 4 -i 0.1 -s 20000'")
    board.run(2)
    assert (guest.halted, guest.exit_status) == (True, 0)
    assert guest.lo.counters["rx_packets"] == 8, "four requests and four replies"
    assert guest.fes == []
