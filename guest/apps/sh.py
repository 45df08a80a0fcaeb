"""sh: a shell: runs the guest's programs by their names.

It reads the guest's terminal, a file, or one text. A line has commands with `;`, `&&`, `||` and `&` between them, words
in quotes, `$?` and comments; there are no pipes, no redirection, no variables and no job control.

Promises:
- The shell's status is that of its last command: 127 for a program that is not there, 2 for a line that is no sentence,
  130 for a program that Ctrl-C has ended.
- Ctrl-C ends the program in the foreground and nothing else. Programs behind `&` go on without the shell.
- When the shell at the terminal ends, the guest halts with its status.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

from guest.apps import EX_NOT_FOUND, EX_USAGE, about, manual, programs
from guest.apps.env import Env
from guest.apps.usage import UsageError, whole

if TYPE_CHECKING:
    from guest.sys.scheduler import Process
    from guest.terminal import Terminal

USAGE = """usage: sh [FILE | -c TEXT]
  FILE     run the lines of a file in the guest's folder
  -c TEXT  run this
  neither: read the terminal, which `vring boot` has made of its own (or of what is piped into it)"""
EXAMPLES = ("sh -c 'ping 127.0.0.1 -c 1 && echoclient bob'", "sh setup.sh")

EX_INTERRUPTED = 130
OPERATORS = ("&&", "||", ";", "&")

BUILTINS = {
    "exit": "end the shell, with a status or the last one's",
    "help": "this list; help PROGRAM has its usage",
    "kill": "end programs by the numbers of their processes",
    "ps": "the processes of the guest, with their numbers",
}

Joint = Literal["", "&&", "||", ";", "&"]


class SyntaxFault(Exception):
    """The line is no sentence; the text is one line."""


class Word(NamedTuple):
    """A word: pieces of text, and whether `$?` in a piece is the last status (not where it was in single quotes)."""

    pieces: tuple[tuple[str, bool], ...]

    def text(self, status: int) -> str:
        """The word, as a command gets it."""
        return "".join(piece.replace("$?", str(status)) if open_ else piece for piece, open_ in self.pieces)


class Command(NamedTuple):
    """One command: what it depends on (`before` is the operator in front of it), its words, whether `&` follows."""

    before: Joint
    words: tuple[Word, ...]
    behind: bool


# -- reading a line --------------------------------------------------------------------------------------------------


def parse(line: str) -> list[Command]:
    """The commands of a line, none where it is empty or a comment. Raises SyntaxFault."""
    commands: list[Command] = []
    words: list[Word] = []
    before: Joint = ""
    for token in [*_tokens(line), ";"]:
        if isinstance(token, Word):
            words.append(token)
            continue
        if words:
            commands.append(Command(before, tuple(words), token == "&"))
        elif token != ";" or before in ("&&", "||"):
            raise SyntaxFault(f"a command is missing at {token}")
        words = []
        before = ";" if token == "&" else token
    return commands


def _tokens(line: str) -> list[Word | Joint]:
    """Words and operators. Raises SyntaxFault."""
    found: list[Word | Joint] = []
    pieces: list[tuple[str, bool]] = []
    at = 0
    while at < len(line):
        char = line[at]
        operator = next((one for one in OPERATORS if line.startswith(one, at)), None)
        if char.isspace() or operator:
            if pieces:
                found.append(Word(tuple(pieces)))
                pieces = []
            if operator:
                found.append(operator)  # type: ignore[arg-type]  # it is one of the literals
            at += len(operator or char)
        elif char == "#" and not pieces:
            break
        elif char in "'\"":
            end = line.find(char, at + 1)
            if end < 0:
                raise SyntaxFault(f"the quote {char} is never closed")
            pieces.append((line[at + 1 : end], char == '"'))
            at = end + 1
        elif char == "\\":
            if at + 1 == len(line):
                raise SyntaxFault("there is nothing behind \\")
            pieces.append((line[at + 1], False))
            at += 2
        elif char in "|<>":
            raise SyntaxFault(f"there is no {char} here: no pipes, no redirection (quote it to say it)")
        else:
            # `$?` is one piece, so that a replacement finds it whole
            text = "$?" if line.startswith("$?", at) else char
            pieces.append((text, True))
            at += len(text)
    if pieces:
        found.append(Word(tuple(pieces)))
    return found


# -- running it ------------------------------------------------------------------------------------------------------


class Shell:
    """One shell.

    Attributes:
        status: of the last command. ended: whether `exit` was said.
    """

    def __init__(self, env: Env, terminal: Terminal | None = None) -> None:
        self.env = env
        self.status = 0
        self.ended = False
        self._terminal = terminal
        self._child: Process | None = None

    def run(self, line: str) -> None:
        """Run one line."""
        try:
            commands = parse(line)
        except SyntaxFault as error:
            self._fail(EX_USAGE, str(error))
            return
        for command in commands:
            if self.ended:
                return
            if (command.before == "&&" and self.status) or (command.before == "||" and not self.status):
                continue
            words = [word.text(self.status) for word in command.words]
            self.status = self._run(words[0], words[1:], command.behind)
            if self.status == EX_INTERRUPTED and self._terminal is not None:
                return  # Ctrl-C ends the line

    def end(self) -> None:
        """End the program that this shell runs, if it does."""
        if self._child is not None:
            self.env.guest.scheduler.kill(self._child)

    def _run(self, name: str, args: list[str], behind: bool) -> int:
        builtin: Callable[[list[str]], int] | None = getattr(self, f"_do_{name}", None) if name in BUILTINS else None
        if builtin is not None:
            try:
                return builtin(args)
            except UsageError as error:
                return self._fail(EX_USAGE, f"{name}: {error}")
        guest = self.env.guest
        if name not in guest.programs:
            return self._fail(EX_NOT_FOUND, f"there is no program {name!r}; help lists those that are")
        child = guest.spawn(name, *args)
        if behind:
            self.env.print(f"[{child.pid}] {name}")
            return 0
        return self._wait(child)

    def _wait(self, child: Process) -> int:
        """Let a program run in the foreground; its status."""
        terminal = self._terminal
        self._child = child
        if terminal is not None:
            terminal.foreground = child
        try:
            status = child.join() or 0
        finally:
            self.end()
            self._child = None
            if terminal is not None:
                terminal.foreground = None
        return EX_INTERRUPTED if terminal is not None and terminal.interrupted() else status

    def _fail(self, status: int, text: str) -> int:
        self.env.print(f"sh: {text}")
        self.status = status
        return status

    # -- what is not a program -----------------------------------------------------------------------------------

    def _do_exit(self, args: list[str]) -> int:
        if len(args) > 1:
            raise UsageError("one status at most")
        status = whole("status", args[0], 0, 255) if args else self.status
        self.ended = True
        return status

    def _do_help(self, args: list[str]) -> int:
        table = self.env.guest.programs
        known = programs()
        for name in args:
            if name in known:
                self.env.print(manual(name))
            elif name in BUILTINS:
                self.env.print(f"{name}: {BUILTINS[name]}")
            else:
                raise UsageError(f"there is no program {name!r}")
        if args:
            return 0
        lines = {name: about(name) if name in known else "" for name in table} | BUILTINS
        width = max(map(len, lines))
        for name, text in sorted(lines.items()):
            self.env.print(f"  {name:<{width}}  {text}".rstrip())
        self.env.print("Between commands: ; && || &   $? is the last status   Ctrl-C ends a program, Ctrl-D the shell")
        return 0

    def _do_ps(self, args: list[str]) -> int:
        if args:
            raise UsageError("it takes no words")
        for process in self.env.guest.scheduler:
            if process is not self.env.process:
                self.env.print(f"{process.pid:>4}  {process.name}")
        return 0

    def _do_kill(self, args: list[str]) -> int:
        there = {process.pid: process for process in self.env.guest.scheduler}
        status = 0
        if not args:
            raise UsageError("a number is needed; ps lists them")
        for word in args:
            number = whole("process", word, 1, 1 << 31)
            process = there.get(number)
            if process is None or process.name in ("init", "boot") or process is self.env.process:
                status = self._fail(1, f"kill: {word}: there is no such program")
            else:
                self.env.guest.scheduler.kill(process)
        return status


def main(env: Env, argv: list[str]) -> int:
    """The status of the last command; 2 for wrong usage."""
    terminal = env.guest.terminal
    try:
        if argv[:1] == ["-c"]:
            if len(argv) != 2:
                raise UsageError("-c needs one text, in quotes")
            return _script(env, argv[1].splitlines())
        if argv and (len(argv) > 1 or argv[0].startswith("-")):
            raise UsageError(f"what is {argv[-1]}?")
        if argv:
            try:
                with env.guest.files.open(argv[0]) as file:
                    lines = file.read().decode("utf-8", "backslashreplace").splitlines()
            except OSError as error:
                env.print(f"sh: {argv[0]}: {error.strerror}")
                return EX_NOT_FOUND
            return _script(env, lines)
        if terminal is None:
            raise UsageError("there is no terminal here; a FILE or -c TEXT is needed")
    except UsageError as error:
        env.print(f"sh: {error}\n{USAGE}")
        return EX_USAGE
    return _converse(env, terminal)


def _script(env: Env, lines: list[str]) -> int:
    shell = Shell(env)
    try:
        for line in lines:
            if shell.ended:
                break
            shell.run(line)
    finally:
        shell.end()
    return shell.status


def _converse(env: Env, terminal: Terminal) -> int:
    """Read the terminal until its end, or `exit`; then the guest halts."""
    shell = Shell(env, terminal)
    try:
        while not shell.ended:
            line = terminal.read(env, f"{env.guest.name}$ ")
            if line is None:
                break
            shell.run(line)
    finally:
        shell.end()
    env.guest.halt(shell.status)
    return shell.status
