"""The simulated outside (`--wire sim`): DHCP, names, pings, pages, routes; the same seed gives the same. N7, E56."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest

import vring
from vring.cli import main
from vring.config import Board, ConfigError, WireSpec
from vring.session import Session
from vring.simnet.options import SimOptions
from vring.simnet.pages import ABOUT, INDEX, PAGES, PageFolder

BIG = PAGES["big.txt"]


class Said(NamedTuple):
    status: object
    out: str
    err: str


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]):
    """Run the command in this process."""

    def run(*words: str) -> Said:
        with pytest.raises(SystemExit) as end:
            main(words)
        return Said(end.value.code, *capsys.readouterr())

    return run


class Desk:
    """A guest on the simulated outside that has its lease."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.guest = session.guest
        assert session.run_until(lambda: self.guest.booted, 60), session.console

    def says(self, program: str, *words: str, seconds: float = 60) -> tuple[int | None, str]:
        """A program's exit status, and what it printed."""
        before = len(self.guest.log.output)
        process = self.guest.spawn(program, *words)
        self.session.run_until(lambda: not process.alive, seconds)
        return process.exit_status, "\n".join(self.guest.log.output[before:])

    def sim(self):
        """What is behind the wire."""
        return next(iter(self.session._rig.sims.values()))


def boot(wire: str = "sim", words: str = "-dhcp -ip6", **more) -> Session:
    return vring.boot(wire=wire, cmdline=words, **more)


@pytest.fixture
def desk():
    with boot() as session:
        yield Desk(session)


# -- what issue and rows show ------------------------------------------------------------------------------------------

SHOWN = ("boot", "--wire", "sim", "--exit-status", "--", "-dhcp",
         "-s", "ping", "8.8.8.8", "-c", "3", "-s", "wget", "http://example.com")  # fmt: skip


def test_n7_e56_the_seeds_two_commands_run_anywhere_and_twice_the_same(command) -> None:
    first, second = command(*SHOWN), command(*SHOWN)

    assert (first.status, first.err) == (0, "")
    for expected in (
        "dhcp: eth0: lease of 10.0.2.15/24 from 10.0.2.2",
        "64 bytes from 8.8.8.8: icmp_seq=3 ttl=62 time=10.000 ms",
        "3 packets transmitted, 3 received, 0% packet loss",
        "HTTP 200 OK, text/html",
        f"wget: index.html saved in the guest's memory, {len(INDEX)} bytes",
    ):
        assert expected in first.out
    assert first == second, "two runs with one seed differ"


def test_n7_another_seed_loses_other_frames(command) -> None:
    def run(seed: int) -> list[str]:
        said = command("boot", "--wire", f"sim:seed={seed},loss=30%", "--", "-dhcp", "-s", "ping", "8.8.8.8", "-c",
                       "20", "-i", "0.1")  # fmt: skip
        return re.findall(r"icmp_seq=\d+", said.out)

    assert run(1) == run(1) != []
    assert run(1) != run(2)


def test_e56_the_gateway_answers_pings_and_echoes(desk: Desk) -> None:
    status, said = desk.says("ping", "10.0.2.2", "-c", "2", "-i", "0.1")
    assert (status, "2 received" in said) == (0, True), said

    status, said = desk.says("udpecho", "10.0.2.2", "12345", "hello")
    assert (status, "1 echoed" in said) == (0, True), said


def test_e56_the_page_comes_byte_for_byte(desk: Desk) -> None:
    status, said = desk.says("wget", "http://example.com/big.txt")

    assert status == 0, said
    with desk.guest.files.open("big.txt") as file:
        assert file.read() == BIG


def test_wget_goes_on_where_it_was_cut_off(desk: Desk) -> None:
    with desk.guest.files.open("big.txt", "wb") as file:
        file.write(BIG[:50_000])

    status, said = desk.says("wget", "-c", "http://example.com/big.txt")

    assert (status, "206" in said) == (0, True), said
    with desk.guest.files.open("big.txt") as file:
        assert file.read() == BIG, "the pieces do not fit together"


def test_a_page_that_has_moved_is_found(desk: Desk) -> None:
    status, said = desk.says("wget", "http://www.example.com/about")

    assert (status, "redirected to http://www.example.com/about/" in said) == (0, True), said
    with desk.guest.files.open("about") as file:
        assert file.read() == ABOUT


@pytest.mark.parametrize("words", ["nc -N example.com 81", "echoclient example.com 81", "wget http://example.com:81/"])
def test_a_refusal_is_told_rather_than_that_another_address_has_no_way_to_it(desk: Desk, words: str) -> None:
    """example.com has addresses of both families, and this guest has one."""
    status, said = desk.says(*words.split())

    assert (status, "example.com port 81: Connection refused" in said) == (1, True), said


