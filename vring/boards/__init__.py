"""Boards that ship: TOML files, found by name (`vring boot two-guests`, `vring boards`).

The first comment line of a board says what it shows.
"""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent


def shipped() -> dict[str, Path]:
    """The boards by name, in alphabetical order."""
    return {path.stem: path for path in sorted(_HERE.glob("*.toml"))}


def summary(path: Path) -> str:
    """The first comment line of a board file, without its `#`; empty when there is none."""
    with path.open(encoding="utf-8") as lines:
        first = next(lines, "").strip()
    return first.removeprefix("#").strip() if first.startswith("#") else ""
