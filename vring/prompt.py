"""The terminal of a board: what is typed, or piped in, goes to a guest's shell; what guests say appears around it.

    main thread                        home thread (on the virtual clock the same one)
      │ ←── a line is wanted ───────── Terminal.read, in a process of the guest
      │ input(), with readline         the machine goes on
      │ ──── the line ───────────────→ Terminal.line

Promises:
- The main thread is the one that reads, since only there a signal ends `input`. On the real clock the machine runs on
  meanwhile, in a thread of its own; on the virtual clock time stands still while somebody types.
- Ctrl-C throws away what is typed, or ends the program in the foreground; it ends the machine only before the first
  prompt. Where lines are piped in it ends the machine, as SIGTERM always does.
- The machine's end ends the reading. While it reads, the main thread looks for that twenty times a second, and so
  also sees a signal that came between the prompt and the wait in `input`, which would go unseen until the next key.
- The terminal is as it was when all is over.

Read: guest/terminal.py, guest/apps/sh.py. Sections: `Reader` (readline), `Dialogue`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from guest.terminal import Terminal
from hw.clock import SECOND
from vring.config import Board
from vring.home import Home, SessionError

if TYPE_CHECKING:
    from guest.kernel import Guest
    from vring.build import Rig

DHCP_PATIENCE = 10  # seconds until the prompt comes without an address
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
LOOK = 0.05  # seconds between two looks while a line is read
HISTORY_LINES = 1000
CLEAR_LINE = "\r\x1b[K"


class Printer(Protocol):
    """What prints a guest's line."""

    def __call__(self, guest: str, line: str) -> None: ...


class _Again(BaseException):
    """The reading is to be given up: another line is wanted, or none any more."""


