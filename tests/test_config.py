"""Boards from files and from command-line words; a mistake is one line that says where and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from guest.cmdline import tokenise
from vring.config import Board, ConfigError, GuestSpec, NicSpec, WireSpec, join_words


def mistake(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        Board.parse(text, "lab.toml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- files -----------------------------------------------------------------------------------------------------------


def test_a_file_describes_guests_nics_and_wires() -> None:
    board = Board.parse(
        """
        clock = "virtual"
        seed = 9
        run = 2.5

        [[guest]]
        name = "alice"
        memory = "96M"
        cmdline = "-s ping 10.0.0.2"
        ip = "10.0.0.1"
        mask = "255.255.255.0"
        gateway = "10.0.0.254"
        mac = "52:54:00:00:00:0A"

        [[guest.nic]]
        wire = "hub:lan,loss=1%,delay=5ms"
        mtu = 9000
        event_idx = false

        [[guest.nic]]
        model = "virtio"

        [[guest]]
        """
    )

    alice, other = board.guests
    assert (board.clock, board.seed, board.run) == ("virtual", 9, 2.5)
    assert (alice.name, alice.memory) == ("alice", 96 << 20)
    assert alice.words == "-ipaddr 10.0.0.1 -netmask 255.255.255.0 -gateway 10.0.0.254 -s ping 10.0.0.2"
    assert alice.nics[0].wire == WireSpec("hub", "lan", False, "loss=1%,delay=5ms")
    assert alice.nics[0].options == {"mtu": 9000, "event_idx": False, "mac": "52:54:00:00:00:0a"}
    assert alice.nics[0].mac == bytes.fromhex("52540000000a")
    assert alice.nics[1].wire.kind == "none"
    assert (other.name, other.words, len(other.nics)) == ("guest1", "", 1)


def test_one_guest_may_stand_at_the_top() -> None:
    board = Board.parse('ip = "10.0.0.1"\nnic = [{ wire = "hub" }, {}]')

    (guest,) = board.guests
    assert (guest.name, guest.words, [str(nic.wire) for nic in guest.nics]) == (
        "guest",
        "-ipaddr 10.0.0.1",
        ["hub:hub", "none"],
    )


def test_an_empty_file_is_one_guest_with_one_nic() -> None:
    assert Board.parse("").guests == (GuestSpec(),)
    assert len(GuestSpec().nics) == 1


def test_a_guest_may_have_no_nics() -> None:
    assert Board.parse("nic = []").guests[0].nics == ()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("clock = ", ("lab.toml: not TOML",)),
        ("colour = 1", ("lab.toml:", "'colour'", "clock, seed, run, guest")),
        ('clock = "fast"', ("lab.toml: clock", "'real' or 'virtual'", "'fast'")),
        ("seed = true", ("lab.toml: seed is a whole number",)),
        ("run = 0", ("lab.toml: run", "above 0")),
        ("run = inf", ("lab.toml: run", "finite")),
        ("guest = []", ("lab.toml: guest", "at least one")),
        ("guest = 3", ("lab.toml: guest is a list of tables", "[[guest]]")),
        ('ip = "1.2.3.4"\n[[guest]]', ("'ip' stands beside [[guest]]",)),
        ('[[guest]]\nname = "a"\n[[guest]]\nname = "a"', ("two guests", "'a'")),
        ('[[guest]]\nname = "a b"', ("lab.toml: guest 0: name", "'a b'")),
        ("[[guest]]\n[[guest]]\nips = 1", ("lab.toml: guest 1:", "'ips'", "ip, mask, gateway, mac")),
        ('ip = "300.1.1.1"', ("lab.toml: ip", "'300.1.1.1'", "IPv4")),
        ("ip = 7", ("lab.toml: ip is text, not 7",)),
        ('memory = "64Q"', ("lab.toml: memory", '"64M"', "'64Q'")),
        ("memory = 5000000", ("lab.toml: memory", "whole pages")),
        ('memory = "4G"', ("lab.toml: memory", "4M to 3G")),
        ('mac = "52:54:00"', ("lab.toml: mac", "52:54:00:00:00:01")),
        ('mac = "01:00:00:00:00:01"', ("lab.toml: mac", "group address")),
        ('mac = "02:00:00:00:00:01"\nnic = []', ("lab.toml: mac", "has none")),
        ('mac = "02:00:00:00:00:01"\n[[nic]]\nmac = "02:00:00:00:00:02"', ("lab.toml: mac", "write it once")),
        ('[[nic]]\nmodel = "e1000"', ("lab.toml: nic 0:", "'e1000'", "virtio")),
        ("[[nic]]\n[[nic]]\nmtu = 1.5", ("lab.toml: nic 1: mtu", "1.5")),
        ('[[nic]]\nwire = "wifi"', ("lab.toml: nic 0:", "'wifi'", "tap:NAME")),
        ('[[nic]]\nwire = "tap"', ("lab.toml: nic 0:", "tap:NAME")),
        ('[[nic]]\nwire = "none:x"', ("lab.toml: nic 0:", "takes no name")),
        ('[[nic]]\nwire = "hub,vnet_hdr=on"', ("lab.toml: nic 0:", "only a tap")),
        ('[[nic]]\nwire = "tap:t,vnet_hdr=maybe"', ("lab.toml: nic 0:", "on or off")),
        ('[[nic]]\nwire = "hub,loss"', ("lab.toml: nic 0:", "'loss' is not key=value")),
        ('[[nic]]\nwire = "hub,loss=200%"', ("lab.toml: nic 0:", "loss=200%")),
        ('[[nic]]\nwire = "hub,luck=1%"', ("lab.toml: nic 0:", "luck=1%", "loss, corrupt")),
        ('clock = "virtual"\n[[nic]]\nwire = "tap:t0"', ("lab.toml: guest nic 0:", "tap:t0", "'real'")),
        ('clock = "virtual"\n[[nic]]\nwire = "packet:lo"', ("lab.toml: guest nic 0:", "packet:lo", "'real'")),
    ],
)
def test_a_mistake_in_a_file_is_named(text: str, parts: tuple[str, ...]) -> None:
    said = mistake(text)

    assert [part for part in parts if part not in said] == [], said


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"\xff\xfe")

    with pytest.raises(ConfigError, match=r"nowhere\.toml: cannot be read: No such file"):
        Board.load(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match=r"raw: is not a text file"):
        Board.load(tmp_path / "raw")


# -- words -----------------------------------------------------------------------------------------------------------


def test_the_nth_wire_belongs_to_the_nth_nic() -> None:
    board = Board.of_words(["virtio", "virtio:mtu=9000,mrg_rxbuf=off,mac=52:54:00:00:00:01"], ["hub:a"], "-x")

    (guest,) = board.guests
    assert [str(nic.wire) for nic in guest.nics] == ["hub:a", "none"]
    assert guest.nics[1].options == {"mtu": 9000, "mrg_rxbuf": False, "mac": "52:54:00:00:00:01"}
    assert guest.words == "-x"


def test_wires_alone_make_a_nic_each_and_nothing_makes_one() -> None:
    assert [str(nic.wire) for nic in Board.of_words([], ["hub", "tap:t0,vnet_hdr=on"]).guests[0].nics] == [
        "hub:hub",
        "tap:t0,vnet_hdr=on",
    ]
    assert len(Board.of_words().guests[0].nics) == 1


def test_the_nic_none_is_no_nic() -> None:
    assert Board.of_words(["none"]).guests[0].nics == ()
    with pytest.raises(ConfigError, match="stands alone"):
        Board.of_words(["none", "virtio"])


def test_more_wires_than_nics_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="2 wires for 1 NICs"):
        Board.of_words(["virtio"], ["hub", "hub"])


def test_words_replace_what_a_file_says_of_its_only_guest() -> None:
    board = Board.parse('cmdline = "-old"\nnic = [{ wire = "hub:a", mtu = 9000 }, {}]')

    rewired = board.with_words([], ["hub:b"], "-new").guests[0]
    assert [str(nic.wire) for nic in rewired.nics] == ["hub:b", "none"]
    assert rewired.nics[0].options == {"mtu": 9000}
    assert rewired.words == "-new"
    assert board.with_words() == board


def test_words_do_not_say_which_of_two_guests_they_are_for() -> None:
    board = Board.parse("[[guest]]\n[[guest]]")

    assert board.with_words() == board
    with pytest.raises(ConfigError, match="2 guests"):
        board.with_words([], [], "-s idle")


@pytest.mark.parametrize("text", ["virtio:mtu=", "virtio:=3", "e1000", "virtio:mac=5"])
def test_a_nic_word_with_a_mistake_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="nic"):
        NicSpec.parse(text)


@pytest.mark.parametrize(
    "words",
    [
        ["-s", "ping 10.0.0.1 -c 1"],
        ["plain", "two words", "it's", 'say "so"', "", "tab\there", "'", "a'b\"c d"],
    ],
)
def test_the_guest_reads_the_words_that_the_shell_gave(words: list[str]) -> None:
    assert tokenise(join_words(words)) == words
