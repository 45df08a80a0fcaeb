"""The network card: frames from the guest's queue to the wire and back, against a scripted driver."""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Iterator
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.abi import virtio_net as net
from hw.abi.virtio import VIRTIO_RING_F_EVENT_IDX, features
from hw.clock import VirtualClock
from hw.loop import Loop
from hw.machine import Machine
from hw.memory import AccessHook
from hw.virtio.net import VirtioNet
from hw.wire.link import Link, Views
from tests.scripted_device import RINGS
from tests.scripted_driver import WRITE, ScriptedDriver, ScriptedRing
from tests.scripted_packed import ScriptedPackedRing
from tests.test_hw_mmio import MAC, V1, Catcher

MRG = features(net.VIRTIO_NET_F_MRG_RXBUF)
CSUM = features(net.VIRTIO_NET_F_CSUM)
EVENT_IDX = features(VIRTIO_RING_F_EVENT_IDX)
TSO4 = features(net.VIRTIO_NET_F_HOST_TSO4)
GUEST_CSUM = features(net.VIRTIO_NET_F_GUEST_CSUM)
MTU = features(net.VIRTIO_NET_F_MTU)
OUT, IN = 0x80000, 0x90000


class Bench:
    """A machine with one card, a scripted driver and a wire that keeps what it is sent.

    Attributes:
        rings: features of the rings that each test runs over.
        made: the machines of a test, whose loops are closed after it.
    """

    rings = 0
    made: ClassVar[list[Machine]] = []

    def __init__(self, negotiate: int = 0, size: int = 8, offer: int = 0, wire: Link | None = None) -> None:
        self.machine = Machine(Loop(VirtualClock()), memory_size=1 << 20)
        self.made.append(self.machine)
        self.wire = wire or Catcher()
        self.slot = self.machine.add_virtio_net(self.wire, mac=MAC)
        self.slot.device.features |= offer | self.rings
        self.driver = ScriptedDriver(self.machine)
        self.rx, self.tx = self.driver.start(V1 | self.rings | negotiate, size)
        device = self.slot.device
        assert isinstance(device, VirtioNet)
        self.device = device

    def write(self, addr: int, content: bytes) -> None:
        self.machine.memory.span(addr, len(content))[:] = content

    def read(self, addr: int, length: int) -> bytes:
        return bytes(self.machine.memory.span(addr, length))

    def send(self, content: bytes, cuts: tuple[int, ...] = ()) -> list[tuple[int, int]]:
        """Transmit header and frame as one chain, cut into descriptors at `cuts`; the used entries."""
        self.write(OUT, content)
        edges = [0, *cuts, len(content)]
        self.tx.chain(0, [(OUT + a, b - a, 0) for a, b in itertools.pairwise(edges)])
        self.tx.offer(0)
        self.driver.kick(1)
        return self.tx.used()

    def post(self, *lengths: int) -> None:
        """Post one receive buffer of each length, 4 KB apart, poisoned."""
        for at, length in enumerate(lengths):
            head = (self.rx.idx + at) % self.rx.size
            self.write(IN + 4096 * head, b"\xa5" * 4096)
            self.rx.chain(head, [(IN + 4096 * head, length, WRITE)])
        first = self.rx.idx
        self.rx.offer(*((first + at) % self.rx.size for at in range(len(lengths))))


@pytest.fixture(params=RINGS, autouse=True)
def _rings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Bench, "rings", RINGS[request.param])
    monkeypatch.setattr(Bench, "made", [])
    yield
    for machine in Bench.made:
        machine.loop.close()


FRAME = bytes(range(60))
NO_OFFLOAD = bytes(12)


def header(flags: int = 0, gso: int = 0, size: int = 0, start: int = 0, offset: int = 0, hdr_len: int = 0) -> bytes:
    return struct.pack("<BBHHHHH", flags, gso, hdr_len, size, start, offset, 0)


# -- transmit ----------------------------------------------------------------------------------------------------


def test_a_frame_leaves_as_it_is_and_its_buffer_comes_back() -> None:
    bench = Bench()
    assert bench.send(NO_OFFLOAD + FRAME) == [(0, 0)]  # used.len counts bytes written: none
    assert bench.wire.sent == [FRAME]
    assert bench.driver.interrupts == 1
    assert bench.device.counters == {"tx_packets": 1, "tx_bytes": 60}


