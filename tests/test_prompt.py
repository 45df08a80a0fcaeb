"""`vring boot` at a terminal, a pseudo one that the test sits at, and with lines piped in; each a process of its own.

Nothing here sleeps: `Seat.wait` reads until a text has come.
"""

from __future__ import annotations

import os
import pty
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-c", "from vring.cli import main; main()"]
# A session's first terminal that is opened becomes its own, so that its keys send signals.
SEATED = [sys.executable, "-c", "import os; os.close(os.open(os.ttyname(0), os.O_RDWR)); " + COMMAND[2]]
PROMPT = "guest$ "
PATIENCE = 30  # seconds


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(tmp_path / "state"), "TERM": "vt100"}


class Seat:
    """A terminal with `vring boot WORDS` at it."""

    def __init__(self, environment: dict[str, str], *words: str) -> None:
        self.seen = ""
        self.fresh = ""
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [*SEATED, "boot", *words], stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        os.close(slave)

    def wait(self, text: str) -> str:
        """Read until `text` has come; what came up to there since the last wait."""
        end = time.monotonic() + PATIENCE
        while text not in self.fresh:
            ready, _, _ = select.select([self.master], [], [], max(0, end - time.monotonic()))
            assert ready, f"{text!r} does not come:\n{self.seen}"
            piece = self._read()
            assert piece, f"{text!r} never came:\n{self.seen}"
            self.seen += piece
            self.fresh += piece
        before, _, self.fresh = self.fresh.partition(text)
        return before

    def type(self, text: str) -> None:
        """Press these keys."""
        os.write(self.master, text.encode())

    def do(self, line: str) -> str:
        """Type a line; what came before the next prompt, without the line itself."""
        self.type(line + "\n")
        return self.wait(PROMPT).partition("\n")[2]

    def end(self) -> int:
        """Read until the process has ended; its status."""
        while piece := self._read():
            self.seen += piece
            self.fresh += piece
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)

    def _read(self) -> str:
        try:
            return os.read(self.master, 65536).decode("utf-8", "replace")
        except OSError:  # the other side is closed
            return ""


@pytest.fixture
def seats(environment: dict[str, str]) -> Iterator[list[Seat]]:
    made: list[Seat] = []
    yield made
    for seat in made:
        seat.close()


@pytest.fixture(params=["real", "virtual"])
def seat(request: pytest.FixtureRequest, environment: dict[str, str], seats: list[Seat]) -> Seat:
    made = Seat(environment, "--nic", "none", "--exit-status", "--clock", request.param)
    seats.append(made)
    made.wait(PROMPT)
    return made


# -- at a terminal -------------------------------------------------------------------------------------------------


def test_a_boot_at_a_terminal_ends_in_a_prompt_with_the_programs(seat: Seat) -> None:
    assert "1 packets transmitted, 1 received, 0% packet loss" in seat.do("ping 127.0.0.1 -c 1")
    assert "  wget " in seat.do("help")
    assert seat.do("wat") == "sh: there is no program 'wat'; help lists those that are\r\n"
    assert "127 received" not in seat.do("")
    seat.type("exit\n")
    assert seat.end() == 127, "the last program's"
    assert "counters of" not in seat.seen


def test_ctrl_c_ends_the_program_and_not_the_machine(seat: Seat) -> None:
    for _ in range(3):
        seat.type("ping 127.0.0.1 -i 0.05\n")
        seat.wait("icmp_seq=2")
        seat.type("\x03")
        assert "packets transmitted" in seat.wait(PROMPT), "ping has its last words"
        seat.type("half a line\x03")
        seat.wait(PROMPT)
    assert "1 received" in seat.do("ping 127.0.0.1 -c 1 -q"), "what was typed before is gone"
    seat.type("\x04")
    assert seat.end() == 0


