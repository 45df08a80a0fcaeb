"""The boot log and the console: the kernel's lines with the machine's time, and what programs print.

Promises:
- A kernel line reads `[    0.000123] text`: seconds and microseconds since power-on. With the virtual clock and the
  same seed the log is the same, byte for byte.
- Both the log and the programs' output are bounded: the oldest lines go first, and are counted.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable

LOG_LINES = 10_000


class BootLog:
    """The kernel's log.

    Args:
        now: the machine's time, in microseconds.
        console: told of every line, the programs' too; None for nobody.

    Attributes:
        lines: the kernel's lines, oldest first.
        output: the lines that programs printed, without time.
        dropped: lines that are gone because there were more than LOG_LINES.
    """

    def __init__(self, now: Callable[[], int], console: Callable[[str], None] | None = None) -> None:
        self._now = now
        self._console = console
        self.lines: list[str] = []
        self.output: list[str] = []
        self.dropped = 0

    def write(self, text: str) -> None:
        """One kernel line; line ends inside `text` become blanks."""
        seconds, micros = divmod(self._now(), 1_000_000)
        self._add(self.lines, f"[{seconds:5d}.{micros:06d}] {' '.join(text.splitlines())}")

    def print(self, text: str) -> None:
        """What a program prints: one line, or several with line ends between them."""
        for line in text.split("\n"):
            self._add(self.output, line)

    def text(self) -> str:
        """The kernel's lines as one text."""
        return "".join(line + "\n" for line in self.lines)

    def _add(self, lines: list[str], line: str) -> None:
        if len(lines) >= LOG_LINES:
            self.dropped += LOG_LINES // 10
            del lines[: LOG_LINES // 10]
        lines.append(line)
        if self._console is not None:
            self._console(line)


def describe(error: BaseException) -> str:
    """An exception in one line: its type, its text, and the innermost three places it went through."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    places = " < ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames[::-1])
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text} ({places})" if text else f"{type(error).__name__} ({places})"
