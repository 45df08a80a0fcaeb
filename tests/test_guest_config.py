"""What can be set in a guest: defaults in one place, words on the command line, and the effect of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import pytest

from guest.cmdline import CommandLineError, parse
from guest.config import LIMITS, GuestConfig, parse_settings
from guest.kernel import Guest
from guest.net.address import parse_address
from hw.machine import Machine
from hw.wire.cable import cable
from tests.guest_board import STATIC, Board


@pytest.fixture
def board() -> Iterator[Board]:
    made = Board()
    yield made
    made.close()


def configured(board: Board, config: GuestConfig | None, words: str = "", **options: int) -> Guest:
    """A guest made with `config`, booted."""
    machine = Machine(board.loop, name="guest", cmdline=words)
    machine.add_virtio_net(cable(board.loop)[0], options=dict(options))
    guest = Guest(machine.platform, config=config)
    machine.power_on(guest)
    board.guests.append(guest)
    board.machines["guest"] = machine
    board.settle(guest)
    return guest


def test_the_defaults() -> None:
    assert asdict(GuestConfig()) == {
        "rx_ring": 256, "tx_ring": 128, "mtu": 1500, "tcp_window": 65535, "tcp_window_max": 6 << 20,
        "tcp_profile": "full", "retries": 5, "keepalive": 7_200_000,
        "forwarding": 0, "membership": 1,
    }  # fmt: skip


def test_words_set_values_and_the_last_counts() -> None:
    settings = parse("net.rx_ring=64 -dhcp net.tx_ring=32 net.rx_ring=16 net.keepalive=1000").settings
    assert settings.values == {"rx_ring": 16, "tx_ring": 32, "keepalive": 1000}
    assert settings.over(GuestConfig(retries=9)) == GuestConfig(rx_ring=16, tx_ring=32, keepalive=1000, retries=9)


def test_lists() -> None:
    settings = parse("net.hosts=a@10.0.0.1,b@fd00::1 net.dns=10.0.0.3,fd00::3 net.search=lan,.example.org.").settings
    assert settings.hosts == (("a", parse_address("10.0.0.1")), ("b", parse_address("fd00::1")))
    assert settings.dns == (parse_address("10.0.0.3"), parse_address("fd00::3"))
    assert settings.search == ("lan", "example.org")


def test_words_of_programs_are_not_settings() -> None:
    assert parse("-s prog net.mtu=1").settings.values == {}


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("net.frob=1", "unknown setting net.frob; the settings are net.rx_ring, "),
        ("net.mtu=big", "net.mtu takes a number, as in: net.mtu=1500"),
        ("net.mtu=", "takes a number"),
        ("net.mtu=-1", "takes a number"),
        ("net.mtu=67", "not within 68 to 65535"),
        ("net.mtu=65536", "not within 68 to 65535"),
        ("net.rx_ring=100", "not a power of two"),
        ("net.tx_ring=1", "not within 2 to 32768"),
        ("net.retries=256", "not within 0 to 255"),
        ("net.tcp_window=10", "not within 536"),
        ("net.keepalive=0", "not within 1"),
        ("net.hosts=a", "is not name@address; write: net.hosts=peer@10.0.0.1"),
        ("net.dns=x", "is not an IP address; write: net.dns=10.0.0.3"),
        ("net.search=", "names no domain; write: net.search=example.org"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_is_right(word: str, says: str) -> None:
    with pytest.raises(CommandLineError) as raised:
        parse(word)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_mistake_halts_the_guest_with_status_2(board: Board) -> None:
    guest = board.boot("net.mtu=9", cable(board.loop)[0])
    assert (guest.halted, guest.exit_status) == (True, 2)
    assert [line for line in guest.log.lines if "command line: net.mtu=9 is not within" in line]


@pytest.mark.parametrize("name", LIMITS)
def test_every_limit_holds_for_the_object_too(name: str) -> None:
    least, most = LIMITS[name]
    for value in (least, most):
        assert getattr(GuestConfig(**{name: value}), name) == value
    for value in (least - 1, most + 1):
        with pytest.raises(ValueError, match=rf"net\.{name}={value} is not within"):
            GuestConfig(**{name: value})


# -- effects -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "sizes"), [("", (256, 128)), ("net.rx_ring=64 net.tx_ring=32", (64, 32))])
def test_c21_c22_the_rings_have_that_size(board: Board, words: str, sizes: tuple[int, int]) -> None:
    configured(board, None, words, rx_queue_size=256, tx_queue_size=128)
    queues = board.machines["guest"].nics[0].device.queues
    assert tuple(queue.size for queue in queues[:2]) == sizes


def test_c21_a_config_object_does_the_same_and_words_go_over_it(board: Board) -> None:
    guest = configured(board, GuestConfig(rx_ring=32, tx_ring=16), "net.tx_ring=8")
    queues = board.machines["guest"].nics[0].device.queues
    assert tuple(queue.size for queue in queues[:2]) == (32, 8)
    assert (guest.config.rx_ring, guest.config.tx_ring) == (32, 8)


@pytest.mark.parametrize(
    ("config", "words", "card", "mtu"),
    [
        (None, "", 1500, 1500),
        (None, "", 9000, 9000),
        (None, "net.mtu=1400", 1500, 1400),
        (None, "net.mtu=1500", 9000, 1500),
        (None, "net.mtu=9000", 1500, 1500),
        (GuestConfig(mtu=1300), "", 1500, 1300),
        (GuestConfig(mtu=1300), "net.mtu=1350", 1500, 1350),
        (GuestConfig(), "", 9000, 1500),
    ],
)
def test_c23_the_mtu_of_eth0(board: Board, config: GuestConfig | None, words: str, card: int, mtu: int) -> None:
    guest = configured(board, config, f"{words} {STATIC}", mtu=card)
    assert guest.ni is not None
    assert guest.ni.interface.mtu == mtu


def test_other_words_are_left_alone() -> None:
    assert parse_settings(["quiet", "network=1", "virtio_mmio.device=4K@0xd0000000:5"]).values == {}
