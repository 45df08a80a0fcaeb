"""DPDK's virtio-user driver over our device: testpmd gives every frame back, and each comes back as it was sent.

`make interop` runs this; the name of the file keeps it out of `make test`.
"""

from __future__ import annotations

import random
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from hw.abi import virtio as abi
from hw.abi import virtio_net as net
from hw.clock import SECOND, RealClock
from hw.loop import Loop
from hw.machine import Option, vhost_card
from hw.vhost.server import DeviceServer
from hw.wire.cable import cable
from hw.wire.link import Frame, Link, Receiver, frame_bytes
from tests.interop.testpmd import Pmd
from tests.requirements import require_program

pytestmark = pytest.mark.witness

PATIENCE = 20 * SECOND
FRAMES = 100_000
WINDOW = 64  # frames under way
PACKED, IN_ORDER, MERGEABLE = abi.VIRTIO_F_RING_PACKED, abi.VIRTIO_F_IN_ORDER, net.VIRTIO_NET_F_MRG_RXBUF

# What the driver is told, what it then negotiates, and what it must not; the device offers all rings.
DRIVERS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {
    "split": ("in_order=0,mrg_rxbuf=0", (), (PACKED, IN_ORDER, MERGEABLE)),
    "split-mergeable": ("in_order=0", (MERGEABLE,), (PACKED, IN_ORDER)),
    "split-in-order": ("in_order=1", (IN_ORDER, MERGEABLE), (PACKED,)),
    "split-vectorised": ("in_order=0,mrg_rxbuf=0,vectorized=1", (), (PACKED, IN_ORDER, MERGEABLE)),
    "packed": ("packed_vq=1,in_order=0,mrg_rxbuf=0", (PACKED,), (IN_ORDER, MERGEABLE)),
    "packed-mergeable": ("packed_vq=1,in_order=0", (PACKED, MERGEABLE), (IN_ORDER,)),
    "packed-in-order": ("packed_vq=1,in_order=1", (PACKED, IN_ORDER), ()),
    "packed-vectorised": ("packed_vq=1,in_order=1,mrg_rxbuf=0,vectorized=1", (PACKED, IN_ORDER), (MERGEABLE,)),
}
JUMBO = ("--max-pkt-len=9018", "--enable-scatter")


@pytest.fixture(scope="module")
def testpmd() -> str:
    return require_program("dpdk-testpmd")


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop(RealClock())
    yield loop
    loop.close()


class Peer(Receiver):
    """The far end of the device's wire: sends as fast as it may, and keeps what comes."""

    def __init__(self, wire: Link) -> None:
        self.frames: list[bytes] = []
        self._wire = wire
        self._backlog: deque[bytes] = deque()
        wire.attach(self)

    def receive(self, frames: Sequence[Frame]) -> int:
        self.frames += map(frame_bytes, frames)
        return len(frames)

    def send(self, frames: Sequence[bytes]) -> None:
        self._backlog += frames
        self.writable()

    def writable(self) -> None:
        while self._backlog and self._wire.transmit([(None, [self._backlog[0]])]):
            self._backlog.popleft()