@pytest.mark.parametrize("cuts", [(12,), (1,), tuple(range(1, 13)), (5, 20), (12, 12, 40), (71,)])
def test_h12_a_header_in_any_pieces_is_accepted(cuts: tuple[int, ...]) -> None:
    bench = Bench(size=16)
    assert bench.send(NO_OFFLOAD + FRAME, cuts) == [(0, 0)]
    assert bench.wire.sent == [FRAME]


@pytest.mark.parametrize("length", range(12))
def test_h12_a_chain_shorter_than_the_header_is_dropped(length: int) -> None:
    bench = Bench()
    assert bench.send(bytes(length)) == [(0, 0)]
    assert bench.wire.sent == []
    assert bench.device.counters["tx_dropped_short_header"] == 1
    assert bench.driver.status == 15


@pytest.mark.parametrize("length", [0, 13])
def test_h13_a_frame_shorter_than_its_ethernet_header_is_dropped(length: int) -> None:
    bench = Bench()
    assert bench.send(NO_OFFLOAD + bytes(length)) == [(0, 0)]
    assert bench.device.counters["tx_dropped_runt"] == 1


@pytest.mark.parametrize(("length", "negotiate"), [(65535 + 15, 0), (100_000, 0), (1519, MTU), (65536, MTU)])
def test_h13_a_frame_that_is_too_long_is_dropped(length: int, negotiate: int) -> None:
    bench = Bench(negotiate)
    assert bench.send(NO_OFFLOAD + bytes(length)) == [(0, 0)]
    assert bench.wire.sent == []
    assert bench.device.counters["tx_dropped_too_long"] == 1


@pytest.mark.parametrize("length", [1514, 1518])
def test_frames_up_to_the_mtu_with_a_vlan_tag_are_sent(length: int) -> None:
    bench = Bench(MTU)
    bench.send(NO_OFFLOAD + bytes(length))
    assert [len(frame) for frame in bench.wire.sent] == [length]


def test_h9_a_transmit_chain_that_is_write_only_is_an_error() -> None:
    bench = Bench()
    bench.write(OUT, b"\xa5" * 64)
    bench.tx.chain(0, [(OUT, 64, WRITE)])
    bench.tx.offer(0)
    bench.driver.kick(1)
    assert bench.driver.status & 0x40
    assert bench.read(OUT, 64) == b"\xa5" * 64


def test_what_came_before_a_broken_chain_is_sent() -> None:
    bench = Bench()
    bench.write(OUT, NO_OFFLOAD + FRAME)
    bench.tx.chain(0, [(OUT, 72, 0)])
    bench.tx.offer(0, 77)
    bench.driver.kick(1)
    assert bench.wire.sent == [FRAME]
    assert bench.tx.used() == [(0, 0)]
    assert bench.driver.status & 0x40


def test_offload_fields_are_carried_to_the_wire() -> None:
    bench = Bench(CSUM | TSO4, offer=CSUM | TSO4)
    request = header(flags=1, gso=1, size=20, start=14, offset=16, hdr_len=34)
    bench.send(request + FRAME)
    assert bench.wire.sent == [FRAME]
    assert bench.wire.headers == [request]


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (header(flags=1, start=59, offset=0), "csum_outside"),
        (header(flags=1, start=14, offset=45), "csum_outside"),
        (header(flags=1, start=65535, offset=65535), "csum_outside"),
        (header(flags=1, start=13, offset=16), "csum_outside"),
        (header(flags=1, gso=1, size=0, start=14, offset=16), "gso_malformed"),
        (header(gso=1, size=100), "gso_malformed"),
        (header(flags=1, gso=4, size=100, start=14, offset=16), "gso_not_negotiated"),
        (header(flags=1, gso=9, size=100, start=14, offset=16), "gso_not_negotiated"),
    ],
)
def test_offload_requests_that_cannot_be_are_dropped(request_: bytes, why: str) -> None:
    bench = Bench(CSUM | TSO4, offer=CSUM | TSO4)
    assert bench.send(request_ + FRAME) == [(0, 0)]
    assert bench.wire.sent == []
    assert bench.device.counters["tx_dropped_" + why] == 1
    assert bench.driver.status == 15


def test_offload_that_was_not_negotiated_is_dropped() -> None:
    bench = Bench()
    bench.send(header(flags=1, start=14, offset=16) + FRAME)
    assert bench.device.counters["tx_dropped_csum_not_negotiated"] == 1


