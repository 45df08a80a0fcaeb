"""`python docs/make_pictures.py`: run commands and draw parts of what they print as docs/img/*.svg.

Nothing is drawn by hand: each picture shows lines of a real run, in order, in their colours. Lines that are left out
leave a `⋮`.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "img"
VRING = [sys.executable, "-c", "from vring.cli import main; main()"]
WIDTH = 100
CELL = 20 * 0.61  # what rich takes a character of 20 px to be wide

DARK = TerminalTheme(
    (24, 28, 34),
    (214, 219, 226),
    [
        (24, 28, 34), (224, 108, 117), (152, 195, 121), (229, 192, 123),
        (97, 175, 239), (198, 120, 221), (86, 182, 194), (214, 219, 226),
    ],
)  # fmt: skip

# rich's own template fetches a font from another site; this one takes what the reader has.
SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 WIDE HIGH" role="img">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; }}
{styles}
</style>
<rect width="WIDE" height="HIGH" rx="10" fill="#181c22"/>
<g class="{unique_id}-matrix" transform="translate(14, 10)">
{backgrounds}{matrix}</g>
</svg>
"""


def run(*words: str) -> list[str]:
    """The lines that `vring` prints to a terminal of this width, with their colours."""
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(WIDTH), "TERM": "xterm-256color"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run([*VRING, *words], capture_output=True, text=True, check=True, env=environment, cwd=ROOT)
    return done.stdout.splitlines()


def between(lines: list[str], first: str, last: str) -> list[str]:
    """From the line with `first` in it to the one before the next with `last` in it. Raises StopIteration."""
    plain = [Text.from_ansi(line).plain for line in lines]
    start = next(at for at, line in enumerate(plain) if first in line)
    end = next(at for at, line in enumerate(plain) if at > start and last in line)
    return lines[start:end]


def lesson(page: str) -> list[str]:
    """The lines that the first example of docs/teaching/`page`.md prints, with its bars in colours."""
    text = (ROOT / "docs" / "teaching" / f"{page}.md").read_text(encoding="utf-8")
    code = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)[0]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, cwd=ROOT
    )
    colours = {"─": "32", "━": "33", "·": "36"}
    return [
        re.sub(r"─+|━+|·+", lambda bar: f"\x1b[{colours[bar[0][0]]}m{bar[0]}\x1b[0m", line)
        for line in done.stdout.splitlines()
    ]


def draw(name: str, command: str, parts: list[list[str]]) -> None:
    """Write docs/img/`name`.svg: a prompt with `command`, and the parts, with a dotted line between two.

    A part without lines stands for what is left out before the first or after the last.
    """
    lines = [Text(f"$ {command}", style="bold")]
    for at, part in enumerate(parts):
        if at:
            while not lines[-1].plain.strip():
                lines.pop()
            lines.append(Text("⋮", style="dim"))
        lines += [Text.from_ansi(line.rstrip()) for line in part]
    while not lines[-1].plain.strip():
        lines.pop()
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for line in lines:
        line.rstrip()
        console.print(line, no_wrap=True, overflow="crop", highlight=False)
    svg = console.export_svg(theme=DARK, code_format=SVG, unique_id=name, font_aspect_ratio=CELL / 20)
    svg = re.sub(r'<text [^>]*>\s*</text>\n?', "", svg)  # line ends
    svg = re.sub(r' clip-path="[^"]*"', "", svg)  # nothing reaches out of its line
    svg = svg.replace("WIDE", str(round(WIDTH * CELL) + 28)).replace("HIGH", str(round(len(lines) * 1.22 * 20) + 28))
    (PICTURES / f"{name}.svg").write_text(svg, encoding="utf-8")


def main() -> None:
    """Make every picture."""
    PICTURES.mkdir(exist_ok=True)
    tour = run("tour")
    draw(
        "tour",
        "make boot",
        [
            [],
            between(tour, "1 A guest boots", "stage 1: events"),
            between(tour, "dhcp: eth0: offer", "address: eth0"),
            between(tour, "✓ address", "wget: numbers.bin saved"),
            between(tour, "✓ 4,194,304", "httpd: everything"),
            between(tour, "httpd: 10.0.2.2", "6 What passed"),
            [],
        ],
    )
    demo = run("demo", "tx")
    draw("demo-tx", "vring demo tx", [[], between(demo, "4 driver: available ring", "7 device: DMA"), []])
    draw("tcp-window", "python tcp-window.py", [lesson("tcp-window")])


if __name__ == "__main__":
    main()
