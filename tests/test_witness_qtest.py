"""Our driver and our guest on hardware that is not ours: QEMU's virtio-net-device, through the qtest socket."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from guest.drivers.virtio_net import WANTED
from guest.kernel import Guest
from guest.net.device import IFF_RUNNING
from guest.ring.packed import PackedRing
from guest.ring.split import SplitRing
from hw.abi import virtio, virtio_mmio, virtio_net
from hw.clock import RealClock
from hw.loop import Loop
from hw.machine import Machine
from hw.memory import AccessHook
from tests.requirements import require_program
from tests.witness.qtest_guest import BareDriver, ScapyHost, WholeGuest
from tests.witness.qtest_machine import Qemu

pytestmark = pytest.mark.witness

MAC = "52:54:00:c0:ff:ee"
EVENT_IDX = 1 << virtio.VIRTIO_RING_F_EVENT_IDX
INDIRECT = 1 << virtio.VIRTIO_RING_F_INDIRECT_DESC
MRG_RXBUF = 1 << virtio_net.VIRTIO_NET_F_MRG_RXBUF
DRIVER_OK = 0xF  # ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK: virtio 1.4 §2.1


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop(RealClock())
    yield loop
    loop.close()


@pytest.fixture
def qemu(loop: Loop, request: pytest.FixtureRequest) -> Iterator[Qemu]:
    program = require_program("qemu-system-x86_64")
    with Qemu(loop, program, mac=MAC, options=getattr(request, "param", "")) as qemu:
        yield qemu


def frames_of(rng: random.Random, count: int, longest: int = 1514) -> list[bytes]:
    """Random frames from station to station, 60 bytes to `longest`."""
    header = bytes.fromhex(MAC.replace(":", "")) + b"\x02\0\0\0\0\x01" + b"\x88\xb5"
    return [header + rng.randbytes(rng.randint(60, longest) - len(header)) for _ in range(count)]


def echo(bare: BareDriver, count: int, rng: random.Random, longest: int = 1514) -> None:
    """`count` frames out and back, in batches of up to 64."""
    while count:
        frames = frames_of(rng, min(count, rng.randint(1, 64)), longest)
        bare.send(frames)
        bare.receive(frames)
        count -= len(frames)


def used_index(bare: BareDriver, ring: SplitRing[Any]) -> int:
    """What QEMU has written into `used.idx` (virtio 1.4 §2.7.8)."""
    return bare.qemu.memory.fields(ring.addresses[2], 4, "H", "test")[1]


def check_interrupts(side: BareDriver | WholeGuest) -> None:
    """Each time the line rose the driver found out why, exactly once, and lowered it; nothing was lost or made up."""
    qemu, counters, line = side.qemu, side.driver.counters, side.qemu.slot.irq
    qemu.settle()
    raised = side.interrupts
    assert counters["irqs"] == raised, "the driver saw another number of interrupts than the line rose"
    assert qemu.mmio.messages == Counter({("raise", line): raised, ("lower", line): raised})
    assert side.services.irqs.counters == Counter({f"irq{line}": raised})
    assert not any(counters[name] for name in ("irq_spurious", "irq_early", "irq_lost"))


def check_rings(side: BareDriver | WholeGuest) -> None:
    """Nothing is broken, dropped or missing: all transmit buffers are back, all receive buffers are posted."""
    driver = side.driver
    driver.tx.reclaim()
    tx, rx = driver.tx.ring, driver.rx.ring
    assert (driver.failed, tx.broken, rx.broken) == (None, None, None)
    assert (tx.in_flight, tx.room, len(driver.tx.pool.free)) == (0, tx.size, driver.tx.pool.count)
    assert (rx.in_flight, rx.room, len(driver.rx.pool.free)) == (rx.size, 0, driver.rx.pool.count - rx.size)
    assert not [name for name in driver.counters if "dropped" in name]


# -- bringing up -------------------------------------------------------------------------------------------------------


class Registers(AccessHook):
    """Keeps the accesses to the registers of a device at `base`: (register, bytes, value)."""

    def __init__(self, base: int) -> None:
        self._base = base
        self.accesses: dict[str, list[tuple[int, int, int]]] = {"read": [], "write": []}

    def register(self, who: str, op: str, addr: int, size: int, value: int) -> None:
        self.accesses[op].append((addr - self._base, size, value))


def test_the_driver_brings_the_device_up_in_the_order_of_the_standard(qemu: Qemu) -> None:
    bare = BareDriver(qemu)
    driver = bare.driver
    qemu.mmio.hook = registers = Registers(qemu.slot.base)

    driver.start()

    # virtio 1.4 §3.1.1: reset, then one more bit at a time; nobody goes back.
    read, written = registers.accesses["read"], registers.accesses["write"]
    statuses = [value for register, _, value in written if register == virtio_mmio.VIRTIO_MMIO_STATUS]
    assert statuses == [0, 0x1, 0x3, 0xB, DRIVER_OK]
    assert driver.transport.status() == DRIVER_OK
    assert driver.mac.hex(":") == MAC
    assert driver.flags & IFF_RUNNING
    offered = virtio.features(
        virtio.VIRTIO_F_VERSION_1, virtio.VIRTIO_F_RING_RESET,
        virtio_net.VIRTIO_NET_F_MAC, virtio_net.VIRTIO_NET_F_STATUS,
        virtio_net.VIRTIO_NET_F_CTRL_VQ, virtio_net.VIRTIO_NET_F_CTRL_RX, virtio_net.VIRTIO_NET_F_CTRL_VLAN,
        virtio_net.VIRTIO_NET_F_CTRL_MAC_ADDR, virtio_net.VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
        virtio_net.VIRTIO_NET_F_GUEST_ANNOUNCE,
    )  # fmt: skip
    assert driver.features == offered | EVENT_IDX | INDIRECT | MRG_RXBUF
    # §4.2.2.2: the fields of the configuration are read as wide as they are, all else 32 bits wide.
    config = {(register, size) for register, size, _ in read if register >= virtio_mmio.VIRTIO_MMIO_CONFIG}
    assert config == {(0x100 + at, 1) for at in range(6)} | {(0x106, 2)}
    assert {size for register, size, _ in read + written if register < virtio_mmio.VIRTIO_MMIO_CONFIG} == {4}
    check_interrupts(bare)


def test_closing_leaves_a_device_that_is_reset_and_no_memory_in_use(qemu: Qemu) -> None:
    bare = BareDriver(qemu)
    bare.driver.start()
    echo(bare, 10, random.Random(1))

    bare.driver.close()

    assert bare.driver.transport.status() == 0
    assert (bare.dma.free_bytes, bare.dma.mapped_bytes) == (bare.dma.size, 0)


# -- frames ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("qemu", ["packed=off", "packed=on"], ids=["split", "packed"], indirect=True)
@pytest.mark.parametrize("event_idx", [EVENT_IDX, 0], ids=["event-idx", "no-event-idx"])
@pytest.mark.parametrize("mrg_rxbuf", [MRG_RXBUF, 0], ids=["mrg", "no-mrg"])
@pytest.mark.parametrize("indirect", [INDIRECT, 0], ids=["indirect", "no-indirect"])
def test_2000_frames_go_out_and_come_back(qemu: Qemu, event_idx: int, mrg_rxbuf: int, indirect: int) -> None:
    choice = EVENT_IDX | MRG_RXBUF | INDIRECT
    bare = BareDriver(qemu, wanted=WANTED & ~choice | event_idx | mrg_rxbuf | indirect)
    bare.driver.start()
    assert bare.driver.features & choice == event_idx | mrg_rxbuf | indirect
    assert isinstance(bare.driver.rx.ring, PackedRing if "packed=on" in qemu.options else SplitRing)

    echo(bare, 2000, random.Random(f"{event_idx} {mrg_rxbuf} {indirect}"))

    check_interrupts(bare)
    assert bare.interrupts > 0
    check_rings(bare)
    counters = bare.driver.counters
    assert (counters["tx_packets"], counters["rx_packets"]) == (2000, 2000)


@pytest.mark.parametrize("qemu", ["host_mtu=9000"], indirect=True)
@pytest.mark.parametrize("mrg_rxbuf", [MRG_RXBUF, 0], ids=["mrg", "no-mrg"])
@pytest.mark.parametrize("indirect", [INDIRECT, 0], ids=["indirect", "no-indirect"])
def test_jumbo_frames_use_several_buffers(qemu: Qemu, mrg_rxbuf: int, indirect: int) -> None:
    bare = BareDriver(qemu, wanted=WANTED & ~(MRG_RXBUF | INDIRECT) | mrg_rxbuf | indirect)
    bare.driver.start()
    assert bare.driver.mtu == 9000
    longest = frames_of(random.Random(3), 24, 9014)  # up to five transmit buffers each, so the ring has room
    longest[0] = longest[0].ljust(9014, b"\xa5")

    bare.send(longest)
    bare.receive(longest)
    buffers = used_index(bare, bare.driver.rx.ring)
    for _ in range(10):
        echo(bare, 20, random.Random(4), 9014)

    room = 2048 - 12
    pieces = sum(1 + max(0, len(frame) - room + 2047) // 2048 for frame in longest)
    assert buffers == (pieces if mrg_rxbuf else len(longest))
    check_interrupts(bare)
    check_rings(bare)


@pytest.mark.parametrize("event_idx", [EVENT_IDX, 0], ids=["event-idx", "no-event-idx"])
def test_a_device_that_ran_out_of_receive_buffers_is_told_of_new_ones(qemu: Qemu, event_idx: int) -> None:
    bare = BareDriver(qemu, wanted=WANTED & ~EVENT_IDX | event_idx)
    bare.driver.start()
    ring = bare.driver.rx.ring
    frames = frames_of(random.Random(12), 3 * ring.size)

    qemu.irq.mask(qemu.slot.irq)  # the guest is busy elsewhere
    bare.peer.send(frames)
    bare.wait(lambda: used_index(bare, ring) == ring.size, "a device without buffers")
    assert bare.received == []
    qemu.irq.unmask(qemu.slot.irq)
    bare.wait(lambda: len(bare.received) >= len(frames), "the frames that had to wait")

    assert bare.received == frames
    assert bare.driver.counters["rx_kicks"] > 0
    check_interrupts(bare)
    check_rings(bare)


# -- interrupts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event_idx", [EVENT_IDX, 0], ids=["event-idx", "no-event-idx"])
def test_each_used_buffer_that_may_interrupt_does_so_once(qemu: Qemu, event_idx: int) -> None:
    bare = BareDriver(qemu, wanted=WANTED & ~EVENT_IDX | event_idx)
    driver = bare.driver
    driver.start()

    for turn, frame in enumerate(frames_of(random.Random(5), 300)):
        driver.tx.ring.enable_interrupts()  # the driver itself would do without them
        bare.send([frame])
        bare.wait(lambda: driver.tx.ring.in_flight == 0, "the interrupt for a sent frame")
        assert bare.interrupts == 2 * turn + 1
        bare.receive([frame])
        assert bare.interrupts == 2 * turn + 2

    check_interrupts(bare)
    check_rings(bare)


def silence_the_first(bare: BareDriver) -> int:
    """Send one frame, for which QEMU interrupts after a reset, wanted or not; the interrupts so far."""
    bare.send(frames_of(random.Random(6), 1))
    bare.qemu.settle()
    assert bare.interrupts <= 1
    return bare.interrupts


@pytest.mark.parametrize("event_idx", [EVENT_IDX, 0], ids=["event-idx", "no-event-idx"])
def test_sent_frames_cause_no_interrupt(qemu: Qemu, event_idx: int) -> None:
    bare = BareDriver(qemu, wanted=WANTED & ~EVENT_IDX | event_idx)
    bare.driver.start()
    before = silence_the_first(bare)

    for count in (64, 64, 95):  # 96 of 128 are three quarters
        bare.send(frames_of(random.Random(count), count))
        qemu.settle()
        assert (bare.interrupts, bare.driver.tx.ring.in_flight) == (before, count)


@pytest.mark.parametrize("event_idx", [EVENT_IDX, 0], ids=["event-idx", "no-event-idx"])
def test_a_crowded_queue_behind_a_slow_device_is_cleared_by_an_interrupt(qemu: Qemu, event_idx: int) -> None:
    bare = BareDriver(qemu, wanted=WANTED & ~EVENT_IDX | event_idx)
    bare.driver.start()
    before = silence_the_first(bare)
    ring = bare.driver.tx.ring

    qemu.control("stop")
    bare.transmit(frames_of(random.Random(7), ring.size))
    qemu.settle()
    assert (bare.interrupts, ring.in_flight) == (before, ring.size), "a stopped device sends nothing"
    qemu.control("cont")
    bare.wait(lambda: ring.in_flight <= ring.size // 2, "an interrupt that takes half of the queue back")

    assert bare.interrupts > before
    check_interrupts(bare)


@pytest.mark.parametrize("event_idx", [EVENT_IDX, 0], ids=["event-idx", "no-event-idx"])
def test_a_crowded_queue_behind_a_fast_device_is_cleared_without_one(qemu: Qemu, event_idx: int) -> None:
    bare = BareDriver(qemu, wanted=WANTED & ~EVENT_IDX | event_idx)
    bare.driver.start()
    before = silence_the_first(bare)
    ring = bare.driver.tx.ring

    class Doorbell(AccessHook):
        """Answers a doorbell only when the device has sent everything."""

        def register(self, who: str, op: str, addr: int, size: int, value: int) -> None:
            for _ in range(10_000):
                if used_index(bare, ring) == 1 + ring.size:
                    return
                qemu.mmio.command(f"readl {qemu.slot.base:#x}")

    qemu.mmio.hook = Doorbell()
    bare.transmit(frames_of(random.Random(8), ring.size, 60))
    assert used_index(bare, ring) == 1 + ring.size
    assert (ring.in_flight, bare.interrupts) == (0, before)


def test_a_cable_that_is_pulled_out_and_in_is_noticed_each_time(qemu: Qemu) -> None:
    bare = BareDriver(qemu)
    driver = bare.driver
    driver.start()
    changes: list[bool] = []
    driver.link_changed = lambda: changes.append(bool(driver.flags & IFF_RUNNING))

    for _ in range(3):
        qemu.set_link(False)
        qemu.settle()
        qemu.set_link(True)
        qemu.settle()

    assert changes == [False, True] * 3
    assert bare.interrupts == driver.counters["config_changes"] == 6
    echo(bare, 100, random.Random(7))
    check_interrupts(bare)
    check_rings(bare)


@pytest.mark.parametrize("qemu", ["", "packed=on"], indirect=True, ids=["split", "packed"])
def test_qemus_control_queue_does_what_it_is_told(qemu: Qemu) -> None:
    bare = BareDriver(qemu)
    driver, settings = bare.driver, bare.driver.settings
    driver.start()
    qemu.settle()
    assert driver.counters["ctrl_refused"] == 0
    ours, rest = bytes.fromhex(MAC.replace(":", "")), b"\x02\0\0\0\0\x01" + b"\x88\xb5" + bytes(46)
    other, group = b"\x02\0\0\0\0\x77", b"\x33\x33\0\0\0\x05"
    tagged = ours + rest[:6] + b"\x81\0\0\x05" + rest[6:]

    def passes() -> list[bool]:
        """Which of four kinds of frames come through; a frame of ours behind them says that all had time to."""
        end = ours + rest[:-1] + b"\xee"
        bare.peer.send([other + rest, group + rest, tagged, end])
        bare.wait(lambda: end in bare.received, "the last of four frames")
        found = [other + rest in bare.received, group + rest in bare.received, tagged in bare.received]
        bare.received.clear()
        return found

    assert passes() == [False, False, False]
    driver.receive_mode(False, [group])
    qemu.settle()
    assert passes() == [False, True, False]
    said: list[str] = []
    settings.set_vlan(5, True, said.append)
    qemu.settle()
    assert passes() == [False, True, True]
    driver.receive_mode(True, [])
    qemu.settle()
    assert passes() == [True, True, True]
    driver.receive_mode(False, [])
    settings.set_vlan(5, False, said.append)
    qemu.settle()
    assert passes() == [False, False, False]
    settings.set_offloads(0, said.append)
    qemu.settle()
    # QEMU cannot switch what its socket does not have.
    assert said == ["", "", "the device refuses these receive offloads"]
    assert driver.counters["ctrl_refused"] == 1
    check_interrupts(bare)


# -- trouble -----------------------------------------------------------------------------------------------------------


def test_a_device_that_asks_for_a_reset_gets_one_and_works_again(qemu: Qemu) -> None:
    bare = BareDriver(qemu)
    bare.timers = True
    driver = bare.driver
    driver.start()
    echo(bare, 100, random.Random(8))

    ring = driver.tx.ring
    avail = qemu.memory.fields(ring.addresses[1], 2 * (2 + ring.size), "H", "test")
    index = avail[1]
    avail[2 + index % ring.size] = 0xFFFF  # a descriptor that is not there, which QEMU does not take
    avail[1] = index + 1 & 0xFFFF
    driver.transport.notify(ring.index)
    bare.wait(lambda: driver.counters["device_failed"] == 1, "a device that asks for a reset")
    assert driver.failed == "the device needs a reset"
    assert not driver.flags & IFF_RUNNING
    bare.wait(lambda: driver.failed is None, "a device that works again")

    assert "Guest says index 65535 is available" in qemu.said()
    assert driver.transport.status() == DRIVER_OK
    assert driver.flags & IFF_RUNNING
    echo(bare, 100, random.Random(10))
    check_interrupts(bare)
    check_rings(bare)


# -- the whole guest ---------------------------------------------------------------------------------------------------

WORDS = "-ipaddr 10.9.0.2 -netmask 255.255.255.0 -gateway 10.9.0.1"


@pytest.mark.parametrize("qemu", ["packed=off", "packed=on"], ids=["split", "packed"], indirect=True)
def test_the_guest_boots_on_it_and_pings_a_host(qemu: Qemu) -> None:
    host = ScapyHost(qemu.wire, "02:00:00:00:00:01", "10.9.0.1")
    with WholeGuest(qemu, WORDS) as side:
        side.boot()
        assert f"eth0: MAC {MAC}, MTU 1500" in side.guest.log.text()

        assert side.ping("10.9.0.1", "-c", "100", "-i", "0.001", "-s", "1472") == 0

        assert "100 packets transmitted, 100 received, 0% packet loss" in "\n".join(side.guest.log.output)
        assert host.answered == {"arp": 1, "echo": 100}
        check_interrupts(side)
        check_rings(side)


def test_the_guest_answers_a_host(qemu: Qemu) -> None:
    host = ScapyHost(qemu.wire, "02:00:00:00:00:01", "10.9.0.1")
    with WholeGuest(qemu, WORDS) as side:
        side.boot()
        host.ask("10.9.0.2")
        side.wait(lambda: "10.9.0.2" in host.neighbours, "the answer to an ARP request")
        assert host.neighbours["10.9.0.2"] == MAC

        rng = random.Random(11)
        payloads = [rng.randbytes(rng.randint(0, 1472)) for _ in range(100)]
        for sequence, payload in enumerate(payloads):
            host.ping("10.9.0.2", sequence, payload)
        side.wait(lambda: len(host.replies) == len(payloads), "replies")

        assert host.replies == list(enumerate(payloads))
        check_interrupts(side)
        check_rings(side)


def test_a_guest_on_qemu_and_a_guest_on_our_machine_ping_each_other(qemu: Qemu, loop: Loop) -> None:
    machine = Machine(loop, cmdline="-ipaddr 10.9.0.3 -netmask 255.255.255.0")
    machine.add_virtio_net(qemu.wire)
    ours = Guest(machine.platform, name="ours")
    machine.power_on(ours)
    with WholeGuest(qemu, WORDS) as side:
        side.boot()
        side.wait(lambda: ours.booted, "the other guest's boot")

        there = side.guest.spawn("ping", "10.9.0.3", "-c", "300", "-i", "0.001", "-s", "1000", "-q")
        back = ours.spawn("ping", "10.9.0.2", "-c", "300", "-i", "0.001", "-s", "1400", "-q")
        side.wait(lambda: not there.alive and not back.alive, "both pings")

        for guest in (side.guest, ours):
            assert "300 packets transmitted, 300 received, 0% packet loss" in "\n".join(guest.log.output)
        check_interrupts(side)
        check_rings(side)
    ours.close()
    machine.power_off()
    assert (ours.panic, ours.leaks) == (None, [])