def test_unknown_flags_are_ignored_and_csum_fields_without_the_flag() -> None:
    bench = Bench()
    bench.send(header(flags=0x80, start=9999, offset=9999) + FRAME)
    assert bench.wire.sent == [FRAME]


def test_a_batch_costs_one_interrupt() -> None:
    bench = Bench()
    bench.write(OUT, NO_OFFLOAD + FRAME)
    for head in range(8):
        bench.tx.chain(head, [(OUT, 72, 0)])
    bench.tx.offer(*range(8))
    bench.driver.kick(1)
    assert len(bench.wire.sent) == 8
    assert bench.driver.interrupts == 1


def test_a_full_wire_holds_chains_back_and_loses_none() -> None:
    bench = Bench()
    assert isinstance(bench.wire, Catcher)
    bench.wire.room = 3
    for head in range(8):
        bench.write(OUT + 128 * head, NO_OFFLOAD + bytes([head]) * 60)
        bench.tx.chain(head, [(OUT + 128 * head, 72, 0)])
    bench.tx.offer(*range(8))
    bench.driver.kick(1)
    assert bench.tx.used() == [(0, 0), (1, 0), (2, 0)]
    bench.wire.room = 2
    bench.device.writable()
    assert bench.tx.used() == [(3, 0), (4, 0)]
    bench.wire.room = 100
    bench.device.writable()
    bench.driver.settle()
    assert [frame[0] for frame in bench.wire.sent] == list(range(8))
    assert len(bench.tx.used()) == 3


# -- receive -----------------------------------------------------------------------------------------------------


def test_a_frame_arrives_behind_its_header() -> None:
    bench = Bench()
    bench.post(2048)
    assert bench.device.receive([(None, [FRAME[:20], FRAME[20:]])]) == 1
    assert bench.rx.used() == [(0, 72)]
    assert bench.read(IN, 72) == bytes(10) + b"\1\0" + FRAME
    assert bench.read(IN + 72, 10) == b"\xa5" * 10
    bench.driver.settle()
    assert bench.driver.interrupts == 1


def test_without_buffers_the_wire_keeps_the_frame_and_is_resumed_by_the_kick() -> None:
    bench = Bench()
    assert isinstance(bench.wire, Catcher)
    bench.post(2048)
    assert bench.device.receive([(None, [FRAME])] * 3) == 1
    assert bench.wire.resumed == 0
    bench.post(2048)
    bench.driver.kick(0)
    assert bench.wire.resumed == 1
    assert bench.device.receive([(None, [FRAME])]) == 1


@pytest.mark.parametrize("length", [1, 11])
def test_h21_a_buffer_too_small_for_the_header_is_returned_unused(length: int) -> None:
    bench = Bench()
    bench.post(length, 2048)
    assert bench.device.receive([(None, [FRAME])]) == 1
    assert bench.rx.used() == [(0, 0), (1, 72)]
    assert bench.read(IN, 16) == b"\xa5" * 16


def test_h21_a_frame_that_does_not_fit_is_dropped_whole_and_the_buffer_serves_the_next() -> None:
    bench = Bench()
    bench.post(71)
    assert bench.device.receive([(None, [FRAME])]) == 1
    assert bench.rx.used() == []
    assert bench.device.counters["rx_dropped_too_long"] == 1
    assert bench.read(IN, 80) == b"\xa5" * 80
    assert bench.device.receive([(None, [FRAME[:59]])]) == 1
    assert bench.rx.used() == [(0, 71)]


def test_h21_mergeable_buffers_with_one_byte_tails() -> None:
    bench = Bench(MRG)
    for head in range(2):
        parts = [(IN + 4096 * head, 40, WRITE), (IN + 4096 * head + 100, 1, WRITE)]
        bench.write(IN + 4096 * head, b"\xa5" * 200)
        bench.rx.chain(2 * head, parts)
    bench.rx.offer(0, 2)
    assert bench.device.receive([(None, [FRAME])]) == 1
    assert bench.rx.used() == [(0, 41), (2, 31)]
    first = bench.read(IN, 40) + bench.read(IN + 100, 1)
    assert first[:12] == bytes(10) + b"\2\0"  # num_buffers
    assert first[12:] + bench.read(IN + 4096, 31) == FRAME
    assert bench.read(IN + 4096 + 31, 9) == b"\xa5" * 9