def test_one_connection_serves_several_pages(desk: Desk) -> None:
    request = "GET {} HTTP/1.1\r\nHost: example.com\r\n\r\n"
    last = "GET /nothing HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n"

    status, said = desk.says("nc", "example.com", "80", "-m", request.format("/") + request.format("/about/") + last)

    assert said.count("HTTP/1.1 200 OK") == 2, said
    assert said.count("HTTP/1.1 404 Not Found") == 1, f"{status}: {said}"


def test_traceroute_names_each_router_on_the_way(desk: Desk) -> None:
    status, said = desk.says("traceroute", "8.8.8.8", "-q", "1")

    assert status == 0, said
    assert [line.split()[:2] for line in said.splitlines()[1:]] == [
        ["1", "10.0.2.2"], ["2", "100.64.0.1"], ["3", "8.8.8.8"],
    ]  # fmt: skip


def test_over_ipv6_too_with_an_address_that_the_router_advertised(desk: Desk) -> None:
    desk.session.run(seconds=5)

    assert any("2001:db8:2:" in str(own) for own in desk.guest.ni.interface.addresses), "no address by SLAAC"
    status, said = desk.says("ping", "-6", "dns.google", "-c", "2", "-i", "0.1")
    assert (status, "2 received" in said) == (0, True), said
    status, said = desk.says("wget", "-6", "-O", "-", "http://example.com/")
    assert (status, "only in the process" in said) == (0, True), said
    status, said = desk.says("traceroute", "-6", "-q", "1", "example.com")
    assert [line.split()[1] for line in said.splitlines()[1:]] == ["2001:db8:2::2", "2001:db8:1::1", "2001:db8:113::80"]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("example.com", ["203.0.113.80", "2001:db8:113::80"]),
        ("router.home.arpa", ["10.0.2.2"]),
        ("8.8.8.8", ["dns.google"]),
        ("10.0.2.2", ["router.home.arpa"]),
    ],
)
def test_names_and_addresses_are_known_inside_and_outside(desk: Desk, asked: str, expected: list[str]) -> None:
    status, said = desk.says("nslookup", asked)

    assert status == 0, said
    for one in expected:
        assert one in said
    assert "10.0.2.3#53" in said, "somebody else was asked"


def test_what_is_not_there_is_told_by_who_knows(desk: Desk) -> None:
    status, said = desk.says("ping", "1.2.3.4", "-c", "1")
    assert (status, "From 100.64.0.1 icmp_seq=1 Destination Net Unreachable" in said) == (1, True), said

    status, said = desk.says("wget", "http://nowhere.example.org/")
    assert (status, "Name or service not known" in said) == (1, True), said

    status, said = desk.says("wget", "http://8.8.8.8/")
    assert (status, "Connection refused" in said) == (1, True), said


# -- bad links -------------------------------------------------------------------------------------------------------


def test_a_page_arrives_over_a_link_that_loses_every_tenth_frame() -> None:
    with boot("sim:loss=10%,seed=3") as session:
        desk = Desk(session)
        status, said = desk.says("wget", "http://example.com/big.txt", seconds=600)

        assert status == 0, said
        with desk.guest.files.open("big.txt") as file:
            assert file.read() == BIG
        links = session.counters()["sim:loss=10%,seed=3"]
        for name in ("link uplink", "link web"):
            assert links[name]["tx_lost"] + links[name]["rx_lost"] > 0, f"{name} lost nothing: {links}"


def test_the_link_that_is_named_is_the_one_that_is_slow() -> None:
    with boot("sim:latency=0ms,web.latency=100ms") as session:
        desk = Desk(session)
        _, near = desk.says("ping", "8.8.8.8", "-c", "2", "-i", "0.5")
        _, far = desk.says("ping", "example.com", "-c", "2", "-i", "0.5")

    assert "icmp_seq=2 ttl=62 time=0.000 ms" in near
    assert "icmp_seq=2 ttl=62 time=200.000 ms" in far


def test_a_dead_link_to_the_name_server_is_an_answer_too() -> None:
    with boot("sim:dns.loss=100%") as session:
        desk = Desk(session)
        status, said = desk.says("wget", "http://example.com/")

        assert (status, "Temporary failure in name resolution" in said) == (1, True), said
        assert desk.sim().forwarder.counters["timeouts"] > 0
        session.run(seconds=60)
        assert not desk.sim().forwarder.pending, "queries are kept for ever"


# -- more guests, more outsides ----------------------------------------------------------------------------------------

TWO = """
[[guest]]
name = "left"
cmdline = "-dhcp -s ping 10.0.2.16 -c 2 -i 0.5 -s idle 20"
nic = [{ wire = "sim" }]
[[guest]]
name = "right"
cmdline = "-dhcp -s ping 10.0.2.15 -c 2 -i 0.5 -s idle 20"
nic = [{ wire = "%s" }]
"""


def test_two_guests_share_one_outside() -> None:
    with vring.boot(Board.parse(TWO % "sim")) as session:
        assert session.board.clock == "virtual"
        assert session.run(seconds=60), session.console

        assert {str(guest.ni.interface.addresses[0]) for guest in session.guests} == {"10.0.2.15/24", "10.0.2.16/24"}
        assert session.console.count("64 bytes from 10.0.2.") >= 2, session.console
        assert len(session._rig.sims) == 1


