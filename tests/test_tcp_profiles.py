"""Row E37: the profile phase6, a first version's TCP, does what E30 to E34 ask for with less; rows C24, C25."""

from __future__ import annotations

import pytest

from guest.net.tcp.config import PROFILES, TcpConfig, phase6
from tests.tcp_world import MS, SECOND, Peer, Program, World
from tests.test_tcp_data import body

SIMPLE = phase6()


def simple(**options: object) -> tuple[Peer, Program]:
    """A connection of the simple profile."""
    return World(tcp=SIMPLE).established(**options)  # type: ignore[arg-type]


def test_n2_there_are_two_profiles_by_name() -> None:
    assert sorted(PROFILES) == ["full", "phase6"]
    assert PROFILES["full"]() == TcpConfig()
    assert (SIMPLE.window, SIMPLE.window_max, SIMPLE.congestion) == (4096, 4096, "none")


def test_e37_it_offers_an_mss_and_nothing_else() -> None:
    """N2: a fixed window of 4096, no SACK."""
    _, peer = World(tcp=SIMPLE).connects()

    peer.expects("S", win=4096, mss=1460, ws=None, sack_ok=False, ts=None)


def test_e37_it_answers_with_nothing_else() -> None:
    world = World(tcp=SIMPLE)
    world.listens(80)
    peer = world.peer(80)
    peer.stamps = True

    peer.sends("SEW", mss=1460, ws=7, sack_ok=True)

    peer.expects("S.", win=4096, ws=None, sack_ok=False, ts=None)


def test_e30_e37_it_opens_and_closes() -> None:
    peer, end = simple()

    end.shuts()
    peer.expects("F.", seq=1)
    peer.sends(".")
    peer.sends("F.")

    peer.expects(".", ack=2)
    end.is_in("TIME_WAIT")


def test_e31_e37_only_the_timer_sends_again() -> None:
    """Three, or ten, duplicate acknowledgements say nothing to it."""
    peer, end = simple(mss=1000)
    end.writes(body(10_000))
    assert len(peer.drains()) == 10
    for _ in range(10):
        peer.sends(".", ack=1)
    peer.expects_nothing()

    peer.expects(".", seq=1, length=1000, within=(0, 3 * SECOND))


def test_e31_e37_there_is_no_congestion_window() -> None:
    """The peer's window is the only limit."""
    peer, end = simple(mss=1000, win=60_000)

    end.writes(body(60_000))

    assert sum(len(segment.data) for segment in peer.drains()) == 60_000


def test_e34_e37_the_window_stays_4096_however_fast_the_reader() -> None:
    peer, end = simple()
    for _ in range(50):
        peer.sends(".", data=body(1000))
        end.reads(body(1000))

    assert max(segment.win for segment in peer.drains()) == 4096


def test_e34_e37_it_closes_the_window_and_opens_it_again() -> None:
    peer, end = simple()
    peer.sends_data(body(4096), size=1024)
    end.world.passes(40 * MS)
    assert peer.drains()[-1].win == 0

    end.reads(body(4096))

    peer.expects(".", ack=4097, win=4096)


def test_e34_e37_it_probes_a_closed_window() -> None:
    peer, end = simple(win=0)
    end.writes(b"hello")

    peer.expects(".", seq=1, data=b"h", after=end.rto)
    peer.sends(".", ack=1, win=100)
    peer.expects(".", seq=1, data=b"h", within=(0, end.rto))
    peer.sends(".", ack=2, win=100)

    peer.expects("P.", seq=2, data=b"ello")


def test_c25_e37_it_gives_up_after_five_retries() -> None:
    peer, end = simple()
    end.writes(b"x")
    end.world.passes(600 * SECOND)

    assert len(peer.drains()) == 6
    end.is_in("CLOSED")


@pytest.mark.parametrize("name", ["cubic", "reno", "none"])
def test_e35_the_congestion_control_is_a_setting_of_each_end(name: str) -> None:
    """TCP_CONGESTION before the connection is made."""
    world = World()
    program = world.opens()
    program.end.settings.congestion = name
    peer = world.peer(5000, 7)
    assert program.end.bind(0xFFFF_0000_0000, 5000) == 0
    program.connects(7)
    peer.expects("S")
    peer.sends("S.", mss=1000)
    peer.drains()

    program.writes(body(60_000))

    assert program.end.info().congestion == name
    assert len(peer.drains()) == (60 if name == "none" else 10)
