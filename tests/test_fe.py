"""The front end: who gets what arrives, and who may send."""

from __future__ import annotations

import random

import pytest

from guest.fe import FrontEnd, OnlyFrontEndZero, PointTaken
from guest.net.pbuf import PacketBuffer
from guest.ol import Outlets, RawOutlet
from guest.sys.scheduler import Process
from tests.fakes import FakeDevice, ProcessRun, RecordingInterface, frame


class Bench:
    """Two front ends over fake devices, and a process that owns outlets."""

    def __init__(self, mailbox_limit: int = 1000) -> None:
        self.kernel = ProcessRun()
        self.devices = [FakeDevice(), FakeDevice(mac=b"\x02\x00\x00\x00\x00\x02")]
        self.fes = [FrontEnd(index, device, self.kernel.lines.append) for index, device in enumerate(self.devices)]
        self.device, self.fe = self.devices[0], self.fes[0]
        self.outlets = Outlets(self.fes, self.kernel.scheduler, self.kernel.lines.append)
        self.owner = self.process()
        self.limit = mailbox_limit

    def process(self) -> Process:
        process = self.kernel.scheduler.spawn(lambda: self.kernel.scheduler.receive(match=lambda m: m == "end") and 0)
        self.kernel.settle()
        return process

    def outlet(self, name: str = "eth0") -> RawOutlet:
        return self.outlets.open(name, owner=self.owner, mailbox_limit=self.limit)

    def mail(self, outlet: RawOutlet) -> list[bytes]:
        """The frames in the owner's mailbox that came from `outlet`."""
        messages = [message for message in self.owner.mailbox if isinstance(message, tuple) and message[0] is outlet]
        return [content[1] for _, content in messages if content[0] == "data"]


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize("with_ni", [False, True], ids=["ni-off", "ni-on"])
@pytest.mark.parametrize("with_ol", [False, True], ids=["ol-off", "ol-on"])
def test_traffic_goes_exactly_to_the_connected_points(bench: Bench, with_ni: bool, with_ol: bool) -> None:
    ni = RecordingInterface()
    outlet = None
    if with_ni:
        bench.fe.bind_ni(ni)
    if with_ol:
        outlet = bench.outlet()
    frames = [frame(number) for number in range(5)]
    bench.device.arrive(*frames)
    assert ni.got == (frames if with_ni else [])
    assert (bench.mail(outlet) if outlet else []) == (frames if with_ol else [])
    assert bench.fe.counters["rx_packets"] == 5
    assert bench.fe.counters["rx_bytes"] == 5 * 64
    assert bench.fe.counters["rx_dropped_disconnected"] == (0 if with_ni or with_ol else 5)


def test_the_ni_comes_first_and_each_gets_a_frame_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    ni = RecordingInterface(order)
    bench.fe.bind_ni(ni)
    outlet = bench.outlet()
    deliver = outlet.input
    monkeypatch.setattr(outlet, "input", lambda frames: (order.append("ol"), deliver(frames)))
    frames = [frame(1), frame(2, 1514)]
    bench.device.arrive(*frames)
    assert order == ["ni", "ol"]
    assert ni.got == frames
    assert bench.mail(outlet) == frames, "byte-identical although the NI has wiped its packets"


def test_disconnected_frames_give_every_buffer_back_and_a_later_attach_receives(bench: Bench) -> None:
    for number in range(3 * bench.device.buffers):
        bench.device.arrive(frame(number))
    assert bench.fe.counters["rx_packets"] == 3 * bench.device.buffers
    assert bench.fe.counters["rx_dropped_disconnected"] == 3 * bench.device.buffers
    assert bench.device.free == bench.device.buffers
    outlet = bench.outlet()
    ni = RecordingInterface()
    bench.fe.bind_ni(ni)
    bench.device.arrive(frame(99))
    assert bench.mail(outlet) == [frame(99)]
    assert ni.got == [frame(99)]
    assert bench.device.free == bench.device.buffers


def test_ni_out_of_buffers_does_not_stop_the_outlet(bench: Bench) -> None:
    bench.fe.bind_ni(RecordingInterface(error=MemoryError))
    outlet = bench.outlet()
    bench.device.arrive(frame(1))
    bench.device.arrive(frame(2), frame(3))
    assert bench.mail(outlet) == [frame(1), frame(2), frame(3)]
    assert bench.fe.counters["rx_ni_failed"] == 3
    assert len([line for line in bench.kernel.lines if "eth0: ni: MemoryError" in line]) == 1, "logged once"
    assert bench.device.free == bench.device.buffers


