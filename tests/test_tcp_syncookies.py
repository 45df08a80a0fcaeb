"""Row H62: half-open connections, the accept queue, and SYN cookies (RFC 4987)."""

from __future__ import annotations

import pytest

from guest.net.tcp.config import TcpConfig
from tests.tcp_world import SECOND, Peer, Program, World
from tests.test_tcp_data import body

SMALL = TcpConfig(syn_queue=4)


def flood(world: World, count: int = 50, port: int = 80) -> list[Peer]:
    """SYNs from many ports of somebody who never answers."""
    peers = [world.peer(port, 10_000 + number) for number in range(count)]
    for peer in peers:
        peer.sends("S", mss=1460)
    return peers


def test_h62_a_flood_of_syns_is_answered_and_takes_no_more_memory_than_the_queue() -> None:
    world = World(tcp=SMALL)
    world.listens(80, backlog=100)

    peers = flood(world)

    assert world.stack.tcp.half_open == 4
    assert all([segment.flags for segment in peer.drains()] == ["S."] for peer in peers)
    assert world.stack.tcp.counters["tx_syn_cookies"] == 46


def test_h62_an_honest_peer_comes_through_the_flood() -> None:
    world = World(tcp=SMALL)
    server = world.listens(80, backlog=100)
    flood(world)

    peer = world.peer(80)
    peer.sends("S", mss=1400)
    peer.expects("S.", ack=1)
    peer.sends(".")

    end = server.accepts()
    mss = end.end.info().mss
    assert 1300 <= mss <= 1400, "as near to what the peer said as three bits can say"
    end.writes(body(2 * mss))
    peer.expects_data(body(2 * mss), size=mss)
    peer.sends("P.", data=b"hello")
    end.reads(b"hello")


def test_h62_with_timestamps_a_cookie_keeps_the_other_options() -> None:
    world = World(tcp=SMALL)
    server = world.listens(80, backlog=100)
    flood(world)
    peer = world.peer(80)
    peer.stamps = True
    peer.sends("S", mss=1460, ws=5, sack_ok=True)
    peer.expects("S.", ws=7, sack_ok=True)
    peer.sends(".", win=1000)

    info = server.accepts().end.info()

    assert (info.snd_scale, info.rcv_scale, info.sack, info.timestamps) == (5, 7, True, True)
    assert info.snd_wnd == 32_000


def test_h62_without_timestamps_a_cookie_offers_no_options() -> None:
    world = World(tcp=SMALL)
    world.listens(80, backlog=100)
    flood(world)
    peer = world.peer(80)

    peer.sends("S", mss=1460, ws=5, sack_ok=True)

    peer.expects("S.", ws=None, sack_ok=False)


def test_h62_data_may_come_with_the_cookie() -> None:
    world = World(tcp=SMALL)
    server = world.listens(80, backlog=100)
    flood(world)
    peer = world.peer(80)
    peer.sends("S", mss=1460)
    peer.expects("S.")

    peer.sends("P.", data=b"hello")

    server.accepts().reads(b"hello")


@pytest.mark.parametrize("what", ["other number", "other sequence", "other port"])
def test_h62_a_cookie_that_we_did_not_send_is_reset(what: str) -> None:
    world = World(tcp=SMALL)
    server = world.listens(80, backlog=100)
    flood(world)
    peer = world.peer(80)
    peer.sends("S", mss=1460)
    peer.expects("S.")
    if what == "other number":
        peer.sends(".", ack=2)
        peer.expects("R", seq=2)
    elif what == "other sequence":
        peer.sends(".", seq=5, ack=1)
        peer.expects("R", seq=1)
    else:
        thief = world.peer(80, 666)
        thief.irs = peer.irs
        thief.sends(".", seq=1, ack=1)
        thief.expects("R", seq=1)

    server.accepts_none()


def test_h62_a_cookie_grows_old() -> None:
    world = World(tcp=SMALL)
    server = world.listens(80, backlog=100)
    flood(world)
    peer = world.peer(80)
    peer.sends("S", mss=1460)
    peer.expects("S.")
    world.passes(200 * SECOND)

    peer.sends(".")

    peer.expects("R", seq=1)
    server.accepts_none()


