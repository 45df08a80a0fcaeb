"""Row E30: connections begin. RFC 9293 §3.5, §3.10.7, RFC 6298 §5."""

from __future__ import annotations

from itertools import pairwise

import pytest

from guest.net.tcp.config import TcpConfig
from tests.tcp_world import MS, SECOND, World, number

FAMILIES = pytest.mark.parametrize("family", [4, 6])
MSS = {4: 1460, 6: 1440}  # of an MTU of 1500


@FAMILIES
def test_e30_a_passive_open_takes_three_segments(family: int) -> None:
    """RFC 9293 figure 6. What the peer does not offer is not answered."""
    world = World(family)
    server = world.listens(80)
    peer = world.peer(80)

    peer.sends("S", seq=0)
    peer.expects("S.", seq=0, ack=1, mss=MSS[family], ws=None, ts=None, sack_ok=False, win=65535, df=True)
    peer.sends(".", seq=1, ack=1)

    end = server.accepts()
    assert end.end.remote == (number(world.them), 40_000)
    assert end.end.local == (number(world.us), 80)
    peer.expects_nothing()


@FAMILIES
def test_e30_an_active_open_takes_three_segments(family: int) -> None:
    program, peer = World(family).connects(7)

    peer.expects("S", seq=0, ack=0, mss=MSS[family], ws=7, ts=(0, 0), sack_ok=True, win=65535)
    assert not program.end.connected
    peer.sends("S.", seq=0, ack=1)
    peer.expects(".", seq=1, ack=1, ts=None)

    assert program.end.connected
    program.connects(7, expect="0")
    program.connects(7, expect="EISCONN")


def test_e30_what_both_offer_is_used() -> None:
    """RFC 7323 §1.3, RFC 2018 §2."""
    world = World()
    server = world.listens(80)
    peer = world.peer(80)
    peer.stamps = True

    peer.sends("S", mss=1460, ws=3, sack_ok=True)
    peer.expects("S.", mss=1460, ws=7, sack_ok=True, ts=(0, peer.clock))
    peer.sends(".")

    info = server.accepts().end.info()
    assert (info.timestamps, info.sack) == (True, True)


def test_e30_an_end_connects_only_once_at_a_time() -> None:
    program, peer = World().connects(7)
    peer.expects("S")

    program.connects(7, expect="EALREADY")

    peer.expects_nothing()


def test_e30_a_simultaneous_open_makes_one_connection() -> None:
    """RFC 9293 figure 7."""
    program, peer = World().connects(7)
    peer.expects("S", seq=0)

    peer.sends("S", seq=0)
    peer.expects("S.", seq=0, ack=1)
    peer.sends("S.", seq=0, ack=1)
    peer.drains()  # an acknowledgement of what was acknowledged, or none

    program.is_in("ESTABLISHED")
    program.writes(b"x")
    peer.expects("P.", seq=1, ack=1, data=b"x")


def test_e30_an_old_duplicate_syn_does_no_harm() -> None:
    """RFC 9293 figure 8, from B's side: the old SYN is answered, the peer resets, and the new one comes through."""
    world = World()
    server = world.listens(80)
    old, new = world.peer(80, iss=90), world.peer(80, iss=100)  # the second has the same ports, and hears from now on

    old.sends("S", seq=0)
    answer = new.drains()[0]
    assert (answer.flags, answer.ack) == ("S.", 90 + 1 - 100)
    new.sends("R", seq=90 + 1 - 100)
    new.irs = None
    new.sends("S", seq=0)
    new.expects("S.", ack=1)
    new.sends(".")

    server.accepts()


def test_e30_a_half_open_peer_is_reset_and_the_connection_made_anew() -> None:
    """RFC 9293 figure 9: what acknowledges something that was never sent is answered with a reset at that number."""
    program, peer = World().connects(7)
    peer.expects("S", seq=0)

    peer.sends(".", seq=300, ack=100)
    peer.expects("R", seq=100)
    peer.expects("S", seq=0, within=(SECOND, SECOND))
    peer.sends("S.", seq=0, ack=1)
    peer.expects(".", seq=1, ack=1)

    program.is_in("ESTABLISHED")


