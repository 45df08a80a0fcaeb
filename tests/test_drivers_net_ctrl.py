"""The driver's control queue against a device that is played by hand: commands, answers, and devices that give none."""

from __future__ import annotations

import struct

import pytest

from guest.drivers.net_ctrl import ANSWER_WITHIN
from guest.drivers.net_settings import parse_statistics
from guest.drivers.virtio_mmio import TransportError
from guest.drivers.virtio_net import VirtioNetDriver
from guest.net.pbuf import PacketBuffer
from hw.abi import virtio as abi
from hw.abi import virtio_net as net
from hw.abi import virtio_net_ctrl as ctrl
from tests.scripted_device import MAC, OFFERED, RINGS, RX, TX, ScriptedMachine
from tests.test_hw_net_ctrl import frame

CONTROLLED = abi.features(
    net.VIRTIO_NET_F_CTRL_VQ, net.VIRTIO_NET_F_CTRL_RX, net.VIRTIO_NET_F_CTRL_VLAN, net.VIRTIO_NET_F_CTRL_MAC_ADDR,
    net.VIRTIO_NET_F_GUEST_ANNOUNCE, net.VIRTIO_NET_F_NOTF_COAL, net.VIRTIO_NET_F_VQ_NOTF_COAL,
    net.VIRTIO_NET_F_DEVICE_STATS, net.VIRTIO_NET_F_SPEED_DUPLEX,
)  # fmt: skip
MQ = abi.features(net.VIRTIO_NET_F_MQ)
RSS = abi.features(net.VIRTIO_NET_F_RSS)
OK, ERR = 0, 1
Command = tuple[int, int, bytes]
PROMISC: Command = (ctrl.VIRTIO_NET_CTRL_RX, ctrl.VIRTIO_NET_CTRL_RX_PROMISC, b"\x00")
ALLMULTI: Command = (ctrl.VIRTIO_NET_CTRL_RX, ctrl.VIRTIO_NET_CTRL_RX_ALLMULTI, b"\x00")
NO_ADDRESSES: Command = (ctrl.VIRTIO_NET_CTRL_MAC, ctrl.VIRTIO_NET_CTRL_MAC_TABLE_SET, bytes(8))


class Machine(ScriptedMachine):
    """A machine whose device has a control queue.

    Attributes:
        control: its number.
    """

    def __init__(self, offered: int = CONTROLLED, pairs: int = 1, ring: int = 0) -> None:
        super().__init__(offered=OFFERED | offered | ring)
        steered = offered & (MQ | RSS)
        self.control = 2 * pairs if steered else 2
        self.device.queue_max = dict.fromkeys(range(self.control), 64) | {self.control: 8}
        layout = net.VIRTIO_NET_CONFIG
        struct.pack_into("<H", self.device.config, layout.offset("max_virtqueue_pairs"), pairs)
        struct.pack_into("<IB", self.device.config, layout.offset("speed"), 10_000, net.DUPLEX_FULL)
        struct.pack_into("<BHI", self.device.config, layout.offset("rss_max_key_size"), 40, 128, 0x3F)

    def commands(self, *answers: int | bytes, answer: bool = True) -> list[Command]:
        """What the driver asks for, answered OK, or as `answers` say, the first first."""
        found: list[Command] = []
        said = list(answers)
        while self.control in self.device.queues and self.device.queues[self.control].waiting():
            ring = self.device.queues[self.control]
            head = ring.take()
            elements = ring.elements(head)
            content = b"".join(bytes(self.ram.span(addr, length)) for addr, length, theirs in elements if not theirs)
            found.append((content[0], content[1], content[2:]))
            ((addr, room),) = [(addr, length) for addr, length, writable in elements if writable]
            reply = said.pop(0) if said else OK
            raw = bytes((reply,)) if isinstance(reply, int) else reply[:room]
            if answer:
                self.ram.span(addr, len(raw))[:] = raw
                ring.put_used(head, len(raw))
                self.device.interrupt()
                self.settle()
        return found


@pytest.fixture(params=RINGS)
def machine(request: pytest.FixtureRequest) -> Machine:
    return Machine(ring=RINGS[request.param])




# -- bringing up ---------------------------------------------------------------------------------------------------


