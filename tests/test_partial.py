"""Guests without a machine (D19): a process view with a network of its own; programs run there as anywhere."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from guest.apps.env import Env
from hw.clock import VirtualClock
from hw.loop import Loop
from hw.wire.cable import cable
from vring.partial import PartialGuest

SECOND = 1_000_000


class Desk:
    """Guests on one loop, and a cable between two of them."""

    def __init__(self) -> None:
        self.loop = Loop(VirtualClock())
        self.guests: list[PartialGuest] = []

    def guest(self, name: str, words: str = "") -> PartialGuest:
        guest = PartialGuest(self.loop, name=name, rng=random.Random(name), words=words)
        self.guests.append(guest)
        return guest

    def pair(self) -> tuple[PartialGuest, PartialGuest]:
        near, far = cable(self.loop)
        alice, bob = self.guest("alice", "net.hosts=bob@10.0.0.2"), self.guest("bob")
        alice.plug(near, "10.0.0.1/24", "fd00::1/64")
        bob.plug(far, "10.0.0.2/24", "fd00::2/64")
        return alice, bob

    def run(self, seconds: float = 10) -> None:
        self.loop.run(deadline=self.loop.clock.now() + round(seconds * SECOND))

    def close(self) -> None:
        for guest in self.guests:
            guest.close()
            assert guest.panic is None
            assert guest.leaks == [], f"{guest.name} left something behind"
        self.loop.close()


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.close()


@pytest.mark.parametrize("target", ["bob", "10.0.0.2", "fd00::2"])
def test_d19_a_program_pings_the_other_guest_without_a_card_or_a_boot(desk: Desk, target: str) -> None:
    alice, bob = desk.pair()

    ping = alice.spawn("ping", target, "-c", "3", "-i", "0.2")
    desk.run()

    assert ping.exit_status == 0, alice.log.output
    assert "3 packets transmitted, 3 received, 0% packet loss" in "\n".join(alice.log.output)
    assert alice.fes == alice.devices == bob.fes == [], "there is a card somewhere"


def test_d19_a_web_server_and_its_client_are_programs_as_anywhere(desk: Desk) -> None:
    alice, bob = desk.pair()
    with bob.files.open("hello.txt", "wb") as file:
        file.write(b"hello from bob\n")

    bob.spawn("httpd")
    wget = alice.spawn("wget", "-O", "-", "http://bob/hello.txt")
    desk.run()

    assert (wget.exit_status, alice.log.output) == (0, ["hello from bob"])


def test_d19_a_guest_talks_to_itself_over_its_loopback(desk: Desk) -> None:
    alone = desk.guest("alone")

    alone.spawn("echo", "-c", "1")
    client = alone.spawn("echoclient", "127.0.0.1", "7", "to myself")
    desk.run()

    assert client.exit_status == 0, alone.log.output


def test_d19_programs_that_look_for_cards_find_none(desk: Desk) -> None:
    alice, _ = desk.pair()

    shown = alice.spawn("ifconfig")
    sniff = alice.spawn("sniff", "eth0", "-t", "1")
    desk.run()

    assert shown.exit_status == 0, alice.log.output
    assert "10.0.0.1" in "\n".join(alice.log.output)
    assert sniff.exit_status not in (0, 70, None), "an outlet was opened at a card that is not there"


def test_d19_two_runs_with_one_seed_are_one_run() -> None:
    def once() -> list[str]:
        desk = Desk()
        alice, bob = desk.pair()
        bob.spawn("udpecho", "-l", "-c", "3")
        alice.spawn("udpecho", "bob", "7", "x", "-c", "3")
        alice.spawn("ping", "bob", "-c", "3")
        desk.run()
        desk.close()
        return [*alice.log.output, *alice.log.lines, *bob.log.lines, str(alice.counters()), str(bob.counters())]

    assert once() == once()


def test_d19_a_guest_that_is_closed_has_pulled_its_plug_and_takes_no_turn(desk: Desk) -> None:
    alice, bob = desk.pair()
    began: list[int] = []

    def sleeper(env: Env, _argv: list[str]) -> int:
        began.append(env.now())
        try:
            env.sleep(5 * SECOND)
        finally:
            began.append(env.now())
        return 0

    bob.spawn(sleeper)
    desk.run(1)
    bob.close()
    ping = alice.spawn("ping", "10.0.0.2", "-c", "1", "-W", "1")
    desk.run()

    assert began == [0, SECOND], "the program was not unwound when its guest was closed"
    assert ping.exit_status == 1, alice.log.output


@pytest.mark.parametrize("words", ["-dhcp", "-ipaddr 10.0.0.1", "-s ping 10.0.0.1", "net.colour=red", "-x"])
def test_d19_words_that_ask_for_a_boot_or_for_nothing_are_refused(desk: Desk, words: str) -> None:
    with pytest.raises(ValueError):
        desk.guest("wrong", words)


@pytest.mark.parametrize(
    "touch",
    [
        lambda guest: guest.services.dma.alloc(4096),
        lambda guest: guest.platform.mmio.read(0, 4),
        lambda guest: guest.platform.mmio.write(0, 4, 1),
        lambda guest: guest.platform.memory.fields(0, 2, "H"),
    ],
    ids=["DMA page", "register read", "register write", "ring field"],
)
def test_d19_there_is_no_hardware_to_touch(touch: Callable[[PartialGuest], object]) -> None:
    loop = Loop(VirtualClock())
    guest = PartialGuest(loop, name="bare", rng=random.Random(1))

    with pytest.raises(RuntimeError, match="without a machine"):
        touch(guest)
    loop.close()
