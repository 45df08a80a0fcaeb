"""What a boot prints: the guests' lines as they come, and at the end how each guest fared.

A kernel line is dim behind its time, a program's line is plain; with several guests each line begins with its guest's
name. The lines of a trace stand between them.

Everything goes through one rich console, which leaves colours out where the output is piped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from vring.config import Board

if TYPE_CHECKING:
    from vring.trace.flow import Passage

GUEST_STYLES = ("cyan", "magenta", "green", "blue", "yellow")
_KERNEL = re.compile(r"\[ *\d+\.\d{6}\] ")
_TROUBLE = re.compile(r"\b(panic|error|failed|ignored|broken)\b")


class LinePrinter:
    """Prints console lines of the guests `names`.

    Args:
        console: where to; lines are never wrapped or interpreted.
    """

    def __init__(self, console: Console, names: Sequence[str]) -> None:
        self._console = console
        self._names = list(names)
        self._width = max(map(len, names)) if len(names) > 1 else 0

    def __call__(self, guest: str, line: str) -> None:
        """Print one line of `guest`."""
        text = Text()
        if self._width:
            style = GUEST_STYLES[self._names.index(guest) % len(GUEST_STYLES)]
            text.append(f"{guest:<{self._width}} ", style=style)
            text.append("│ ", style="dim")
        time = _KERNEL.match(line)
        if time is not None:
            text.append(time[0], style="dim")
            text.append(line[time.end() :], style="yellow" if _TROUBLE.search(line) else "")
        else:
            text.append(line)
        self._console.print(text, soft_wrap=True)


class PassagePrinter:
    """Prints the way of frames: a line a stage, dim where the frame goes on and red where it was dropped."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __call__(self, passage: Passage) -> None:
        """Print one line."""
        self._console.print(Text(str(passage), style="red" if passage.dropped else "dim"), soft_wrap=True)


def board_lines(board: Board) -> Text:
    """The board as it was understood: one line a guest and one a NIC."""
    seed = "the host's entropy" if board.chosen_seed is None else f"seed {board.chosen_seed}"
    text = Text(f"clock {board.clock}, {seed}", style="dim")
    if board.run is not None:
        text.append(f", at most {board.run:g} s")
    for guest in board.guests:
        size = "no machine" if guest.partial else f"{guest.memory >> 20} MiB"
        text.append(f"\n{guest.name}: {size}, {guest.words or '(no command line)'}")
        for slot, nic in enumerate(guest.nics):
            options = "".join(f" {key}={value}" for key, value in nic.options.items())
            text.append(f"\n  nic {slot}: {nic.model}{options} on {nic.wire}")
    return text
