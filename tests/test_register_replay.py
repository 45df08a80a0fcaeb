"""What Linux's driver once did to our registers, done again: the card must answer every access as it did then.

The recordings are in fixtures/registers; `make registers` makes them anew (tests/witness/record_registers.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from hw.abi import virtio_mmio as reg
from hw.clock import VirtualClock
from hw.loop import Loop
from hw.machine import Machine, Option
from hw.virtio.mmio import VirtioMmio
from hw.wire.cable import cable
from hw.wire.link import Frame, Receiver
from tests.witness.record_registers import FOLDER, Access, lines, offset_of, parse

RECORDINGS = sorted(FOLDER.glob("*.txt"))


class Deaf(Receiver):
    """Somebody at the other end of the cable."""

    def receive(self, frames: Sequence[Frame]) -> int:
        return len(frames)


def card_of(text: str) -> VirtioMmio:
    """A card as the recording's was: `# options`, `# mac`."""
    said = dict(line[2:].partition(" ")[::2] for line in text.splitlines() if line.startswith("# "))
    options: dict[str, Option] = dict(word.split("=", 1) for word in said.get("options", "").split())
    machine = Machine(Loop(VirtualClock()), memory_size=256 << 20)  # Linux put its rings where it liked
    near, far = cable(machine.loop)
    far.attach(Deaf())  # so that the link is up
    card = machine.add_virtio_net(near, mac=bytes.fromhex(said["mac"].replace(":", "")), options=options)
    return card


def replay(card: VirtioMmio, accesses: list[Access]) -> list[str]:
    """Do all of it; the accesses that were answered otherwise, in words.

    The rings are empty here, so nothing is ever used: before the driver reads why it was interrupted, the card is made
    to interrupt for that.
    """
    different = []
    for number, (op, register, size, value) in enumerate(accesses, 1):
        offset = offset_of(register)
        if op == "write":
            card.mmio_write(offset, size, value)
            continue
        if register == "INTERRUPT_STATUS":
            if value & reg.VIRTIO_MMIO_INT_VRING:
                card.notify_used(0)
            if value & reg.VIRTIO_MMIO_INT_CONFIG:
                card.notify_config()
        answer = card.mmio_read(offset, size)
        if answer != value and register != "CONFIG_GENERATION":
            different.append(f"access {number}: {register} reads {answer:#x}, not {value:#x}")
    return different


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_the_card_answers_linux_as_it_did(path: Path) -> None:
    text = path.read_text()
    card = card_of(text)
    accesses = parse(text)

    assert replay(card, accesses) == []
    statuses = [access.value for access in accesses if (access.op, access.register) == ("write", "STATUS")]
    assert statuses == [0, 1, 3, 11, 15, 0, 1, 3, 11, 15, 0, 1]
    assert not {name for name in card.counters if name not in ("kicks", "interrupts")}
    assert not any(card.device.queues)


def test_there_is_a_recording_of_every_kind_of_ring() -> None:
    assert [path.stem for path in RECORDINGS] == ["linux-default", "linux-packed", "linux-plain", "linux-queues"]


def test_an_access_that_is_answered_otherwise_is_named() -> None:
    text = (FOLDER / "linux-default.txt").read_text()
    card = card_of(text)
    card.device.features &= ~(1 << 15)
    card.device.queue_sizes = (128, 128)

    different = replay(card, parse(text))

    assert different[:2] == [
        "access 13: DEVICE_FEATURES reads 0x30010028, not 0x30018028",
        "access 21: STATUS reads 0x3, not 0xb",
    ]


def test_a_recording_keeps_all_but_the_middle_of_long_traffic() -> None:
    begin = ("write", reg.VIRTIO_MMIO_STATUS, 4, 15)
    doorbell = ("write", reg.VIRTIO_MMIO_QUEUE_NOTIFY, 4, 1)
    mac = ("read", reg.VIRTIO_MMIO_CONFIG + 5, 1, 0xEE)
    text = list(lines([begin, *[doorbell] * 40, mac]))

    assert text[0] == "write STATUS 4 0xf"
    assert text[1:13] == ["write QUEUE_NOTIFY 4 0x1"] * 12
    assert text[13:] == ["# 28 more doorbells, and interrupts and their acknowledgements", "read  CONFIG+5 1 0xee"]
    assert parse("\n".join(text))[-1] == Access("read", "CONFIG+5", 1, 0xEE)
