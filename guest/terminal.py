"""The guest's terminal, for the one shell that reads it: lines come from outside, and so does Ctrl-C.

    workbench                          shell
      │ ←──── ask(prompt) ──────────── read(env, prompt), which blocks
      │ line("ping …") ─────────────→  the line; None is the end of the file
      │ interrupt() ────────────────→  the program in the foreground ends

The workbench calls `line` and `interrupt` in the guest's thread, between two turns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guest.apps.env import Env
    from guest.sys.scheduler import Process, Scheduler


class Terminal:
    """A terminal.

    Args:
        ask: told that a line is wanted: the prompt to show, None where the line is for a program in the foreground. It
            is answered by `line`, later.
        typed: whether a person types, who may also want to talk to a program in the foreground.
        draw: shows a line that the next one takes the place of; None where that cannot be.

    Attributes:
        foreground: the process that Ctrl-C ends.
    """

    def __init__(
        self, ask: Callable[[str | None], None], *, typed: bool, draw: Callable[[str], None] | None = None
    ) -> None:
        self.typed = typed
        self.draw = draw
        self.foreground: Process | None = None
        self._ask = ask
        self._lines: deque[str | None] = deque()
        self._reader: Env | None = None
        self._interrupted = False

    def read(self, env: Env, prompt: str | None) -> str | None:
        """The next line, without its end; None when there are no more. Blocks."""
        if not self._lines:
            self._reader = env
            self._ask(prompt)
            try:
                env.wait(lambda: bool(self._lines))
            finally:
                if self._reader is env:  # another may read by now, where this one was killed
                    self._reader = None
        return self._lines.popleft()

    def line(self, text: str | None) -> None:
        """A line was typed, or the end of the file."""
        self._lines.append(text)
        if self._reader is not None:
            self._reader.wake()

    def interrupt(self, scheduler: Scheduler) -> bool:
        """Ctrl-C: end the process in the foreground; whether there is one."""
        process = self.foreground
        if process is None:
            return False
        self._interrupted = True
        scheduler.kill(process)
        return True

    def interrupted(self) -> bool:
        """Whether `interrupt` has ended a process since this was last asked."""
        found, self._interrupted = self._interrupted, False
        return found