def test_the_driver_says_what_it_wants_to_receive_before_anything_else(machine: Machine) -> None:
    driver, _ = machine.driver()
    assert machine.commands() == [PROMISC, ALLMULTI, NO_ADDRESSES]
    assert driver.settings.can.speed == 10_000
    assert driver.settings.can.duplex == "full"
    assert driver.counters["ctrl_commands"] == 3


def test_a_device_without_the_queue_is_driven_without_it() -> None:
    machine = ScriptedMachine()
    driver, _ = machine.driver()
    said: list[str] = []
    driver.settings.set_pairs(2, said.append)
    driver.settings.set_vlan(5, True, said.append)
    driver.settings.set_coalescing("rx", 1, 1, said.append)
    driver.settings.set_queue_coalescing(0, 1, 1, said.append)
    driver.settings.set_offloads(0, said.append)
    assert said == [
        "2 queue pairs are not there; there are 1", "the device does not filter by VLAN",
        "the device cannot put interrupts off", "the device has one limit for all queues",
        "the device cannot switch receive offloads",
    ]  # fmt: skip


def test_what_needs_the_control_queue_is_not_taken_without_it() -> None:
    machine = Machine(CONTROLLED & ~abi.features(net.VIRTIO_NET_F_CTRL_VQ) | MQ | RSS)
    driver, _ = machine.driver()
    assert not driver.features & (MQ | RSS | abi.features(net.VIRTIO_NET_F_DEVICE_STATS, net.VIRTIO_NET_F_CTRL_RX))


def test_a_mac_that_is_not_the_devices_is_told_to_it() -> None:
    machine = Machine()
    machine.device.set_config(mac=b"\x01" + bytes(5))
    driver, _ = machine.driver()
    first = machine.commands()[0]
    assert first == (ctrl.VIRTIO_NET_CTRL_MAC, ctrl.VIRTIO_NET_CTRL_MAC_ADDR_SET, driver.mac)


@pytest.mark.parametrize("pairs", [0, 0x8001, 0xFFFF])
def test_h24_a_number_of_pairs_that_cannot_be_is_not_believed(pairs: int) -> None:
    machine = Machine(CONTROLLED | MQ)
    struct.pack_into("<H", machine.device.config, net.VIRTIO_NET_CONFIG.offset("max_virtqueue_pairs"), pairs)
    with pytest.raises(TransportError, match=f"{pairs} queue pairs"):
        machine.driver()


def test_pairs_that_the_device_says_and_does_not_have_are_an_error() -> None:
    machine = Machine(CONTROLLED | MQ, pairs=4)
    del machine.device.queue_max[6]
    free = machine.dma.free_bytes
    with pytest.raises(TransportError, match="no queue 6"):
        machine.driver()
    assert machine.dma.free_bytes == free


def test_the_control_queue_is_behind_all_pairs_also_those_that_are_not_used() -> None:
    machine = Machine(CONTROLLED | MQ, pairs=20)
    driver, _ = machine.driver()
    assert len(driver.pairs) == 8
    assert sorted(machine.device.queues) == [*range(16), 40]
    assert machine.commands()[-1] == (
        ctrl.VIRTIO_NET_CTRL_MQ, ctrl.VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, b"\x08\x00",
    )  # fmt: skip


# -- answers -------------------------------------------------------------------------------------------------------


def quiet(machine: Machine) -> VirtioNetDriver:
    """A driver that is up, its first commands answered."""
    driver, _ = machine.driver()
    machine.commands()
    return driver


def test_a_refusal_is_told_and_changes_nothing(machine: Machine) -> None:
    driver = quiet(machine)
    said: list[str] = []
    driver.settings.set_coalescing("rx", 4, 50, said.append)
    assert machine.commands(ERR) == [
        (ctrl.VIRTIO_NET_CTRL_NOTF_COAL, ctrl.VIRTIO_NET_CTRL_NOTF_COAL_RX_SET, ctrl.COAL.pack(4, 50))
    ]
    assert said == ["the device refuses these limits"]
    assert driver.settings.coalescing == {}
    assert driver.counters["ctrl_refused"] == 1


@pytest.mark.parametrize("answer", [b"", b"\x02", b"\xff"])
def test_an_answer_that_is_none_counts_as_refused(machine: Machine, answer: bytes) -> None:
    driver = quiet(machine)
    said: list[str] = []
    driver.settings.set_vlan(7, True, said.append)
    machine.commands(answer)
    assert said == ["the device refuses VLAN 7"]


