"""What every model of card does alike for the front end above it: one suite, run unchanged over each (row P3).

The driver is the real one, on its real device; a peer at the other end of the cable is the test.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from guest.kernel import Guest
from guest.net.device import IFF_RUNNING, NetDevice
from guest.net.pbuf import PacketBuffer
from hw.wire.link import Link
from tests.fakes import frame
from tests.guest_board import CARDS, QUEUES, STATIC, VIRTIO, Board, is_reset, macs, posted, wire_of

LENGTHS = [14, 15, 59, 60, 61, 255, 256, 257, 1000, 1513, 1514]


class Bench:
    """A booted guest without an interface, its only device, and the peer."""

    def __init__(self, board: Board) -> None:
        self.board = board
        near, self.peer = board.peer()
        self.guest: Guest = board.boot("", near)
        self.machine = board.machines["guest"]
        self.device: NetDevice = self.guest.fes[0].device
        self.wire: Link = wire_of(self.machine)
        self.got: list[bytes] = []
        self.device.receiver = self._receive

    def _receive(self, packets: object) -> None:
        self.got += [packet.tobytes() for packet in packets]  # type: ignore[attr-defined]

    def send(self, *frames: bytes) -> int:
        """Hand frames to the driver; how many it took."""
        return self.device.transmit([PacketBuffer.from_bytes(each) for each in frames])

    def settle(self) -> None:
        self.board.run(0.01)

    def full(self) -> bool:
        there, size = posted(self.guest)
        return there == size


@pytest.fixture(params=[*CARDS, *QUEUES, "virtio-offload", "virtio-packed-offload"])
def board(request: pytest.FixtureRequest) -> Iterator[Board]:
    made = Board(request.param)
    yield made
    made.close()


@pytest.fixture
def bench(board: Board) -> Bench:
    return Bench(board)


def payload(length: int) -> bytes:
    """A frame of experimental type and so many bytes."""
    return frame(length, 60)[:14] + random.Random(length).randbytes(length - 14)


# -- coming up --------------------------------------------------------------------------------------------------------


def test_p3_a_card_comes_up_with_its_address_its_mtu_and_a_full_ring(bench: Bench) -> None:
    assert bench.device.mac == macs(bench.machine)[0]
    assert (bench.device.mtu, bench.device.name) == (1500, "eth0")
    assert bench.device.flags & IFF_RUNNING
    assert bench.full(), "every slot of the receive ring is posted"
    assert bench.device.gso_max_size >= 1514
    assert bench.device.tx_room() > 0


def test_c12_each_driver_was_asked_in_order_and_one_has_found_the_card(bench: Bench) -> None:
    grid = bench.guest.grid
    found = {node.name: node.probe(bench.guest.services) for node in grid}

    xen = bench.board.card not in VIRTIO
    assert list(found.items()) == [("virtio-net", int(not xen)), ("xen-vif", int(xen))]
    assert [link.name for link in grid.links] == ["eth0", "lo"]
    assert grid.links[0] is bench.device


def test_c10_transmission_goes_through_the_node_of_the_cards_driver(bench: Bench) -> None:
    node = bench.guest.grid.find("virtio-net" if bench.board.card in VIRTIO else "xen-vif")
    assert node is not None

    assert node.transmit(bench.device, [PacketBuffer.from_bytes(payload(60))]) == 1
    bench.settle()

    assert bench.peer.frames == [payload(60)]


# -- frames both ways -------------------------------------------------------------------------------------------------


def test_p3_frames_of_every_length_leave_whole_and_in_order(bench: Bench) -> None:
    frames = [payload(length) for length in LENGTHS]
    assert bench.send(*frames) == len(frames)
    bench.settle()
    assert bench.peer.frames == frames
    assert bench.device.counters["tx_packets"] == len(frames)
    assert bench.device.counters["tx_bytes"] == sum(LENGTHS)


def test_p3_frames_of_every_length_arrive_whole_and_in_order(bench: Bench) -> None:
    frames = [payload(length) for length in LENGTHS]
    bench.peer.send(*frames)
    bench.settle()
    assert bench.got == frames
    assert bench.device.counters["rx_packets"] == len(frames)
    assert bench.device.counters["rx_bytes"] == sum(LENGTHS)
    assert bench.full()


def test_p3_a_frame_in_many_pieces_leaves_as_one(bench: Bench) -> None:
    whole = payload(1514)
    packet = PacketBuffer.from_bytes(whole[:14])
    packet.frags = [memoryview(whole)[at : at + 100] for at in range(14, 1514, 100)]
    assert bench.device.transmit([packet]) == 1
    bench.settle()
    assert bench.peer.frames == [whole]


def test_p3_many_rings_of_frames_go_round_both_ways(bench: Bench) -> None:
    frames = [payload(60 + number % 1400) for number in range(2000)]
    for at in range(0, 2000, 50):
        bench.peer.send(*frames[at : at + 50])
        assert bench.send(*frames[at : at + 50]) == 50
        bench.settle()
    assert bench.got == bench.peer.frames == frames
    assert bench.full()


def test_p3_what_the_caller_does_to_a_packet_afterwards_changes_no_frame(bench: Bench) -> None:
    area = bytearray(payload(600))
    before = bytes(area)
    assert bench.device.transmit([PacketBuffer(memoryview(area))]) == 1
    area[:] = bytes(600)
    bench.settle()
    assert bench.peer.frames == [before]


# -- a full ring -------------------------------------------------------------------------------------------------------


def test_p3_a18_a_burst_beyond_the_ring_is_dropped_counted_and_blocks_nobody(bench: Bench) -> None:
    frames = [payload(60 + number) for number in range(1000)]
    taken = bench.send(*frames)
    assert taken == 128, "as many as may be in flight (net.tx_ring)"
    assert bench.device.counters["tx_dropped_ring_full"] == 1000 - taken
    bench.settle()
    assert bench.peer.frames == frames[:taken]
    assert bench.send(payload(99)) == 1, "and it goes on"
    bench.settle()
    assert bench.peer.frames[-1] == payload(99)


def test_p3_room_is_said_and_its_return_is_told_once(bench: Bench) -> None:
    told: list[int] = []
    sent = 0
    while bench.device.tx_room() > 0:
        assert bench.send(payload(1514)) == 1, "there was said to be room"
        sent += 1
    assert sent > 100, "most of the ring"
    bench.device.when_room(lambda: told.append(bench.device.tx_room()))
    assert told == []
    bench.settle()
    assert len(told) == 1
    assert told[0] > 0
    assert bench.device.counters["tx_dropped_ring_full"] == 0


@pytest.mark.parametrize("length", [0, 1, 13, 1519, 4096, 9000, 70_000])
def test_p3_frames_that_cannot_be_are_dropped_with_a_reason(bench: Bench, length: int) -> None:
    assert bench.send(bytes(length), payload(60)) == 1
    bench.settle()
    assert bench.peer.frames == [payload(60)]
    reason = "tx_dropped_short" if length < 14 else "tx_dropped_too_long"
    assert bench.device.counters[reason] == 1


# -- the cable --------------------------------------------------------------------------------------------------------


def test_p3_the_carrier_is_seen_and_nothing_is_sent_without_it(bench: Bench) -> None:
    changes: list[bool] = []
    bench.device.link_changed = lambda: changes.append(bool(bench.device.flags & IFF_RUNNING))
    bench.wire.set_carrier(False)
    bench.settle()
    assert changes == [False]
    assert bench.send(payload(60)) == 0
    assert bench.device.counters["tx_dropped_link_down"] == 1
    bench.wire.set_carrier(True)
    bench.settle()
    assert changes == [False, True]
    assert bench.send(payload(60)) == 1
    bench.peer.send(payload(61))
    bench.settle()
    assert (bench.peer.frames, bench.got) == ([payload(60)], [payload(61)])


# -- the end -----------------------------------------------------------------------------------------------------------


def test_p3_close_gives_everything_back_and_the_driver_drops_from_then_on(bench: Bench) -> None:
    bench.send(*(payload(1514) for _ in range(20)))
    bench.peer.send(*(payload(1000) for _ in range(20)))
    bench.device.close()
    bench.device.close()
    assert bench.device.tx_room() >= 0
    assert bench.send(payload(60)) == 0
    bench.settle()
    assert is_reset(bench.machine)
    assert bench.guest.services.dma.free_bytes == bench.guest.services.dma.size


def test_p3_a_packet_outlives_its_driver(bench: Bench) -> None:
    kept: list[PacketBuffer] = []
    bench.device.receiver = kept.extend
    bench.peer.send(payload(1400))
    bench.settle()
    bench.device.close()
    assert kept[0].tobytes() == payload(1400)
    kept.clear()


def test_p3_the_same_traffic_counts_the_same_everywhere(board: Board) -> None:
    """The counters that views and programs read have one name in every driver."""
    near, peer = board.peer()
    peer.answers = True
    guest = board.boot(STATIC, near)
    ping = guest.spawn("ping", "10.0.0.1", "-c", "3", "-i", "0.1", "-s", "1400")
    board.run(3)
    assert ping.exit_status == 0
    driver, above = guest.fes[0].device.counters, guest.fes[0].counters
    assert driver["rx_packets"] == above["rx_packets"] == 4, "three answers, and ARP's"
    assert driver["rx_bytes"] == above["rx_bytes"]
    assert driver["tx_packets"] == len(peer.frames)
    assert not [name for name, value in driver.items() if "dropped" in name and value]

