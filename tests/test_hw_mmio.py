"""The virtio-mmio registers: status, negotiation, queue set-up, notifications, against a scripted driver."""

from __future__ import annotations

import pytest

from hw.abi import virtio_mmio as reg
from hw.abi import virtio_net as net
from hw.abi.virtio import (
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_NOTIFICATION_DATA,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_RING_RESET,
    VIRTIO_F_VERSION_1,
    features,
)
from hw.clock import VirtualClock
from hw.loop import Loop
from hw.machine import Machine
from hw.virtio.mmio import VirtioMmio
from hw.virtio.packed import PackedQueue
from hw.virtio.split import SplitQueue
from hw.wire.link import Frame, Link, keep
from tests.scripted_driver import ScriptedDriver, ScriptedRing

V1 = features(VIRTIO_F_VERSION_1)
MAC = bytes.fromhex("525400112233")


class Catcher(Link):
    """A wire that keeps a copy of what it is sent; `room` limits how many frames it takes."""

    def __init__(self) -> None:
        super().__init__("catcher")
        self.sent: list[bytes] = []
        self.headers: list[bytes | None] = []
        self.room = 1 << 30
        self.resumed = 0

    def transmit(self, frames: list[Frame]) -> int:  # type: ignore[override]
        taken = frames[: self.room]
        self.room -= len(taken)
        for frame in taken:
            header, views = keep(frame)
            self.sent.append(bytes(views[0]))
            self.headers.append(None if header is None else bytes(header))
        return len(taken)

    def resume(self) -> None:
        self.resumed += 1


@pytest.fixture
def machine() -> Machine:
    machine = Machine(Loop(VirtualClock()), memory_size=1 << 20)
    machine.add_virtio_net(Catcher(), mac=MAC)
    return machine


@pytest.fixture
def driver(machine: Machine) -> ScriptedDriver:
    return ScriptedDriver(machine)


@pytest.fixture
def nic(machine: Machine) -> VirtioMmio:
    return machine.nics[0]


def test_identity(driver: ScriptedDriver) -> None:
    assert driver.read(reg.VIRTIO_MMIO_MAGIC_VALUE) == int.from_bytes(b"virt", "little")
    assert driver.read(reg.VIRTIO_MMIO_VERSION) == 2
    assert driver.read(reg.VIRTIO_MMIO_DEVICE_ID) == 1
    assert driver.read(reg.VIRTIO_MMIO_STATUS) == 0


def test_offered_features_come_in_words_of_32_bits(driver: ScriptedDriver, nic: VirtioMmio) -> None:
    assert driver.offered() == nic.device.features
    driver.write(reg.VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0xFFFFFFFF)
    assert driver.read(reg.VIRTIO_MMIO_DEVICE_FEATURES) == 0


def test_feature_words_are_wider_than_64_bits(driver: ScriptedDriver, nic: VirtioMmio) -> None:
    nic.device.features |= 1 << 69
    driver.write(reg.VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2)
    assert driver.read(reg.VIRTIO_MMIO_DEVICE_FEATURES) == 1 << 5
    assert driver.accept(V1 | 1 << 69) is True
    assert nic.features == V1 | 1 << 69


def test_the_usual_status_sequence(driver: ScriptedDriver, nic: VirtioMmio) -> None:
    driver.start(V1)
    assert driver.status == 15
    assert nic.counters["kick_ignored"] == 0


@pytest.mark.parametrize("bit", [0, 22, 58, 63, 64, 70, 200, 255])
def test_h24_a_feature_that_was_not_offered_is_refused(driver: ScriptedDriver, nic: VirtioMmio, bit: int) -> None:
    assert driver.accept(V1 | 1 << bit) is False
    assert f"bit {bit}" in nic.refusal
    driver.status = 15
    assert driver.status == 3  # neither FEATURES_OK nor DRIVER_OK


def test_h24_a_feature_word_past_all_words_is_refused(driver: ScriptedDriver) -> None:
    driver.status = 3
    driver.write(reg.VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1)
    driver.write(reg.VIRTIO_MMIO_DRIVER_FEATURES, 1)
    driver.write(reg.VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0xFFFFFFFF)
    driver.write(reg.VIRTIO_MMIO_DRIVER_FEATURES, 1)
    driver.status = 11
    assert driver.status == 3