def test_completion_and_history(seat: Seat, environment: dict[str, str], seats: list[Seat]) -> None:
    seat.type("tracer\t")
    seat.wait("traceroute ")
    seat.type("127.0.0.1 -q 1 -I\n")
    assert " 1  127.0.0.1  " in seat.wait(PROMPT)
    seat.type("ls; ifconf\tl\t\n")
    assert "lo: flags=" in seat.wait(PROMPT)
    seat.type("\x1b[A\x1b[A\n")
    assert " 1  127.0.0.1  " in seat.wait(PROMPT), "two lines up"
    seat.type("\x04")
    assert seat.end() == 0
    again = Seat(environment, "--nic", "none")
    seats.append(again)
    again.wait(PROMPT)
    again.type("\x1b[A\n")
    assert " 1  127.0.0.1  " in again.wait(PROMPT), "the history outlives the machine"


def test_nc_talks_to_whoever_types(seat: Seat) -> None:
    seat.do("echo &")
    seat.type("nc 127.0.0.1 7\n")
    seat.wait("nc 127.0.0.1 7\r\n")
    seat.type("good morning\n")
    seat.wait("good morning")  # the terminal
    seat.wait("good morning")  # the server
    seat.type("\x03")
    seat.wait(PROMPT)
    assert " echo" in seat.do("ps")


def test_halt_ends_the_machine_with_its_code(seat: Seat) -> None:
    seat.type("halt 3\n")
    assert seat.end() == 3


def test_the_end_of_the_time_ends_the_prompt(environment: dict[str, str], seats: list[Seat]) -> None:
    seats.append(seat := Seat(environment, "--nic", "none", "--for", "0.5"))
    seat.wait(PROMPT)
    seat.type("unfinished")
    assert seat.end() == 0
    assert "the time is up after 0.5" in seat.seen


def test_sigterm_ends_the_prompt(environment: dict[str, str], seats: list[Seat]) -> None:
    seats.append(seat := Seat(environment, "--nic", "none"))
    seat.wait(PROMPT)
    seat.process.send_signal(signal.SIGTERM)
    assert seat.end() == 0
    assert "stopped by a signal" in seat.seen


def test_a_prompt_comes_without_a_lease_too(environment: dict[str, str], seats: list[Seat]) -> None:
    seats.append(seat := Seat(environment, "--wire", "hub", "--clock", "virtual", "--", "-dhcp"))
    assert "no lease after 10 s" in seat.wait(PROMPT)
    assert "is there one on the wire?" in seat.do("dhclient status")


def test_ctrl_c_before_the_first_prompt_ends_the_machine(environment: dict[str, str], seats: list[Seat]) -> None:
    seats.append(seat := Seat(environment, "--wire", "hub", "--", "-dhcp"))
    seat.wait("starting DHCP on eth0")
    seat.type("\x03")
    assert seat.end() == 0
    assert "stopped by a signal" in seat.seen


def test_programs_on_the_command_line_leave_no_prompt_and_sh_among_them_makes_one(
    environment: dict[str, str], seats: list[Seat]
) -> None:
    seats.append(seat := Seat(environment, "--nic", "none", "--", "-s", "ping", "127.0.0.1", "-c", "1"))
    assert seat.end() == 0
    assert PROMPT not in seat.seen
    seats.append(seat := Seat(environment, "--nic", "none", "--exit-status", "--", "-s", "echo", "-s", "sh"))
    seat.wait(PROMPT)
    assert "1 echoed" in seat.do("echoclient 127.0.0.1")
    seat.type("exit 4\n")
    assert seat.end() == 4


# -- through the user wire, with the host's web --------------------------------------------------------------------


class Slow(BaseHTTPRequestHandler):
    """Sends a megabyte in pieces, each when the test says so."""

    go = threading.Semaphore(0)

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        for _ in range(10):
            self.go.acquire()
            self.wfile.write(bytes(100_000))

    def log_message(self, *_words: object) -> None:
        """Nothing."""