def test_a_full_mailbox_does_not_stop_the_ni() -> None:
    bench = Bench(mailbox_limit=2)
    ni = RecordingInterface()
    bench.fe.bind_ni(ni)
    outlet = bench.outlet()
    frames = [frame(number) for number in range(6)]
    bench.device.arrive(*frames[:3])
    bench.device.arrive(*frames[3:])
    assert ni.got == frames
    assert bench.mail(outlet) == frames[:2]
    assert outlet.counters["rx_dropped_mailbox_full"] == 4
    assert outlet.counters["rx_packets"] == 2


def test_the_outlets_bytes_are_a_copy(bench: Bench) -> None:
    got: list[PacketBuffer] = []

    class Keeper:
        def input(self, packets: list[PacketBuffer]) -> None:
            got.extend(packets)

    bench.fe.bind_ni(Keeper())
    outlet = bench.outlet()
    bench.device.arrive(frame(7))
    (copy,) = bench.mail(outlet)
    assert type(copy) is bytes, "an owner cannot change bytes; a bytearray made of them is its own"
    assert got[0].tobytes() == frame(7)
    got[0].area[14:20] = b"stack!"
    assert copy == frame(7)


def test_only_fe_0_carries_a_network_interface(bench: Bench) -> None:
    with pytest.raises(OnlyFrontEndZero, match="eth1"):
        bench.fes[1].bind_ni(RecordingInterface())
    assert bench.fes[1].ni is None
    bench.devices[1].arrive(frame(1))
    assert bench.fes[1].counters["rx_dropped_disconnected"] == 1


def test_a_second_network_interface_is_refused(bench: Bench) -> None:
    first = RecordingInterface()
    bench.fe.bind_ni(first)
    with pytest.raises(PointTaken):
        bench.fe.bind_ni(RecordingInterface())
    assert bench.fe.ni is first
    bench.fe.unbind_ni(RecordingInterface())
    assert bench.fe.ni is first, "only the one connected can leave"


def test_ten_thousand_frames_sent_in_turn_keep_each_sources_order(bench: Bench) -> None:
    outlet = bench.outlet()
    rng = random.Random(18)
    sent: dict[bytes, list[int]] = {b"ni": [], b"ol": []}
    for number in range(10_000):
        body = number.to_bytes(4, "big") + bytes(rng.randrange(0, 80))
        if number % 2:
            sent[b"ni"].append(number)
            bench.fe.transmit([PacketBuffer.from_bytes(bytes(12) + b"ni" + body)], "ni")
        else:
            sent[b"ol"].append(number)
            assert outlet.send(bytes(12) + b"ol" + body) is True
    for source, numbers in sent.items():
        arrived = [
            int.from_bytes(raw[14:18], "big") for raw in bench.device.sent if raw[12:14] == source
        ]
        assert arrived == numbers
    assert bench.fe.counters["tx_ni_packets"] == bench.fe.counters["tx_ol_packets"] == 5000


def test_without_room_frames_are_dropped_and_counted_for_their_source(bench: Bench) -> None:
    outlet = bench.outlet()
    bench.device.tx_room = 3
    packets = [PacketBuffer.from_bytes(frame(number)) for number in range(5)]
    assert bench.fe.transmit(packets, "ni") == 3
    assert outlet.send(frame(9)) is False
    assert outlet.closed is None, "a full ring is no reason to close"
    assert bench.fe.counters["tx_ni_dropped"] == 2
    assert bench.fe.counters["tx_ol_dropped"] == 1
    assert outlet.counters["tx_dropped"] == 1


def test_names_follow_the_index_and_belong_to_the_device(bench: Bench) -> None:
    assert [fe.name for fe in bench.fes] == ["eth0", "eth1"]
    assert [device.name for device in bench.devices] == ["eth0", "eth1"]
    assert bench.fe.mac == bench.device.mac
    assert bench.fe.frame_max == 1518


def test_a_closed_front_end_lets_its_device_drop(bench: Bench) -> None:
    bench.fe.close()
    bench.device.arrive(frame(1))
    assert bench.device.counters["rx_dropped_no_receiver"] == 1
    assert bench.fe.counters["rx_packets"] == 0