def test_h24_no_version_1_is_refused(driver: ScriptedDriver, nic: VirtioMmio) -> None:
    assert driver.accept(0) is False
    assert "VERSION_1" in nic.refusal


@pytest.mark.parametrize("bit", sorted(net.FEATURE_REQUIRES))
def test_h24_a_feature_without_what_it_needs_is_refused(driver: ScriptedDriver, nic: VirtioMmio, bit: int) -> None:
    nic.device.features |= 1 << bit
    assert driver.accept(V1 | 1 << bit) is False
    assert f"{net.FEATURE_NAMES[bit]} was accepted without" in nic.refusal


@pytest.mark.parametrize(
    ("bit", "needs"), [(bit, needs) for bit, alternatives in net.FEATURE_REQUIRES.items() for needs in alternatives]
)
def test_a_feature_with_what_it_needs_is_accepted(
    driver: ScriptedDriver, nic: VirtioMmio, bit: int, needs: tuple[int, ...]
) -> None:
    mask, todo = V1, [bit, *needs]
    while todo:
        feature = todo.pop()
        mask |= 1 << feature
        todo += net.FEATURE_REQUIRES.get(feature, ((),))[0]
    nic.device.features |= mask
    assert driver.accept(mask) is True


def test_h24_features_cannot_change_after_features_ok(driver: ScriptedDriver, nic: VirtioMmio) -> None:
    driver.accept(V1)
    driver.write(reg.VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0)
    driver.write(reg.VIRTIO_MMIO_DRIVER_FEATURES, 1 << net.VIRTIO_NET_F_MAC)
    assert nic.features == V1
    assert nic.counters["features_write_too_late"] == 1


@pytest.mark.parametrize("value", [7, 11, 1, 3])
def test_h24_status_bits_are_cleared_by_reset_alone(driver: ScriptedDriver, nic: VirtioMmio, value: int) -> None:
    driver.start(V1)
    driver.status = value
    assert driver.status == 15
    assert nic.counters["status_bit_cleared"] == 1
    driver.status = 0
    assert driver.status == 0


def test_driver_ok_needs_features_ok(driver: ScriptedDriver, nic: VirtioMmio) -> None:
    driver.status = 7
    assert driver.status == 3
    assert nic.counters["driver_ok_too_early"] == 1


def test_a_queue_that_does_not_exist_has_size_0(driver: ScriptedDriver) -> None:
    sizes = []
    for index in (0, 1, 2, 0xFFFFFFFF):
        driver.write(reg.VIRTIO_MMIO_QUEUE_SEL, index)
        sizes.append(driver.read(reg.VIRTIO_MMIO_QUEUE_NUM_MAX))
    assert sizes == [256, 128, 0, 0]


@pytest.mark.parametrize(
    ("size", "desc", "driver_area", "device_area"),
    [
        (0, 0x1000, 0x2000, 0x3000),
        (3, 0x1000, 0x2000, 0x3000),
        (512, 0x1000, 0x4000, 0x5000),  # above the maximum of 256
        (65535, 0x1000, 0x2000, 0x3000),
        (8, 0x1001, 0x2000, 0x3000),
        (8, 0x1000, 0x1000, 0x3000),
        (8, 0x1000, 0x2000, 0xD0000000),
        (8, 1 << 63, 0x2000, 0x3000),
    ],
)
def test_h23_an_impossible_queue_never_becomes_ready(
    driver: ScriptedDriver, nic: VirtioMmio, size: int, desc: int, driver_area: int, device_area: int
) -> None:
    driver.accept(V1)
    assert driver.configure(0, size, desc, driver_area, device_area) is False
    assert nic.counters["queue_refused"] == 1
    assert nic.refusal
    assert driver.configure(0, 8, 0x1000, 0x2000, 0x3000) is True


def test_h23_a_queue_needs_features_ok(driver: ScriptedDriver) -> None:
    driver.status = 3
    assert driver.configure(0, 8, 0x1000, 0x2000, 0x3000) is False


