"""The boards that ship, and guests without a machine in board files (D19): what they do, and mistakes in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

import vring
from vring.boards import find, shipped, summary
from vring.cli import main
from vring.config import Board, ConfigError

EXAMPLES = Path(__file__).resolve().parent.parent / "fixtures" / "boards"


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


# -- those that ship -------------------------------------------------------------------------------------------------


def test_each_board_has_a_line_and_the_line_comes_from_its_file(command) -> None:
    said = command("boards")

    lines = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in said.out.splitlines())
    assert (said.status, said.err) == (0, "")
    assert lines == {name: summary(path) for name, path in shipped().items()}
    assert {"qemu-user", "two-guests", "lab"} <= set(lines)
    assert all(20 < len(line) <= 120 for line in lines.values()), lines


@pytest.mark.parametrize("path", [*shipped().values(), *EXAMPLES.glob("*.toml")], ids=lambda path: path.stem)
def test_each_board_file_is_a_board_that_says_what_it_shows(path: Path) -> None:
    assert Board.load(path).guests
    assert summary(path), f"{path.name} does not begin with a comment"


def test_a_board_is_found_by_name_and_a_wrong_name_tells_which_there_are() -> None:
    assert find("lab").guests[1].name == "middle"
    with pytest.raises(ConfigError, match=r"'lap'.*lab, qemu-user"):
        find("lap")


# -- lab -------------------------------------------------------------------------------------------------------------


def test_e22_lab_pings_across_its_router_and_traces_the_way(command) -> None:
    first, second = command("boot", "lab", "--exit-status"), command("boot", "lab", "--exit-status")

    assert (first.status, first.err) == (0, "")
    for expected in (
        r"64 bytes from 10\.0\.2\.2: icmp_seq=3 ttl=63 time=12\.000 ms",
        r"3 packets transmitted, 3 received, 0% packet loss, time \d+ms",
        r" 1  10\.0\.1\.1  \S+ ms",
        r" 2  10\.0\.2\.2  \S+ ms",
    ):
        assert re.search(f"^left +│ {expected}$", first.out, re.MULTILINE), expected
    assert "counters of middle" in first.out
    assert first == second, "two runs with one seed differ"


def test_lab_is_cut_in_two_when_its_router_forwards_no_more() -> None:
    with vring.boot("lab") as machine:
        left, middle, right = machine.guests
        machine.run(seconds=5)
        middle.stack.forwarding = False
        asked = right.spawn("ping", "10.0.1.2", "-c", "1", "-W", "1")
        near = right.spawn("ping", "10.0.2.1", "-c", "1", "-W", "1")
        machine.run_until(lambda: not (asked.alive or near.alive), 10)

        assert (asked.exit_status, near.exit_status) == (1, 0), right.log.output
        assert left.halted


def test_lab_has_a_machine_for_each_guest_but_the_router() -> None:
    with vring.boot("lab") as machine:
        machine.run(seconds=1)

        assert [each.name for each in machine.machines] == ["left", "right"]
        assert [guest.name for guest in machine.guests] == ["left", "middle", "right"]
        assert {"left", "middle", "right"} <= set(machine.counters())
        assert machine.counters()["middle"]["ip"]["forwarded"] > 0
        assert len(machine.rings()) == 4, "rings that are not left's and right's"
        assert machine.guests[1].panic is None


def test_what_is_built_says_that_the_router_has_no_machine(command) -> None:
    said = command("boot", "lab", "--verbose", "--for", "0.001")

    assert "middle: no machine, net.forwarding=1" in said.out
    assert "nic 1: direct address=10.0.2.1/24 on hub:two" in said.out


# -- partial guests --------------------------------------------------------------------------------------------------

FIRST = '[[guest]]\nname = "first"\nnic = [{ wire = "hub:a" }]\n[[guest]]\nname = "second"\n'


def test_d19_a_partial_host_has_its_addresses_route_and_card_address() -> None:
    text = FIRST + (
        'partial = true\ngateway = "10.0.0.9"\n[[guest.nic]]\nwire = "hub:a"\nmac = "02:00:00:00:00:07"\nmtu = 1400\n'
        'address = "10.0.0.1/24 fd00::1/64"\n'
    )
    with vring.boot(Board.parse(text), clock="virtual") as machine:
        host = machine.guests[1]
        eth = host.stack.interfaces[1]

        assert [str(own) for own in eth.addresses] == ["10.0.0.1/24", "fd00::1/64"]
        assert (eth.mac, eth.mtu) == (bytes.fromhex("020000000007"), 1400)
        assert any(route.prefix.length == 96 and route.gateway for route in host.stack.routes), "no default route"
        machine.run(seconds=1)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (FIRST + "partial = 1", ["partial is true or false"]),
        (FIRST + 'partial = true\nip = "10.0.0.1"', ["ip is not for a partial guest"]),
        (FIRST + 'partial = true\nmemory = "64M"', ["memory is not for a partial guest"]),
        (FIRST + 'partial = true\nnic = [{ model = "virtio" }]', ["nic 0", "'model'", "address"]),
        (FIRST + 'partial = true\nnic = [{ address = "10.0.0.1" }]', ["nic 0", "'10.0.0.1'", "10.0.0.1/24"]),
        (FIRST + 'partial = true\nnic = [{ address = "nowhere/24" }]', ["nic 0", "'nowhere/24'"]),
        (FIRST + "partial = true\nnic = [{ mtu = 1 }]", ["nic 0", "mtu is 68 to 65535"]),
        (FIRST + 'nic = [{ model = "direct" }]', ["nic 0", "no model 'direct'", "virtio"]),
        ("partial = true", ["the first guest is one that boots"]),
    ],
)
def test_d19_a_mistake_is_one_line_that_says_where(text: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as failed:
        Board.parse(text, "my.toml")

    said = str(failed.value)
    assert said.startswith("my.toml: ")
    assert "\n" not in said
    for part in parts:
        assert part in said


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (FIRST + 'partial = true\ncmdline = "-s ping 10.0.0.1"', "asks for a boot"),
        (FIRST + 'partial = true\ncmdline = "-dhcp"', "asks for a boot"),
        (FIRST + 'partial = true\ngateway = "10.0.0.9"', "10.0.0.9"),
        (FIRST + 'partial = true\nnic = [{ address = "224.0.0.1/24" }]', "224.0.0.1"),
        (FIRST + 'partial = true\nnic = [{ address = "10.0.0.1/24 10.0.0.1/24" }]', "in use on this stack already"),
    ],
)
def test_d19_what_shows_only_when_it_is_built_is_a_line_too(text: str, part: str) -> None:
    with pytest.raises(ConfigError, match=f"guest second: .*{re.escape(part)}"):
        vring.boot(Board.parse(text), clock="virtual")
