"""ethtool, and what it sets: a guest's program, its driver and the card, down to the frames that come through."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from guest.apps.ethtool import USAGE
from guest.kernel import Guest
from hw.machine import Machine
from hw.virtio.net import VirtioNet
from tests.guest_board import OPTIONS, STATIC, Board, arp

MULTI = {"queues": 4, "rss": True, "hash": True, "speed": 10_000, "duplex": "full", "packed": True}


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    monkeypatch.setitem(OPTIONS, "virtio-queues", MULTI)
    made = Board("virtio-queues")
    yield made
    made.close()


class Bench:
    """A guest with one card, and a peer at the other end of its cable."""

    def __init__(self, board: Board, cmdline: str = STATIC, card: str = "") -> None:
        self.board = board
        link, self.peer = board.peer()
        self.guest: Guest = board.boot(cmdline, link, card=card)
        self.machine: Machine = board.machines["guest"]

    @property
    def card(self) -> VirtioNet:
        device = self.machine.nics[0].device
        assert isinstance(device, VirtioNet)
        return device

    def run(self, line: str, seconds: float = 1) -> tuple[int | None, list[str]]:
        self.guest.log.output.clear()
        name, *words = line.split()
        process = self.guest.spawn(name, *words)
        self.board.run(seconds)
        return process.exit_status, self.guest.log.output


@pytest.fixture
def bench(board: Board) -> Bench:
    return Bench(board)


# -- showing -------------------------------------------------------------------------------------------------------


def test_the_link_is_shown_with_speed_and_filter(bench: Bench) -> None:
    mac = bench.guest.fes[0].mac.hex(":")
    assert bench.run("ethtool eth0") == (0, [
        "eth0: settings", "  link      yes", "  speed     10000 Mbit/s", "  duplex    full", f"  address   {mac}",
        "  MTU       1500 bytes", "  receives  own address, broadcasts, 2 groups",
    ])  # fmt: skip


def test_the_driver_is_shown_with_its_features(bench: Bench) -> None:
    status, output = bench.run("ethtool -i eth0")
    assert status == 0
    assert output[1:3] == ["  driver    virtio-net", "  bus       virtio-mmio at 0xd0000000, line 5"]
    assert output[3] == "  rings     256 receive, 128 transmit buffers a queue"
    assert {"MQ", "RSS", "HASH_REPORT", "CTRL_VQ", "RING_PACKED"} <= set(output[4].split())


def test_features_and_queues_are_shown(bench: Bench) -> None:
    assert bench.run("ethtool -k eth0")[1] == [
        "eth0: features", "  rx              off [not offered]", "  tso             off [not offered]",
        "  address filter  on", "  vlan filter     on, lets in none",
    ]  # fmt: skip
    assert bench.run("ethtool -l eth0")[1] == ["eth0: queue pairs", "  combined  4", "  at most   4"]


def test_statistics_of_driver_and_device_are_shown(bench: Bench) -> None:
    bench.peer.answers = True
    bench.run("ping 10.0.0.1 -c 3", 5)
    _, output = bench.run("ethtool -S eth0")
    headings = [line for line in output if not line.startswith(" ")]
    assert headings == ["eth0: the driver counted", *(f"eth0: the device counted on queue {at}" for at in range(9))]
    received = sum(int(line.split()[1]) for line in output if line.split()[0] == "rx_packets")
    assert received == 2 * bench.guest.devices[0].counters["rx_packets"], "driver and device agree"
    assert bench.guest.devices[0].counters["rx_packets"] >= 3


# -- setting -------------------------------------------------------------------------------------------------------


def test_queue_pairs_are_set_and_traffic_goes_on(bench: Bench) -> None:
    bench.peer.answers = True
    for pairs in (1, 3, 4, 2):
        assert bench.run(f"ethtool -L eth0 combined {pairs}") == (0, [])
        assert bench.card.steering.pairs == pairs
        assert bench.run("ping 10.0.0.1 -c 2 -q", 3)[0] == 0
    assert bench.run("ethtool -L eth0 combined 5") == (
        1, ["ethtool: eth0: 5 queue pairs are not there; there are 4"],
    )  # fmt: skip
    assert bench.run("ethtool -x eth0")[1][1] == "     0: 0 1 0 1 0 1 0 1"


def test_interrupts_are_put_off_and_each_queue_has_its_limits(bench: Bench) -> None:
    assert bench.run("ethtool -C eth0 rx-usecs 50 rx-frames 16 tx-usecs 20") == (0, [])
    assert bench.run("ethtool -C eth0 queue 2 rx-frames 4") == (0, [])
    assert [side.coalescing for side in bench.card.sides][:4] == [(16, 50), (0, 20), (4, 50), (0, 20)]
    assert bench.run("ethtool -c eth0")[1][1:4] == [
        "  queue 0 (rx)  rx-usecs 50  rx-frames 16", "  queue 1 (tx)  tx-usecs 20  tx-frames 0",
        "  queue 2 (rx)  rx-usecs 50  rx-frames 4",
    ]  # fmt: skip


def test_vlans_are_let_in(bench: Bench) -> None:
    assert bench.run("ethtool --vlan eth0 add 5") == (0, [])
    assert bench.card.filter.vlans == {5}
    assert bench.run("ethtool -k eth0")[1][-1] == "  vlan filter     on, lets in 5"
    assert bench.run("ethtool --vlan eth0 del 5") == (0, [])
    assert bench.card.filter.vlans == set()


def test_settings_outlive_a_reset_of_the_card(bench: Bench) -> None:
    bench.run("ethtool -L eth0 combined 2")
    bench.run("ethtool -C eth0 rx-usecs 50 rx-frames 16")
    bench.machine.nics[0].fail(0, "a test says so")
    bench.board.run(1)
    assert bench.guest.devices[0].counters["device_resets"] == 1
    assert bench.card.steering.pairs == 2
    assert bench.card.sides[0].coalescing == (16, 50)
    bench.peer.answers = True
    assert bench.run("ping 10.0.0.1 -c 2 -q", 3)[0] == 0


# -- what does not work --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("ethtool", "an interface is needed"),
        ("ethtool -q eth0", "what is -q?"),
        ("ethtool eth0 up", "what is up?"),
        ("ethtool -L eth0 combined", "what is combined?"),
        ("ethtool -L eth0 rx 4", "say combined and a number"),
        ("ethtool -L eth0 combined many", "combined many: a number from 1 to 32768 is needed"),
        ("ethtool -C eth0 rx-usecs", "what is rx-usecs?"),
        ("ethtool -C eth0 rx-usecs 5 tx", "tx needs a value"),
        ("ethtool -C eth0 rx-packets 5", "what is rx-packets?"),
        ("ethtool -C eth0 queue 1 rx-usecs 5", "queue 1 is no rx queue"),
        ("ethtool -C eth0 queue 1", "say what is to be set: rx-usecs, rx-frames, tx-usecs, tx-frames"),
        ("ethtool -K eth0 lro on", "what is lro on?"),
        ("ethtool --vlan eth0 add 4095", "add 4095: a number from 1 to 4094 is needed"),
        ("ethtool --vlan eth0 set 5", "say add or del, and the VLAN"),
    ],
)
def test_wrong_usage_is_status_2_with_usage_text(bench: Bench, line: str, says: str) -> None:
    assert bench.run(line) == (2, f"ethtool: {says}\n{USAGE}".splitlines())


def test_what_is_no_card_is_said(bench: Bench) -> None:
    assert bench.run("ethtool -l lo") == (1, ["ethtool: lo is no card; there are eth0"])
    assert bench.run("ethtool -K eth0 rx on") == (0, [])  # nothing was negotiated that could be on


@pytest.mark.parametrize("card", ["virtio", "xen-full"])
def test_a_card_without_a_control_queue_shows_what_it_has_and_sets_nothing(board: Board, card: str) -> None:
    bench = Bench(board, card=card)
    assert bench.run("ethtool eth0")[1][1:4] == ["  link     yes", "  speed    unknown", "  duplex   unknown"]
    assert bench.run("ethtool -S eth0")[0] == 0
    for line in ("ethtool -L eth0 combined 2", "ethtool --vlan eth0 add 5", "ethtool -C eth0 rx-usecs 5"):
        status, output = bench.run(line)
        assert (status, len(output)) == (1, 1)
        assert output[0].startswith("ethtool: eth0: ")


# -- what the card lets in -----------------------------------------------------------------------------------------


OTHER = b"\x02\xaa\x00\x00\x00\x99"


def test_the_card_drops_what_the_guest_would_drop(bench: Bench) -> None:
    frame = arp(1, OTHER, bytes((10, 0, 0, 1)), bytes(6), bytes((10, 0, 0, 9)))
    bench.peer.send(OTHER + frame[6:], b"\x33\x33\xff\x12\x34\x56" + frame[6:])
    bench.board.run(0.1)
    assert bench.card.counters["rx_dropped_mac_filter"] == 2
    assert bench.guest.fes[0].counters["rx_packets"] == bench.guest.devices[0].counters["rx_packets"]


def test_groups_that_are_joined_are_let_in_and_those_that_are_left_are_not(bench: Bench) -> None:
    group = bytes.fromhex("01005e010203")
    interface = bench.guest.stack.default
    assert interface is not None
    assert group not in bench.card.filter.multicast
    interface.group_changed(0xFFFF_E001_0203, True)
    bench.board.run(0.1)
    assert group in bench.card.filter.multicast
    interface.group_changed(0xFFFF_E001_0203, False)
    bench.board.run(0.1)
    assert group not in bench.card.filter.multicast


def test_an_outlet_sees_everything_as_long_as_it_is_there(bench: Bench) -> None:
    process = bench.guest.spawn("sniff", "eth0", "-c", "1")
    bench.board.run(0.1)
    assert bench.run("ethtool eth0", 0.1)[1][-1] == "  receives  everything"
    bench.peer.send(OTHER + bytes(58))
    bench.board.run(0.5)
    assert process.exit_status == 0
    assert bench.run("ethtool eth0")[1][-1].startswith("  receives  own address")


def test_a_card_that_was_moved_has_its_guest_tell_the_neighbours(bench: Bench) -> None:
    bench.guest.calls.if_add_addr("eth0", "fd00::2", 64)
    bench.board.run(3)
    bench.peer.frames.clear()
    assert bench.card.announce() is True
    bench.board.run(1)
    own = bytes((10, 0, 0, 2))
    kinds = [raw[12:14] for raw in bench.peer.frames]
    gratuitous = [raw for raw in bench.peer.frames if raw[12:14] == b"\x08\x06" and raw[28:32] == raw[38:42] == own]
    assert len(gratuitous) == 1
    advertised = [raw for raw in bench.peer.frames if raw[12:14] == b"\x86\xdd" and raw[54] == 136]
    assert len(advertised) == 1, kinds
    assert {raw[:6].hex() for raw in advertised} == {"333300000001"}
    assert not bench.card.config()[6] & 2, "it was acknowledged"


def test_every_flow_comes_back_on_the_queue_that_it_left_on(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPTIONS, "virtio-queues", {"queues": 4})
    bench = Bench(board, card="virtio-queues")
    bench.peer.answers = True
    for host in range(10, 26):
        bench.run(f"ping 10.0.0.{host} -c 1 -q", 0.5)
    card = bench.card
    sent = [side.stats["packets"] for side in card.transmitters]
    got = [side.stats["packets"] for side in card.receivers]
    assert sum(count > 0 for count in sent) > 1
    echoes = bench.guest.stack.ip.counters
    assert echoes["rx_delivered"] >= 16
    for transmitted, received in zip(sent[1:], got[1:], strict=True):  # on the first ARP comes in, too
        assert received <= transmitted, (sent, got)