def test_more_commands_than_buffers_wait_and_go_out_in_order(machine: Machine) -> None:
    driver = quiet(machine)
    for vlan in range(1, 12):
        driver.settings.set_vlan(vlan, True)
    ring = machine.device.queues[machine.control]
    assert ring.waiting() == 4
    sent = machine.commands()
    assert [struct.unpack("<H", data)[0] for _, _, data in sent] == list(range(1, 12))
    assert driver.settings.vlans == set(range(1, 12))


def test_a_device_that_does_not_answer_is_reset_and_everybody_told(machine: Machine) -> None:
    driver = quiet(machine)
    said: list[str] = []
    driver.settings.set_vlan(7, True, said.append)
    machine.advance(ANSWER_WITHIN - 1)
    assert (said, driver.failed) == ([], None)
    machine.advance(1)
    assert said == ["the device refuses VLAN 7"]
    assert "a control command was not answered in 5 s" in machine.messages[-1]
    assert driver.counters["ctrl_lost"] == 1
    machine.advance(20_000)
    assert driver.failed is None, "it is up again"


def test_an_answer_without_an_interrupt_is_found_in_time(machine: Machine) -> None:
    driver = quiet(machine)
    said: list[str] = []
    driver.settings.set_vlan(7, True, said.append)
    ring = machine.device.queues[machine.control]
    head = ring.take()
    (addr,) = [addr for addr, _, writable in ring.elements(head) if writable]
    machine.ram.span(addr, 1)[:] = b"\x00"
    ring.put_used(head, 1)
    machine.advance(ANSWER_WITHIN)
    assert said == [""]
    assert driver.failed is None


def test_a_used_length_beyond_the_answers_room_breaks_the_ring(machine: Machine) -> None:
    driver = quiet(machine)
    driver.settings.set_vlan(7, True)
    ring = machine.device.queues[machine.control]
    ring.put_used(ring.take(), 2)
    machine.device.interrupt()
    machine.settle()
    assert driver.counters["ring_broken"] == 1
    assert f"queue {machine.control}" in str(driver.failed)


def test_what_was_set_is_set_again_after_a_reset(machine: Machine) -> None:
    driver = quiet(machine)
    group = bytes.fromhex("333300000001")
    driver.receive_mode(True, [group])
    driver.settings.set_vlan(5, True)
    driver.settings.set_coalescing("tx", 2, 20)
    machine.commands()
    machine.device.status |= abi.VIRTIO_CONFIG_S_NEEDS_RESET
    machine.device.config_interrupt()
    machine.settle()
    machine.advance(20_000)
    assert machine.device.resets == 3, "one to stop it, one to begin anew"
    assert machine.commands() == [
        (ctrl.VIRTIO_NET_CTRL_RX, ctrl.VIRTIO_NET_CTRL_RX_PROMISC, b"\x01"),
        ALLMULTI,
        (ctrl.VIRTIO_NET_CTRL_MAC, ctrl.VIRTIO_NET_CTRL_MAC_TABLE_SET, struct.pack("<II", 0, 1) + group),
        (ctrl.VIRTIO_NET_CTRL_VLAN, ctrl.VIRTIO_NET_CTRL_VLAN_ADD, b"\x05\x00"),
        (ctrl.VIRTIO_NET_CTRL_NOTF_COAL, ctrl.VIRTIO_NET_CTRL_NOTF_COAL_VQ_SET, ctrl.COAL_VQ.pack(1, 0, 2, 20)),
    ]


def test_too_many_groups_for_a_command_let_all_in(machine: Machine) -> None:
    driver = quiet(machine)
    driver.receive_mode(False, [b"\x01\x00\x5e\x00" + struct.pack(">H", at) for at in range(200)])
    assert machine.commands()[1:] == [(*ALLMULTI[:2], b"\x01"), NO_ADDRESSES]
    assert driver.failed is None


def test_closing_gives_all_memory_back() -> None:
    machine = Machine(CONTROLLED | MQ, pairs=4)
    free = machine.dma.free_bytes
    driver, _ = machine.driver()
    driver.close()
    assert machine.dma.free_bytes == free
    assert machine.dma.mapped_bytes == 0


# -- queues --------------------------------------------------------------------------------------------------------