class Side:
    """Our device at a socket, and a peer on its wire."""

    def __init__(self, loop: Loop, socket: Path, *, client: bool = False, **options: Option) -> None:
        self.loop = loop
        near, far = cable(loop)
        self.peer = Peer(far)
        self.device = vhost_card(near, random.Random(1), options)
        self.server = DeviceServer(loop, socket, self.device, client=client)

    def wait(self, until: Callable[[], bool], what: str) -> None:
        assert self.loop.run(until, deadline=self.loop.clock.now() + PATIENCE), f"waited in vain for {what}"

    def wait_for_driver(self, queues: int = 2) -> None:
        """Until all queues are served and testpmd sends a frame back: what it finds earlier it may throw away."""
        self.wait(lambda: self.server.session is not None and self.server.session.queues_up == queues, "the driver")
        probe = bytes(60)
        until = self.loop.clock.now() + PATIENCE
        while not self.peer.frames:
            assert self.loop.clock.now() < until, "no frame came back"
            self.peer.send([probe])
            self.loop.run(deadline=self.loop.clock.now() + SECOND // 20)
        while True:
            before = len(self.peer.frames)
            self.loop.run(deadline=self.loop.clock.now() + SECOND // 5)
            if len(self.peer.frames) == before:
                break
        self.peer.frames.clear()

    @property
    def features(self) -> int:
        assert self.server.session is not None
        return self.server.session.features


def driver(socket: Path, options: str) -> str:
    return f"net_virtio_user0,path={socket},queue_size=256,{options}"


def there_and_back(side: Side, frames: Sequence[bytes], window: int = WINDOW) -> None:
    """Send `frames`, `window` at a time; each batch comes back whole before the next goes out."""
    got = side.peer.frames
    for first in range(0, len(frames), window):
        batch = frames[first : first + window]
        side.peer.send(batch)
        side.wait(lambda: len(got) >= first + len(batch), f"the frames after {first}")  # noqa: B023


@pytest.mark.parametrize("kind", DRIVERS)
def test_every_frame_comes_back_as_it_was_sent(loop: Loop, tmp_path: Path, testpmd: str, kind: str) -> None:
    options, negotiated, not_negotiated = DRIVERS[kind]
    rng = random.Random(kind)
    side = Side(loop, tmp_path / "s")
    with Pmd(testpmd, tmp_path, driver(tmp_path / "s", options), serve=side.loop):
        side.wait_for_driver()
        assert [bit for bit in negotiated if not side.features >> bit & 1] == []
        assert [bit for bit in not_negotiated if side.features >> bit & 1] == []
        frames = [rng.randbytes(rng.randint(60, 1514)) for _ in range(FRAMES)]

        there_and_back(side, frames)

        assert side.peer.frames == frames
        assert not {name for name in side.device.counters if "dropped" in name}
    side.server.close()


@pytest.mark.parametrize("packed", [0, 1], ids=["split", "packed"])
def test_jumbo_frames_come_back_over_several_buffers(loop: Loop, tmp_path: Path, testpmd: str, packed: int) -> None:
    rng = random.Random(9018)
    # DPDK marks the header's entry of a packed ring's indirect table as device-writable, in front of readable ones,
    # which no device may take (virtio 1.4 §2.8.17): it is offered a packed ring without such tables.
    side = Side(loop, tmp_path / "s", indirect_desc=not packed)
    with Pmd(testpmd, tmp_path, driver(tmp_path / "s", f"packed_vq={packed}"), more=JUMBO, serve=side.loop):
        side.wait_for_driver()
        frames = [rng.randbytes(rng.randint(1515, 9000)) for _ in range(FRAMES // 10)]

        there_and_back(side, frames, window=16)

        assert side.peer.frames == frames
    side.server.close()


def flow_frame(rng: random.Random, number: int) -> bytes:
    """A frame of one of 256 UDP flows that says which it is of that flow, and among all."""
    payload = number.to_bytes(4, "big") + rng.randbytes(rng.randint(20, 1400))
    head = struct.pack(">BBHHHBBH8sHHHH", 0x45, 0, 28 + len(payload), 0, 0, 64, 17, 0,
                       b"\x0a\x00\x00\x01\x0a\x00\x00\x02", 1024 + number % 256, 7, 8 + len(payload), 0)  # fmt: skip
    return bytes.fromhex("020000000001020000000002" "0800") + head + payload


def by_flow(frames: Sequence[bytes]) -> dict[bytes, list[bytes]]:
    """Frames by their source port, in the order in which they came."""
    found: dict[bytes, list[bytes]] = {}
    for frame in frames:
        found.setdefault(frame[34:36], []).append(frame)
    return found


@pytest.mark.parametrize("packed", [0, 1], ids=["split", "packed"])
def test_two_pairs_of_queues_share_the_flows(loop: Loop, tmp_path: Path, testpmd: str, packed: int) -> None:
    rng = random.Random(packed)
    side = Side(loop, tmp_path / "s", queues=2)
    options = driver(tmp_path / "s", f"packed_vq={packed},queues=2,cq=1")
    with Pmd(testpmd, tmp_path, options, more=("--rxq=2", "--txq=2"), serve=side.loop):
        side.wait_for_driver(4)
        assert side.features >> net.VIRTIO_NET_F_MQ & 1
        assert side.device.steering.pairs == 2
        frames = [flow_frame(rng, number) for number in range(FRAMES)]

        there_and_back(side, frames)

        assert by_flow(side.peer.frames) == by_flow(frames), "whole, and each flow in its order"
        received = [receiver.stats["packets"] for receiver in side.device.receivers]
        sent = [transmitter.stats["packets"] for transmitter in side.device.transmitters]
        assert min(received) > FRAMES // 4, received
        assert min(sent) > FRAMES // 4, sent
        assert not {name for name in side.device.counters if "dropped" in name}
    side.server.close()


def test_the_driver_listens_and_the_device_comes_to_it(loop: Loop, tmp_path: Path, testpmd: str) -> None:
    side = Side(loop, tmp_path / "s", client=True)
    with Pmd(testpmd, tmp_path, driver(tmp_path / "s", "server=1"), serve=side.loop):
        side.wait_for_driver()
        frames = [bytes([number]) * 100 for number in range(256)]

        there_and_back(side, frames)

        assert side.peer.frames == frames
    side.server.close()


def test_an_indirect_table_that_breaks_the_rules_stops_its_queue_alone(
    loop: Loop, tmp_path: Path, testpmd: str
) -> None:
    side = Side(loop, tmp_path / "s")
    with Pmd(testpmd, tmp_path, driver(tmp_path / "s", "packed_vq=1"), more=JUMBO, serve=side.loop):
        side.wait_for_driver()
        session = side.server.session
        assert session is not None

        side.peer.send([bytes(3000)])

        side.wait(lambda: session.counters["queue_failed"] == 1, "the queue to stop")
        assert session.failure.startswith("queue 1: a device-readable descriptor behind a device-writable one")
        assert session.queues_up == 1
    side.server.close()


@pytest.mark.parametrize("packed", [0, 1], ids=["split", "packed"])
def test_testpmd_is_killed_in_mid_transfer_and_the_next_is_served(
    loop: Loop, tmp_path: Path, testpmd: str, packed: int
) -> None:
    rng = random.Random(5)
    options = driver(tmp_path / "s", f"packed_vq={packed}")
    side = Side(loop, tmp_path / "s")
    with Pmd(testpmd, tmp_path, options, serve=side.loop) as first:
        side.wait_for_driver()
        side.peer.send([rng.randbytes(200) for _ in range(500)])
        side.wait(lambda: len(side.peer.frames) > 100, "some frames")
        first.kill()
        side.wait(lambda: side.server.session is None, "the session to end")
    side.loop.run(deadline=side.loop.clock.now() + SECOND // 10)
    side.peer.frames.clear()

    with Pmd(testpmd, tmp_path, options, serve=side.loop):
        side.wait_for_driver()
        frames = [rng.randbytes(200) for _ in range(1000)]

        there_and_back(side, frames)

        assert side.peer.frames == frames
    side.server.close()