def test_e45_wget_draws_a_bar_on_the_terminal_and_saves_into_the_hosts_folder(
    environment: dict[str, str], seats: list[Seat], tmp_path: Path
) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    with HTTPServer(("127.0.0.1", 0), Slow) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        seats.append(seat := Seat(environment, "--wire", "user", "--share", str(folder), "--", "-dhcp"))
        seat.wait(PROMPT)
        seat.type(f"wget http://10.0.2.2:{server.server_port}/big.bin\n")
        seat.wait("HTTP 200 OK")
        for _ in range(4):
            Slow.go.release()
        seat.wait("\r\x1b[Kbig.bin   ")  # the line is drawn in place
        for _ in range(6):
            Slow.go.release()
        last = seat.wait(f"saved in {folder}, 1000000 bytes")
        assert "100% [===================>]  1.0 MB" in last
        seat.wait(PROMPT)
        assert (folder / "big.bin").read_bytes() == bytes(1_000_000)
        assert "1000000  big.bin" in seat.do("ls -l")
        server.shutdown()
        thread.join()


def test_e45_httpd_serves_the_hosts_folder_to_the_host(
    environment: dict[str, str], seats: list[Seat], tmp_path: Path
) -> None:
    (tmp_path / "page.html").write_text("<p>hello</p>")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    wire = f"user:hostfwd=tcp:127.0.0.1:{port}-:80"
    words = ["--wire", wire, "--share", str(tmp_path), "--", "-dhcp", "-s", "httpd", "-s", "sh"]
    seats.append(seat := Seat(environment, *words))
    seat.wait("httpd: port 80")
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
        client.sendall(b"GET /page.html HTTP/1.0\r\n\r\n")
        said = b""
        while more := client.recv(65536):
            said += more
    assert said.endswith(b"\r\n\r\n<p>hello</p>")
    seat.wait("GET /page.html HTTP/1.0 200")
    seat.type("exit\n")
    assert seat.end() == 0


# -- piped ---------------------------------------------------------------------------------------------------------


def piped(environment: dict[str, str], text: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "boot", "--nic", "none", *words], input=text, text=True, capture_output=True, env=environment,
        timeout=PATIENCE, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("clock", ["real", "virtual"])
def test_sh_reads_what_is_piped_and_nobody_is_prompted(environment: dict[str, str], clock: str) -> None:
    text = "ping 127.0.0.1 -c 1 -q\nwat || ls\n# nothing\nexit 6\nping 127.0.0.1\n"
    said = piped(environment, text, "--clock", clock, "--exit-status", "--", "-s", "sh")
    assert (said.returncode, said.stderr) == (6, "")
    assert "1 received" in said.stdout
    assert PROMPT not in said.stdout
    assert said.stdout.count("ping statistics") == 1
    assert "counters of guest" in said.stdout
    assert piped(environment, "", "--exit-status", "--clock", clock, "--", "-s", "sh").returncode == 0
    assert piped(environment, "sh -c 'halt 9'\nexit 1", "--exit-status", "--", "-s", "sh").returncode == 9


def test_nothing_is_read_where_there_is_no_shell(environment: dict[str, str]) -> None:
    said = piped(environment, "halt 5\n", "--exit-status", "--clock", "virtual", "--for", "1")
    assert (said.returncode, said.stderr) == (0, "")
    assert "the time is up" in said.stdout


def test_the_virtual_clock_gives_the_same_output_for_the_same_lines(environment: dict[str, str]) -> None:
    text = "echo &\nechoclient 127.0.0.1 -c 2\nss -t\nexit\n"
    first, second = (piped(environment, text, "--clock", "virtual", "--", "-s", "sh").stdout for _ in range(2))
    assert first == second
    assert "2 echoed" in first


@pytest.mark.parametrize(
    ("words", "status", "why"),
    [
        (["--share", "/nowhere"], 2, "vring: the folder /nowhere cannot be shared: No such file or directory"),
        (["--", "-s", "wat"], 2, "vring: guest: command line: there is no program 'wat'; programs are cat, "),
    ],
)
def test_mistakes_are_one_line(environment: dict[str, str], words: list[str], status: int, why: str) -> None:
    said = piped(environment, "", *words)
    assert (said.returncode, said.stdout) == (status, "")
    assert said.stderr.startswith(why)
    assert said.stderr.count("\n") == 1