def packets(flows: int) -> list[PacketBuffer]:
    return [PacketBuffer.from_bytes(frame(ports=(1000 + at, 80))) for at in range(flows)]


def sent_on(machine: Machine) -> dict[int, int]:
    """How many frames are on each transmit queue; they are taken."""
    found = {}
    for index, ring in machine.device.queues.items():
        if index % 2 and index != machine.control:
            while ring.waiting():
                ring.put_used(ring.take(), 0)
                found[index] = found.get(index, 0) + 1
    return found


def test_until_the_device_agrees_only_the_first_queue_is_sent_on() -> None:
    machine = Machine(CONTROLLED | MQ, pairs=4)
    driver, _ = machine.driver()
    driver.transmit(packets(16))
    assert sent_on(machine) == {TX: 16}
    machine.commands()
    driver.transmit(packets(16))
    assert sorted(sent_on(machine)) == [1, 3, 5, 7]
    assert driver.settings.pairs == 4


def test_fewer_queues_are_left_before_the_device_is_told() -> None:
    machine = Machine(CONTROLLED | MQ, pairs=4)
    driver = quiet(machine)
    said: list[str] = []
    driver.settings.set_pairs(2, said.append)
    driver.transmit(packets(16))
    assert sorted(sent_on(machine)) == [1, 3]
    machine.commands(ERR)
    assert said == ["the device refuses 2 queue pairs"]
    assert driver.settings.pairs == 4
    driver.transmit(packets(16))
    assert sorted(sent_on(machine)) == [1, 3, 5, 7]


def test_packets_of_one_flow_stay_on_one_queue_in_order() -> None:
    machine = Machine(CONTROLLED | MQ, pairs=4)
    driver = quiet(machine)
    for _ in range(5):
        driver.transmit(packets(1))
    assert list(sent_on(machine).values()) == [5]


def test_frames_of_every_receive_queue_are_delivered() -> None:
    machine = Machine(CONTROLLED | MQ, pairs=3)
    driver, inbox = machine.driver()
    machine.commands()
    for pair in range(3):
        ring = machine.device.queues[2 * pair]
        assert ring.waiting() == 64
        head = ring.take()
        ((addr, _, _),) = ring.elements(head)
        content = bytes(10) + b"\x01\x00" + MAC + bytes((pair,)) * 60
        machine.ram.span(addr, len(content))[:] = content
        ring.put_used(head, len(content))
    machine.device.interrupt()
    machine.settle()
    assert [packet.tobytes()[6] for packet in inbox] == [0, 1, 2]
    assert driver.counters["rx_packets"] == 3


def test_rss_tells_the_device_a_table_and_a_key() -> None:
    machine = Machine(CONTROLLED | MQ | RSS, pairs=3)
    driver, _ = machine.driver()
    kind, command, data = machine.commands()[-1]
    assert (kind, command) == (ctrl.VIRTIO_NET_CTRL_MQ, ctrl.VIRTIO_NET_CTRL_MQ_RSS_CONFIG)
    types, mask, other = ctrl.RSS_HEAD.unpack_from(data)
    assert (types, mask, other) == (0x3F, 127, 0)
    table = struct.unpack_from("<128H", data, ctrl.RSS_HEAD.size)
    assert table == tuple(at % 3 for at in range(128)) == driver.settings.table
    transmit, length = ctrl.RSS_TAIL.unpack_from(data, ctrl.RSS_HEAD.size + 256)
    assert (transmit, length, data[-40:]) == (3, 40, driver.settings.key)
    assert driver.settings.pairs == 3


def test_a_smaller_table_and_key_are_respected() -> None:
    machine = Machine(CONTROLLED | MQ | RSS, pairs=2)
    struct.pack_into("<BHI", machine.device.config, net.VIRTIO_NET_CONFIG.offset("rss_max_key_size"), 16, 100, 0x1FF)
    driver, _ = machine.driver()
    _, _, data = machine.commands()[-1]
    assert ctrl.RSS_HEAD.unpack_from(data) == (0x1FF, 63, 0)
    assert len(driver.settings.key) == 16


# -- what the device changes ---------------------------------------------------------------------------------------