def test_a_ready_queue_keeps_its_addresses(driver: ScriptedDriver, nic: VirtioMmio) -> None:
    driver.accept(V1)
    driver.configure(0, 8, 0x1000, 0x2000, 0x3000)
    driver.write(reg.VIRTIO_MMIO_QUEUE_DESC_LOW, 0x9000)
    driver.write(reg.VIRTIO_MMIO_QUEUE_NUM, 16)
    assert (nic.queue_registers[0].addresses["desc"], nic.queue_registers[0].size) == (0x1000, 8)
    driver.write(reg.VIRTIO_MMIO_QUEUE_READY, 0)
    assert driver.read(reg.VIRTIO_MMIO_QUEUE_READY) == 0
    assert driver.configure(0, 16, 0x9000, 0xA000, 0xB000) is True


@pytest.mark.parametrize("index", [2, 3, 0x8000, 0xFFFF, 0xFFFFFFFF])
def test_h22_kicks_of_queues_that_do_not_exist_are_ignored(
    driver: ScriptedDriver, nic: VirtioMmio, index: int
) -> None:
    driver.start(V1)
    driver.kick(index)
    assert nic.counters["kick_ignored"] == 1
    assert driver.status == 15


def test_h22_a_kick_before_driver_ok_is_ignored(driver: ScriptedDriver, nic: VirtioMmio) -> None:
    driver.accept(V1)
    ring = driver.set_up(1, 0x40000, 8)
    ring.chain(0, [(0x8000, 64, 0)])
    ring.offer(0)
    driver.kick(1)
    assert nic.counters["kick_ignored"] == 1
    assert ring.used() == []
    driver.status = 15  # what was offered before is picked up now
    driver.settle()
    assert ring.used() == [(0, 0)]


def test_h22_a_storm_of_kicks_is_one_piece_of_work(driver: ScriptedDriver, nic: VirtioMmio, machine: Machine) -> None:
    driver.start(V1)
    for _ in range(10_000):
        driver.write(reg.VIRTIO_MMIO_QUEUE_NOTIFY, 1)
    turns = 0
    while machine.loop.turn():
        turns += 1
    assert nic.counters["kicks"] == 10_000
    assert turns <= 2


def test_h22_a_kick_of_a_disabled_queue_is_ignored(driver: ScriptedDriver, nic: VirtioMmio) -> None:
    driver.start(V1)
    driver.write(reg.VIRTIO_MMIO_QUEUE_SEL, 1)
    driver.write(reg.VIRTIO_MMIO_QUEUE_READY, 0)
    driver.kick(1)
    assert nic.counters["kick_ignored"] == 1


@pytest.mark.parametrize(("offset", "size"), [(0x70, 1), (0x70, 2), (0x72, 4), (0x50, 8)])
def test_registers_take_aligned_32_bit_accesses_only(
    driver: ScriptedDriver, nic: VirtioMmio, offset: int, size: int
) -> None:
    driver.write(offset, 3, size)
    assert driver.read(offset, size) == 0
    assert driver.status == 0
    assert nic.counters["bad_access_width"] == 2


def test_registers_in_the_wrong_direction_do_nothing(driver: ScriptedDriver, nic: VirtioMmio) -> None:
    driver.write(reg.VIRTIO_MMIO_MAGIC_VALUE, 1)
    driver.write(0xF8, 1)
    assert driver.read(reg.VIRTIO_MMIO_MAGIC_VALUE) == reg.MAGIC
    assert driver.read(reg.VIRTIO_MMIO_QUEUE_NOTIFY) == 0
    assert (nic.counters["bad_register_write"], nic.counters["bad_register_read"]) == (2, 1)


def test_shared_memory_regions_are_absent(driver: ScriptedDriver) -> None:
    driver.write(reg.VIRTIO_MMIO_SHM_SEL, 0)
    assert driver.read(reg.VIRTIO_MMIO_SHM_LEN_LOW) == driver.read(reg.VIRTIO_MMIO_SHM_LEN_HIGH) == 0xFFFFFFFF
    assert driver.read(reg.VIRTIO_MMIO_SHM_BASE_LOW) == driver.read(reg.VIRTIO_MMIO_SHM_BASE_HIGH) == 0xFFFFFFFF


