"""The command `vring` as people type it: what it prints, and the status it ends with."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.requirements import require_program, require_root
from vring import __version__
from vring.boards import shipped
from vring.cli import main
from vring.config import Board

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "fixtures" / "boards"
COMMAND = [sys.executable, "-c", "from vring.cli import main; main()"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


class Said(NamedTuple):
    status: object
    out: str
    err: str


@pytest.fixture
def vring(capsys: pytest.CaptureFixture[str]):
    """Run the command in this process."""

    def run(*words: str) -> Said:
        with pytest.raises(SystemExit) as end:
            main(words)
        return Said(end.value.code, *capsys.readouterr())

    return run


def sim(*words: str) -> list[str]:
    return ["boot", "--clock", "virtual", *words]


# -- mistakes: status 2, one line ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["boot", "nowhere.toml"], ["'nowhere.toml'", "two-guests"]),
        (["boot", "--wire", "wifi"], ["'wifi'", "hub"]),
        (["boot", "--nic", "virtio", "--wire", "hub", "--wire", "hub"], ["2 wires for 1 NICs", "n-th"]),
        (["boot", "--nic", "e1000"], ["'e1000'", "virtio"]),
        (["boot", "--nic", "virtio:colour=red"], ["nic 0", "'colour'", "mtu"]),
        (["boot", "--clock", "fast"], ["--clock", "real or virtual"]),
        (["boot", "--for", "-1"], ["--for", "above 0"]),
        (["boot", "--for", "inf"], ["--for", "finite"]),
        (["boot", "--wire", "tap:a-name-that-is-too-long"], ["a-name-that-is-too-long", "15 characters"]),
        (["boot", "--for", "soon"], ["--for", "number"]),
        (["boot", "--colour"], ["--colour"]),
        (["boot", "two-guests", "--", "-s", "idle"], ["2 guests"]),
        (sim("--wire", "tap:t0"), ["tap:t0", "'real'"]),
        (sim("--pcap", "/nonexistent/x"), ["/nonexistent/x", "No such file"]),
        (sim("--", "-fly"), ["command line", "-fly", "-ipaddr"]),
        (sim("--", "--rings"), ["command line", "--rings"]),
        (sim("--", "--", "-s", "pong"), ["command line", "unknown option --;"]),
        (sim("--", "-ipaddr", "10.0.0"), ["-ipaddr '10.0.0'", "10.0.0.2"]),
        (sim("--", "-s", "pong"), ["'pong'", "ping"]),
        (["boards", "--", "x"], ["boots no guest"]),
        (["fly"], ["fly"]),
    ],
)
def test_a_mistake_is_one_line_and_status_2(vring, words: list[str], parts: list[str]) -> None:
    said = vring(*words)

    assert (said.status, said.out) == (2, "")
    assert said.err.startswith("vring: ")
    assert said.err.count("\n") == 1
    assert [part for part in parts if part not in said.err] == [], said.err


def test_a_mistake_in_a_file_names_the_file(vring, tmp_path: Path) -> None:
    path = tmp_path / "lab.toml"
    path.write_text('[[guest]]\nname = "a"\ncmdline = "-s pong"\n')
    said = vring("boot", str(path))
    assert said.status == 2
    assert f"{path}: guest a: command line: there is no program 'pong'" in said.err

    path.write_text("this is not TOML")
    assert f"{path}: not TOML" in vring("boot", str(path)).err

    path.write_text("[[nic]]\nqueue_size = 3")
    assert f"{path}: guest nic 0: queue_size=3" in vring("boot", str(path)).err


def test_a_wire_that_cannot_be_made_is_a_failure(vring) -> None:
    said = vring("boot", "--wire", "packet:nosuch0")

    assert (said.status, said.out) == (1, "")
    assert said.err.startswith("vring: packet:nosuch0: ")
    assert said.err.count("\n") == 1


# -- what it prints --------------------------------------------------------------------------------------------------


def test_version_boards_and_help(vring) -> None:
    assert vring("--version") == (0, f"vring {__version__}\n", "")

    boards = vring("boards")
    assert [line.split()[0] for line in boards.out.splitlines()] == list(shipped())
    assert all(len(line.split()) > 3 for line in boards.out.splitlines()), "a board does not say what it shows"

    assert "vring boot two-guests" in vring("boot", "--help").out
    assert "boot" in vring("--help").out
    assert vring() == vring("--help")


def test_a_boot_prints_log_output_and_counters(vring) -> None:
    said = vring(*sim("--wire", "hub", "--", "-ipaddr", "10.0.0.1", "-s", "ping", "127.0.0.1", "-c", "2"))

    assert (said.status, said.err) == (0, "")
    order = ["stage 1: stack", "init running", "PING 127.0.0.1", "2 packets transmitted", "counters of guest"]
    assert sorted(order, key=said.out.index) == order
    assert "descriptor table" not in said.out
    assert "\x1b" not in said.out


def test_what_follows_the_first_dashes_is_the_guests_untouched(vring) -> None:
    said = vring(*sim("--", "-s", "ping 127.0.0.1 -c 1", "-s", "ping", "127.0.0.1", "-c", "1"))

    assert said.status == 0
    assert "-s 'ping 127.0.0.1 -c 1' -s ping 127.0.0.1 -c 1" in said.out
    assert said.out.count("1 packets transmitted, 1 received") == 2


def test_rings_and_verbose_say_more(vring) -> None:
    said = vring(*sim("--nic", "virtio:rx_queue_size=64", "--rings", "--verbose", "--for", "1"))

    assert "nic 0: virtio rx_queue_size=64 on none" in said.out
    assert "ACKNOWLEDGE DRIVER FEATURES_OK DRIVER_OK" in said.out
    assert "EVENT_IDX VERSION_1" in said.out
    assert "guest eth0 rx  64 entries, 64 with the device" in said.out
    assert "descriptor table" in said.out


def test_the_time_of_the_board_is_what_for_counts(vring) -> None:
    said = vring(*sim("--for", "7200", "--", "-s", "idle"))

    assert said.status == 0
    assert "the time is up after 7200.000 s" in said.out


def test_a_board_without_programs_ends_when_nothing_can_happen(vring) -> None:
    said = vring(*sim("--nic", "none"))

    assert said.status == 0
    assert "nothing can happen any more after 0.000 s" in said.out


def test_the_same_seed_prints_the_same(vring) -> None:
    lossy = str(FIXTURES / "lossy-hub.toml")

    assert vring("boot", lossy) == vring("boot", lossy)
    assert vring("boot", lossy).out != vring("boot", lossy, "--seed", "8").out


def test_a_capture_is_written(vring, tmp_path: Path) -> None:
    path = tmp_path / "x.pcapng"
    assert vring(*sim("--wire", "hub", "--pcap", str(path), "--for", "1", "--", "-ipaddr", "10.0.0.1")).status == 0

    assert path.read_bytes()[:4] == bytes.fromhex("0a0d0d0a")


# -- the exit status -------------------------------------------------------------------------------------------------


def test_the_programs_status_counts_only_when_asked_for(vring) -> None:
    words = ["--", "-ipaddr", "10.0.0.1", "-s", "ping", "10.0.0.9", "-c", "1"]

    assert vring(*sim("--wire", "hub", *words)).status == 0
    assert vring(*sim("--wire", "hub", "--exit-status", *words)).status == 1
    assert vring(*sim("--exit-status", "--", "-s", "ping", "127.0.0.1", "-c", "1")).status == 0


def test_programs_that_were_cut_off_did_not_succeed(vring) -> None:
    assert vring(*sim("--exit-status", "--for", "1", "--", "-s", "idle")).status == 124
    assert vring(*sim("--exit-status", "--for", "1")).status == 0, "there was no program"


# -- the boards ------------------------------------------------------------------------------------------------------

EXPECTED = {
    "one-nic": ["front ends: 1", "init running"],
    "two-nics": ["front ends: 2", "2 packets transmitted, 2 received", "MTU 9000", "52:54:00:00:07:02"],
    "sixteen-nics": ["front ends: 16", "eth15: MAC", "1 packets transmitted, 1 received"],
    "no-nic": ["front ends: 0", "no network card", "2 packets transmitted, 2 received"],
    "lossy-hub": ["50 packets transmitted", "rx_lost"],
    "udp-echo": ["3 sent, 3 echoed", "3 datagrams served"],
    "tcp-echo": ["3 sent, 3 echoed", "echo: 19 bytes received", "nc: 8 bytes sent, 6 received", "welcome"],
    "desk": ["address 10.0.0.1", "address 10.0.0.2", "hubs"],
    "device-config": ["52:54:00:12:34:56", "address 192.168.1.7", "gateway 192.168.1.1", "eth0 is up"],
}


def test_every_board_is_tested() -> None:
    assert {path.stem for path in FIXTURES.glob("*.toml")} == {*EXPECTED, "tap"}
    for path in FIXTURES.glob("*.toml"):
        assert Board.load(path).guests


@pytest.mark.parametrize("name", EXPECTED)
def test_the_example_boards_boot(vring, name: str) -> None:
    endless = Board.load(FIXTURES / f"{name}.toml").run is None
    extra = ["--clock", "virtual", "--for", "5"] if endless else []

    said = vring("boot", str(FIXTURES / f"{name}.toml"), "--exit-status", *extra)

    assert (said.status, said.err) == (0, "")
    assert [text for text in EXPECTED[name] if text not in said.out] == [], said.out


@pytest.mark.root
def test_the_tap_board_boots_in_a_namespace_of_its_own() -> None:
    require_root()
    unshare = require_program("unshare")

    said = subprocess.run(
        [unshare, "--net", *COMMAND, "boot", str(FIXTURES / "tap.toml"), "--for", "0.5"],
        capture_output=True, text=True, check=False, timeout=60, env=ENVIRONMENT,
    )  # fmt: skip

    assert (said.returncode, said.stderr) == (0, "")
    assert "eth0 is up" in said.stdout
    assert "wire tap:t0" in said.stdout


def test_two_guests_ping_and_an_outlet_sees_the_same_frames() -> None:
    said = subprocess.run(
        [*COMMAND, "boot", "two-guests", "--rings", "--exit-status"],
        capture_output=True, text=True, check=False, timeout=60, env=ENVIRONMENT,
    )  # fmt: skip

    assert (said.returncode, said.stderr) == (0, "")
    assert "4 packets transmitted, 4 received, 0% packet loss" in said.stdout
    replies = re.findall(r"alice │ eth0 < IP 10\.0\.0\.2 > 10\.0\.0\.1 ICMP echo reply .*seq (\d)", said.stdout)
    assert replies == ["1", "2", "3", "4"]
    for queue in ("alice eth0 rx", "alice eth0 tx", "bob eth0 rx", "bob eth0 tx"):
        assert f"\n{queue}  " in said.stdout
    assert "counters of bob" in said.stdout
    assert max(len(line) for line in said.stdout.splitlines() if "│ [" not in line) <= 100, "only log lines are longer"


def test_e19_the_board_qemu_user_has_the_usual_addresses_and_reaches_its_gateway(vring) -> None:
    said = vring("boot", "qemu-user", "--exit-status", "--", "-dhcp", "-s", "ping", "10.0.2.2", "-c", "3", "-i", "0.01")

    assert (said.status, said.err) == (0, "")
    for expected in (
        "address: eth0 added 10.0.2.15/24",
        "route: eth0 added 0.0.0.0/0",
        "64 bytes from 10.0.2.2: icmp_seq=3",
        "3 packets transmitted, 3 received, 0% packet loss",
    ):
        assert expected in said.out


def test_who_asks_for_nothing_gets_the_board_qemu_user_and_on_the_virtual_clock_a_card_without_a_cable(vring) -> None:
    words = ("boot", "--verbose", "--for", "0.001")

    assert "nic 0: virtio on user\n" in vring(*words).out
    assert "nic 0: virtio on none\n" in vring(*words, "--clock", "virtual").out
    assert "nic 0: virtio on hub:hub\n" in vring(*words, "--wire", "hub").out


# -- signals and pipes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "words", "sign", "last"),
    [
        (signal.SIGINT, ["-s", "ping", "127.0.0.1", "-i", "0.01"], "icmp_seq=3", "packets transmitted"),
        (signal.SIGINT, ["-ipaddr", "10.0.0.1"], "init running", "eth0 down"),
        (signal.SIGTERM, [], "init running", "stopped by a signal"),  # the loop sleeps: nothing else would wake it
    ],
)
def test_a_signal_is_a_clean_shutdown(number: signal.Signals, words: list[str], sign: str, last: str) -> None:
    process = subprocess.Popen(
        [*COMMAND, "boot", "--wire", "hub", "--", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            if sign in line:
                break
        # Only a loop that sleeps shows whether the signal wakes it.
        stat = Path(f"/proc/{process.pid}/stat")
        while not words and stat.read_text().rpartition(")")[2].split()[0] != "S":
            os.sched_yield()
        process.send_signal(number)
        try:
            rest, error = process.communicate(timeout=20)
        finally:
            process.kill()

    assert (process.returncode, error) == (0, "")
    assert sorted([last, "stopped by a signal", "counters of guest"], key=rest.index)[0] == last


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    command = shlex.join([*COMMAND, *sim("--", "-s", "ping 127.0.0.1 -c 5000")])
    said = subprocess.run(
        ["sh", "-c", f"{command} | head -1"], capture_output=True, text=True, check=False, timeout=60, env=ENVIRONMENT
    )

    assert said.stdout.count("\n") == 1
    assert "Traceback" not in said.stderr