def test_mergeable_frames_wait_for_enough_buffers() -> None:
    bench = Bench(MRG)
    bench.post(50)
    assert bench.device.receive([(None, [FRAME])]) == 0
    assert bench.rx.used() == []
    bench.post(50)
    bench.driver.kick(0)
    assert bench.device.receive([(None, [FRAME])]) == 1
    assert bench.rx.used() == [(0, 50), (1, 22)]


def test_h9_a_receive_chain_that_is_read_only_is_an_error() -> None:
    bench = Bench()
    bench.write(IN, b"\xa5" * 64)
    bench.rx.chain(0, [(IN, 64, 0)])
    bench.rx.offer(0)
    assert bench.device.receive([(None, [FRAME])]) == 1
    assert bench.driver.status & 0x40
    assert bench.read(IN, 64) == b"\xa5" * 64
    assert bench.device.counters["rx_dropped_no_driver"] == 1


def test_frames_above_the_negotiated_mtu_are_not_passed_on() -> None:
    bench = Bench(MTU)
    bench.post(4000)
    assert bench.device.receive([(None, [bytes(1519)])]) == 1
    assert bench.device.counters["rx_dropped_too_long"] == 1
    assert bench.device.receive([(None, [bytes(1514)])]) == 1
    assert bench.rx.used() == [(0, 1526)]


def test_a_partial_checksum_is_finished_for_a_driver_that_cannot() -> None:
    bench = Bench()
    bench.post(2048)
    assert bench.device.receive([(header(flags=1, start=14, offset=16), [FRAME])]) == 1
    assert bench.read(IN, 12) == struct.pack("<BBHHHHH", 0, 0, 0, 0, 0, 0, 1)
    whole = bench.read(IN + 12 + 14, 46)
    (pseudo,) = struct.unpack_from(">H", FRAME, 30)  # what stood in the place of the checksum: the pseudo-header's sum
    assert (sum(struct.unpack(">23H", whole)) + pseudo) % 0xFFFF == 0
    assert whole[:16] + whole[18:] == FRAME[14:30] + FRAME[32:]
    assert bench.device.counters["rx_finished"] == 1
    assert bench.device.receive([(header(flags=1, start=14, offset=60), [FRAME])]) == 1
    assert bench.device.counters["rx_dropped_csum_not_negotiated"] == 1
    bench = Bench(GUEST_CSUM, offer=GUEST_CSUM)
    bench.post(2048)
    bench.device.receive([(header(flags=1, start=14, offset=16), [FRAME])])
    assert bench.read(IN, 12) == struct.pack("<BBHHHHH", 1, 0, 0, 0, 14, 16, 1)


def test_an_unplugged_card_drops_what_arrives() -> None:
    bench = Bench()
    bench.post(2048)
    bench.device.set_link(False)
    assert bench.device.receive([(None, [FRAME])]) == 1
    assert bench.rx.used() == []
    assert bench.device.counters["rx_dropped_link_down"] == 1


def test_the_link_state_follows_the_wires_carrier() -> None:
    bench = Bench()
    bench.wire.set_carrier(False)
    assert bench.device.config()[6:8] == b"\0\0"
    bench.driver.settle()
    assert bench.driver.interrupts == 1  # a configuration change notification
    bench.wire.set_carrier(True)
    assert bench.device.config()[6:8] == b"\1\0"


def test_a_reset_lets_a_wire_go_that_waits_for_buffers() -> None:
    bench = Bench()
    assert isinstance(bench.wire, Catcher)
    assert bench.device.receive([(None, [FRAME])]) == 0
    bench.driver.status = 0
    assert bench.wire.resumed == 1
    assert bench.device.receive([(None, [FRAME])]) == 1
    assert bench.device.counters["rx_dropped_no_driver"] == 1


class Spool(Link):
    """A wire with a descriptor's manners: frames wait in it until they are read."""

    def __init__(self, header_size: int = 0) -> None:
        super().__init__("spool")
        self.header_size = header_size
        self.frames: list[bytes] = []
        self.paused = 0

    def transmit(self, frames: object) -> int:
        return 0

    def pause(self) -> None:
        self.paused += 1

    def read_into(self, views: Views) -> int:
        if not self.frames:
            return 0
        frame = self.frames.pop(0)
        rest = memoryview(frame)
        for view in views:
            part = rest[: len(view)]
            memoryview(view)[: len(part)] = part
            rest = rest[len(part) :]
        return len(frame) - len(rest)


