"""Captures: what passed is in the file, as two independent readers see it, and the wire works as without one."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pcapng import FileScanner
from pcapng.blocks import EnhancedPacket, InterfaceDescription
from scapy.utils import RawPcapNgReader

from hw.clock import SECOND, VirtualClock
from hw.loop import Loop
from hw.wire.cable import cable
from hw.wire.hub import Hub
from hw.wire.link import Link, Receiver, Views, frame_bytes
from hw.wire.pcap import PcapFile
from tests.wire_ends import BROADCAST, Station, frame, mac

A, B = mac(1), mac(2)
EPOCH = 1_893_456_000 * SECOND


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def loop(clock: VirtualClock) -> Iterator[Loop]:
    loop = Loop(clock)
    yield loop
    loop.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "wire.pcapng"


@pytest.fixture
def capture(path: Path, clock: VirtualClock) -> Iterator[PcapFile]:
    capture = PcapFile(path, clock)
    yield capture
    capture.close()


def packets(path: Path) -> list[Any]:
    """The packet blocks, read by python-pcapng."""
    with path.open("rb") as file:
        return [block for block in FileScanner(file) if isinstance(block, EnhancedPacket)]


def texts(path: Path) -> list[tuple[str, bytes]]:
    """(direction, text) of each packet."""
    return [(block.options["epb_flags"].inout, block.packet_data[14:].rstrip(b"\0")) for block in packets(path)]


def test_both_directions_names_and_times_are_read_back(
    loop: Loop, clock: VirtualClock, capture: PcapFile, path: Path
) -> None:
    a, b = cable(loop)
    near, far = Station(capture.tap(a, "guest.eth0")), Station(b)
    assert near.link is not None

    near.link.transmit([frame(B, A, b"out")])
    clock.jump(1_500_007)
    b.transmit([frame(A, B, b"in", size=61)])

    assert far.texts() == [b"out"]
    assert near.texts() == [b"in"]
    out, back = packets(path)
    assert out.interface.options["if_name"] == "guest.eth0"
    assert out.interface.link_type == 1
    assert out.packet_data == frame_bytes(frame(B, A, b"out"))
    assert back.packet_data == frame_bytes(frame(A, B, b"in", size=61))
    assert texts(path) == [("outbound", b"out"), ("inbound", b"in")]
    assert (back.timestamp_high << 32) + back.timestamp_low == EPOCH + 1_500_007


def test_scapy_reads_the_same(loop: Loop, capture: PcapFile, path: Path) -> None:
    a, b = cable(loop)
    near = Station(capture.tap(a))
    Station(b)
    assert near.link is not None
    sent = [frame(B, A, b"%d" % number, size=60 + number) for number in range(5)]

    near.link.transmit(sent)

    with RawPcapNgReader(str(path)) as reader:
        read = list(reader)
    assert [data for data, _ in read] == [frame_bytes(one) for one in sent]
    for _, about in read:
        assert ((about.tshigh << 32) + about.tslow) // about.tsresol == EPOCH // SECOND
        assert (about.linktype, about.direction) == (1, 2)


def test_links_share_a_file_as_interfaces_of_their_own(loop: Loop, capture: PcapFile, path: Path) -> None:
    hub = Hub(loop, "lan")
    one = Station(capture.tap(hub.port("a"), "a.eth0"))
    assert one.link is not None
    one.link.transmit([frame(BROADCAST, A, b"alone")])
    two = Station(capture.tap(hub.port("b"), "b.eth0"))

    one.link.transmit([frame(BROADCAST, A, b"hello")])

    assert two.texts() == [b"hello"]
    seen = [(block.interface.options["if_name"], text) for block, text in zip(packets(path), texts(path), strict=True)]
    assert seen == [
        ("a.eth0", ("outbound", b"alone")),
        ("a.eth0", ("outbound", b"hello")),  # it sets out before it arrives
        ("b.eth0", ("inbound", b"hello")),
    ]


def test_what_was_not_taken_is_written_when_it_is(loop: Loop, capture: PcapFile, path: Path) -> None:
    a, b = cable(loop)
    near = Station(capture.tap(a), room=1)
    Station(b)
    assert near.link is not None

    b.transmit([frame(A, B, b"1"), frame(A, B, b"2"), frame(A, B, b"3")])
    assert texts(path) == [("inbound", b"1")]

    near.room = 10
    near.link.resume()
    assert texts(path) == [("inbound", b"1"), ("inbound", b"2"), ("inbound", b"3")]
    assert near.texts() == [b"1", b"2", b"3"]
    assert capture.counters["frames"] == 3


class FullLink(Link):
    """A wire that takes one frame at a time."""

    def transmit(self, frames: Any) -> int:
        return min(1, len(frames))


def test_back_pressure_passes_and_is_not_written(capture: PcapFile, path: Path) -> None:
    inner = FullLink("full")
    near = Station(capture.tap(inner))
    assert near.link is not None

    assert near.link.transmit([frame(B, A, b"1"), frame(B, A, b"2")]) == 1
    inner.receiver.writable()  # type: ignore[union-attr]
    assert near.writable_calls == 1
    near.link.transmit([frame(B, A, b"2")])

    assert texts(path) == [("outbound", b"1"), ("outbound", b"2")]


class ReadLink(Link):
    """A wire with something to read, each frame behind a virtio header."""

    header_size = 12

    def __init__(self, *frames: bytes) -> None:
        super().__init__("read")
        self.frames = list(frames)
        self.asked: list[str] = []

    def read_into(self, views: Views) -> int:
        if not self.frames:
            return 0
        data, at = bytes(range(12)) + self.frames.pop(0), 0
        for view in views:
            part = data[at : at + len(view)]
            memoryview(view)[: len(part)] = part
            at += len(part)
        return at

    def pause(self) -> None:
        self.asked.append("pause")

    def resume(self) -> None:
        self.asked.append("resume")


class Reader(Receiver):
    """Reads each frame into a header view, two small ones and the rest."""

    def __init__(self, link: Link) -> None:
        self.read: list[bytes] = []
        link.attach(self)

    def pull(self, link: Link) -> None:
        views: Views = [bytearray(8), bytearray(7), bytearray(3), bytearray(100)]
        while length := link.read_into(views):
            self.read.append(b"".join(views)[:length])
        link.pause()


def test_frames_read_from_a_descriptor_are_written_without_their_header(capture: PcapFile, path: Path) -> None:
    inner = ReadLink(frame_bytes(frame(A, B, b"read")), b"\2" * 14)
    link = capture.tap(inner)
    reader = Reader(link)

    assert link.header_size == 12
    inner.receiver.pull(inner)  # type: ignore[union-attr]
    link.resume()

    assert [len(data) for data in reader.read] == [72, 26]
    assert [block.packet_data for block in packets(path)] == [frame_bytes(frame(A, B, b"read")), b"\2" * 14]
    assert texts(path)[0] == ("inbound", b"read")
    assert inner.asked == ["pause", "resume"]


def test_carrier_and_plugs_pass_through(loop: Loop, capture: PcapFile, path: Path) -> None:
    a, b = cable(loop)
    link = capture.tap(a)
    near = Station(link)
    assert not link.carrier

    Station(b)
    assert link.carrier
    link.detach()
    assert not b.carrier
    b.detach()

    assert near.carriers == [True]
    again = Station(link)
    Station(b).link.transmit([frame(A, B, b"again")])  # type: ignore[union-attr]
    assert again.texts() == [b"again"]


def test_closing_a_link_leaves_the_file_and_closing_the_file_the_link(
    loop: Loop, capture: PcapFile, path: Path
) -> None:
    a, b = cable(loop)
    near, far = Station(capture.tap(a)), Station(b)
    assert near.link is not None

    near.link.transmit([frame(B, A, b"1")])
    capture.close()
    near.link.transmit([frame(B, A, b"2")])
    near.link.close()
    capture.close()

    assert far.texts() == [b"1", b"2"]
    assert texts(path) == [("outbound", b"1")]
    assert capture.counters["dropped_closed"] == 1
    assert a.closed


def test_a_full_disk_ends_the_capture_and_not_the_wire(loop: Loop, clock: VirtualClock) -> None:
    a, b = cable(loop)
    with open("/dev/full", "wb", buffering=0) as full:
        capture = PcapFile(full, clock)
        near, far = Station(capture.tap(a)), Station(b)
        assert near.link is not None
        near.link.transmit([frame(B, A, b"1"), frame(B, A, b"2")])

    assert far.texts() == [b"1", b"2"]
    assert capture.counters["dropped_write_error"] >= 1
    assert capture.counters["dropped_closed"] == 2


def test_a_path_that_cannot_be_written_is_an_error_at_once(clock: VirtualClock, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        PcapFile(tmp_path / "missing" / "wire.pcapng", clock)


def test_the_writer_is_loaded_on_first_use() -> None:
    code = "import sys, hw.wire.pcap; sys.exit('pcapng' in sys.modules)"

    assert os.spawnvp(os.P_WAIT, "python3", ["python3", "-c", code]) == 0


@given(st.lists(st.tuples(st.booleans(), st.binary(min_size=0, max_size=70), st.integers(0, 1 << 40)), max_size=8))
def test_any_bytes_are_read_back_by_both_readers(frames: list[tuple[bool, bytes, int]]) -> None:
    clock = VirtualClock(epoch=0)
    loop = Loop(clock)
    a, b = cable(loop)
    file = io.BytesIO()
    near, far = Station(PcapFile(file, clock).tap(a)), Station(b)
    for out, data, pause in frames:
        clock.jump(clock.now() + pause)
        source = near.link if out else far.link
        assert source is not None
        source.transmit([(None, [data[:20], memoryview(data)[20:]])])
    loop.close()

    blocks = [block for block in FileScanner(io.BytesIO(file.getvalue())) if isinstance(block, EnhancedPacket)]
    read = [(block.options["epb_flags"].inout == "outbound", block.packet_data) for block in blocks]
    assert read == [(out, data) for out, data, _ in frames if data]
    with RawPcapNgReader(io.BytesIO(file.getvalue())) as reader:
        assert [data for data, _ in reader] == [data for _, data, _ in frames if data]


def test_the_interfaces_of_an_empty_capture_are_there(loop: Loop, capture: PcapFile, path: Path) -> None:
    a, b = cable(loop)
    capture.tap(a, "one")
    capture.tap(b, "two")

    with path.open("rb") as file:
        names = [block.options["if_name"] for block in FileScanner(file) if isinstance(block, InterfaceDescription)]

    assert names == ["one", "two"]