def test_other_options_are_another_outside() -> None:
    with vring.boot(Board.parse(TWO % "sim:seed=9")) as session:
        session.run(seconds=5)

        assert sorted(session._rig.sims) == ["sim", "sim:seed=9"]
        assert [str(guest.ni.interface.addresses[0]) for guest in session.guests] == ["10.0.2.15/24"] * 2


def test_on_the_real_clock_it_is_there_as_well() -> None:
    with boot("sim:latency=1ms", clock="real", seed=1) as session:
        assert session.run_until(lambda: session.guest.booted, 10), session.console
        ping = session.call(lambda: session.guest.spawn("ping", "8.8.8.8", "-c", "1"))
        assert session.run_until(lambda: not ping.alive, 10)

        assert ping.exit_status == 0, session.console


def test_all_is_given_back_at_the_end() -> None:
    session = boot()
    desk = Desk(session)
    desk.says("wget", "http://example.com/")
    hosts = desk.sim().hosts
    session.close()

    assert {name: host.leaks for name, host in hosts.items()} == {name: [] for name in hosts}
    assert {name: len(host.scheduler) for name, host in hosts.items()} == dict.fromkeys(hosts, 0), "programs live on"
    assert {name: host.panic for name, host in hosts.items()} == dict.fromkeys(hosts)


# -- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wire", "clock"),
    [("sim", "virtual"), ("sim:loss=1%", "virtual"), ("hub", "real"), ("user", "real")],
)
def test_a_simulated_outside_brings_its_clock(wire: str, clock: str) -> None:
    assert Board.of_words((), (wire,)).clock == clock


def test_a_board_that_says_its_clock_keeps_it() -> None:
    assert Board.parse('clock = "real"\nnic = [{ wire = "sim" }]').clock == "real"
    assert Board.parse('nic = [{ wire = "sim" }]').clock == "virtual"
    assert Board(clock="virtual").with_words((), ("hub",)).clock == "virtual"


@pytest.mark.parametrize(
    ("words", "link", "expected"),
    [
        ([], "web", {"delay_us": 20_000}),
        (["latency=5ms"], "web", {"delay_us": 5_000}),
        (["loss=1%"], "dns", {"delay_us": 3_000, "loss": 0.01}),
        (["loss=1%", "dns.loss=2%"], "dns", {"delay_us": 3_000, "loss": 0.02}),
        (["loss=1%", "dns.loss=2%"], "web", {"delay_us": 20_000, "loss": 0.01}),
        (["uplink.rate=2mbit", "uplink.delay=1ms"], "uplink", {"delay_us": 1_000, "rate_bps": 2_000_000}),
    ],
)
def test_what_is_said_of_one_link_goes_over_what_is_said_of_all(words, link, expected) -> None:
    assert SimOptions.parse(words).links[link] == expected


@pytest.mark.parametrize(
    ("wire", "parts"),
    [
        ("sim:colour=red", ["'colour'", "latency"]),
        ("sim:moon.loss=1%", ["'moon.loss'", "uplink, dns, web"]),
        ("sim:loss", ["'loss' is not key=value"]),
        ("sim:loss=1%,loss=2%", ["loss is given twice"]),
        ("sim:latency=1ms,delay=2ms", ["delay is given twice"]),
        ("sim:latency=soon", ["'soon'", "10ms"]),
        ("sim:seed=x", ["seed", "'x'"]),
        ("sim:seed=1,seed=2", ["seed is given twice"]),
    ],
)
def test_a_mistake_in_the_words_is_one_line_that_says_what_is_allowed(command, wire: str, parts: list[str]) -> None:
    said = command("boot", "--wire", wire)

    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)
    for part in (f"wire {wire!r}", *parts):
        assert part in said.err


def test_a_wire_is_written_as_it_was_read() -> None:
    for text in ("sim", "sim:seed=7,web.loss=1%"):
        assert str(WireSpec.parse(text)) == text
    with pytest.raises(ConfigError):
        WireSpec.parse("sims")


# -- pages -----------------------------------------------------------------------------------------------------------


def test_pages_are_read_and_never_written() -> None:
    folder = PageFolder({"a.txt": b"A", "sub/b.txt": b"B"})

    assert [(one.name, one.is_folder, one.size) for one in folder.entries()] == [("a.txt", False, 1), ("sub", True, 0)]
    assert folder.open("/sub/b.txt").read() == b"B"
    for path, mode, number in (("a.txt", "wb", 30), ("new", "xb", 30), ("sub", "rb", 21), ("no", "rb", 2)):
        with pytest.raises(OSError) as failed:
            folder.open(path, mode)
        assert failed.value.errno == number, (path, mode)
    with pytest.raises(OSError, match="Permission denied"):
        folder.stat("../a.txt")