def test_frames_are_read_straight_into_posted_buffers() -> None:
    wire = Spool()
    bench = Bench(wire=wire)
    bench.post(2048, 2048, 2048)
    wire.frames = [FRAME, FRAME[::-1]]
    bench.device.pull(wire)
    assert bench.rx.used() == [(0, 72), (1, 72)]
    assert bench.read(IN, 72) == bytes(10) + b"\1\0" + FRAME
    assert bench.read(IN + 4096, 72)[12:] == FRAME[::-1]
    bench.device.receive([(None, [FRAME])])  # the third buffer was kept
    assert bench.rx.used() == [(2, 72)]


@pytest.mark.parametrize("header_size", [0, 12])
def test_a_frame_longer_than_the_buffer_is_not_cut_off_but_dropped(header_size: int) -> None:
    wire = Spool(header_size)
    bench = Bench(wire=wire)
    bench.post(64)
    wire.frames = [bytes(header_size) + FRAME, bytes(header_size) + FRAME[:52]]
    bench.device.pull(wire)
    assert bench.device.counters["rx_dropped_no_room"] == 1
    assert bench.rx.used() == [(0, 64)]
    assert bench.read(IN, 64)[12:] == FRAME[:52]


def test_a_wire_with_headers_fills_in_the_guests_header() -> None:
    wire = Spool(12)
    bench = Bench(GUEST_CSUM | MRG, offer=GUEST_CSUM, wire=wire)
    bench.post(40, 40, 2000)
    wire.frames = [header(flags=1, start=14, offset=16) + FRAME]
    bench.device.pull(wire)
    assert bench.rx.used() == [(0, 40), (1, 32)]  # the third was offered to the read, and stays posted
    assert bench.read(IN, 40)[:12] == struct.pack("<BBHHHHH", 1, 0, 0, 0, 14, 16, 2)
    assert bench.read(IN, 40)[12:] + bench.read(IN + 4096, 32) == FRAME


def test_reading_stops_without_buffers() -> None:
    wire = Spool()
    bench = Bench(wire=wire)
    wire.frames = [FRAME]
    bench.device.pull(wire)
    assert (wire.paused, len(wire.frames)) == (1, 1)


def test_without_a_driver_frames_are_read_and_dropped() -> None:
    wire = Spool()
    bench = Bench(wire=wire)
    bench.driver.status = 0
    wire.frames = [FRAME, FRAME]
    bench.device.pull(wire)
    assert wire.frames == []
    assert bench.device.counters["rx_dropped_no_driver"] == 2


# -- lost wake-ups and stale chains ----------------------------------------------------------------------------------


def test_a_kick_that_announces_nothing_leaves_the_next_one_wanted() -> None:
    """While the wire waits for buffers, a spurious kick must not switch kicks off: the refill would go unannounced."""
    bench = Bench()
    assert isinstance(bench.wire, Catcher)
    assert bench.device.receive([(None, [FRAME])]) == 0
    bench.driver.kick(0)
    assert bench.rx.wants_kick(event_idx=0)
    assert bench.wire.resumed == 0
    bench.post(2048)
    bench.driver.kick(0)
    assert bench.wire.resumed == 1


def test_the_device_asks_for_a_kick_when_it_runs_out_of_buffers() -> None:
    bench = Bench(EVENT_IDX)
    bench.post(2048)
    assert bench.device.receive([(None, [FRAME])] * 2) == 1
    assert bench.rx.wants_kick(EVENT_IDX)


def test_buffers_offered_while_kicks_are_switched_on_are_sent() -> None:
    """The driver sees kicks still off and does not kick; the device looks once more after switching them on."""
    bench = Bench()
    bench.write(OUT, NO_OFFLOAD + FRAME)
    bench.tx.chain(0, [(OUT, 72, 0)])
    bench.tx.chain(1, [(OUT, 72, 0)])

    class OfferLate(AccessHook):
        offered = False

        def stored(self, who: str, addr: int, size: int, old: int, new: int) -> None:
            if addr == bench.tx.device and new == 0 and not self.offered:
                self.offered = True
                bench.tx.offer(1)

    bench.machine.memory.hook = OfferLate()
    bench.tx.offer(0)
    bench.driver.kick(1)
    assert bench.wire.sent == [FRAME, FRAME]


