"""Records every register access of Linux's virtio_mmio driver over our card, into fixtures/registers.

    python -m tests.witness.record_registers [BOARD]...

A recording is a text: a line for each access, `read` or `write`, the register's name or `CONFIG+offset`, the bytes, the
value. Doorbells and interrupts of traffic say little after the first few: `FEW` of each run are kept, and a comment
counts the others.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from hw.abi.virtio_mmio import REGISTER_NAMES, VIRTIO_MMIO_CONFIG
from tests.requirements import require_program
from tests.witness.linux_guest import guest_files, said
from tests.witness.linux_mmio import LinuxBoard

FOLDER = Path(__file__).parents[2] / "fixtures" / "registers"
QEMU = "qemu-system-x86_64"
FEW = 12
TRAFFIC = ("QUEUE_NOTIFY", "INTERRUPT_STATUS", "INTERRUPT_ACK")


class Access(NamedTuple):
    """One access: `op` is "read" or "write", `register` a name or `CONFIG+offset`."""

    op: str
    register: str
    size: int
    value: int


def name_of(offset: int) -> str:
    """A register's name, or where in the configuration space it is."""
    if offset >= VIRTIO_MMIO_CONFIG:
        return f"CONFIG+{offset - VIRTIO_MMIO_CONFIG}"
    return REGISTER_NAMES.get(offset, f"{offset:#x}")


def offset_of(register: str) -> int:
    """The other way round. Raises KeyError."""
    if register.startswith("CONFIG+"):
        return VIRTIO_MMIO_CONFIG + int(register.removeprefix("CONFIG+"))
    return {name: offset for offset, name in REGISTER_NAMES.items()}[register]


def lines(trace: Sequence[tuple[str, int, int, int]]) -> Iterator[str]:
    """A trace as a recording."""
    run = left_out = 0
    for op, offset, size, value in trace:
        register = name_of(offset)
        run = run + 1 if register in TRAFFIC else 0
        if run > FEW:
            left_out += 1
            continue
        if left_out:
            yield f"# {left_out} more doorbells, and interrupts and their acknowledgements"
            left_out = 0
        yield f"{op:<5} {register} {size} {value:#x}"


def parse(text: str) -> list[Access]:
    """The accesses of a recording."""
    found = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            op, register, size, value = line.split()
            found.append(Access(op, register, int(size), int(value, 0)))
    return found


def record(name: str) -> Path:
    """Boot Linux on the board `name`, and write what its driver did."""
    from tests.test_witness_linux import BOARDS, MAC

    options, _ = BOARDS[name]
    board = LinuxBoard(mac=MAC, **options)
    with tempfile.TemporaryDirectory() as work:
        kernel, initrd = guest_files(Path(work))
        board.boot(require_program(QEMU), kernel, initrd, Path(work))
    words = said(board.console)
    told = " ".join(f"{key}={value}" for key, value in options.items())
    head = [
        f"# Linux {words['kernel']}, its virtio_mmio and virtio_net: loaded, used, unloaded, loaded again, unloaded.",
        f"# options {told}".rstrip(),
        f"# mac {MAC.hex(':')}",
        f"# features {board.card.device.features:#x}",
    ]
    path = FOLDER / f"linux-{name}.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([*head, *lines(board.trace)]) + "\n")
    return path


if __name__ == "__main__":
    for chosen in sys.argv[1:] or ["plain", "default", "packed", "queues"]:
        print(record(chosen))
