"""Linux's own virtio_mmio and virtio_net drive our card: they negotiate, ping, leave and come back.

Each board is one boot of a real kernel under QEMU (`tests/witness/linux_mmio.py`); Linux loads its drivers, pings the
host at the far end of a cable with small, full, fragmented and many frames, is pinged back in bursts, then unloads the
driver, loads it again, pings again, and powers off.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from hw.abi import virtio_net as net
from hw.abi.virtio import (
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
    features,
)
from hw.abi.virtio_mmio import MAGIC, REGISTER_NAMES
from hw.machine import FIRST_IRQ, Option
from hw.virtio.mmio import VENDOR_ID
from tests.requirements import require, require_program
from tests.witness.linux_guest import PINGS_BACK, STATISTICS, guest_files, said
from tests.witness.linux_mmio import LinuxBoard

pytestmark = pytest.mark.witness

MAC = bytes.fromhex("025600000002")
OFF = False
QEMU = "qemu-system-x86_64"

PLAIN = features(net.VIRTIO_NET_F_MAC, VIRTIO_F_VERSION_1)
RINGS = features(VIRTIO_RING_F_INDIRECT_DESC, VIRTIO_RING_F_EVENT_IDX)
CONFIG = features(net.VIRTIO_NET_F_STATUS, net.VIRTIO_NET_F_MTU)
MERGEABLE = features(net.VIRTIO_NET_F_MRG_RXBUF)
PACKED = features(VIRTIO_F_RING_PACKED)
CONTROLLED = features(
    net.VIRTIO_NET_F_CTRL_VQ, net.VIRTIO_NET_F_CTRL_RX, net.VIRTIO_NET_F_CTRL_VLAN, net.VIRTIO_NET_F_CTRL_MAC_ADDR,
    net.VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, net.VIRTIO_NET_F_GUEST_ANNOUNCE, net.VIRTIO_NET_F_MQ, net.VIRTIO_NET_F_RSS,
    net.VIRTIO_NET_F_NOTF_COAL, net.VIRTIO_NET_F_SPEED_DUPLEX,
)  # fmt: skip
NEWER = ("ctrl_rx_extra", "vq_notf_coal", "device_stats")  # what only newer kernels take, or none

# What each board's card can do, and what Linux must negotiate with it: every feature that is offered.
BOARDS: dict[str, tuple[dict[str, Option], int]] = {
    # Without event indices and indirect descriptors, on rings so small that they fill up and wrap often.
    "plain": (
        {"mrg_rxbuf": OFF, "event_idx": OFF, "indirect_desc": OFF, "status": OFF, "mtu": "off", "queue_size": 32},
        PLAIN,
    ),
    # Buffers for frames of this size are chains of pages here,
    "rings": ({"mrg_rxbuf": OFF, "mtu": 9000}, PLAIN | CONFIG | RINGS),
    # and several buffers for one frame here.
    "mergeable": ({"mtu": 9000}, PLAIN | CONFIG | RINGS | MERGEABLE),
    "default": ({}, PLAIN | CONFIG | RINGS | MERGEABLE),
    "packed": ({"packed": True}, PLAIN | CONFIG | RINGS | MERGEABLE | PACKED),
    # With a control queue and all that Linux takes of what comes with it, on the only pair that one processor uses.
    "queues": (
        {"queues": 4, "rss": True, "speed": 10_000, "duplex": "full", **dict.fromkeys(NEWER, OFF)},
        PLAIN | CONFIG | RINGS | MERGEABLE | CONTROLLED,
    ),
}


@pytest.fixture(scope="module")
def linux_files(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    require(platform.machine() == "x86_64", "needs an x86-64 machine, for Debian's kernel of its own kind")
    devices = subprocess.run([require_program(QEMU), "-device", "help"], capture_output=True, text=True, check=False)
    require("x-pci-proxy-dev" in devices.stdout, "needs a QEMU with x-pci-proxy-dev")
    cache = getattr(pytestconfig, "cache", None)
    chosen = os.environ.get("VRING_CACHE")
    if chosen is None:
        chosen = cache.mkdir("linux-guest") if cache is not None else tmp_path_factory.mktemp("linux-guest")
    return guest_files(Path(chosen))


def negotiated(words: dict[str, str]) -> int:
    """The features as sysfs shows them: one digit for each bit, the lowest first."""
    return int(words["features"][::-1], 2)


def registers(board: LinuxBoard, op: str, *names: str) -> list[tuple[str, int]]:
    """What was read from or written to registers, all or those of these `names`, in order."""
    named = [(REGISTER_NAMES.get(offset), value) for what, offset, _, value in board.trace if what == op]
    return [(name, value) for name, value in named if name is not None and (not names or name in names)]


def queue_set_up(index: int, size: int) -> list[tuple[str, int | str]]:
    """What a driver writes to set up a queue (virtio 1.4 §4.2.3.2), with "low" and "high" for halves of addresses."""
    areas = [f"QUEUE_{area}_{half}" for area in ("DESC", "AVAIL", "USED") for half in ("LOW", "HIGH")]
    return [
        ("QUEUE_SEL", index),
        ("QUEUE_NUM", size),
        *[(register, register.rpartition("_")[2].lower()) for register in areas],
        ("QUEUE_READY", 1),
    ]


def without_addresses(writes: list[tuple[str, int]]) -> list[tuple[str, int | str]]:
    halves = {"LOW": "low", "HIGH": "high"}
    return [(name, halves.get(name.rpartition("_")[2], value)) for name, value in writes]


def check_negotiation(board: LinuxBoard, words: dict[str, str], expected: int, mtu: int) -> None:
    assert negotiated(words) == expected, f"{negotiated(words) ^ expected:#x} is too much or missing"
    assert int(words["status"], 16) == 15
    assert words["mac"] == MAC.hex(":")
    assert words["mtu"] == str(mtu)
    assert words["carrier"] == "1"
    assert board.card.refusal == board.card.failure == ""
    assert not {name for name in board.card.counters if name not in ("kicks", "interrupts")}


def check_pings(words: dict[str, str]) -> None:
    for which, count in {"first": 1, "small": 5, "full": 5, "fragmented": 3, "flood": 300, "again": 20}.items():
        assert words[which].startswith(f"{count} packets transmitted, {count} packets received"), which
    # Linux's own books (/proc/net/snmp), for all pings before the driver was unloaded.
    assert words["InEchoReps"] == words["OutEchos"] == "314"
    assert words["InEchos"] == words["OutEchoReps"] == str(PINGS_BACK)
    assert words["ReasmOKs"] == "3"
    for mistakes in ("InErrors", "InCsumErrors", "InHdrErrors", "InDiscards", "ReasmFails"):
        assert words[mistakes] == "0", mistakes


def check_frames(board: LinuxBoard, words: dict[str, str]) -> None:
    """No frame is lost, and all books agree: the peer's, the wire's, the card's, and Linux's until it unloaded."""
    card, wire, peer = board.card.device.counters, board.machine.nics[0].device.link.counters, board.peer.counters
    assert peer["echo_requests"] == 314 + 20
    assert peer["echo_replies"] == PINGS_BACK
    assert peer["other"] == 0
    assert card["tx_packets"] == wire["tx_frames"] == peer["received"]
    assert card["rx_packets"] == wire["rx_frames"] == peer["sent"]
    assert card["rx_bytes"] == card["tx_bytes"], "every request was mirrored"
    assert not {name for name in card | wire if "dropped" in name}

    books = {name: int(words[name]) for name in STATISTICS}
    arp_and_echo_again = 21
    assert books == {
        "rx_packets": card["rx_packets"] - arp_and_echo_again,
        "tx_packets": card["tx_packets"] - arp_and_echo_again,
        **dict.fromkeys(STATISTICS[2:], 0),
    }


def check_interrupts(board: LinuxBoard, words: dict[str, str]) -> None:
    """Every rise of the line was seen by Linux, and acknowledged once."""
    line = board.machine.irq.line(FIRST_IRQ)
    acknowledged = [value for _, value in registers(board, "write", "INTERRUPT_ACK")]

    assert board.card.counters["interrupts"] >= line.asserts > PINGS_BACK
    assert line.asserts == len([value for value in acknowledged if value]), "a rise was not acknowledged"
    assert int(words["interrupts"]) == len(acknowledged), "an interrupt that is not this card's, or one too many"
    assert board.levels[True] == board.levels[False]
    assert board.qtest_said == Counter(OK=board.levels.total())


def check_kicks(board: LinuxBoard, expected: int) -> None:
    packed = expected & PACKED
    control = {len(board.card.device.queue_sizes) - 1} if expected & CONTROLLED else set()
    kicks = [queue for _, queue in registers(board, "write", "QUEUE_NOTIFY")]

    # On a packed ring the card says by flags that it need not hear of receive buffers; the event index of a split one
    # cannot say that before the first.
    receiving = set() if packed else set(range(net.RECEIVEQ1, 2 * board.card.device.pairs, 2))
    assert set(kicks) == {net.TRANSMITQ1} | receiving | control
    assert board.card.counters["kicks"] == len(kicks)


def check_register_sequence(board: LinuxBoard, offered: int, sizes: tuple[int, ...]) -> None:
    """The order of virtio 1.4 §3.1.1 and §4.2.3.1, as Linux really performs it, twice."""
    assert registers(board, "read")[:4] == [
        ("MAGIC_VALUE", MAGIC),
        ("VERSION", 2),
        ("DEVICE_ID", 1),
        ("VENDOR_ID", VENDOR_ID),
    ]
    high, low = offered >> 32, offered & 0xFFFFFFFF
    bring_up = [
        ("STATUS", 0),
        ("STATUS", 1),
        ("STATUS", 3),
        ("DEVICE_FEATURES_SEL", 1),
        ("DEVICE_FEATURES_SEL", 0),
        ("DRIVER_FEATURES_SEL", 1),
        ("DRIVER_FEATURES", high),
        ("DRIVER_FEATURES_SEL", 0),
        ("DRIVER_FEATURES", low),
        ("STATUS", 11),
        *[write for index, size in enumerate(sizes) for write in queue_set_up(index, size)],
        ("STATUS", 15),
    ]
    traffic = ("QUEUE_NOTIFY", "INTERRUPT_ACK")
    writes = [(name, value) for name, value in without_addresses(registers(board, "write")) if name not in traffic]
    assert writes[: len(bring_up)] == bring_up

    # Loaded, reset, loaded again, reset. After a reset Linux says at once that it knows the device.
    assert [value for _, value in registers(board, "write", "STATUS")] == [0, 1, 3, 11, 15, 0, 1, 3, 11, 15, 0, 1]
    assert board.card.status == 1
    assert not any(board.card.device.queues), "nothing of Linux's memory is held after the reset"


@pytest.mark.parametrize("name", BOARDS)
def test_linux_pings_through_the_card(name: str, linux_files: tuple[Path, Path], tmp_path: Path) -> None:
    options, expected = BOARDS[name]
    board = LinuxBoard(mac=MAC, **options)

    board.boot(require_program(QEMU), *linux_files, tmp_path)

    print(board.console)  # shown when something below fails
    words = said(board.console)
    check_negotiation(board, words, expected, mtu=9000 if options.get("mtu") == 9000 else 1500)
    check_pings(words)
    check_frames(board, words)
    check_interrupts(board, words)
    check_kicks(board, expected)
    if expected & CONTROLLED:
        assert board.card.device.counters["ctrl_commands"] > 5
        assert board.card.device.counters["ctrl_refused"] == 0
    check_register_sequence(board, expected, board.card.device.queue_sizes)
    for trouble in ("WARNING", "BUG", "Call Trace", "nobody cared"):
        assert trouble not in board.console
