"""TIME-WAIT: RFC 9293 §3.6.1, RFC 1337, RFC 6191; row H62 (it must not fill up)."""

from __future__ import annotations

import pytest

from guest.net.tcp.config import TcpConfig
from tests.tcp_world import MS, SECOND, Peer, Program, World


def waiting(world: World, *, ts: bool = False, client: bool = False) -> tuple[Peer, Program]:
    """A connection that we have closed and the peer too."""
    peer, end = world.established(ts=ts, client=client)
    end.shuts()
    peer.expects("F.", seq=1)
    peer.sends("F.", ack=2)
    peer.expects(".", seq=2, ack=2)
    end.is_in("TIME_WAIT")
    return peer, end


def test_rfc9293_3_6_1_it_lasts_two_segment_lifetimes() -> None:
    """60 s, as on Linux; a setting."""
    for config, wait in ((TcpConfig(), 60 * SECOND), (TcpConfig(time_wait=5 * SECOND), 5 * SECOND)):
        world = World(tcp=config)
        waiting(world)
        world.passes(wait - 1)
        assert world.stack.tcp.time_waits == 1

        world.passes(1)

        assert world.stack.tcp.time_waits == 0


def test_rfc9293_3_10_7_4_a_fin_that_comes_again_is_acknowledged_and_starts_the_wait_anew() -> None:
    world = World()
    peer, _ = waiting(world)
    world.passes(59 * SECOND)

    peer.sends("F.", seq=1, ack=2)
    peer.expects(".", seq=2, ack=2)
    world.passes(59 * SECOND)
    assert world.stack.tcp.time_waits == 1
    world.passes(SECOND)

    assert world.stack.tcp.time_waits == 0


def test_rfc1337_a_reset_does_not_end_the_wait() -> None:
    """TIME-WAIT assassination."""
    world = World()
    peer, _ = waiting(world)

    peer.sends("R", seq=2)

    peer.expects_nothing(during=SECOND)
    assert world.stack.tcp.time_waits == 1


def test_rfc9293_3_10_7_4_late_data_is_answered_with_where_we_are() -> None:
    peer, _ = waiting(World())

    peer.sends("P.", seq=1, data=b"late", ack=2)

    peer.expects(".", seq=2, ack=2)


def test_h61_acknowledgements_out_of_place_are_answered_twice_a_second_at_most() -> None:
    """Two ends that are out of step would answer each other for ever."""
    world = World()
    peer, _ = waiting(world)

    peer.sends(".", seq=7, ack=2)
    peer.expects(".", seq=2, ack=2)
    for _ in range(100):
        peer.sends(".", seq=7, ack=2)
    peer.expects_nothing(during=500 * MS)
    peer.sends(".", seq=7, ack=2)
    peer.expects(".", seq=2, ack=2)
    assert world.stack.tcp.counters["rx_dropped_outside_window"] == 100


def test_rfc9293_3_10_7_4_acknowledgements_are_not_answered() -> None:
    peer, _ = waiting(World())

    peer.sends(".", seq=2, ack=2)

    peer.expects_nothing(during=SECOND)


def test_rfc9293_3_6_1_a_syn_beyond_the_old_numbers_opens_a_new_connection() -> None:
    """Ours starts beyond the old ones as well, so that no late segment fits."""
    world = World()
    peer, _ = waiting(world)
    server = world.listens(80, reuse=True)
    old = peer.irs
    assert old is not None

    peer.irs = None
    peer.sends("S", seq=1000)
    peer.heard = 0
    answer = peer.expects("S.", seq=0)
    assert answer.ack == 1001
    assert peer.irs is not None
    assert 65_536 < (peer.irs - old) % (1 << 32) < 1 << 31
    peer.heard = 1
    peer.sends(".", seq=1001, ack=1)

    server.accepts()
    assert world.stack.tcp.time_waits == 0


def test_rfc9293_3_6_1_an_old_duplicate_syn_does_not() -> None:
    world = World()
    peer, _ = waiting(world)
    world.listens(80, reuse=True)

    peer.sends("S", seq=-500)

    peer.expects(".", seq=2, ack=2)
    assert world.stack.tcp.time_waits == 1


def test_rfc6191_a_newer_timestamp_opens_one_wherever_the_number_is() -> None:
    world = World()
    peer, _ = waiting(world, ts=True)
    server = world.listens(80, reuse=True)
    world.passes(10 * MS)

    peer.irs = None
    peer.ts_base = None
    peer.heard = 0
    peer.sends("S", seq=-500)
    answer = peer.expects("S.", seq=0)
    assert answer.ack == -499
    peer.sends(".", seq=-499)

    server.accepts()


def test_rfc6191_an_older_timestamp_does_not() -> None:
    world = World()
    peer, _ = waiting(world, ts=True)
    world.listens(80, reuse=True)

    peer.sends("S", seq=1000, ts=(peer.TS_START - 50, 0))

    got = peer.drains()
    assert [segment.flags for segment in got] in ([], ["."])
    assert world.stack.tcp.time_waits == 1


def test_rfc6191_our_side_may_connect_anew_after_a_second_with_timestamps() -> None:
    world = World()
    peer, end = waiting(world, ts=True, client=True)
    end.closes()
    again = world.opens()
    again.end.options.reuse_addr = True
    assert again.end.bind(end.end.local[0], 5000) == 0
    again.connects(7, expect="EADDRNOTAVAIL")

    world.passes(SECOND + 1)
    again.connects(7)

    peer.expects("S", within=(-SECOND, SECOND))


def test_e50_a_port_in_time_wait_can_be_bound_with_reuse_only() -> None:
    """SO_REUSEADDR, as on Linux."""
    world = World()
    _, end = waiting(world)
    address = end.end.local[0]
    end.closes()
    plain, reusing = world.opens(), world.opens()

    assert plain.end.bind(address, 80) == 98, "EADDRINUSE"
    reusing.end.options.reuse_addr = True
    assert reusing.end.bind(address, 80) == 0
    world.passes(60 * SECOND)

    assert world.opens().end.bind(address, 81) == 0
    assert reusing.end.listen(5) == 0


def test_h62_too_many_let_the_oldest_go() -> None:
    world = World(tcp=TcpConfig(time_waits=10))
    server = world.listens(80, backlog=100)
    for number in range(25):
        peer = world.peer(80, 2000 + number)
        peer.sends("S")
        peer.expects("S.")
        peer.sends(".")
        end = server.accepts()
        end.closes()
        peer.expects("F.")
        peer.sends("F.")
        peer.expects(".")

    assert world.stack.tcp.time_waits == 10
    assert len(world.stack.tcp.entries) == 10
    world.passes(60 * SECOND)
    assert world.stack.tcp.entries == {}


def test_e50_the_side_that_closes_second_does_not_wait() -> None:
    world = World()
    peer, end = world.established()
    peer.sends("F.")
    peer.expects(".")
    end.closes()
    peer.expects("F.")
    peer.sends(".")

    assert world.stack.tcp.time_waits == 0
    assert world.stack.tcp.entries == {}
    assert list(world.stack.tcp.ends) == []


@pytest.mark.parametrize("held", [True, False])
def test_e50_nothing_is_left_when_the_wait_is_over(held: bool) -> None:
    world = World()
    _, end = waiting(world)
    if not held:
        end.closes()

    world.passes(60 * SECOND)
    end.closes()

    assert world.stack.tcp.entries == {}
    assert list(world.stack.tcp.ends) == []
    assert world.stack.tcp.poll_at() is None