def test_configuration_space(driver: ScriptedDriver, nic: VirtioMmio) -> None:
    mac = bytes(driver.read(reg.VIRTIO_MMIO_CONFIG + at, 1) for at in range(6))
    status, pairs, mtu = (driver.read(reg.VIRTIO_MMIO_CONFIG + at, 2) for at in (6, 8, 10))
    assert (mac, status, pairs, mtu) == (MAC, 1, 1, 1500)
    assert driver.read(reg.VIRTIO_MMIO_CONFIG + 0xE00, 4) == 0  # past its end
    driver.write(reg.VIRTIO_MMIO_CONFIG, 0, 1)
    assert driver.read(reg.VIRTIO_MMIO_CONFIG, 1) == MAC[0]
    assert nic.counters["config_write_ignored"] == 1


def test_a_configuration_change_has_a_new_generation_and_an_interrupt(
    driver: ScriptedDriver, nic: VirtioMmio
) -> None:
    driver.start(V1)
    before = driver.read(reg.VIRTIO_MMIO_CONFIG_GENERATION)
    nic.device.set_link(False)  # type: ignore[attr-defined]
    assert driver.read(reg.VIRTIO_MMIO_CONFIG + 6, 2) == 0
    assert driver.read(reg.VIRTIO_MMIO_CONFIG_GENERATION) == before + 1
    assert driver.read(reg.VIRTIO_MMIO_INTERRUPT_STATUS) == reg.VIRTIO_MMIO_INT_CONFIG
    assert nic.line.level is True
    driver.settle()
    assert (driver.interrupts, nic.line.level) == (1, False)


def test_acknowledging_one_cause_leaves_the_other_raised(driver: ScriptedDriver, nic: VirtioMmio) -> None:
    driver.start(V1)
    nic.notify_used(0)
    nic.notify_config()
    driver.write(reg.VIRTIO_MMIO_INTERRUPT_ACK, reg.VIRTIO_MMIO_INT_VRING)
    assert driver.read(reg.VIRTIO_MMIO_INTERRUPT_STATUS) == reg.VIRTIO_MMIO_INT_CONFIG
    assert nic.line.level is True
    driver.write(reg.VIRTIO_MMIO_INTERRUPT_ACK, reg.VIRTIO_MMIO_INT_CONFIG)
    assert nic.line.level is False


def test_a_stopped_queue_stays_stopped_until_the_reset(driver: ScriptedDriver) -> None:
    _, tx = driver.start(V1)
    tx.offer(99)
    driver.kick(1)
    driver.write(reg.VIRTIO_MMIO_QUEUE_SEL, 1)
    assert driver.read(reg.VIRTIO_MMIO_QUEUE_READY) == 0
    driver.write(reg.VIRTIO_MMIO_QUEUE_READY, 1)
    assert driver.read(reg.VIRTIO_MMIO_QUEUE_READY) == 0


def test_a_broken_rule_needs_a_reset_and_stops_that_queue_alone(driver: ScriptedDriver, nic: VirtioMmio) -> None:
    rx, tx = driver.start(V1)
    tx.offer(99)
    driver.kick(1)
    assert driver.status == 15 | 0x40
    assert "avail entry 99" in nic.failure
    assert driver.interrupts == 1  # the configuration change notification of §2.1.2
    driver.kick(1)
    assert nic.counters["kick_ignored"] == 1
    rx.chain(0, [(0x8000, 2048, 2)])
    rx.offer(0)
    assert nic.device.receive([(None, [bytes(64)])]) == 1  # type: ignore[attr-defined]
    assert rx.used() == [(0, 76)]
    driver.start(V1)
    assert driver.status == 15
    assert "avail entry 99" in nic.failure  # a reset by the driver does not hide what it did


def test_h25_nothing_is_touched_after_a_reset(driver: ScriptedDriver, nic: VirtioMmio, machine: Machine) -> None:
    rx, tx = driver.start(V1)
    rx.chain(0, [(0x8000, 2048, 2)])
    rx.offer(0)
    tx.chain(0, [(0x9000, 100, 0)])
    tx.offer(0)
    driver.write(reg.VIRTIO_MMIO_QUEUE_NOTIFY, 1)
    driver.write(reg.VIRTIO_MMIO_QUEUE_NOTIFY, 0)
    driver.status = 0  # with work asked for and buffers posted
    ram = machine.memory.span(0, machine.memory.size)
    ram[:] = b"\xa5" * machine.memory.size  # the driver frees its rings and uses the memory for something else
    driver.settle()
    assert nic.device.receive([(None, [bytes(64)])]) == 1  # type: ignore[attr-defined]
    driver.settle()
    assert bytes(ram) == b"\xa5" * machine.memory.size
    assert nic.device.counters["rx_dropped_no_driver"] == 1
    assert (nic.line.level, driver.interrupts) == (False, 0)


