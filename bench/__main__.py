"""`python -m bench`: measure everything, print a table, write bench/results/latest.json."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench import hook, hub, pytcp, ring, tap_ping, tcp, udp_echo, usernet, vhost, xen
from bench.harness import Figure, spread

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Parse the words, measure, report."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds of each contestant (default 5)")
    parser.add_argument("--scale", type=float, default=1.0, help="work in a round; 0.1 for a quick look (default 1)")
    parser.add_argument("--only", default="", help="measure the parts with this word in their name, keep the rest")
    words = parser.parse_args()
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a table in a file is read, not scrolled
    figures: list[Figure] = []
    why = tap_ping.missing()
    parts = [("ring", ring.measure), ("hub", hub.measure), ("hook", hook.measure), ("Xen", xen.measure)]
    if not why:
        parts += [
            ("ping over TAP", tap_ping.measure), ("UDP echo over TAP", udp_echo.measure), ("TCP over TAP", tcp.measure),
        ]  # fmt: skip
    if not vhost.missing():
        parts.append(("two processes", vhost.measure))
    if not usernet.missing():
        parts.append(("user wire", usernet.measure))
    for name, measure in parts:
        if words.only not in name:
            continue
        with console.status(f"measuring: {name}"):
            figures += measure(words.rounds, words.scale)
    console.print(table(figures))
    if why:
        console.print(f"left out: ping, UDP echo and TCP over TAP ({why})")
    elif pytcp.missing():
        console.print(f"left out: TCP beside another stack ({pytcp.missing()})")
    if usernet.missing():
        console.print(f"left out: the user wire ({usernet.missing()})")
    RESULTS.mkdir(exist_ok=True)
    where = RESULTS / "latest.json"
    rows = [figure.as_dict() for figure in figures]
    if words.only and where.exists():
        names = {figure.name for figure in figures}
        rows = [row for row in json.loads(where.read_text())["figures"] if row["name"] not in names] + rows
    where.write_text(json.dumps({"python": platform.python_version(), "figures": rows}, indent=1))
    console.print(f"written: {where.relative_to(Path.cwd()) if where.is_relative_to(Path.cwd()) else where}")
    return 0


def table(figures: list[Figure]) -> Table:
    """One row a figure: medians with their ranges, and the ratio."""
    out = Table(title="vring beside its yardsticks: median \\[min..max] of interleaved rounds")
    for column in ("figure", "unit"):
        out.add_column(column)
    for column in ("vring", "yardstick", "ratio"):
        out.add_column(column, justify="right", no_wrap=True)
    out.add_column("yardstick is")
    for figure in figures:
        out.add_row(
            f"{figure.name}\n[dim]{figure.note}",
            figure.unit,
            escape(spread(figure.ours)),
            escape(spread(figure.theirs)),
            f"{figure.ratio:.2f}",
            figure.yardstick,
        )
    return out


if __name__ == "__main__":
    sys.exit(main())
