"""virtio-mmio from the driver's side: the command line, finding devices, negotiation, the registry of drivers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from guest.drivers.loopback import Loopback
from guest.drivers.registry import DriverGrid, DriverNode, probe_devices, standard_grid
from guest.drivers.virtio_mmio import MmioSlot, MmioTransport, TransportError, identify, parse_slots
from guest.net.device import NetDevice
from guest.net.pbuf import PacketBuffer
from guest.services import Services
from hw.abi import virtio as abi
from hw.abi import virtio_mmio as reg
from hw.abi import virtio_net as net
from tests.fakes import FakeDevice
from tests.scripted_device import BASE, ScriptedMachine, frame_of, packet_of

# -- the command line --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "slot"),
    [
        ("4K@0xd0000000:5", MmioSlot(4096, 0xD0000000, 5)),
        ("0x200@0x1e000:42", MmioSlot(512, 0x1E000, 42)),
        ("1m@0x100000000:7:3", MmioSlot(1 << 20, 1 << 32, 7, 3)),
        ("1G@0:9:0", MmioSlot(1 << 30, 0, 9, 0)),
        ("01000@4096:1", MmioSlot(512, 4096, 1)),
    ],
)
def test_a_slot_on_the_command_line(value: str, slot: MmioSlot) -> None:
    assert parse_slots(f"console=ttyS0 virtio_mmio.device={value} -ipaddr 10.0.0.1") == ([slot], [])
    assert parse_slots(f"virtio-mmio.device={value}") == ([slot], []), "dashes are underscores"


@pytest.mark.parametrize(
    "value",
    ["", "=", "4K", "4K@", "4K@0xd0000000", "4K@0xd0000000:", "4K@0xd0000000:x", "4K@0xd0000000:0", "0@0xd0000000:5",
     "4K@0xd0000001:5", "4K@0xd0000000:5:", "4K@0xd0000000:5:1:2", "4T@0xd0000000:5", "-4K@0xd0000000:5",
     "0900@0xd0000000:5", "4K@0xfffffffffffffff0:5", "256@0xd0000000:5", "4K@0xd0000000:5,"],
)
def test_a_malformed_slot_is_skipped_with_one_line(value: str) -> None:
    slots, complaints = parse_slots(f"virtio_mmio.device={value} virtio_mmio.device=4K@0xd0001000:6")
    assert slots == [MmioSlot(4096, 0xD0001000, 6)], "the others are still found"
    assert len(complaints) == 1
    assert f"virtio_mmio.device={value}: ignored" in complaints[0]
    assert "\n" not in complaints[0]


def test_overlapping_slots_and_words_for_init() -> None:
    slots, complaints = parse_slots(
        "virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=512@0xd0000e00:6 -- virtio_mmio.device=4K@0xd0002000:7"
    )
    assert slots == [MmioSlot(4096, 0xD0000000, 5)]
    assert len(complaints) == 1


# -- finding devices ---------------------------------------------------------------------------------------------


def registers_read(machine: ScriptedMachine) -> list[int]:
    return [register for op, register, _ in machine.device.log if op == "read"]


@pytest.mark.parametrize(
    ("field", "value", "said", "read"),
    [
        ("magic", 0x12345678, 1, [0]),
        ("version", 1, 1, [0, 4]),
        ("version", 3, 1, [0, 4]),
        ("device_id", 0, 0, [0, 4, 8]),
        ("gone", True, 1, [0]),
    ],
)
def test_what_is_no_device_is_left_alone(field: str, value: int, said: int, read: list[int]) -> None:
    machine = ScriptedMachine()
    setattr(machine.device, field, value)
    lines: list[str] = []
    assert identify(machine.bus, MmioSlot(4096, BASE, 5), lines.append) is None
    assert len(lines) == said, "a placeholder is not reported (4.2.2.2)"
    assert registers_read(machine) == read, "no other register is touched (4.2.3.1.1)"
    assert not [op for op, _, _ in machine.device.log if op == "write"]


def test_features_that_are_not_offered_are_not_taken() -> None:
    machine = ScriptedMachine()
    machine.device.offered = abi.features(abi.VIRTIO_F_VERSION_1, 70, 3)
    transport = MmioTransport(machine.bus, MmioSlot(4096, BASE, 5))
    assert transport.negotiate(abi.features(5, 70), abi.features(32), {}) == abi.features(32, 70)
    assert machine.device.driver_features == abi.features(32, 70), "words past the second are written too"


def test_a_feature_without_what_it_depends_on_is_not_taken() -> None:
    machine = ScriptedMachine()
    chain = abi.features(net.VIRTIO_NET_F_GUEST_TSO4, net.VIRTIO_NET_F_GUEST_ECN)
    machine.device.offered |= chain
    transport = MmioTransport(machine.bus, MmioSlot(4096, BASE, 5))
    required = abi.features(abi.VIRTIO_F_VERSION_1)
    assert transport.negotiate(required | chain, required, net.FEATURE_REQUIRES) == required


def test_a_required_feature_that_is_not_offered() -> None:
    machine = ScriptedMachine()
    machine.device.offered &= ~abi.features(abi.VIRTIO_F_VERSION_1)
    with pytest.raises(TransportError, match="feature 32"):
        machine.driver()
    assert machine.device.status & abi.VIRTIO_CONFIG_S_FAILED


@pytest.mark.parametrize(
    ("queue", "limit", "reason"), [(0, 0, "no queue 0"), (1, 0, "no queue 1"), (1, 0xFFFFFFFF, "no queue 1")]
)
def test_a_queue_that_is_not_there(queue: int, limit: int, reason: str) -> None:
    machine = ScriptedMachine()
    machine.device.queue_max[queue] = limit
    with pytest.raises(TransportError, match=reason):
        machine.driver()
    assert machine.device.status & abi.VIRTIO_CONFIG_S_FAILED
    assert machine.dma.free_bytes == machine.dma.size


def test_a_device_that_refuses_a_queue() -> None:
    machine = ScriptedMachine()
    write = machine.device.mmio_write

    def refuse(offset: int, size: int, value: int) -> None:
        if not (offset == reg.VIRTIO_MMIO_QUEUE_READY and value == 1 and machine.device.selected["queue"] == 1):
            write(offset, size, value)

    machine.device.mmio_write = refuse  # type: ignore[method-assign]
    with pytest.raises(TransportError, match="refuses queue 1"):
        machine.driver()
    assert machine.device.queues == {}, "queue 0 was taken out of use before its memory went"
    assert machine.dma.free_bytes == machine.dma.size


def test_no_memory_for_the_buffers() -> None:
    machine = ScriptedMachine(memory_size=(1 << 20) + (1 << 19))
    with pytest.raises(TransportError, match="free pages in a row"):
        machine.driver()
    assert machine.dma.free_bytes == machine.dma.size


# -- the registry ------------------------------------------------------------------------------------------------


def node(name: str, probed: list[str], devices: Sequence[NetDevice] = ()) -> DriverNode:
    def probe(services: Services) -> int:
        probed.append(name)
        return 1 if devices else 0

    def transmit(device: NetDevice, packets: Sequence[PacketBuffer]) -> int:
        return device.transmit(packets)

    return DriverNode(name, (1,), probe, lambda services: list(devices), transmit)


def test_c10_the_driver_grid() -> None:
    grid = DriverGrid()
    for number in range(32):
        grid.register(node(f"driver {number}", []))
    assert len(grid) == 32
    with pytest.raises(ValueError, match="no room"):
        grid.register(node("driver 32", []))
    found = grid.find("driver 7")
    assert found is not None
    assert (found.name, found.ids) == ("driver 7", (1,))
    assert grid.find("driver 32") is None
    small = DriverGrid(limit=1)
    small.register(node("one", []))
    with pytest.raises(ValueError, match="registered already"):
        small.register(node("one", []))
    with pytest.raises(ValueError, match="no room"):
        small.register(node("two", []))


def test_c10_transmission_goes_through_the_node() -> None:
    machine = ScriptedMachine()
    grid = standard_grid()
    [device] = probe_devices(machine.services, grid)
    driver = grid.find("virtio-net")
    assert driver is not None
    assert driver.transmit(device, [packet_of(60)]) == 1
    assert machine.device.transmitted() == [frame_of(60)]


def test_c12_net_link_init_probes_in_registration_order() -> None:
    machine = ScriptedMachine()
    probed: list[str] = []
    first, second = FakeDevice(), FakeDevice()
    grid = DriverGrid()
    for entry in (node("rtl8139", probed), node("e1000", probed, [second]), node("ne2000", probed, [first])):
        grid.register(entry)
    assert grid.net_link_init(machine.services) == {"rtl8139": 0, "e1000": 1, "ne2000": 1}
    assert probed == ["rtl8139", "e1000", "ne2000"]
    assert [(device.name, device) for device in grid.links] == [("eth0", second), ("eth1", first)]


def test_c13_net_link_primary() -> None:
    machine = ScriptedMachine()
    grid = standard_grid()
    assert grid.net_link_primary() is None
    lo = Loopback(machine.services)
    grid.add_link(lo)
    assert grid.net_link_primary() is lo
    [eth0] = probe_devices(machine.services, grid)
    assert grid.net_link_primary() is eth0


@pytest.mark.parametrize("count", [0, 1, 2, 16])
def test_devices_are_found_in_the_order_of_the_command_line(count: int) -> None:
    machine = ScriptedMachine(devices=count, memory_size=64 << 20)
    for number, device in enumerate(machine.devices):
        device.set_config(mac=bytes([0x52, 0x54, 0, 0, 0, number]))
    devices = probe_devices(machine.services, standard_grid())
    assert [device.name for device in devices] == [f"eth{number}" for number in range(count)]
    assert [device.mac[5] for device in devices] == list(range(count))


def test_probing_stops_at_the_first_device_that_fails() -> None:
    machine = ScriptedMachine(devices=4)
    machine.devices[1].device_id = 2  # a disk: not ours, and no gap
    machine.devices[2].accepts_features = False
    devices = probe_devices(machine.services, standard_grid())
    assert len(devices) == 1
    assert machine.devices[3].status == 0, "the one behind the gap is left alone"
    assert len(machine.messages) == 1
    assert "does not accept features" in machine.messages[0]


def test_malformed_words_are_logged_once() -> None:
    machine = ScriptedMachine(words=f"virtio_mmio.device=nonsense virtio_mmio.device=4K@{BASE:#x}:5")
    assert len(probe_devices(machine.services, standard_grid())) == 1
    assert len(machine.messages) == 1