def test_h25_a_stopped_queue_is_not_touched(driver: ScriptedDriver, nic: VirtioMmio, machine: Machine) -> None:
    rx, _ = driver.start(V1)
    for head in range(4):
        rx.chain(head, [(0x8000 + 2048 * head, 2048, 2)])
    rx.offer(0, 1)
    nic.device.receive([(None, [bytes(64)])])  # type: ignore[attr-defined]
    assert rx.used() == [(0, 76)]
    driver.write(reg.VIRTIO_MMIO_QUEUE_SEL, 0)
    driver.write(reg.VIRTIO_MMIO_QUEUE_READY, 0)
    before = bytes(machine.memory.span(0, machine.memory.size))
    nic.device.receive([(None, [b"\xff" * 64])])  # type: ignore[attr-defined]
    driver.settle()
    assert bytes(machine.memory.span(0, machine.memory.size)) == before


def test_two_slots_share_nothing(machine: Machine) -> None:
    machine.add_virtio_net(Catcher(), mac=MAC[:5] + b"\x44")
    first, second = ScriptedDriver(machine, 0), ScriptedDriver(machine, 1)
    first.accept(V1)
    assert (first.status, second.status) == (11, 0)
    assert second.read(reg.VIRTIO_MMIO_CONFIG + 5, 1) == 0x44
    assert machine.full_cmdline == "virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6"


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("mtu", 67, "68 to 65535"),
        ("mtu", "x", "68 to 65535"),
        ("queue_size", 100, "power of two"),
        ("rx_queue_size", 0, "1 to 32768"),
        ("mrg_rxbuf", "maybe", "on or off"),
        ("colour", "red", "no option 'colour'"),
    ],
)
def test_bad_card_options_are_named(machine: Machine, option: str, value: int | str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        machine.add_virtio_net(Catcher(), options={option: value})
    assert len(machine.nics) == 1


def test_card_options_change_what_is_offered() -> None:
    machine = Machine(Loop(VirtualClock()), memory_size=1 << 20)
    nic = machine.add_virtio_net(
        Catcher(), options={"mrg_rxbuf": "off", "event_idx": False, "mtu": "off", "queue_size": "64"}
    )
    gone = features(net.VIRTIO_NET_F_MRG_RXBUF, 29, net.VIRTIO_NET_F_MTU)
    assert nic.device.features & gone == 0
    assert nic.device.queue_sizes == (64, 64)


def test_areas_of_a_ring_for_every_size_are_disjoint() -> None:
    machine = Machine(Loop(VirtualClock()), memory_size=4 << 20)
    machine.add_virtio_net(Catcher(), options={"queue_size": 32768})
    driver = ScriptedDriver(machine)
    for power in range(16):
        assert driver.accept(V1)
        ring = ScriptedRing(machine.memory, 0x10000, 1 << power)
        assert driver.configure(0, 1 << power, ring.desc, ring.driver, ring.device) is True


# -- packed queues, notification data, queue reset -------------------------------------------------------------------

PACKED = features(VIRTIO_F_RING_PACKED)
NOTIFICATION_DATA = features(VIRTIO_F_NOTIFICATION_DATA)
RING_RESET = features(VIRTIO_F_RING_RESET)


@pytest.fixture
def rich(machine: Machine, nic: VirtioMmio) -> ScriptedDriver:
    """A driver whose device offers all ring features."""
    nic.device.features |= PACKED | NOTIFICATION_DATA | RING_RESET
    return ScriptedDriver(machine)


def test_a_packed_queue_is_made_when_that_was_negotiated(rich: ScriptedDriver, nic: VirtioMmio) -> None:
    rich.start(V1 | PACKED)
    assert isinstance(nic.device.queues[0], PackedQueue)
    rich.start(V1)
    assert isinstance(nic.device.queues[0], SplitQueue)


@pytest.mark.parametrize(
    ("size", "driver_area", "ready"),
    [(0, 0x2000, False), (100, 0x2000, True), (8, 0x2002, False), (257, 0x2000, False)],
)
def test_h23_a_packed_queue_that_cannot_be_never_becomes_ready(
    rich: ScriptedDriver, size: int, driver_area: int, ready: bool
) -> None:
    """§2.8.10.1: any size up to the maximum, and event structures on multiples of four."""
    assert rich.accept(V1 | PACKED)
    assert rich.configure(0, size, 0x4000, driver_area, 0x3000) is ready


@pytest.mark.parametrize("mask", [0, PACKED])
def test_a_doorbell_may_say_how_far_the_ring_reaches(rich: ScriptedDriver, nic: VirtioMmio, mask: int) -> None:
    """§2.9, §4.2.3.3: the queue in the low half, the place and its wrap counter in the high half."""
    _, tx = rich.start(V1 | NOTIFICATION_DATA | mask)
    tx.chain(0, [(0x8000, 72, 0)])
    tx.offer(0)
    rich.kick(0x8001_0001)
    assert tx.used() == [(0, 0)]
    assert nic.queue_registers[1].announced == 0x8001


def test_h22_a_doorbell_with_data_that_nobody_negotiated_is_ignored(rich: ScriptedDriver, nic: VirtioMmio) -> None:
    rich.start(V1)
    rich.kick(0x8001_0001)
    assert nic.counters["kick_ignored"] == 1


@pytest.mark.parametrize("mask", [0, PACKED])
def test_h25_a_queue_is_reset_by_itself_and_made_anew(
    rich: ScriptedDriver, nic: VirtioMmio, machine: Machine, mask: int
) -> None:
    """§2.6.1: after the reset nothing of the queue is touched, its registers are as new, and it starts from zero."""
    rx, tx = rich.start(V1 | RING_RESET | mask)
    for head in range(4):
        rx.chain(head, [(0x8000 + 2048 * head, 2048, 2)])
    rx.offer(0, 1)
    nic.device.receive([(None, [bytes(64)])])  # type: ignore[attr-defined]
    assert rx.used() == [(0, 76)]
    rich.write(reg.VIRTIO_MMIO_QUEUE_SEL, 0)
    rich.write(reg.VIRTIO_MMIO_QUEUE_RESET, 1)
    assert rich.read(reg.VIRTIO_MMIO_QUEUE_RESET) == 0
    assert rich.read(reg.VIRTIO_MMIO_QUEUE_READY) == 0
    before = bytes(machine.memory.span(0, machine.memory.size))
    nic.device.receive([(None, [b"\xff" * 64])])  # type: ignore[attr-defined]
    rich.kick(0)
    assert bytes(machine.memory.span(0, machine.memory.size)) == before
    assert not rich.configure(0, 0, 0, 0, 0), "nothing of the old registers is left"

    again = rich.set_up(0, 0x20000, 4)
    again.chain(3, [(0x8000, 2048, 2)])
    again.offer(3)
    nic.device.receive([(None, [bytes(60)])])  # type: ignore[attr-defined]
    assert again.used() == [(3, 72)]
    tx.chain(0, [(0x8000, 72, 0)])
    tx.offer(0)
    rich.kick(1)
    assert tx.used() == [(0, 0)], "the other queue never noticed"
    assert nic.counters["queue_resets"] == 1


def test_without_ring_reset_there_is_no_such_register(rich: ScriptedDriver, nic: VirtioMmio) -> None:
    rich.start(V1)
    rich.write(reg.VIRTIO_MMIO_QUEUE_SEL, 0)
    rich.write(reg.VIRTIO_MMIO_QUEUE_RESET, 1)
    assert rich.read(reg.VIRTIO_MMIO_QUEUE_READY) == 1
    assert (nic.counters["bad_register_write"], nic.counters["queue_resets"]) == (1, 0)


def test_card_options_offer_the_ring_features() -> None:
    machine = Machine(Loop(VirtualClock()), memory_size=1 << 20)
    usual = machine.add_virtio_net(Catcher()).device.features
    whole = machine.add_virtio_net(
        Catcher(), options={"packed": "on", "in_order": True, "notification_data": "on", "queue_reset": "off"}
    ).device.features
    assert usual & RING_RESET
    assert whole ^ usual == PACKED | NOTIFICATION_DATA | RING_RESET | features(VIRTIO_F_IN_ORDER)
