"""Our guest's driver over DPDK's vhost back end: the machine is the vhost-user front end, testpmd serves the rings.

`make interop` runs this; the name of the file keeps it out of `make test`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from guest.kernel import Guest
from guest.net.device import IFF_RUNNING
from guest.net.pbuf import PacketBuffer
from hw.abi import virtio as abi
from hw.abi import virtio_net as net
from hw.clock import SECOND, RealClock
from hw.loop import Loop
from hw.machine import Machine, Option
from tests.interop.testpmd import Pmd
from tests.interop.vhost_dpdk import by_flow, flow_frame
from tests.requirements import require_program

pytestmark = pytest.mark.witness

PATIENCE = 20 * SECOND
FRAMES = 100_000
WINDOW = 64  # frames under way

RINGS: dict[str, tuple[dict[str, Option], int]] = {
    "split": ({"mrg_rxbuf": False, "indirect_desc": False, "event_idx": False}, 0),
    "split-event-idx": ({"mrg_rxbuf": False}, 1 << abi.VIRTIO_RING_F_EVENT_IDX | 1 << abi.VIRTIO_RING_F_INDIRECT_DESC),
    "split-mergeable": ({}, 1 << net.VIRTIO_NET_F_MRG_RXBUF),
    "packed": ({"packed": True, "mrg_rxbuf": False}, 1 << abi.VIRTIO_F_RING_PACKED),
    "packed-mergeable": ({"packed": True}, 1 << abi.VIRTIO_F_RING_PACKED | 1 << net.VIRTIO_NET_F_MRG_RXBUF),
    "in-order": ({"in_order": True}, 1 << abi.VIRTIO_F_IN_ORDER),
    "small": ({"queue_size": 32}, 0),
}


@pytest.fixture(scope="module")
def testpmd() -> str:
    return require_program("dpdk-testpmd")


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop(RealClock())
    yield loop
    loop.close()


class Side:
    """A guest whose only card testpmd serves; its program is the test."""

    def __init__(self, loop: Loop, socket: Path, words: str = "", **options: Option) -> None:
        self.loop = loop
        self.machine = Machine(loop, cmdline=words, seed=1)
        self.slot = self.machine.add_vhost_user(str(socket), options=options)
        self.console: list[str] = []
        self.guest = Guest(self.machine.platform, console=self.console.append)
        self.received: list[bytes] = []
        self.machine.power_on(self.guest)
        self.wait(lambda: self.guest.booted, "the guest to boot")
        self.driver = self.guest.devices[0]

    def wait(self, until: Callable[[], bool], what: str) -> None:
        assert self.loop.run(until, deadline=self.loop.clock.now() + PATIENCE), f"waited in vain for {what}"

    def listen(self) -> None:
        """Take what the driver delivers in place of the front end."""
        self.driver.receiver = self._deliver

    def _deliver(self, packets: Sequence[PacketBuffer]) -> None:
        self.received += [packet.tobytes() for packet in packets]

    def send(self, frames: Sequence[bytes]) -> int:
        return self.driver.transmit([PacketBuffer.from_bytes(frame) for frame in frames])

    @property
    def is_up(self) -> bool:
        return bool(self.driver.flags & IFF_RUNNING)

    def close(self) -> None:
        self.guest.close()
        self.machine.power_off()
        assert self.guest.leaks == []


def frame_of(rng: random.Random, number: int, longest: int = 1514) -> bytes:
    """A frame that says which it is."""
    head = bytes.fromhex("0200000000010200000000ff88b5") + number.to_bytes(4, "big")
    return head + rng.randbytes(rng.randint(60, longest) - len(head))


@pytest.mark.parametrize("ring", RINGS)
def test_every_frame_comes_back_as_it_was_sent(loop: Loop, tmp_path: Path, testpmd: str, ring: str) -> None:
    options, expected = RINGS[ring]
    rng = random.Random(ring)
    with Pmd(testpmd, tmp_path, f"net_vhost0,iface={tmp_path / 's'}"):
        side = Side(loop, tmp_path / "s", **options)
        side.listen()
        assert side.slot.features & expected == expected
        sent = [frame_of(rng, number) for number in range(FRAMES)]

        window = min(WINDOW, side.driver.tx.ring_size // 2)  # type: ignore[attr-defined]
        for first in range(0, FRAMES, window):
            batch = sent[first : first + window]
            assert side.send(batch) == len(batch)
            side.wait(lambda: len(side.received) >= first + len(batch), f"the frames after {first}")  # noqa: B023

        assert side.received == sent
        troubles = {"device_failed", "ring_broken"}
        assert not {name for name in side.driver.counters if "dropped" in name or name in troubles}
        side.close()


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_two_pairs_of_queues_are_in_use(loop: Loop, tmp_path: Path, testpmd: str, packed: bool) -> None:
    rng = random.Random(int(packed))
    with Pmd(testpmd, tmp_path, f"net_vhost0,iface={tmp_path / 's'},queues=2", more=("--rxq=2", "--txq=2")):
        side = Side(loop, tmp_path / "s", queues=2, packed=packed)
        settings = side.driver.settings
        assert settings is not None
        side.wait(lambda: settings.pairs == 2, "two pairs")
        side.listen()
        sent = [flow_frame(rng, number) for number in range(FRAMES)]
        for first in range(0, FRAMES, WINDOW // 2):
            batch = sent[first : first + WINDOW // 2]
            assert side.send(batch) == len(batch)
            side.wait(lambda: len(side.received) >= first + len(batch), f"the frames after {first}")  # noqa: B023

        assert by_flow(side.received) == by_flow(sent)
        side.close()


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_the_guest_boots_and_pings(loop: Loop, tmp_path: Path, testpmd: str, packed: bool) -> None:
    words = "-ipaddr 10.9.0.2 -netmask 255.255.255.0 -s ping -c 20 -i 0.01 10.9.0.1"
    with Pmd(testpmd, tmp_path, f"net_vhost0,iface={tmp_path / 's'}", mode="icmpecho"):
        side = Side(loop, tmp_path / "s", words, packed=packed)
        side.wait(lambda: side.guest.halted, "the pings to end")
        said = "\n".join(side.console)
        side.close()

    assert "20 packets transmitted, 20 received, 0% packet loss" in said
    assert side.guest.exit_status == 0


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_testpmd_is_killed_in_mid_transfer_and_another_takes_over(
    loop: Loop, tmp_path: Path, testpmd: str, packed: bool
) -> None:
    rng = random.Random(3)
    numbers = iter(range(1 << 32))
    device = f"net_vhost0,iface={tmp_path / 's'}"

    def some(side: Side) -> None:
        """Keep frames on their way, whether they get anywhere or not."""
        if side.driver.tx_room() > WINDOW:
            side.send([frame_of(rng, next(numbers)) for _ in range(WINDOW)])

    with Pmd(testpmd, tmp_path, device) as first:
        side = Side(loop, tmp_path / "s", packed=packed)
        side.listen()
        while len(side.received) < 2000:
            some(side)
            loop.run(deadline=loop.clock.now() + 1000)
        some(side)
        first.kill()
        side.wait(lambda: not side.is_up, "the link to go down")
    (tmp_path / "s").unlink(missing_ok=True)
    before = len(side.received)

    with Pmd(testpmd, tmp_path, device):
        side.wait(lambda: side.is_up, "the link to come up")
        while len(side.received) < before + 2000:
            some(side)
            loop.run(deadline=loop.clock.now() + 1000)
        side.close()

    arrived = [int.from_bytes(frame[14:18], "big") for frame in side.received]
    assert len(set(arrived)) == len(arrived), "a frame came twice"
    assert arrived == sorted(arrived)
    assert side.slot.device.counters["back_end_found"] == 1