def is_terminal() -> bool:
    """Whether a person is at stdin and stdout."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


def with_shell(board: Board, typed: bool) -> tuple[Board, int | None]:
    """The board, and which of its guests has a shell for the terminal: the first that starts `sh`, or else, where a
    person types and no guest starts anything, the first of all, which then does; None for none. Raises ConfigError.

    A guest that is given a shell here does not wait for a DHCP server for ever.
    """
    from vring.build import check_guests  # noqa: PLC0415 - it loads the machine

    options = check_guests(board)
    for at, said in enumerate(options):
        if any(program.name == "sh" and not program.args for program in said.start):
            return board, at
    if not typed or any(said.start for said in options):
        return board, None
    first = board.guests[0]
    patience = f" -dhcp-timeout {DHCP_PATIENCE}" if options[0].dhcp and options[0].dhcp_timeout is None else ""
    first = replace(first, cmdline=f"{first.cmdline}{patience} -s sh".strip())
    return replace(board, guests=(first, *board.guests[1:])), 0


@contextmanager
def _cause() -> Iterator[None]:
    """Raise what the home thread died of in place of the fact that it did."""
    try:
        yield
    except SessionError as error:
        raise error.__cause__ or error from None


# -- reading ---------------------------------------------------------------------------------------------------------


class Reader:
    """Reads lines from stdin: with history and completion where a person types, and as they come otherwise.

    Args:
        typed: whether a person types.
        complete: the words that may stand where `word` is, for a line that ends with it.
    """

    def __init__(self, typed: bool, complete: Callable[[str, str], list[str]]) -> None:
        self.typed = typed
        self._readline: Any = None
        self._found: list[str] = []
        self._complete = complete
        if not typed:
            if isinstance(sys.stdin, TextIOWrapper):
                sys.stdin.reconfigure(errors="backslashreplace")
            return
        try:
            import readline  # noqa: PLC0415 - with it `input` has a history, and programs that ask nobody need none
        except ImportError:
            return  # a Python without it; lines can be typed all the same
        self._readline = readline
        readline.set_completer(self._completion)
        readline.set_completer_delims(" \t;&|")
        readline.parse_and_bind("bind ^I rl_complete" if "libedit" in (readline.__doc__ or "") else "tab: complete")
        readline.set_history_length(HISTORY_LINES)
        with suppress(OSError):
            readline.read_history_file(_history())

    def read(self, prompt: str) -> str | None:
        """The next line, without its end; None when there are no more."""
        if self.typed:
            try:
                return input(prompt)
            except EOFError:
                print()
                return None
        line = "" if sys.stdin is None else sys.stdin.readline()
        return line.rstrip("\r\n") if line else None

    def begun(self) -> str:
        """What is typed so far of the line that is being read."""
        return "" if self._readline is None else str(self._readline.get_line_buffer())

    def close(self) -> None:
        """Keep the history for the next time."""
        if self._readline is None:
            return
        self._readline.set_completer(None)
        path = _history()
        with suppress(OSError):  # a user without a home has no history
            path.parent.mkdir(parents=True, exist_ok=True)
            self._readline.write_history_file(path)

    def _completion(self, word: str, state: int) -> str | None:
        if state == 0:
            self._found = self._complete(self._readline.get_line_buffer()[: self._readline.get_endidx()], word)
        return self._found[state] if state < len(self._found) else None


def _history() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "vring" / "history"


# -- both sides ------------------------------------------------------------------------------------------------------


class Dialogue:
    """A board whose guest `at` has the terminal.

    Args:
        build: makes the board; it is given what prints the guests' lines.
        at: which of its guests.
        typed: whether a person types.
        board: its description; on the virtual clock it needs no thread.
        printer: prints a guest's line where nothing else is on the terminal's last line.

    Attributes:
        rig: what was built.

    Raises what `build` raises.
    """

    def __init__(
        self, build: Callable[[Printer], Rig], *, at: int, typed: bool, board: Board, printer: Printer
    ) -> None:
        self._stopped = False
        self._print = printer
        self._asked: str | Literal[False] | None = None  # the prompt; False for a line without, None for no line
        self._began = False  # the shell has asked at least once
        self._shown: str | Literal[False] | None = None  # the one that is being answered
        self._reading = False
        self._cancelled = False  # Ctrl-C came while a line was read
        self._drawn = False
        self._interrupted = False  # on the virtual clock: Ctrl-C came, and the machine has not been told
        self._home: Home | None = None
        self._rig: Rig | None = None
        if board.clock == "virtual":
            self.rig = self._rig = build(self._say)
        else:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # its thread takes no signals
            try:
                self._home = Home(lambda: build(self._say))
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self.rig = self._rig = self._home.rig
        self.guest: Guest = self.rig.guests[at]
        self.terminal = Terminal(self._ask, typed=typed, draw=self._draw if typed else None)
        self._deadline = None if board.run is None else round(board.run * SECOND)
        self._reader = Reader(typed, lambda line, word: self.call(lambda: self._words(line, word)))

    # -- in the home thread --------------------------------------------------------------------------------------

    def _ask(self, prompt: str | None) -> None:
        if self._drawn:
            self._draw("\n")
            self._drawn = False
        self._asked = False if prompt is None else prompt
        self._began = True

    def _over(self) -> bool:
        if self._rig is None:
            return False  # a signal came while it was made
        deadline = self._deadline
        if self._home is not None and self._home.ended:
            return True
        return self._stopped or self._rig.done() or (deadline is not None and self._rig.clock.now() >= deadline)

    def _interrupt(self) -> None:
        self._interrupted = False
        if self.terminal.interrupt(self.guest.scheduler):
            if self._asked is False:
                self._asked = None  # whoever wanted that line is gone
        elif not self._began:
            self._stop()

    def _stop(self) -> None:
        self._stopped = True
        if self._rig is not None:
            self._rig.loop.stop()

    def _words(self, line: str, word: str) -> list[str]:
        """What may stand at the end of `line`, where `word` is."""
        from guest.apps.sh import BUILTINS  # noqa: PLC0415 - the programs load when a guest is made

        before = line[: len(line) - len(word)].rstrip()
        if not before or before[-1] in ";&|" or before.split()[-1] == "help":
            found = [f"{name} " for name in (*self.guest.programs, *BUILTINS)]
        else:
            folder, slash, _ = word.rpartition("/")
            try:
                entries = self.guest.files.entries(folder)
            except OSError:
                entries = []
            found = [folder + slash + each.name + ("/" if each.is_folder else " ") for each in entries]
            found += [f"{interface.name} " for interface in self.guest.stack.interfaces]
        return sorted(each for each in found if each.startswith(word))

    # -- what appears --------------------------------------------------------------------------------------------

    def _say(self, guest: str, line: str) -> None:
        """Print a guest's line; what is being typed moves below it."""
        prompt = self._asked
        if self._reading and self._reader.typed:
            sys.stdout.write(CLEAR_LINE)
            self._print(guest, line)
            sys.stdout.write((prompt or "") + self._reader.begun())
            sys.stdout.flush()
            return
        if self._drawn:
            self._drawn = False
            sys.stdout.write("\n")
        self._print(guest, line)

    def _draw(self, text: str) -> None:
        """A line that the next one of its kind takes the place of."""
        self._drawn = True
        sys.stdout.write(text if text == "\n" else f"{CLEAR_LINE}{text}")
        sys.stdout.flush()

    # -- in the main thread --------------------------------------------------------------------------------------

    def run(self, stopped: bool = False) -> bool:
        """Power the board on and talk until it is over; whether a signal has ended it, as when it was `stopped` before.

        Raises what the machine died of.
        """
        self._stopped = stopped
        self.guest.terminal = self.terminal
        with self._signals():
            if self._deadline is not None:
                self.rig.clock.at(self._deadline, lambda: None)  # the loop must look at that time
            self.call(self.rig.power_on)
            while self._wait():
                with suppress(_Again):
                    self.call(partial(self._answer, self._read()))
        return self._stopped

    def close(self) -> None:
        """End the machine and the reading."""
        self._reader.close()
        if self._home is None:
            self.rig.close()
        else:
            with suppress(SessionError):  # it died, which `run` or `call` has said
                self._home.close()

    def call(self, function: Callable[[], Any]) -> Any:
        """Run `function` where the machine runs, between turns. Raises what it does, or what the machine died of."""
        if self._home is None:
            return function()
        with _cause():
            return self._home.call(function)

    def _wait(self) -> bool:
        """Let the machine run until a line is wanted; False when it is over."""
        def due() -> bool:
            return self._asked is not None or self._over()

        if self._home is not None:
            with _cause():
                self._home.run_until(due, None)
            return not self._over()
        while True:
            if self._interrupted:
                self._interrupt()
            if self.rig.loop.run(until=due, deadline=self._deadline):
                if self._asked is False:  # a program wants more; let it first do what there is to do
                    later, end = self.rig.clock.now() + SECOND, self._deadline
                    self.rig.loop.run(
                        until=lambda: self._asked is not False, deadline=later if end is None else min(end, later)
                    )
                return not self._over()
            if not self._interrupted:
                return False  # nothing can happen any more, the time is up, or a signal has ended it

    def _read(self) -> str | None:
        """One line from the user. Raises _Again."""
        while True:
            self._cancelled = False
            self._shown = self._asked
            try:
                try:
                    self._reading = True
                    signal.setitimer(signal.ITIMER_REAL, LOOK, LOOK)
                    line = self._reader.read(self._shown or "")
                finally:
                    self._reading = False
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
                if not self._cancelled:
                    return line
            except _Again:
                if not self._cancelled or self._over():
                    raise
                print()

    def _answer(self, line: str | None) -> None:
        self._asked = None
        self.terminal.line(line)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        wanted = {signal.SIGINT: self._on_interrupt, signal.SIGTERM: self._on_end, signal.SIGALRM: self._on_look}
        before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_interrupt(self, _number: int, _frame: FrameType | None) -> None:
        if not self.terminal.typed:
            self._on_end(_number, _frame)
        elif self._reading and self._shown is not False:
            self._cancelled = True
        elif self._home is not None:
            self._home.post(self._interrupt)
        else:
            self._interrupted = True
            if not self._reading:
                self.rig.loop.stop()

    def _on_end(self, _number: int, _frame: FrameType | None) -> None:
        self._stop()

    def _on_look(self, _number: int, _frame: FrameType | None) -> None:
        """The only handler that raises. `input` runs handlers once more after one has raised, with that exception set,
        which none survives: so no other signal may come before it has been left.
        """
        if self._reading and (
            self._cancelled or self._interrupted or self._asked is not self._shown or self._over()
        ):
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            raise _Again
