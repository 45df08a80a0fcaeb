"""Boards that ship: TOML files, found by name (`vring boot two-guests`, `vring.boot("two-guests")`, `vring boards`).

The first comment line of a board says what it shows.
"""

from __future__ import annotations

from pathlib import Path

from vring.config import Board, ConfigError

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