@pytest.mark.parametrize("ack", [0, 2])
def test_e30_a_syn_that_acknowledges_something_else_is_reset(ack: int) -> None:
    """RFC 9293 §3.10.7.3, first."""
    program, peer = World().connects(7)
    peer.expects("S", seq=0)

    peer.sends("S.", seq=0, ack=ack)

    peer.expects("R", seq=ack)
    program.is_in("SYN_SENT")


def test_e30_syns_are_repeated_ever_later_and_then_given_up() -> None:
    """RFC 6298 §5.5, RFC 9293 §3.8.3: after 1, 3, 7, 15 and 31 s; given up after 63 s."""
    program, peer = World().connects(7)
    peer.expects("S", seq=0)
    for wait in (1, 2, 4, 8, 16):
        peer.expects("S", seq=0, after=wait * SECOND)
        program.is_in("SYN_SENT")

    peer.expects_nothing(during=32 * SECOND)

    program.is_in("CLOSED")
    assert program.end.readable, "poll must wake who waits for the connection"
    program.connects(7, expect="ETIMEDOUT")


def test_n4_the_number_of_syns_is_a_setting() -> None:
    program, peer = World(tcp=TcpConfig(syn_retries=1)).connects(7)
    peer.expects("S")
    peer.expects("S", after=SECOND)

    peer.expects_nothing(during=2 * SECOND)

    program.is_in("CLOSED")


def test_e30_answers_to_a_syn_are_repeated_and_then_given_up() -> None:
    world = World()
    server = world.listens(80)
    peer = world.peer(80)
    peer.sends("S", seq=0)
    peer.expects("S.", seq=0, ack=1)
    for wait in (1, 2, 4, 8, 16):
        peer.expects("S.", seq=0, ack=1, after=wait * SECOND)

    peer.expects_nothing(during=100 * SECOND)

    peer.sends(".")
    peer.expects("R", seq=1)
    server.accepts_none()


def test_e30_a_repeated_syn_is_answered_as_the_first() -> None:
    world = World()
    world.listens(80)
    peer = world.peer(80)
    peer.sends("S", seq=0)
    first = peer.expects("S.", seq=0, ack=1)

    peer.sends("S", seq=0)

    again = peer.expects("S.", seq=0, ack=1)
    assert again.packet[24:28] == first.packet[24:28], "the same initial sequence number"


def test_e30_a_timeout_of_the_syn_makes_the_first_data_wait_three_seconds() -> None:
    """RFC 6298 §5.7."""
    program, peer = World().connects(7)
    peer.expects("S")
    peer.expects("S", after=SECOND)
    peer.sends("S.")
    peer.expects(".")

    program.writes(b"x")
    peer.expects("P.", seq=1, data=b"x")

    peer.expects("P.", seq=1, data=b"x", after=3 * SECOND)


def test_e30_data_may_complete_the_handshake() -> None:
    """The acknowledgement of our SYN was lost."""
    world = World()
    server = world.listens(80)
    peer = world.peer(80)
    peer.sends("S")
    peer.expects("S.")

    peer.sends("P.", seq=1, ack=1, data=b"hello")

    server.accepts().reads(b"hello")


def test_e30_data_of_a_syn_comes_again() -> None:
    """RFC 9293 §3.10.7.2 would let it be queued; it is not acknowledged, so the peer sends it once more."""
    world = World()
    server = world.listens(80)
    peer = world.peer(80)

    peer.sends("S", seq=0, data=b"early")
    peer.expects("S.", seq=0, ack=1)
    peer.sends("P.", seq=1, data=b"early")

    server.accepts().reads(b"early")


def test_e30_an_acknowledgement_of_something_else_is_reset_in_syn_received() -> None:
    """RFC 9293 §3.10.7.4, fifth; the connection waits on."""
    world = World()
    server = world.listens(80)
    peer = world.peer(80)
    peer.sends("S", seq=0)
    peer.expects("S.")

    peer.sends(".", seq=1, ack=2)
    peer.expects("R", seq=2)
    server.accepts_none()
    peer.sends(".", seq=1, ack=1)

    server.accepts()


def test_e30_a_fin_right_behind_the_handshake_is_no_surprise() -> None:
    world = World()
    server = world.listens(80)
    peer = world.peer(80)
    peer.sends("S")
    peer.expects("S.")

    peer.sends("FP.", seq=1, ack=1, data=b"all")
    peer.expects(".", ack=5)

    end = server.accepts()
    end.is_in("CLOSE_WAIT")
    end.reads(b"all")
    end.reads_end()