def test_h25_buffers_gathered_before_a_reset_are_never_written_after_it() -> None:
    bench = Bench(MRG)
    bench.post(100)
    assert bench.device.receive([(None, [bytes(1400)])]) == 0  # the buffer is held, for more to come
    bench.rx, bench.tx = bench.driver.start(V1 | MRG)
    bench.write(IN, b"\xa5" * 100)
    bench.rx.chain(0, [(IN + 4096, 2000, WRITE)])
    bench.rx.offer(0)
    assert bench.device.receive([(None, [bytes(60)])]) == 1
    assert bench.rx.used() == [(0, 72)]
    assert bench.read(IN, 100) == b"\xa5" * 100


def test_h25_frames_that_waited_for_the_wire_are_dropped_by_a_reset_and_counted() -> None:
    bench = Bench()
    assert isinstance(bench.wire, Catcher)
    bench.wire.room = 0
    bench.send(NO_OFFLOAD + FRAME)
    _, tx = bench.driver.start(V1)
    bench.wire.room = 10
    bench.device.writable()
    bench.driver.settle()
    assert (bench.wire.sent, tx.used()) == ([], [])
    assert bench.device.counters["tx_dropped_queue_stopped"] == 1


def test_a_frame_that_no_ring_full_of_buffers_can_hold_does_not_block_the_next() -> None:
    bench = Bench(MRG)
    for number in range(4):  # four chains take all eight descriptors
        bench.rx.chain(2 * number, [(IN + 4096 * number, 100, WRITE), (IN + 4096 * number + 200, 100, WRITE)])
    bench.rx.offer(0, 2, 4, 6)
    assert bench.device.receive([(None, [bytes(1400)]), (None, [FRAME])]) == 2
    assert bench.device.counters["rx_dropped_too_long"] == 1
    assert bench.rx.used() == [(0, 72)]


# -- flags (§5.1.9.2.1, §5.1.9.4.1) ----------------------------------------------------------------------------------


def test_without_guest_csum_the_driver_is_given_no_flags() -> None:
    bench = Bench()
    bench.post(2048)
    bench.device.receive([(header(flags=0xFE), [FRAME])])
    assert bench.read(IN, 2) == b"\0\0"


def test_with_guest_csum_the_driver_is_given_the_flags_it_knows() -> None:
    bench = Bench(GUEST_CSUM, offer=GUEST_CSUM)
    bench.post(2048)
    bench.device.receive([(header(flags=0xFE), [FRAME])])
    assert bench.read(IN, 1) == b"\2"  # DATA_VALID


def test_a_driver_cannot_vouch_for_its_checksums() -> None:
    bench = Bench(CSUM, offer=CSUM)
    bench.send(header(flags=3, start=14, offset=16) + FRAME)
    assert bench.wire.headers == [header(flags=1, start=14, offset=16)]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 32), mergeable=st.booleans(), header_size=st.sampled_from([0, 12]))
def test_every_frame_is_delivered_whole_or_counted(seed: int, mergeable: bool, header_size: int) -> None:
    rng = random.Random(seed)
    wire = Spool(header_size)
    bench = Bench(MRG if mergeable else 0, wire=wire)
    expected: list[bytes] = []
    got: list[bytes] = []
    for _ in range(20):
        posted = rng.randrange(1, 4)
        heads = [(bench.rx.idx + at) % 8 for at in range(posted)]
        free = 8 - (bench.rx.idx - bench.rx.used_idx)
        bench.post(*[rng.choice([12, 40, 100, 2048]) for _ in heads[:free]])
        frame = rng.randbytes(rng.choice([14, 60, 200, 1514]))
        before = sum(value for name, value in bench.device.counters.items() if name.startswith("rx_dropped"))
        if rng.random() < 0.5:
            wire.frames = [bytes(header_size) + frame]
            bench.device.pull(wire)
            taken = not wire.frames
        else:
            taken = bench.device.receive([(None, [frame[:13], frame[13:]])]) == 1
        after = sum(value for name, value in bench.device.counters.items() if name.startswith("rx_dropped"))
        if taken and after == before:
            expected.append(frame)
        got += received(bench.rx, bench)
    assert got == expected


def received(rx: ScriptedRing | ScriptedPackedRing, bench: Bench) -> list[bytes]:
    """The frames in the used ring, put together by num_buffers."""
    frames, used = [], rx.used()
    while used:
        head, length = used.pop(0)
        content = bench.read(IN + 4096 * head, length)
        (buffers,) = struct.unpack_from("<H", content, 10)
        frame = content[12:]
        for _ in range(buffers - 1):
            head, length = used.pop(0)
            frame += bench.read(IN + 4096 * head, length)
        frames.append(frame)
    return frames
