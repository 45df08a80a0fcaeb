"""Checksums and segments that the guest leaves to the card, and the card to the wire: both ways, with every mixture."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import pytest

from guest.drivers.virtio_net import VirtioNetDriver
from guest.kernel import Guest
from hw.abi import virtio as abi
from hw.abi import virtio_net as net
from hw.abi.virtio import features
from hw.virtio.net import OFFLOADED, VirtioNet
from hw.wire.hub import Hub
from hw.wire.link import Frame, frame_length
from tests.guest_board import OPTIONS, SECOND, STATIC, Board, Peer
from tests.scripted_device import OFFERED, ScriptedMachine

SIZE = 2_000_000
RECEIVE = features(
    net.VIRTIO_NET_F_GUEST_CSUM, net.VIRTIO_NET_F_GUEST_TSO4, net.VIRTIO_NET_F_GUEST_TSO6, net.VIRTIO_NET_F_GUEST_ECN
)


@pytest.fixture
def board() -> Iterator[Board]:
    made = Board()
    yield made
    made.close()


class Pair:
    """Two guests on a hub; one sends to the other, and whoever listens on the hub sees with what frames."""

    def __init__(self, board: Board, sender: str, receiver: str) -> None:
        self.board = board
        self.hub = Hub(board.loop, "lan")
        self.longest = 0
        self.port = 9
        links = [self.hub.port(name) for name in ("a", "b")]
        transmit = links[0].transmit

        def look(frames: Sequence[Frame]) -> int:
            self.longest = max(self.longest, *map(frame_length, frames))
            return transmit(frames)

        links[0].transmit = look  # type: ignore[method-assign]
        self.sender = board.guest(
            "-ipaddr 10.0.0.1 -netmask 255.255.255.0 -s idle", links[0], name="sender", card=sender
        )
        self.receiver = board.guest(
            "-ipaddr 10.0.0.2 -netmask 255.255.255.0 -s idle", links[1], name="receiver", card=receiver
        )
        board.settle()

    def card(self, name: str) -> VirtioNet:
        device = self.board.machines[name].nics[0].device
        assert isinstance(device, VirtioNet)
        return device

    def move(self, host: str = "10.0.0.2", size: int = SIZE) -> bytes:
        """What arrives of `size` bytes."""
        got = bytearray()
        self.port += 1

        def serve(env: object, _argv: list[object]) -> int:
            calls = self.receiver.calls
            listening = calls.socket(10 if ":" in host else 2, 1)
            calls.bind(listening, ("::" if ":" in host else "0.0.0.0", self.port))
            calls.listen(listening, 1)
            fd, _ = calls.accept(listening)
            while data := calls.recv(fd, 1 << 18):
                got.extend(data)
            return 0

        def send(env: object, _argv: list[object]) -> int:
            calls = self.sender.calls
            fd = calls.socket(10 if ":" in host else 2, 1)
            calls.connect(fd, (host, self.port))
            at = 0
            while at < size:
                at += calls.send(fd, content(size)[at : at + (1 << 18)])
            calls.close(fd)
            return 0

        served = self.receiver.spawn(serve)
        self.board.run(0.01)
        self.sender.spawn(send)
        end = self.board.loop.clock.now() + 60 * SECOND
        self.board.loop.run(until=lambda: served.exit_status is not None, deadline=end)
        return bytes(got)


def content(size: int) -> bytes:
    return (b"".join(struct.pack(">I", at) for at in range(size // 4 + 1)))[:size]


@pytest.mark.parametrize("receiver", ["virtio-offload", "virtio", "virtio-packed-offload", "xen-full", "xen-ling"])
@pytest.mark.parametrize("sender", ["virtio-offload", "virtio-packed-offload", "virtio", "xen-full"])
def test_a_stream_arrives_whole_whatever_either_card_takes(board: Board, sender: str, receiver: str) -> None:
    pair = Pair(board, sender, receiver)

    assert pair.move() == content(SIZE)

    if sender == "virtio":
        assert pair.longest <= 1514
    else:
        assert pair.longest > 60_000, "super-frames are on the wire"
    if receiver == "virtio" and sender != "virtio":
        assert pair.card("receiver").counters["rx_finished"] > 20, "the card cut them for a driver that took none"
    if receiver.endswith("offload") and sender != "virtio":
        stats = pair.card("receiver").receivers[0].stats
        assert stats["gso_packets"] > 20
        assert pair.card("receiver").counters["rx_finished"] == 0


def test_ipv6_is_segmented_too(board: Board) -> None:
    pair = Pair(board, "virtio-offload", "virtio-offload")
    pair.sender.calls.if_add_addr("eth0", "fd00::1", 64)
    pair.receiver.calls.if_add_addr("eth0", "fd00::2", 64)
    board.run(3)

    assert pair.move("fd00::2") == content(SIZE)

    assert pair.longest > 60_000
    assert pair.card("receiver").receivers[0].stats["gso_packets"] > 20


def test_receive_offloads_are_switched_while_a_guest_runs(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPTIONS, "virtio-offload", {"offload": True, "ctrl_vq": True})
    pair = Pair(board, "virtio-offload", "virtio-offload")
    card = pair.card("receiver")
    taken: list[int] = []
    monkeypatch.setattr(card.link, "take_offloads", taken.append)

    assert pair.receiver.spawn("ethtool", "-K", "eth0", "tso", "off", "rx", "off")
    board.run(1)
    assert taken[-1] & RECEIVE == features(net.VIRTIO_NET_F_GUEST_ECN)
    assert pair.move() == content(SIZE)
    assert card.counters["rx_finished"] > 20

    pair.receiver.spawn("ethtool", "-K", "eth0", "tso", "on", "rx", "on")
    board.run(1)
    assert taken[-1] & RECEIVE == RECEIVE
    before = card.counters["rx_finished"]
    assert pair.move() == content(SIZE)
    assert card.counters["rx_finished"] == before


def test_a_reset_takes_the_offloads_back(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(board, "virtio", "virtio-offload")
    card = pair.card("receiver")
    taken: list[int] = []
    monkeypatch.setattr(card.link, "take_offloads", taken.append)
    pair.receiver.close()
    board.run(1)
    assert taken[-1] == 0


# -- what is not offloaded is still checked --------------------------------------------------------------------------


def spoilt_syn(peer: Peer, guest: Guest) -> bytes:
    """A segment that opens a connection, with a checksum that is wrong by one."""
    source, target = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
    segment = bytearray(struct.pack(">HHIIBBHHH", 1000, 9, 1, 0, 0x50, 2, 1000, 0, 0))
    words = struct.unpack(">16H", source + target + struct.pack(">HH", 6, 20) + bytes(segment))
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    segment[16:18] = ((~total & 0xFFFF) ^ 1).to_bytes(2, "big")
    packet = bytearray(struct.pack(">BBHHHBBH", 0x45, 0, 40, 1, 0, 64, 6, 0) + source + target)
    total = sum(struct.unpack(">10H", packet))
    total = (total & 0xFFFF) + (total >> 16)
    packet[10:12] = (~total & 0xFFFF).to_bytes(2, "big")
    return guest.fes[0].mac + peer.mac + b"\x08\x00" + bytes(packet) + bytes(segment)


@pytest.mark.parametrize("card", ["virtio", "virtio-offload"])
def test_a_wrong_checksum_that_nobody_vouched_for_is_found(board: Board, card: str) -> None:
    link, peer = board.peer()
    guest = board.boot(STATIC, link, card=card)
    peer.send(spoilt_syn(peer, guest))
    board.run(0.1)
    assert guest.stack.tcp.counters["rx_dropped_checksum"] == 1


# -- what the driver takes -------------------------------------------------------------------------------------------


def test_large_packets_are_received_only_over_several_buffers() -> None:
    merge = features(net.VIRTIO_NET_F_MRG_RXBUF)
    for offered, taken in ((OFFERED | OFFLOADED, OFFLOADED), ((OFFERED | OFFLOADED) & ~merge, OFFLOADED & ~RECEIVE)):
        machine = ScriptedMachine(offered=offered)
        driver, _ = machine.driver()
        found = driver.features & OFFLOADED
        assert found & ~RECEIVE == taken & ~RECEIVE
        large = features(net.VIRTIO_NET_F_GUEST_TSO4, net.VIRTIO_NET_F_GUEST_TSO6)
        assert bool(found & large) is bool(offered & merge)


@pytest.mark.parametrize("size", [128, 32, 4, 1])
def test_a_small_ring_takes_smaller_large_packets(size: int) -> None:
    machine = ScriptedMachine(offered=OFFERED | OFFLOADED)
    machine.device.queue_max[1] = size
    driver, _ = machine.driver()
    assert isinstance(driver, VirtioNetDriver)
    assert driver.tx.gso_max == min(65549, 4096 * max(1, min(18, size // 2)) - 32)
    assert driver.gso_max_size == driver.tx.gso_max
    assert driver.features >> abi.VIRTIO_RING_F_INDIRECT_DESC & 1
