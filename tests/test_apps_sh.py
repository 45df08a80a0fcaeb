"""The shell: its language, what it is told by programs, its terminal, the guest's folder; on one guest alone.

The terminal is played by the test: `Typist` types a line when the shell asks for one.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from guest.apps.env import Env
from guest.apps.sh import SyntaxFault, parse
from guest.files import RamFolder
from guest.kernel import Guest
from guest.terminal import Terminal
from tests.guest_board import Board


@pytest.fixture
def board() -> Iterator[Board]:
    made = Board()
    yield made
    made.close()


@pytest.fixture
def guest(board: Board) -> Guest:
    made = board.boot()

    def status(env: Env, argv: list[str]) -> int:
        env.print(" ".join(argv))
        return int(argv[0])

    def forever(env: Env, _argv: list[str]) -> int:
        try:
            env.sleep(1 << 50)
        finally:
            env.print("forever ends")
        return 0

    def crash(_env: Env, _argv: list[str]) -> int:
        raise RuntimeError("broken")

    made.programs |= {"status": status, "forever": forever, "crash": crash}
    return made


def sh(board: Board, guest: Guest, *words: str) -> tuple[int | None, list[str]]:
    """The status of a shell, and what was printed."""
    guest.log.output.clear()
    process = guest.spawn("sh", *words)
    board.run(10)
    return process.exit_status, guest.log.output


class Typist:
    """Types these lines one by one, each when a prompt is there; then nothing, and `None` ends the file."""

    def __init__(self, guest: Guest, *lines: str | None, typed: bool = True) -> None:
        self.guest = guest
        self.lines = list(lines)
        self.prompts: list[str | None] = []
        self.terminal = guest.terminal = Terminal(self._ask, typed=typed)

    def _ask(self, prompt: str | None) -> None:
        self.prompts.append(prompt)
        if prompt is not None and self.lines:
            self.terminal.line(self.lines.pop(0))


# -- the language --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "status", "printed"),
    [
        ("status 0 a", 0, ["0 a"]), ("status 3", 3, ["3"]), ("", 0, []), ("  # nothing", 0, []),
        ("status 1; status 0 b", 0, ["1", "0 b"]), ("status 0; status 2;", 2, ["0", "2"]),
        ("status 0 && status 4", 4, ["0", "4"]), ("status 1 && status 0", 1, ["1"]),
        ("status 0 || status 1", 0, ["0"]), ("status 1 || status 0 c", 0, ["1", "0 c"]),
        ("status 1 && status 2 || status 5", 5, ["1", "5"]), ("status 0 || status 2 && status 6", 6, ["0", "6"]),
        ("status 7; status $?", 7, ["7", "7"]), ("status 7; status 0 '$?' \"$?\" a$?b", 0, ["7", "0 $? 7 a7b"]),
        ("status 0 'a  b' \"c;d\" e\\ f", 0, ["0 a  b c;d e f"]), ("status 0 a#b # c", 0, ["0 a#b"]),
        ("status 0 ''", 0, ["0 "]), ("exit", 0, []), ("status 9; exit", 9, ["9"]), ("exit 4; status 0", 4, []),
        ("status 1\nstatus 2", 2, ["1", "2"]), ("crash", 70, []), ("exit 256", 2, None), ("exit 1 2", 2, None),
        ("nosuch", 127, ["sh: there is no program 'nosuch'; help lists those that are"]),
        ("nosuch || status 0", 0, None),
    ],
)  # fmt: skip
def test_what_a_line_does(board: Board, guest: Guest, text: str, status: int, printed: list[str] | None) -> None:
    assert sh(board, guest, "-c", text) == (status, guest.log.output if printed is None else printed)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("ping 'x", "the quote ' is never closed"), ('a "b', 'the quote " is never closed'),
        ("a \\", "nothing behind \\"),
        ("a | b", "there is no | here"), ("a > b", "there is no > here"), ("a < b", "there is no < here"),
        ("&& a", "missing at &&"), ("a && && b", "missing at &&"), ("a &&", "missing at ;"), ("a ||", "missing at ;"),
        ("& a", "missing at &"), ("a & && b", "missing at &&"),
    ],
)  # fmt: skip
def test_what_is_no_sentence_is_said_and_status_2(board: Board, guest: Guest, text: str, why: str) -> None:
    with pytest.raises(SyntaxFault) as fault:
        parse(text)
    assert why in str(fault.value)
    assert sh(board, guest, "-c", text) == (2, [f"sh: {fault.value}"])


def test_a_program_behind_an_ampersand_goes_on_and_can_be_ended(board: Board, guest: Guest) -> None:
    status, printed = sh(board, guest, "-c", "forever & status 0; ps")
    number = printed[0].partition("]")[0].strip("[")
    assert (status, printed[:2]) == (0, [f"[{number}] forever", "0"])
    assert [line.split() for line in printed[2:]] == [["1", "init"], [number, "forever"]]
    assert sh(board, guest, "-c", f"kill {number}") == (0, ["forever ends"])
    assert sh(board, guest, "-c", f"kill {number}; kill 1; kill x; kill") == (2, [
        f"sh: kill: {number}: there is no such program", "sh: kill: 1: there is no such program",
        "sh: kill: process x: a number from 1 to 2147483648 is needed",
        "sh: kill: a number is needed; ps lists them",
    ])  # fmt: skip


def test_a_shell_that_is_killed_takes_its_program_with_it(board: Board, guest: Guest) -> None:
    process = guest.spawn("sh", "-c", "forever")
    board.run(1)
    guest.scheduler.kill(process)
    board.run(1)
    assert guest.log.output == ["forever ends"]
    assert [process.name for process in guest.scheduler] == ["init"]


def test_help_has_every_program_and_its_usage(board: Board, guest: Guest) -> None:
    status, printed = sh(board, guest, "-c", "help")
    assert status == 0
    assert {line.split()[0] for line in printed[:-1]} == {*guest.programs, "exit", "help", "kill", "ps"}
    assert "  wget        an HTTP client" in "\n".join(printed)
    for name in [name for name in guest.programs if name not in ("status", "forever", "crash")]:
        assert sh(board, guest, "-c", f"help {name}")[1][0].startswith(f"usage: {name}")
        assert sh(board, guest, "-c", f"{name} --help") == (0, sh(board, guest, "-c", f"help {name}")[1]), name
    assert sh(board, guest, "-c", "help ps nosuch") == (
        2, ["ps: the processes of the guest, with their numbers", "sh: help: there is no program 'nosuch'"]
    )  # fmt: skip


@pytest.mark.parametrize("words", [(), ("-c",), ("-c", "a", "b"), ("-x",), ("a", "b")])
def test_wrong_usage_of_sh_is_status_2_with_usage_text(board: Board, guest: Guest, words: tuple[str, ...]) -> None:
    status, printed = sh(board, guest, *words)
    assert status == 2
    assert printed[1].startswith("usage: sh "), "without a terminal there is nothing to read"


def test_a_file_of_lines(board: Board, guest: Guest) -> None:
    with guest.files.open("setup.sh", "wb") as file:
        file.write(b"# a comment\nstatus 0 a\r\nstatus 3\n")
    assert sh(board, guest, "setup.sh") == (3, ["0 a", "3"])
    assert sh(board, guest, "none.sh") == (127, ["sh: none.sh: No such file or directory"])


# -- at the terminal -----------------------------------------------------------------------------------------------


def test_e44_the_shell_at_the_terminal_prompts_runs_and_halts_the_guest_at_its_end(board: Board, guest: Guest) -> None:
    typist = Typist(guest, "status 0 a", "", "status 3", None)
    sh(board, guest)
    assert guest.log.output == ["0 a", "3"]
    assert typist.prompts == ["guest$ "] * 4
    assert (guest.halted, guest.exit_status) == (True, 3)


def test_exit_and_halt_end_the_guest_with_a_status(board: Board, guest: Guest) -> None:
    Typist(guest, "exit 5", "status 0 never")
    sh(board, guest)
    assert (guest.halted, guest.exit_status, guest.log.output) == (True, 5, [])
    other = board.boot("-s halt 6 -s idle", name="other")
    board.run(1)
    assert (other.halted, other.exit_status) == (True, 6)
    for words in ("halt 256", "halt x", "halt 1 2"):
        third = board.boot(f"-s {words} -s halt 9", name=words)
        board.run(1)
        assert third.exit_status == 9, "wrong usage halts nothing"
        assert any("usage: halt [STATUS]" in line for line in third.log.output)


def test_ctrl_c_ends_the_program_and_the_line_but_not_the_shell(board: Board, guest: Guest) -> None:
    typist = Typist(guest, "forever; status 0 never", "status $?", "forever &", "exit")
    process = guest.spawn("sh")
    board.run(1)
    assert typist.terminal.interrupt(guest.scheduler) is True
    board.run(1)
    assert guest.log.output == ["forever ends", "130", f"[{process.pid + 3}] forever"]
    assert guest.halted is True
    assert typist.terminal.interrupt(guest.scheduler) is False, "what is in the background is not ended"


def test_what_is_typed_meanwhile_goes_to_nc(board: Board, guest: Guest) -> None:
    typist = Typist(guest, "nc -l 99 &", "nc 127.0.0.1 99", "exit")
    guest.spawn("sh")
    board.run(1)
    assert typist.prompts[-1] is None, "nc has no prompt"
    typist.terminal.line("hello")
    typist.terminal.line("")
    typist.terminal.line("world")
    board.run(1)
    assert guest.log.output[-3:] == ["hello", "", "world"]
    assert typist.terminal.interrupt(guest.scheduler) is True
    board.run(1)
    assert guest.halted is True


def test_nc_takes_no_lines_before_there_is_a_connection_nor_after_its_last_word(board: Board, guest: Guest) -> None:
    """Whoever types would stop a virtual clock, and with it what nc waits for."""
    typist = Typist(guest, "nc -l 99", "status 0 next", "nc -u -N -w 1 -m hi 127.0.0.1 7", "exit")
    guest.spawn("sh")
    board.run(1)
    assert None not in typist.prompts, "a line was asked for that nobody could be sent"
    guest.spawn("nc", "-N", "-m", "over", "127.0.0.1", "99")
    board.run(5)
    assert guest.log.output[:2] == ["over", "0 next"]
    assert typist.prompts.count(None) == 1, "nc -N asks for lines"
    assert guest.halted is True


def test_piped_lines_go_to_the_shell_alone(board: Board, guest: Guest) -> None:
    """A program that takes lines does not eat those that are meant for the shell."""
    typist = Typist(guest, "nc -l 99 &", "nc -w 1 -m hi 127.0.0.1 99", "status 0 after", None, typed=False)
    guest.spawn("sh")
    board.run(10)
    assert None not in typist.prompts
    assert "0 after" in guest.log.output


# -- the folder ----------------------------------------------------------------------------------------------------


def test_ls_and_cat_show_the_guests_folder(board: Board, guest: Guest) -> None:
    assert sh(board, guest, "-c", "ls") == (0, [])
    for name, data in (("b.txt", b"two\nlines\n"), ("a\x1b.txt", b"x\x1b[2J"), ("c", b"")):
        with guest.files.open(name, "wb") as file:
            file.write(data)
    assert sh(board, guest, "-c", "ls") == (0, ["a\\x1b.txt", "b.txt", "c"])
    assert sh(board, guest, "-c", "ls -l") == (0, [" 5  a\\x1b.txt", "10  b.txt", " 0  c"])
    assert sh(board, guest, "-c", "cat b.txt c") == (0, ["two", "lines"])
    assert sh(board, guest, "-c", "cat none b.txt") == (1, ["cat: none: No such file or directory", "two", "lines"])
    assert sh(board, guest, "-c", "ls none") == (1, ["ls: none: No such file or directory"])
    assert sh(board, guest, "-c", "cat ../x") == (1, ["cat: ../x: Permission denied"])
    for line in ("cat", "ls a b", "ls -x"):
        status, printed = sh(board, guest, "-c", line)
        assert (status, printed[1].split()[:2]) == (2, ["usage:", line.split()[0]])


def test_the_folder_in_memory_keeps_its_limits() -> None:
    folder = RamFolder(lambda: 7, limit=10)
    with folder.open("a", "xb") as file:
        file.write(b"12345")
    with folder.open("a", "ab") as file:
        file.write(b"6789")
    assert [tuple(entry) for entry in folder.entries()] == [("a", False, 9, 7000)]
    for path, mode, error in (
        ("a", "xb", FileExistsError), ("b", "rb", FileNotFoundError), ("", "rb", IsADirectoryError),
        ("a/b", "rb", NotADirectoryError), ("c/b", "wb", FileNotFoundError), ("../a", "rb", PermissionError),
        ("a", "r+", ValueError), ("a\0", "rb", OSError),
    ):  # fmt: skip
        with pytest.raises(error):
            folder.open(path, mode)
    with pytest.raises(OSError, match="No space left"), folder.open("b", "wb") as file:
        file.write(b"12")
    with folder.open("a") as file:
        assert file.read() == b"123456789"