def test_a_wish_to_be_announced_is_passed_on_and_acknowledged(machine: Machine) -> None:
    driver = quiet(machine)
    heard: list[str] = []
    driver.announce = lambda: heard.append("announce")
    machine.device.set_config(status=net.VIRTIO_NET_S_LINK_UP | net.VIRTIO_NET_S_ANNOUNCE)
    machine.device.config_interrupt()
    machine.settle()
    assert heard == ["announce"]
    assert machine.commands() == [(ctrl.VIRTIO_NET_CTRL_ANNOUNCE, ctrl.VIRTIO_NET_CTRL_ANNOUNCE_ACK, b"")]


def test_link_speed_and_mtu_are_read_again_with_every_configuration_interrupt(machine: Machine) -> None:
    driver = quiet(machine)
    changes: list[tuple[int, int]] = []
    driver.link_changed = lambda: changes.append((driver.flags & 0x40, driver.mtu))
    struct.pack_into("<IB", machine.device.config, net.VIRTIO_NET_CONFIG.offset("speed"), 100, net.DUPLEX_HALF)
    machine.device.set_config(status=0)
    machine.device.config_interrupt()
    machine.settle()
    machine.device.set_config(status=net.VIRTIO_NET_S_LINK_UP, mtu=1400)
    machine.device.config_interrupt()
    machine.settle()
    assert changes == [(0, 1500), (0, 1400), (0x40, 1400)]
    assert (driver.settings.can.speed, driver.settings.can.duplex) == (100, "half")
    assert driver.transmit([PacketBuffer.from_bytes(frame().ljust(1415, b"\0"))]) == 0
    assert driver.counters["tx_dropped_too_long"] == 1


def test_a_larger_mtu_is_not_believed(machine: Machine) -> None:
    driver = quiet(machine)
    machine.device.set_config(mtu=9000)
    machine.device.config_interrupt()
    machine.settle()
    assert driver.mtu == 1500
    assert driver.counters["mtu_refused"] == 1


@pytest.mark.parametrize(("speed", "duplex"), [(0x80000000, 2), (0xFFFFFFFF, 0xFF)])
def test_a_speed_that_cannot_be_is_unknown(speed: int, duplex: int) -> None:
    machine = Machine()
    struct.pack_into("<IB", machine.device.config, net.VIRTIO_NET_CONFIG.offset("speed"), speed, duplex)
    driver, _ = machine.driver()
    assert (driver.settings.can.speed, driver.settings.can.duplex) == (None, "unknown")


# -- statistics ----------------------------------------------------------------------------------------------------


def reply(kind: int, index: int, values: tuple[int, ...], size: int | None = None) -> bytes:
    body = struct.pack(f"<{len(values)}Q", *values)
    return ctrl.STATS_REPLY.pack(kind, index, 0, 8 + len(body) if size is None else size) + body


def test_only_statistics_that_the_device_has_are_asked_for(machine: Machine) -> None:
    driver = quiet(machine)
    answers: list[object] = []
    driver.settings.ask_statistics(answers.append)
    supported = struct.pack("<Q", 0b11 | 1 << 16 | 1 << 32)
    asked = machine.commands(b"\x00" + supported, b"\x00" + reply(0, RX, (1, 2, 3, 4, 5, 6)))
    assert [command for _, command, _ in asked] == [ctrl.VIRTIO_NET_CTRL_STATS_QUERY, ctrl.VIRTIO_NET_CTRL_STATS_GET]
    assert [(index, types) for index, types in ctrl.STATS_WANTED.iter_unpack(asked[1][2])] == [
        (0, 1), (1, 1 << 16), (2, 1 << 32),
    ]  # fmt: skip
    names = ctrl.STATS_FIELDS[0]
    assert answers == [{RX: dict(zip(names, range(1, 7), strict=True))}]


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00" * 7,
        reply(0, 0, (1,) * 6, size=0),
        reply(0, 0, (1,) * 6, size=7),
        reply(0, 0, (1,) * 6, size=0xFFFF),
        reply(0, 0, (1,) * 5),
        reply(99, 0, ())[:-1],
    ],
)
def test_statistics_that_are_not_whole_are_left_out(answer: bytes) -> None:
    assert parse_statistics(answer) == {}


def test_an_unknown_kind_of_statistics_is_passed_over() -> None:
    known = reply(32, 2, (5, 4))
    assert parse_statistics(reply(99, 1, (1, 2, 3)) + known) == {1: {}, 2: {"command_num": 5, "ok_num": 4}}