@FAMILIES
def test_e30_nobody_at_a_port_is_said_with_a_reset(family: int) -> None:
    """RFC 9293 §3.10.7.1."""
    peer = World(family).peer(9)

    peer.sends("S", seq=0)
    peer.expects("R.", seq=0, ack=1, win=0)
    peer.irs = 0
    peer.sends(".", seq=5, ack=77, data=b"abc")
    peer.expects("R", seq=77)
    peer.sends("F", seq=5, data=b"abc")

    peer.expects("R.", seq=0, ack=9)


@FAMILIES
def test_e30_a_refused_connection_is_said_to_be(family: int) -> None:
    program, peer = World(family).connects(7)
    peer.expects("S")

    peer.sends("R.", seq=0, ack=1)

    program.is_in("CLOSED")
    program.connects(7, expect="ECONNREFUSED")


@pytest.mark.parametrize(("flags", "ack"), [("R", None), ("R.", 0), ("R.", 2)], ids=["without ack", "old", "future"])
def test_e30_a_reset_must_acknowledge_the_syn(flags: str, ack: int | None) -> None:
    """RFC 9293 §3.10.7.3, first and second."""
    program, peer = World().connects(7)
    peer.expects("S")

    peer.sends(flags, seq=0, ack=ack)

    program.is_in("SYN_SENT")
    peer.expects_nothing()


def test_e30_an_end_can_try_again_after_it_was_refused() -> None:
    program, peer = World().connects(7)
    peer.expects("S")
    peer.sends("R.", seq=0, ack=1)
    program.connects(7, expect="ECONNREFUSED")

    peer.irs = None
    program.connects(7)
    peer.expects("S", seq=0)
    peer.nxt = 0
    peer.sends("S.", seq=0)

    peer.expects(".")
    program.is_in("ESTABLISHED")


def test_there_is_no_way_to_the_peer() -> None:
    world = World()
    program = world.opens()

    assert program.end.connect(number("192.0.2.1"), 7) == 101, "ENETUNREACH"


def test_h63_ports_and_initial_numbers_cannot_be_foreseen() -> None:
    """RFC 6056 §3.3.3, RFC 6528 §3: one connection says nothing about another to somebody else."""
    world = World()
    numbers, ports = [], []
    for port in range(7, 27):
        world.opens().connects(port)
    for segment in world.strays:
        numbers.append(segment.seq)
        ports.append(segment.sport)

    assert len(ports) == 20
    assert all(world.stack.config.first_port <= port <= world.stack.config.last_port for port in ports)
    steps = [(after - before) % (1 << 32) for before, after in pairwise(numbers)]
    assert len({step >> 16 for step in steps}) > 15, "the differences have no pattern"
    assert len({(after - before) % 28000 for before, after in pairwise(ports)}) > 15


def test_h63_the_numbers_of_one_connection_made_again_grow() -> None:
    """RFC 6528 §3: F is the same for the same ends, M is a clock, so that old segments are seen to be old."""
    world = World()
    numbers = []
    for _ in range(2):
        program, peer = world.connects(7)
        numbers.append(peer.drains()[0].packet[24:28])
        program.closes()
        world.passes(10 * SECOND)

    first, second = (int.from_bytes(raw, "big") for raw in numbers)
    assert (second - first) % (1 << 32) == 10 * SECOND // 4, "a tick each 4 microseconds"


def test_e30_two_connections_of_one_peer_are_two() -> None:
    world = World()
    server = world.listens(80)
    peers = [world.peer(80, port) for port in (1001, 1002)]
    for peer in peers:
        peer.sends("S")
        peer.expects("S.")
        peer.sends(".")
    ends = [server.accepts() for _ in peers]

    peers[1].sends("P.", data=b"two")
    peers[0].sends("P.", data=b"one")

    ends[0].reads(b"one")
    ends[1].reads(b"two")


def test_e30_the_peer_may_be_this_host() -> None:
    """A10: over 127.0.0.1, without any link."""
    world = World()
    server = world.listens(80)
    program = world.opens()
    program.end.connect(number("127.0.0.1"), 80)
    world.passes(10 * MS)

    end = server.accepts()
    program.writes(b"hello, self")
    world.passes(10 * MS)

    end.reads(b"hello, self")
