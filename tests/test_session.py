"""A board from Python: who runs it, what it gives, how it ends."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import vring
from hw.clock import SECOND
from hw.wire.link import WireError
from vring.config import Board, ClockName, ConfigError
from vring.session import Session, SessionError

ROOT = Path(__file__).resolve().parent.parent
ADDRESS = "-ipaddr 10.0.0.1 -netmask 255.255.255.0"
PAIR = """
clock = "{clock}"
[[guest]]
name = "alice"
cmdline = "-s ping 10.0.0.2 -c 3 -i 0.01"
ip = "10.0.0.1"
mask = "255.255.255.0"
nic = [{{ wire = "hub:lan{wire}" }}]
[[guest]]
name = "bob"
ip = "10.0.0.2"
mask = "255.255.255.0"
nic = [{{ wire = "hub:lan" }}]
"""


def pair(clock: str = "virtual", wire: str = "") -> Board:
    return Board.parse(PAIR.format(clock=clock, wire=wire))


# -- the virtual clock: the caller's thread is home ------------------------------------------------------------------


def test_a_guest_boots_pings_itself_and_halts() -> None:
    with vring.boot(wire="hub", cmdline=f"{ADDRESS} -s ping 127.0.0.1 -c 3", clock="virtual") as machine:
        assert not machine.halted
        assert machine.now() == 0

        assert machine.run(seconds=60)

        assert machine.halted
        assert machine.exit_status == 0
        assert machine.now() == 2 * SECOND
        assert "3 packets transmitted, 3 received" in machine.console
        assert "init running" in machine.log
        assert "packets transmitted" not in machine.log


def test_the_example_of_the_package_works() -> None:
    with vring.boot(nic="virtio", wire="hub", cmdline=ADDRESS, clock="virtual") as machine:
        machine.run(seconds=1)

        assert machine.guest is machine.guests[0]
        assert [each.title for each in machine.rings()] == ["guest eth0 rx", "guest eth0 tx"]
        assert machine.rings()[0].ring.pending == 256
        assert machine.counters()["guest"]["nic0 device"]["tx_packets"] > 0
        assert machine.machines[0].nics[0].status == 15


def test_two_guests_ping_and_each_counts_its_own() -> None:
    with vring.boot(pair()) as machine:
        assert machine.run(seconds=10)

        counters = machine.counters()
        assert counters["alice"]["icmp"]["rx_echo_replies"] == 3
        assert counters["bob"]["icmp"]["tx_echo_replies"] == 3
        assert counters["hubs"]["lan"]["learned"] == 2
        assert "alice | 3 packets transmitted, 3 received" in machine.console
        assert [guest.halted for guest in machine.guests] == [True, False]
        assert len({guest.fes[0].mac for guest in machine.guests}) == 2


def test_time_moves_only_while_the_board_runs() -> None:
    with vring.boot(wire="hub", cmdline="-s idle", clock="virtual") as machine:
        assert not machine.run(seconds=0.25)
        assert machine.now() == SECOND // 4
        assert not machine.run_until(lambda: False, seconds=1)
        assert machine.now() == SECOND * 5 // 4
        assert machine.run_until(lambda: machine.guest.booted)
        assert machine.now() == SECOND * 5 // 4


def test_a_board_with_nothing_to_do_returns_at_once() -> None:
    with vring.boot(nic="none", clock="virtual") as machine:
        assert not machine.run()
        assert machine.guest.booted


def test_the_same_seed_gives_the_same_run() -> None:
    def run(seed: int) -> str:
        with vring.boot(pair(wire=",delay=3ms,jitter=2ms"), seed=seed) as machine:
            assert machine.run(seconds=60)
            return machine.console

    assert run(4) == run(4)
    assert run(4) != run(5)


def test_start_can_wait() -> None:
    with vring.boot(nic="none", clock="virtual", start=False) as machine:
        machine.run(seconds=1)
        assert machine.console == ""

        machine.start()
        machine.start()
        machine.run(seconds=1)
        assert machine.console.count("init running") == 1


def test_a_board_comes_from_a_file_and_words_replace_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "b.toml"
    path.write_text('clock = "virtual"\ncmdline = "-s idle"\nnic = [{}, {}]')

    with vring.boot(path, wire=["hub:a", "hub:b"], cmdline="-s ping 127.0.0.1 -c 1") as machine:
        assert machine.run(seconds=5)
        assert len(machine.machines[0].nics) == 2
        assert set(machine.counters()) == {"guest", "hubs"}


def test_a_board_that_ships_comes_by_its_name_unless_there_is_such_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with vring.boot("two-guests", clock="virtual") as machine:
        assert [guest.name for guest in machine.guests] == ["alice", "bob"]
    with pytest.raises(ConfigError, match=r"no board file 'three-guests'.*qemu-user, two-guests"):
        vring.boot("three-guests")

    (tmp_path / "two-guests").write_text('clock = "virtual"\nname = "mine"')
    for name in ("two-guests", Path("two-guests")):
        with vring.boot(name) as machine:
            assert [guest.name for guest in machine.guests] == ["mine"]


def test_a_capture_has_an_interface_for_every_nic(tmp_path: Path) -> None:
    from pcapng import FileScanner, blocks

    path = tmp_path / "all.pcapng"
    with vring.boot(pair(), pcap=path) as machine:
        assert machine.run(seconds=10)
        expected = sum(machine.counters()[name]["nic0 device"]["rx_packets"] for name in ("alice", "bob"))

    with path.open("rb") as file:
        found = list(FileScanner(file))
    names = [each.options["if_name"] for each in found if isinstance(each, blocks.InterfaceDescription)]
    frames = [each for each in found if isinstance(each, blocks.EnhancedPacket)]
    assert names == ["alice.eth0", "bob.eth0"]
    assert len(frames) == 2 * expected, "each frame passes two NICs"
    assert expected >= 8


# -- the real clock: a home thread of its own ------------------------------------------------------------------------


def test_on_the_real_clock_it_runs_by_itself() -> None:
    others = set(threading.enumerate())  # such as the default guest's of vring.socket
    with vring.boot(pair("real")) as machine:
        assert machine.run(seconds=20)
        assert machine.exit_status == 0
        assert machine.call(threading.current_thread) is not threading.current_thread()
        assert machine.call(lambda: machine.call(threading.get_ident)) == machine.call(threading.get_ident)
        assert machine.counters()["bob"]["icmp"]["tx_echo_replies"] == 3
        assert machine.rings()[0].ring.pending == 256
    assert [thread.name for thread in set(threading.enumerate()) - others if thread.name == "vring-home"] == []


def test_what_a_call_raises_is_raised_outside() -> None:
    with vring.boot(nic="none") as machine:
        with pytest.raises(ZeroDivisionError):
            machine.call(lambda: 1 // 0)
        with pytest.raises(KeyError):
            machine.run_until(lambda: bool({}["gone"]))
        assert machine.call(lambda: 7) == 7


def test_waiting_in_the_home_thread_is_refused() -> None:
    with vring.boot(nic="none") as machine, pytest.raises(SessionError, match="wait for itself"):
        machine.call(lambda: machine.run(seconds=1))


def test_a_wait_ends_with_the_time() -> None:
    with vring.boot(nic="none", cmdline="-s idle") as machine:
        before = machine.now()
        assert not machine.run(seconds=0.05)
        assert machine.now() - before >= SECOND // 20


@pytest.mark.parametrize("clock", ["real", "virtual"])
def test_programs_are_unwound_at_close_by_the_home_thread(clock: ClockName) -> None:
    unwound = []

    def program(env: object, argv: list[str]) -> int:
        try:
            env.sleep(3600 * SECOND)  # type: ignore[attr-defined]
        finally:
            unwound.append(threading.current_thread().name)
        return 0

    with vring.boot(nic="none", clock=clock) as machine:
        assert machine.run_until(lambda: machine.guest.booted, seconds=10)
        machine.call(lambda: machine.guest.spawn(program))
        assert machine.run_until(lambda: machine.guest.scheduler.runnable == 0, seconds=10)
        assert unwound == []

    assert unwound == ["vring-home" if clock == "real" else threading.current_thread().name]


def test_a_signal_ends_a_wait_and_the_session_goes_on() -> None:
    class Alarm(Exception):
        pass

    def ring(_number: int, _frame: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, ring)
    try:
        with vring.boot(nic="none", cmdline="-s idle") as machine:
            looks: list[int] = []
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(Alarm):
                machine.run_until(lambda: looks.append(1) is not None)
            assert machine.call(lambda: machine.guest.booted)

            seen = len(looks)
            machine.call(lambda: None)
            assert seen == len(looks) > 0, "what was waited for is still looked at"
    finally:
        signal.signal(signal.SIGALRM, before)


def test_after_close_nothing_can_be_asked() -> None:
    machine = vring.boot(nic="none")
    machine.close()
    machine.close()

    with pytest.raises(SessionError, match="closed"):
        machine.rings()
    with pytest.raises(SessionError, match="closed"):
        machine.run()


def test_a_home_thread_that_dies_says_what_it_died_of() -> None:
    def boom() -> None:
        raise ZeroDivisionError("boom")

    machine = vring.boot(nic="none")
    loop = machine.machines[0].loop
    machine.call(lambda: loop.clock.after(SECOND // 20, boom))
    with pytest.raises(SessionError) as caught:
        machine.run_until(lambda: False, seconds=20)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(SessionError, match="died"):
        machine.close()


@pytest.mark.parametrize("clock", ["real", "virtual"])
def test_nothing_is_left_open(clock: ClockName, tmp_path: Path) -> None:
    def descriptors() -> list[str]:
        gc.collect()
        return sorted(os.listdir("/proc/self/fd"))

    before = descriptors()
    with vring.boot(pair(clock), pcap=tmp_path / "x.pcapng") as machine:
        machine.run(seconds=10)
        links = [nic.device.link for each in machine.machines for nic in each.nics]
        assert descriptors() != before
    assert [link.transmit([(None, [bytes(60)])]) for link in links] == [1, 1]
    assert [link.counters["tx_dropped_closed"] for link in links] == [1, 1]
    del machine, links
    assert descriptors() == before


def test_closed_sessions_can_be_collected() -> None:
    """A guest that holds on to the root greenlet of a thread that has ended crashes the collector."""
    program = (
        "import gc, vring\n"
        "for _ in range(600):\n"
        "    vring.boot(nic='none').close()\n"
        "    gc.collect()\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)

    assert (said.returncode, said.stderr) == (0, "")


def test_a_close_that_fails_says_so() -> None:
    machine = vring.boot(nic="none")
    close = machine.guest.close

    def stuck() -> None:
        close()  # a process that is left in a thread that has ended may crash whoever collects it
        raise ZeroDivisionError("stuck")

    machine.call(lambda: setattr(machine.guest, "close", stuck))
    with pytest.raises(SessionError) as caught:
        machine.close()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


# -- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"wire": "tap:t0", "clock": "virtual"}, "leads outside"),
        ({"wire": "hub", "nic": "virtio:colour=red"}, "no option 'colour'"),
        ({"wire": "hub", "nic": "virtio:queue_size=3"}, "power of two"),
        ({"cmdline": "-fly"}, "unknown option -fly"),
        ({"cmdline": "-ipaddr 1.2.3"}, "-ipaddr '1.2.3'"),
        ({"cmdline": "-s pong"}, "there is no program 'pong'"),
        ({"pcap": "/nonexistent/x"}, "capture file"),
    ],
)
def test_a_board_that_cannot_be_is_refused_before_anything_runs(words: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        vring.boot(**words)  # type: ignore[arg-type]


def test_a_clock_that_is_none_and_a_time_that_never_ends_are_refused() -> None:
    with pytest.raises(ConfigError, match="not 'moon'"):
        vring.boot(clock="moon")  # type: ignore[arg-type]
    with vring.boot(nic="none", clock="virtual") as machine, pytest.raises(ValueError, match="never end"):
        machine.run(seconds=float("inf"))


def test_a_wire_that_cannot_be_made_is_a_wire_error() -> None:
    with pytest.raises(WireError, match="nosuch0"):
        vring.boot(wire=["hub", "packet:nosuch0"])


def test_importing_vring_loads_neither_machine_nor_guest() -> None:
    program = (
        "import sys, vring; early = {'vring.session', 'hw.loop', 'guest.kernel', 'rich', 'typer'} & set(sys.modules); "
        "print(early, vring.Board.__name__, vring.boot.__name__, vring.__version__)"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout

    assert said == f"set() Board boot {vring.__version__}\n"
    assert Session is vring.Session
    with pytest.raises(AttributeError, match="colour"):
        _ = vring.colour


def test_h63_two_boots_on_the_real_clock_share_no_secrets() -> None:
    """Without a seed, what a peer must not guess comes from the host: addresses and random numbers differ each time."""
    drawn = []
    for _ in range(2):
        with vring.boot(nic="virtio", wire="hub") as machine:
            mac = machine.call(lambda: machine.guest.fes[0].device.mac)
            drawn.append((mac, machine.machines[0].platform.rng.getrandbits(128)))
    assert drawn[0][0] != drawn[1][0]
    assert drawn[0][1] != drawn[1][1]
    assert all(mac[0] & 3 == 2 for mac, _ in drawn), "locally administered, of one host"


@pytest.mark.parametrize(("clock", "seed", "chosen"), [("virtual", None, 0), ("real", None, None), ("real", 5, 5)])
def test_the_seed_of_a_board(clock: ClockName, seed: int | None, chosen: int | None) -> None:
    assert Board(clock=clock, seed=seed).chosen_seed == chosen
