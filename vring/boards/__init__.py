"""Boards that ship: TOML files, found by name (`vring boot two-guests`, `vring.boot("two-guests")`, `vring boards`).

The first comment line of a board says what it shows. `DEFAULT` is the one that boots where nothing was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vring.config import Board, ConfigError

DEFAULT = "qemu-user"
# What a program's own guest is given on a user wire: the addresses that DHCP would, without the wait for a lease.
USER_WORDS = "-ipaddr 10.0.2.15 -netmask 255.255.255.0 -gateway 10.0.2.2 net.dns=10.0.2.3"
_HERE = Path(__file__).resolve().parent


def shipped() -> dict[str, Path]:
    """The boards by name, in alphabetical order."""
    return {path.stem: path for path in sorted(_HERE.glob("*.toml"))}


def summary(path: Path) -> str:
    """The first comment line of a board file, without its `#`; empty when there is none."""
    with path.open(encoding="utf-8") as lines:
        first = next(lines, "").strip()
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def find(name: str | Path) -> Board:
    """The board in the file `name`, or else the one that ships under that name. Raises ConfigError."""
    boards = shipped()
    if str(name) in boards and not Path(name).is_file():
        return Board.load(boards[str(name)])
    if not Path(name).exists():
        raise ConfigError(
            f"there is no board file '{name}', and no board of that name ships; those that do are {', '.join(boards)}"
        )
    return Board.load(name)


def asked_for(
    board: Board | str | Path | None,
    nics: Sequence[str] = (),
    wires: Sequence[str] = (),
    cmdline: str | None = None,
    *,
    virtual: bool = False,
) -> Board:
    """The board that is meant: one that exists, a file, one that ships, or one guest described by words.

    Where neither board, NIC nor wire is asked for, that is `DEFAULT`; on the virtual clock, on which nothing leads
    outside, a guest with one NIC that is not plugged in. Raises ConfigError.
    """
    if board is None and (nics or wires or virtual):
        return Board.of_words(nics, wires, cmdline or "")
    found = board if isinstance(board, Board) else find(board or DEFAULT)
    return found.with_words(nics, wires, cmdline)