def test_h62_without_a_flood_nobody_comes_in_by_a_cookie() -> None:
    """An ACK out of the blue is no connection."""
    world = World(tcp=SMALL)
    server = world.listens(80)
    peer = world.peer(80)
    peer.irs = 12345

    peer.sends(".", seq=1, ack=1)

    peer.expects("R", seq=1)
    server.accepts_none()


def test_h62_without_cookies_the_flood_is_dropped_and_ends() -> None:
    world = World(tcp=TcpConfig(syn_queue=4, syn_cookies=False))
    server = world.listens(80, backlog=100)
    flood(world)
    peer = world.peer(80)
    peer.sends("S")
    peer.expects_nothing()
    assert world.stack.tcp.half_open == 4

    world.passes(100 * SECOND)
    assert world.stack.tcp.half_open == 0
    peer.sends("S", seq=0)
    peer.expects("S.")
    peer.sends(".")

    server.accepts()


def test_h62_resets_of_peers_that_did_not_ask_clear_the_queue() -> None:
    """The victims whose addresses were forged answer so."""
    world = World(tcp=SMALL)
    world.listens(80, backlog=100)
    peers = flood(world, 4)

    for peer in peers:
        peer.expects("S.")
        peer.sends("R", seq=1)

    assert world.stack.tcp.half_open == 0


def test_h62_a_full_accept_queue_lets_nobody_in_until_somebody_is_accepted() -> None:
    """listen(1): as on Linux two may wait. The third tries again, and is let in then."""
    world = World()
    server = world.listens(80, backlog=1)
    peers = [world.peer(80, 1000 + number) for number in range(3)]
    for peer in peers[:2]:
        peer.sends("S")
        peer.expects("S.")
        peer.sends(".")
    peers[2].sends("S")
    peers[2].expects_nothing(during=SECOND)

    server.accepts()
    peers[2].sends("S", seq=0)
    peers[2].expects("S.")
    peers[2].sends(".")

    server.accepts()
    server.accepts()
    server.accepts_none()


def full(world: World) -> tuple[Program, list[Peer]]:
    """listen(2), and five peers that have knocked: three wait to be accepted, the queue is full."""
    server = world.listens(80, backlog=2)
    peers = [world.peer(80, 1000 + number) for number in range(5)]
    for peer in peers:
        peer.sends("S")
        peer.expects("S.")
    for peer in peers[2:]:  # the first two have requests of their own, these cookies
        peer.sends(".")
    return server, peers


def test_h62_who_completes_while_the_queue_is_full_is_asked_again() -> None:
    """Our answer is repeated until there is room."""
    server, peers = full(World())
    peers[0].sends(".")
    for _ in range(3):
        server.accepts()
    server.accepts_none()

    peers[0].expects("S.", seq=0, ack=1, within=(0, 2 * SECOND))
    peers[0].sends(".")

    server.accepts()


def test_h62_data_that_comes_while_the_queue_is_full_comes_again() -> None:
    server, peers = full(World())
    peers[0].sends("P.", data=b"hello")
    peers[0].expects_nothing()
    for _ in range(3):
        server.accepts()

    peers[0].sends("P.", seq=1, data=b"hello")

    server.accepts().reads(b"hello")


def test_h62_closing_the_listening_end_resets_who_was_waiting() -> None:
    world = World()
    server = world.listens(80)
    peer = world.peer(80)
    peer.sends("S")
    peer.expects("S.")
    peer.sends(".")

    server.closes()

    peer.expects("R.", seq=1)
    assert list(world.stack.tcp.ends) == []


def test_h62_closing_the_listening_end_forgets_who_had_only_knocked() -> None:
    world = World()
    server = world.listens(80)
    peer = world.peer(80)
    peer.sends("S")
    peer.expects("S.")
    server.closes()

    peer.sends(".")

    peer.expects("R", seq=1)


def test_h62_a_cookie_tells_nothing_about_another() -> None:
    """RFC 6528 holds for them as well: no two that differ in a way that others could foresee."""
    world = World(tcp=SMALL)
    world.listens(80, backlog=1000)

    numbers = [peer.irs for peer in flood(world, 60)]

    assert len({number >> 8 for number in numbers if number is not None}) == 60
