"""The control queue and several pairs of queues: commands of a scripted driver, and what the card then does."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.abi import virtio_mmio as reg
from hw.abi import virtio_net as net
from hw.abi import virtio_net_ctrl as ctrl
from hw.abi.virtio import features
from hw.clock import VirtualClock
from hw.loop import Loop
from hw.machine import Machine
from hw.virtio.net import CONTROLLED, STEERED, VirtioNet
from hw.virtio.steering import HASH_TYPES, KEY_MAX, Toeplitz, flow_of
from tests.scripted_device import RINGS
from tests.scripted_driver import WRITE, ScriptedDriver
from tests.test_hw_mmio import MAC, V1, Catcher

COMMAND, ANSWER = 0x70000, 0x78000
OK, ERR = b"\x00", b"\x01"
OTHER = bytes.fromhex("525400aaaaaa")
GROUP = bytes.fromhex("333300000001")
BROADCAST = b"\xff" * 6
OFFLOADS = features(net.VIRTIO_NET_F_GUEST_CSUM, net.VIRTIO_NET_F_GUEST_TSO4)
# A key and two packets whose hashes are known: from the verification suite that Microsoft publishes for RSS.
KEY = bytes.fromhex("6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa")


def frame(
    to: bytes = MAC,
    source: str = "66.9.149.187",
    target: str = "161.142.100.80",
    ports: tuple[int, int] = (2794, 1766),
    protocol: int = 6,
    tag: int | None = None,
) -> bytes:
    """An Ethernet frame with an IPv4 packet; ports where the protocol has some."""
    addresses = b"".join(bytes(map(int, ip.split("."))) for ip in (source, target))
    packet = struct.pack(">BBHHHBBH", 0x45, 0, 40, 0, 0, 64, protocol, 0) + addresses + struct.pack(">HH", *ports)
    vlan = b"" if tag is None else b"\x81\x00" + tag.to_bytes(2, "big")
    return to + bytes(6) + vlan + b"\x08\x00" + packet.ljust(46, b"\0")


class Bench:
    """A card with a control queue under a scripted driver.

    Attributes:
        rings: features of the rings that each test runs over.
        made: the machines of a test, whose loops are closed after it.
    """

    rings = 0
    made: ClassVar[list[Machine]] = []

    def __init__(self, accept: int = CONTROLLED, pairs: int = 1, used: int | None = None, **options: str | int) -> None:
        self.machine = Machine(Loop(VirtualClock()), memory_size=1 << 21)
        self.made.append(self.machine)
        self.wire = Catcher()
        asked = {"ctrl_vq": "on", "queues": pairs, "hash": "on", "rss": "on", **options}
        self.slot = self.machine.add_virtio_net(self.wire, mac=MAC, options=asked)
        device = self.slot.device
        assert isinstance(device, VirtioNet)
        self.device = device
        self.device.features |= self.rings | OFFLOADS
        self.driver = ScriptedDriver(self.machine)
        if not self.driver.accept(V1 | self.rings | accept):
            raise AssertionError(self.slot.refusal)
        steered = accept & STEERED
        self.control_index = 2 * pairs if steered else 2
        self.control = self.driver.set_up(self.control_index, 0x60000, 8)
        for index in range(2 * (used or pairs if steered else 1)):
            self.driver.set_up(index, 0x10000 + 0x4000 * index, 8)
        self.driver.status = 15
        self.driver.settle()

    def memory(self, addr: int, length: int) -> memoryview:
        return self.machine.memory.span(addr, length)

    def command(self, kind: int, command: int, data: bytes = b"", room: int = 1) -> bytes:
        """Send one command; the answer, as far as the device says that it wrote one."""
        return self.raw(bytes((kind, command)) + data, room)

    def raw(self, content: bytes, room: int = 1) -> bytes:
        self.memory(COMMAND, len(content))[:] = content
        self.memory(ANSWER, max(1, room))[:] = b"\xa5" * max(1, room)
        parts = [(COMMAND, len(content), 0)] if content else []
        if room:
            parts.append((ANSWER, room, WRITE))
        self.control.chain(0, parts)
        self.control.offer(0)
        self.driver.kick(self.control_index)
        used = self.control.used()
        if not used:
            return b""
        return bytes(self.memory(ANSWER, used[0][1]))

    def post(self, pair: int, count: int = 4) -> None:
        """Post receive buffers."""
        ring = self.driver.rings[2 * pair]
        base = 0x80000 + 0x8000 * pair
        first = ring.idx
        for at in range(count):
            head = (first + at) % ring.size
            ring.chain(head, [(base + 0x800 * head, 2048, WRITE)])
        ring.offer(*((first + at) % ring.size for at in range(count)))
        self.driver.kick(2 * pair)

    def arrives(self, *frames: bytes) -> int:
        """Frames come in from the wire; how many the card took."""
        taken = self.device.receive([(None, [content]) for content in frames])
        self.driver.settle()
        return taken

    def received(self, pair: int = 0) -> list[bytes]:
        """Header and frame of what was received on `pair` since the last time."""
        base = 0x80000 + 0x8000 * pair
        return [bytes(self.memory(base + 0x800 * head, length)) for head, length in self.driver.rings[2 * pair].used()]

    def where(self, *frames: bytes) -> list[int]:
        """For each frame the pair on which it is received."""
        found = []
        for content in frames:
            self.arrives(content)
            found += [pair for pair in range(self.device.pairs) if self.received(pair)]
        return found

    def sends(self, pair: int, content: bytes) -> None:
        ring = self.driver.rings[2 * pair + 1]
        content = bytes(net.header_length(self.device.negotiated)) + content
        self.memory(COMMAND, len(content))[:] = content
        ring.chain(0, [(COMMAND, len(content), 0)])
        ring.offer(0)
        self.driver.kick(2 * pair + 1)
        ring.used()

    def pairs(self, count: int) -> bytes:
        return self.command(ctrl.VIRTIO_NET_CTRL_MQ, ctrl.VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, struct.pack("<H", count))


@pytest.fixture(params=["split", "packed"], autouse=True)
def _rings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Bench, "rings", RINGS[request.param])
    monkeypatch.setattr(Bench, "made", [])
    yield
    for machine in Bench.made:
        machine.loop.close()


# -- commands ------------------------------------------------------------------------------------------------------


def test_a_card_has_a_control_queue_only_where_it_is_asked_for() -> None:
    machine = Machine(Loop(VirtualClock()), memory_size=1 << 20)
    plain = machine.add_virtio_net(Catcher(), mac=MAC).device
    steered = machine.add_virtio_net(Catcher(), mac=MAC, options={"queues": 4}).device
    assert len(plain.queue_sizes) == 2
    assert not plain.features & CONTROLLED
    assert len(steered.queue_sizes) == 9
    assert steered.features >> net.VIRTIO_NET_F_MQ & 1
    assert steered.config()[8:10] == b"\x04\x00"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"queues": 2, "ctrl_vq": "off"}, "several queues need the control queue"),
        ({"queues": 9}, "a number from 1 to 8"),
        ({"duplex": "both"}, "duplex=both: say half or full or unknown"),
        ({"speed": "fast"}, "speed=fast"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, str | int], says: str) -> None:
    machine = Machine(Loop(VirtualClock()), memory_size=1 << 20)
    with pytest.raises(ValueError, match=says):
        machine.add_virtio_net(Catcher(), options=options)


def test_standby_is_not_offered() -> None:
    assert not Bench().device.features >> net.VIRTIO_NET_F_STANDBY & 1


def test_without_mq_the_control_queue_is_number_2_whatever_pairs_there_are() -> None:
    bench = Bench(CONTROLLED, pairs=4)
    assert bench.control_index == 2
    assert bench.command(ctrl.VIRTIO_NET_CTRL_RX, ctrl.VIRTIO_NET_CTRL_RX_PROMISC, b"\x01") == OK


@pytest.mark.parametrize("content", ["", "00", "0000", "00000101", "000002", "0900", "000601"])
def test_h17_a_command_that_cannot_be_is_refused(content: str) -> None:
    bench = Bench()
    assert bench.raw(bytes.fromhex(content)) == ERR
    assert bench.device.counters["ctrl_refused"] == 1
    assert bench.driver.status == 15


def test_h17_a_mac_table_whose_count_overflows_is_refused_and_the_old_one_kept() -> None:
    bench = Bench()
    table = struct.pack("<I", 1) + OTHER + struct.pack("<I", 1) + GROUP
    assert bench.command(ctrl.VIRTIO_NET_CTRL_MAC, ctrl.VIRTIO_NET_CTRL_MAC_TABLE_SET, table) == OK
    for bad in (
        struct.pack("<I", 0x2AAAAAAB) + OTHER,  # times six is two, in 32 bits
        struct.pack("<I", 0xFFFFFFFF),
        struct.pack("<I", 2) + OTHER + struct.pack("<I", 0),
        struct.pack("<I", 0),
        b"\x00\x00",
        table + b"\x00",
        struct.pack("<I", 1) + GROUP + struct.pack("<I", 0),
        struct.pack("<I", 0) + struct.pack("<I", 1) + OTHER,
    ):
        assert bench.command(ctrl.VIRTIO_NET_CTRL_MAC, ctrl.VIRTIO_NET_CTRL_MAC_TABLE_SET, bad) == ERR
    assert bench.device.filter.unicast == {OTHER}
    assert bench.device.filter.multicast == {GROUP}


@pytest.mark.parametrize("count", [0, 5, 0x8000, 0xFFFF])
def test_h18_as_many_pairs_as_there_are_not_is_refused(count: int) -> None:
    bench = Bench(CONTROLLED | STEERED, pairs=4)
    assert bench.pairs(2) == OK
    assert bench.pairs(count) == ERR
    assert bench.device.steering.pairs == 2


def rss(types: int = HASH_TYPES, table: tuple[int, ...] = (0, 1), other: int = 0, transmit: int = 2, key: bytes = KEY,
        mask: int | None = None) -> bytes:  # fmt: skip
    head = ctrl.RSS_HEAD.pack(types, len(table) - 1 if mask is None else mask, other)
    return head + struct.pack(f"<{len(table)}H", *table) + ctrl.RSS_TAIL.pack(transmit, len(key)) + key


@pytest.mark.parametrize(
    "bad",
    [
        rss(table=(0, 1, 0)),
        rss(table=(0,) * 256),
        rss(table=(0, 1), mask=3),
        rss(table=(0, 1), mask=0xFFFF),
        rss(table=(0, 2)),
        rss(table=(0, 0x8000)),
        rss(other=2),
        rss(transmit=0),
        rss(transmit=3),
        rss(key=bytes(41)),
        rss()[:-1],
        rss() + b"\x00",
        rss(types=1 << 6),
        b"",
    ],
)
def test_h18_a_table_that_cannot_be_is_refused(bad: bytes) -> None:
    bench = Bench(CONTROLLED | STEERED, pairs=2)
    assert bench.command(ctrl.VIRTIO_NET_CTRL_MQ, ctrl.VIRTIO_NET_CTRL_MQ_RSS_CONFIG, rss()) == OK
    before = bench.device.steering.rss
    assert bench.command(ctrl.VIRTIO_NET_CTRL_MQ, ctrl.VIRTIO_NET_CTRL_MQ_RSS_CONFIG, bad) == ERR
    assert bench.device.steering.rss == before


def test_h18_a_table_with_a_queue_that_is_not_ready_is_refused() -> None:
    bench = Bench(CONTROLLED | STEERED, pairs=4, used=2)
    assert bench.command(ctrl.VIRTIO_NET_CTRL_MQ, ctrl.VIRTIO_NET_CTRL_MQ_RSS_CONFIG, rss(table=(0, 3))) == ERR


def test_h19_a_command_without_room_for_its_answer_is_an_error_on_the_queue() -> None:
    bench = Bench()
    assert bench.raw(b"\x00\x00\x01", room=0) == b""
    assert bench.driver.status & 0x40  # DEVICE_NEEDS_RESET
    assert "without room for its answer" in bench.slot.failure
    assert not bench.device.filter._modes


@pytest.mark.parametrize(
    ("kind", "command", "data"),
    [
        (ctrl.VIRTIO_NET_CTRL_RX, ctrl.VIRTIO_NET_CTRL_RX_PROMISC, b"\x01"),
        (ctrl.VIRTIO_NET_CTRL_MAC, ctrl.VIRTIO_NET_CTRL_MAC_ADDR_SET, OTHER),
        (ctrl.VIRTIO_NET_CTRL_MAC, ctrl.VIRTIO_NET_CTRL_MAC_TABLE_SET, bytes(8)),
        (ctrl.VIRTIO_NET_CTRL_VLAN, ctrl.VIRTIO_NET_CTRL_VLAN_ADD, b"\x05\x00"),
        (ctrl.VIRTIO_NET_CTRL_MQ, ctrl.VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, b"\x01\x00"),
        (ctrl.VIRTIO_NET_CTRL_NOTF_COAL, ctrl.VIRTIO_NET_CTRL_NOTF_COAL_RX_SET, bytes(8)),
        (ctrl.VIRTIO_NET_CTRL_STATS, ctrl.VIRTIO_NET_CTRL_STATS_QUERY, b""),
    ],
)
def test_a_command_whose_feature_was_not_negotiated_is_refused(kind: int, command: int, data: bytes) -> None:
    bench = Bench(features(net.VIRTIO_NET_F_CTRL_VQ))
    assert bench.command(kind, command, data) == ERR
    assert "which was not negotiated" in bench.device.control.refusal


@settings(max_examples=200, deadline=None)
@given(commands=st.lists(st.tuples(st.binary(max_size=60), st.integers(1, 300)), min_size=1, max_size=6))
def test_whatever_commands_say_each_is_answered(commands: list[tuple[bytes, int]]) -> None:
    bench = Bench(CONTROLLED | STEERED, pairs=2)
    for content, room in commands:
        assert bench.raw(content, room)[:1] in (OK, ERR)
    assert bench.driver.status == 15
    Bench.made.pop().loop.close()


# -- receive filter ------------------------------------------------------------------------------------------------


def passes(bench: Bench, *frames: bytes) -> list[bool]:
    bench.post(0)
    found = []
    for content in frames:
        bench.arrives(content)
        found.append(bool(bench.received()))
    return found


TO_ALL_KINDS = [frame(MAC), frame(OTHER), frame(GROUP), frame(BROADCAST)]


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        ((), [True, False, False, True]),
        ((ctrl.VIRTIO_NET_CTRL_RX_PROMISC,), [True, True, True, True]),
        ((ctrl.VIRTIO_NET_CTRL_RX_ALLMULTI,), [True, False, True, True]),
        ((ctrl.VIRTIO_NET_CTRL_RX_ALLUNI,), [True, True, False, True]),
        ((ctrl.VIRTIO_NET_CTRL_RX_NOUNI,), [False, False, False, True]),
        ((ctrl.VIRTIO_NET_CTRL_RX_NOUNI, ctrl.VIRTIO_NET_CTRL_RX_ALLUNI), [False, False, False, True]),
        ((ctrl.VIRTIO_NET_CTRL_RX_NOMULTI, ctrl.VIRTIO_NET_CTRL_RX_ALLMULTI), [True, False, False, True]),
        ((ctrl.VIRTIO_NET_CTRL_RX_NOBCAST, ctrl.VIRTIO_NET_CTRL_RX_ALLMULTI), [True, False, True, False]),
        ((ctrl.VIRTIO_NET_CTRL_RX_NOBCAST, ctrl.VIRTIO_NET_CTRL_RX_PROMISC), [True, True, True, True]),
    ],
)
def test_each_mode_lets_in_what_the_standard_says(modes: tuple[int, ...], expected: list[bool]) -> None:
    bench = Bench()
    for mode in modes:
        assert bench.command(ctrl.VIRTIO_NET_CTRL_RX, mode, b"\x01") == OK
    assert passes(bench, *TO_ALL_KINDS) == expected
    assert bench.device.counters["rx_dropped_mac_filter"] == expected.count(False)


def test_a_mode_is_switched_off_again() -> None:
    bench = Bench()
    for on in (b"\x01", b"\x00"):
        bench.command(ctrl.VIRTIO_NET_CTRL_RX, ctrl.VIRTIO_NET_CTRL_RX_PROMISC, on)
    assert passes(bench, frame(OTHER)) == [False]


def test_addresses_in_the_table_are_let_in_until_a_reset() -> None:
    bench = Bench()
    table = struct.pack("<I", 1) + OTHER + struct.pack("<I", 1) + GROUP
    bench.command(ctrl.VIRTIO_NET_CTRL_MAC, ctrl.VIRTIO_NET_CTRL_MAC_TABLE_SET, table)
    assert passes(bench, *TO_ALL_KINDS) == [True, True, True, True]
    bench.driver.status = 0
    assert not bench.device.filter.unicast
    assert not bench.device.filter.multicast


def test_another_address_stands_in_the_configuration_and_is_let_in_instead() -> None:
    bench = Bench()
    assert bench.command(ctrl.VIRTIO_NET_CTRL_MAC, ctrl.VIRTIO_NET_CTRL_MAC_ADDR_SET, OTHER) == OK
    assert bytes(bench.driver.read(reg.VIRTIO_MMIO_CONFIG + at, 1) for at in range(6)) == OTHER
    assert passes(bench, frame(MAC), frame(OTHER)) == [False, True]
    for bad in (GROUP, bytes(6), OTHER[:5], OTHER + b"\x00"):
        assert bench.command(ctrl.VIRTIO_NET_CTRL_MAC, ctrl.VIRTIO_NET_CTRL_MAC_ADDR_SET, bad) == ERR
    bench.driver.status = 0
    assert bench.device.config()[:6] == MAC


def test_without_ctrl_rx_everything_is_let_in() -> None:
    bench = Bench(features(net.VIRTIO_NET_F_CTRL_VQ))
    assert passes(bench, *TO_ALL_KINDS) == [True, True, True, True]


def test_tagged_frames_are_let_in_by_their_vlan() -> None:
    bench = Bench()
    frames = [frame(tag=5), frame(tag=5 | 0xE000), frame(tag=6), frame()]
    assert passes(bench, *frames) == [False, False, False, True]  # the table starts empty
    assert bench.device.counters["rx_dropped_vlan_filter"] == 3
    assert bench.command(ctrl.VIRTIO_NET_CTRL_VLAN, ctrl.VIRTIO_NET_CTRL_VLAN_ADD, b"\x05\x00") == OK
    assert passes(bench, *frames) == [True, True, False, True]  # the priority is no part of the identifier
    assert bench.command(ctrl.VIRTIO_NET_CTRL_VLAN, ctrl.VIRTIO_NET_CTRL_VLAN_DEL, b"\x05\x00") == OK
    assert passes(bench, frames[0]) == [False]
    assert bench.command(ctrl.VIRTIO_NET_CTRL_VLAN, ctrl.VIRTIO_NET_CTRL_VLAN_ADD, b"\x00\x10") == ERR


# -- steering ------------------------------------------------------------------------------------------------------


def test_after_a_reset_frames_go_to_the_first_queue_only() -> None:
    bench = Bench(CONTROLLED | STEERED, pairs=4)
    bench.post(0, 8)
    assert bench.where(*(frame(ports=(port, 80)) for port in range(1, 7))) == [0] * 6


def test_a_flow_comes_in_where_it_was_sent_from() -> None:
    bench = Bench(CONTROLLED | STEERED, pairs=4)
    bench.pairs(4)
    for pair in range(4):
        bench.post(pair, 8)
    for pair in (3, 1, 2, 0):
        bench.sends(pair, frame(source="10.0.0.1", target="10.0.0.2", ports=(5000 + pair, 80)))
    answers = [frame(source="10.0.0.2", target="10.0.0.1", ports=(80, 5000 + pair)) for pair in range(4)]
    assert bench.where(*answers) == [0, 1, 2, 3]
    bench.sends(2, frame(source="10.0.0.1", target="10.0.0.2", ports=(5003, 80)))  # the flow moves
    assert bench.where(answers[3]) == [2]


def test_flows_that_nothing_was_sent_of_are_spread_and_each_stays_where_it_is() -> None:
    bench = Bench(CONTROLLED | STEERED, pairs=4)
    bench.pairs(4)
    for pair in range(4):
        bench.post(pair, 8)
    first = bench.where(*(frame(ports=(port, 80)) for port in range(1, 9)))
    for pair in range(4):
        bench.post(pair, first.count(pair))
    assert len(first) == 8
    assert len(set(first)) > 1
    assert bench.where(*(frame(ports=(port, 80)) for port in range(1, 9))) == first


def test_fewer_pairs_take_over_at_once() -> None:
    bench = Bench(CONTROLLED | STEERED, pairs=4)
    bench.pairs(4)
    bench.post(0, 8)
    bench.sends(3, frame(ports=(1, 2)))
    bench.pairs(1)
    assert bench.where(frame(ports=(2, 1)), frame(ports=(9, 9))) == [0, 0]


def test_a_queue_without_buffers_holds_the_wire_back_until_it_has_some() -> None:
    bench = Bench(CONTROLLED | STEERED, pairs=2)
    bench.pairs(2)
    bench.post(0)
    bench.sends(1, frame(ports=(1, 2)))
    back = frame(ports=(2, 1), source="161.142.100.80", target="66.9.149.187")
    assert bench.arrives(back) == 0
    bench.post(1)
    assert bench.wire.resumed == 1
    assert bench.where(back) == [1]


def test_rss_follows_the_table_and_reports_what_it_hashed() -> None:
    accept = CONTROLLED | STEERED
    bench = Bench(accept, pairs=4)
    table = tuple(at % 4 for at in range(128))
    for pair in range(4):
        bench.post(pair, 8)
    config = rss(table=table, other=3, transmit=4)
    assert bench.command(ctrl.VIRTIO_NET_CTRL_MQ, ctrl.VIRTIO_NET_CTRL_MQ_RSS_CONFIG, config) == OK
    content = frame()
    hashed = 0x51CCC178  # the published value
    bench.arrives(content)
    (received,) = bench.received(table[hashed % 128])
    assert received[20:] == content
    assert net.HASH.unpack(received[12:20]) == (hashed, ctrl.VIRTIO_NET_HASH_REPORT_TCPv4, 0)
    arp = MAC + bytes(6) + b"\x08\x06" + bytes(46)
    bench.arrives(arp)
    (received,) = bench.received(3)  # what is not hashed
    assert net.HASH.unpack(received[12:20]) == (0, ctrl.VIRTIO_NET_HASH_REPORT_NONE, 0)


@pytest.mark.parametrize(
    ("types", "protocol", "value", "report"),
    [
        (ctrl.VIRTIO_NET_RSS_HASH_TYPE_TCPv4 | ctrl.VIRTIO_NET_RSS_HASH_TYPE_IPv4, 6, 0x51CCC178, 2),
        (ctrl.VIRTIO_NET_RSS_HASH_TYPE_IPv4, 6, 0x323E8FC2, 1),
        (ctrl.VIRTIO_NET_RSS_HASH_TYPE_UDPv4 | ctrl.VIRTIO_NET_RSS_HASH_TYPE_IPv4, 6, 0x323E8FC2, 1),
        (ctrl.VIRTIO_NET_RSS_HASH_TYPE_UDPv4, 17, 0x51CCC178, 3),
        (ctrl.VIRTIO_NET_RSS_HASH_TYPE_UDPv4, 6, 0, 0),
        (HASH_TYPES, 1, 0x323E8FC2, 1),
        (0, 6, 0, 0),
    ],
)
def test_a_hash_is_reported_by_the_types_that_are_enabled(types: int, protocol: int, value: int, report: int) -> None:
    bench = Bench(CONTROLLED)
    config = ctrl.HASH_HEAD.pack(types, bytes(8), len(KEY)) + KEY
    assert bench.command(ctrl.VIRTIO_NET_CTRL_MQ, ctrl.VIRTIO_NET_CTRL_MQ_HASH_CONFIG, config) == OK
    bench.post(0)
    bench.arrives(frame(protocol=protocol))
    (received,) = bench.received()
    assert net.HASH.unpack(received[12:20]) == (value, report, 0)


PUBLISHED = [
    ("66.9.149.187", 2794, "161.142.100.80", 1766, 0x323E8FC2, 0x51CCC178),
    ("199.92.111.2", 14230, "65.69.140.83", 4739, 0xD718262A, 0xC626B0EA),
    ("24.19.198.95", 12898, "12.22.207.184", 38024, 0xD2D0A5DE, 0x5C2B394A),
    ("38.27.205.30", 48228, "209.142.163.6", 2217, 0x82989176, 0xAFC7327F),
    ("153.39.163.191", 44251, "202.188.127.2", 1303, 0x5D1809C5, 0x10E828A2),
]


@pytest.mark.parametrize(("source", "sport", "target", "dport", "addresses", "with_ports"), PUBLISHED)
def test_toeplitz_gives_the_published_hashes(
    source: str, sport: int, target: str, dport: int, addresses: int, with_ports: int
) -> None:
    flow = flow_of(frame(source=source, target=target, ports=(sport, dport)))
    assert flow is not None
    toeplitz = Toeplitz(KEY)
    assert toeplitz(flow.source + flow.destination) == addresses
    assert toeplitz(flow.source + flow.destination + flow.ports) == with_ports


def test_toeplitz_over_ipv6_gives_the_published_hash() -> None:
    source = bytes.fromhex("3ffe250102001fff0000000000000007")
    target = bytes.fromhex("3ffe2501020000030000000000000001")
    head = MAC + bytes(6) + b"\x86\xdd" + b"\x60\0\0\0\0\x14\x06\x40" + source + target + struct.pack(">HH", 2794, 1766)
    flow = flow_of(head)
    assert flow is not None
    toeplitz = Toeplitz(KEY)
    assert toeplitz(flow.source + flow.destination) == 0x2CC18CD5
    assert toeplitz(flow.source + flow.destination + flow.ports) == 0x40207D3D


@settings(max_examples=100, deadline=None)
@given(key=st.binary(min_size=KEY_MAX, max_size=KEY_MAX), content=st.binary(min_size=1, max_size=36))
def test_toeplitz_is_what_its_definition_says(key: bytes, content: bytes) -> None:
    bits, expected = int.from_bytes(key, "big"), 0
    for at in range(8 * len(content)):
        if content[at // 8] >> (7 - at % 8) & 1:
            expected ^= bits >> (8 * KEY_MAX - 32 - at) & 0xFFFFFFFF
    assert Toeplitz(key)(content) == expected


@given(content=st.binary(max_size=120))
def test_whatever_a_frame_holds_its_flow_is_found_or_not(content: bytes) -> None:
    for start in (b"", MAC + bytes(6) + b"\x08\x00\x45", MAC + bytes(6) + b"\x86\xdd\x60", bytes(12) + b"\x81\x00" * 9):
        flow = flow_of(start + content)
        assert flow is None or len(flow.source) == len(flow.destination) == (4 if flow.version == 4 else 16)


@pytest.mark.parametrize("fragment", [0x2000, 0x0001])
def test_all_fragments_of_a_packet_go_the_same_way(fragment: int) -> None:
    content = bytearray(frame())
    content[20:22] = fragment.to_bytes(2, "big")
    flow = flow_of(bytes(content))
    assert flow is not None
    assert (flow.protocol, flow.ports) == (0, b"")


@pytest.mark.parametrize("merge", [0, features(net.VIRTIO_NET_F_MRG_RXBUF)])
@pytest.mark.parametrize(("report", "length"), [(0, 12), (features(net.VIRTIO_NET_F_HASH_REPORT), 20)])
def test_h20_the_header_is_as_long_as_was_negotiated_in_both_directions(report: int, length: int, merge: int) -> None:
    bench = Bench(features(net.VIRTIO_NET_F_CTRL_VQ) | report | merge)
    ring = bench.driver.rings[1]
    for cut in (length, length - 1, length + 13):  # behind the header, and what is no header or no frame
        content = bytes(length) + frame()
        bench.memory(COMMAND, len(content))[:] = content
        rest = [(COMMAND + cut, len(content) - cut, 0)] if cut == length else []
        ring.chain(0, [(COMMAND, cut, 0), *rest])
        ring.offer(0)
        bench.driver.kick(1)
        assert ring.used() == [(0, 0)]
    assert bench.wire.sent == [frame()]
    assert bench.device.counters["tx_dropped_short_header"] == 1
    assert bench.device.counters["tx_dropped_runt"] == 1
    bench.post(0)
    bench.arrives(frame())
    (received,) = bench.received()
    assert received[length:] == frame()
    assert received[10:12] == b"\x01\x00"


# -- announcement, speed, offloads ----------------------------------------------------------------------------------


def test_a_driver_that_is_asked_to_announce_itself_says_that_it_heard() -> None:
    bench = Bench()
    assert bench.device.announce() is True
    bench.driver.settle()
    assert bench.driver.interrupts == 1
    status = reg.VIRTIO_MMIO_CONFIG + net.VIRTIO_NET_CONFIG.offset("status")
    assert bench.driver.read(status, 2) & net.VIRTIO_NET_S_ANNOUNCE
    assert bench.command(ctrl.VIRTIO_NET_CTRL_ANNOUNCE, ctrl.VIRTIO_NET_CTRL_ANNOUNCE_ACK) == OK
    assert not bench.driver.read(status, 2) & net.VIRTIO_NET_S_ANNOUNCE
    assert Bench(features(net.VIRTIO_NET_F_CTRL_VQ)).device.announce() is False


def test_speed_and_duplex_stand_in_the_configuration() -> None:
    bench = Bench(speed=10_000, duplex="full")
    config = bench.device.config()
    assert config[12:17] == struct.pack("<IB", 10_000, net.DUPLEX_FULL)
    assert Bench().device.config()[12:17] == struct.pack("<IB", net.SPEED_UNKNOWN, net.DUPLEX_UNKNOWN)


def test_receive_offloads_are_switched_off_and_on_while_the_driver_runs() -> None:
    bench = Bench(CONTROLLED & ~features(net.VIRTIO_NET_F_HASH_REPORT) | OFFLOADS)
    partial = b"\x01\0\0\0\0\0" + struct.pack("<HHH", 34, 6, 0)
    content = frame()

    def flags() -> int:
        bench.post(0, 1)
        bench.device.receive([(partial, [content])])
        return bench.received()[0][0]

    def offloads(mask: int) -> bytes:
        data = struct.pack("<Q", mask)
        return bench.command(ctrl.VIRTIO_NET_CTRL_GUEST_OFFLOADS, ctrl.VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, data)

    assert flags() == net.VIRTIO_NET_HDR_F_NEEDS_CSUM
    assert offloads(0) == OK
    assert flags() == 0  # the card finished the sum itself
    assert bench.device.counters["rx_finished"] == 1
    assert offloads(OFFLOADS) == OK
    assert flags() == net.VIRTIO_NET_HDR_F_NEEDS_CSUM
    assert offloads(OFFLOADS | features(net.VIRTIO_NET_F_GUEST_TSO6)) == ERR
    assert offloads(1) == ERR  # CSUM is the other direction's


# -- coalescing ----------------------------------------------------------------------------------------------------


def coalesce(bench: Bench, packets: int, usecs: int) -> bytes:
    data = ctrl.COAL.pack(packets, usecs)
    return bench.command(ctrl.VIRTIO_NET_CTRL_NOTF_COAL, ctrl.VIRTIO_NET_CTRL_NOTF_COAL_RX_SET, data)


def wait(bench: Bench, usecs: int) -> None:
    clock = bench.machine.clock
    assert isinstance(clock, VirtualClock)
    clock.jump(clock.now() + usecs)
    bench.driver.settle()


def test_interrupts_wait_for_the_packets_or_the_time_whichever_is_first() -> None:
    bench = Bench()
    assert coalesce(bench, 3, 50) == OK
    bench.post(0, 8)
    before = bench.driver.interrupts
    bench.arrives(frame())
    bench.arrives(frame())
    assert bench.driver.interrupts == before
    assert len(bench.received()) == 2  # published all the same
    bench.arrives(frame())
    assert bench.driver.interrupts == before + 1
    bench.arrives(frame())
    wait(bench, 49)
    assert bench.driver.interrupts == before + 1
    wait(bench, 1)
    assert bench.driver.interrupts == before + 2
    wait(bench, 1000)
    assert bench.driver.interrupts == before + 2


@pytest.mark.parametrize(("packets", "usecs"), [(0, 0), (0, 50), (3, 0)])
def test_without_both_limits_nothing_waits(packets: int, usecs: int) -> None:
    bench = Bench()
    coalesce(bench, packets, usecs)
    bench.post(0)
    before = bench.driver.interrupts
    bench.arrives(frame())
    assert bench.driver.interrupts == before + 1


def test_what_waits_is_judged_by_new_limits_at_once() -> None:
    bench = Bench()
    coalesce(bench, 15, 50)
    bench.post(0, 8)
    for _ in range(5):
        bench.arrives(frame())
    assert not bench.device.receivers[0].stats["interrupts"]
    coalesce(bench, 6, 50)
    assert not bench.device.receivers[0].stats["interrupts"]
    coalesce(bench, 5, 50)
    assert bench.device.receivers[0].stats["interrupts"] == 1


def test_each_queue_has_its_own_limits_the_last_that_were_set() -> None:
    bench = Bench(CONTROLLED | STEERED, pairs=2)

    def one(index: int, packets: int, usecs: int) -> bytes:
        data = ctrl.COAL_VQ.pack(index, 0xFFFF, packets, usecs)  # what is reserved is ignored
        return bench.command(ctrl.VIRTIO_NET_CTRL_NOTF_COAL, ctrl.VIRTIO_NET_CTRL_NOTF_COAL_VQ_SET, data)

    def ask(index: int) -> tuple[int, ...] | None:
        data = struct.pack("<HH", index, 0)
        answer = bench.command(ctrl.VIRTIO_NET_CTRL_NOTF_COAL, ctrl.VIRTIO_NET_CTRL_NOTF_COAL_VQ_GET, data, 9)
        return ctrl.COAL.unpack(answer[1:]) if answer[:1] == OK else None

    coalesce(bench, 8, 80)
    assert one(0, 2, 20) == OK
    assert [ask(index) for index in range(4)] == [(2, 20), (0, 0), (8, 80), (0, 0)]
    coalesce(bench, 9, 90)
    assert ask(0) == (9, 90)
    for index in (bench.control_index, 7, 0xFFFF):
        assert one(index, 1, 1) == ERR
        assert ask(index) is None
    bench.driver.status = 0
    assert all(side.coalescing == (0, 0) for side in bench.device.sides)


# -- statistics ----------------------------------------------------------------------------------------------------


def stats(bench: Bench, *wanted: tuple[int, int], room: int = 400) -> bytes:
    data = b"".join(ctrl.STATS_WANTED.pack(index, types) for index, types in wanted)
    return bench.command(ctrl.VIRTIO_NET_CTRL_STATS, ctrl.VIRTIO_NET_CTRL_STATS_GET, data, room)


def counters(answer: bytes) -> dict[tuple[int, int], dict[str, int]]:
    """By type and queue what an answer says."""
    found = {}
    at = 1
    while at < len(answer):
        kind, index, _, size = ctrl.STATS_REPLY.unpack_from(answer, at)
        fields = ctrl.STATS_FIELDS[kind]
        found[kind, index] = dict(zip(fields, struct.unpack_from(f"<{len(fields)}Q", answer, at + 8), strict=True))
        at += size
    return found


def test_statistics_say_what_went_through_each_queue() -> None:
    bench = Bench(CONTROLLED & ~features(net.VIRTIO_NET_F_HASH_REPORT) | OFFLOADS)
    bench.post(0)
    bench.arrives(frame(), frame(), frame(OTHER))
    bench.sends(0, frame())
    bench.sends(0, b"short")
    answer = stats(bench, (0, 0b11), (1, 1 << 16), (2, 1 << 32))
    assert counters(answer) == {
        (0, 0): {"rx_notifications": 1, "rx_packets": 2, "rx_bytes": 120, "rx_interrupts": 1, "rx_drops": 1,
                 "rx_drop_overruns": 0},
        (1, 0): {"rx_csum_valid": 0, "rx_needs_csum": 0, "rx_csum_none": 0, "rx_csum_bad": 0},
        (16, 1): {"tx_notifications": 2, "tx_packets": 1, "tx_bytes": 60, "tx_interrupts": 2, "tx_drops": 1,
                  "tx_drop_malformed": 1},
        (32, 2): {"command_num": 1, "ok_num": 1},
    }  # fmt: skip


def test_what_statistics_there_are_is_said() -> None:
    answer = Bench().command(ctrl.VIRTIO_NET_CTRL_STATS, ctrl.VIRTIO_NET_CTRL_STATS_QUERY, room=9)
    assert answer == OK + struct.pack("<Q", 0b111 | 0b111 << 16 | 1 << 32)


@pytest.mark.parametrize(
    "wanted",
    [[(9, 1)], [(0, 1 << 5)], [(0, 1 << 16)], [(1, 1)], [(2, 1)], [(0, 1), (1, 1)], [(0, 1 << 1)], [(1, 1 << 18)], []],
)
def test_statistics_that_are_not_there_fail_the_whole_command(wanted: list[tuple[int, int]]) -> None:
    assert stats(Bench(), *wanted) == ERR


def test_an_answer_is_cut_where_the_driver_has_no_more_room() -> None:
    bench = Bench()
    assert stats(bench, (0, 1), room=20) == stats(bench, (0, 1))[:20]
