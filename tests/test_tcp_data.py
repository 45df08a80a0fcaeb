"""Rows E30, E31, E33: bytes on an undisturbed connection, and how it ends. RFC 9293 §3.6, §3.7.4, §3.8.6.3, §3.10.4."""

from __future__ import annotations

import pytest

from guest.net.tcp.config import TcpConfig
from tests.tcp_world import ISS, MS, SECOND, WRAP, World

FAMILIES = pytest.mark.parametrize("family", [4, 6])


def body(size: int) -> bytes:
    """Bytes that tell where they belong."""
    return b"".join(b"%07d," % at for at in range(0, size + 7, 8))[:size]


# -- receiving -------------------------------------------------------------------------------------------------------


@FAMILIES
def test_e31_a_small_segment_is_acknowledged_a_little_later(family: int) -> None:
    """RFC 9293 §3.8.6.3: less than half a second; 40 ms here."""
    peer, end = World(family).established()

    peer.sends("P.", data=b"hello")
    end.reads(b"hello")

    peer.expects(".", seq=1, ack=6, after=40 * MS)


def test_e31_the_delay_is_a_setting() -> None:
    peer, _ = World(tcp=TcpConfig(delayed_ack=100 * MS)).established()

    peer.sends("P.", data=b"hello")

    peer.expects(".", ack=6, after=100 * MS)


def test_e31_tcp_quickack_acknowledges_what_waits_and_what_comes_next_at_once() -> None:
    """Until something is sent, as on Linux: then the two talk in turn."""
    peer, end = World(quick_acks=16).established()
    end.writes(b"a question")
    peer.expects("P.")
    peer.sends("P.", data=b"hello")

    end.end.quick_ack(True)
    peer.expects(".", ack=6)
    peer.sends("P.", data=b"hello")
    peer.expects(".", ack=11)

    end.writes(b"a question")
    peer.expects("P.")
    peer.sends("P.", data=b"hello")
    peer.expects(".", ack=16, after=40 * MS)


def test_e31_without_tcp_quickack_even_the_first_segments_are_acknowledged_later() -> None:
    peer, end = World(quick_acks=16).established()
    end.end.quick_ack(False)
    peer.sends("P.", data=b"hello")
    peer.expects(".", ack=6, after=40 * MS)


def test_e31_what_comes_in_inherits_tcp_quickack() -> None:
    world = World(quick_acks=16)
    server = world.listens(80)
    server.end.quick_ack(False)
    peer = world.peer(80)
    peer.sends("S", mss=1460)
    peer.expects("S.")
    peer.sends(".")
    server.accepts()
    peer.sends("P.", data=b"hello")
    peer.expects(".", ack=6, after=40 * MS)


def test_e31_every_second_full_segment_is_acknowledged_at_once() -> None:
    """RFC 9293 §3.8.6.3."""
    peer, _ = World().established()
    peer.sends(".", data=body(1460))
    peer.expects_nothing()
    peer.sends(".", data=body(1460))
    peer.expects(".", ack=2921)
    peer.sends(".", data=body(1460))
    peer.expects_nothing()

    peer.sends(".", data=body(1460))

    peer.expects(".", ack=5841)


def test_e31_the_first_segments_of_a_connection_are_acknowledged_at_once() -> None:
    """So that the peer's window opens: sixteen, as on Linux."""
    peer, _ = World(quick_acks=16).established()
    for _ in range(16):
        peer.sends(".", data=body(100))
        peer.expects(".", ack=peer.nxt)

    peer.sends(".", data=body(100))

    peer.expects(".", ack=peer.nxt, after=40 * MS)


def test_e31_data_that_goes_back_takes_the_acknowledgement_along() -> None:
    peer, end = World().established()

    peer.sends("P.", data=b"ping")
    end.writes(b"pong")

    peer.expects("P.", seq=1, ack=5, data=b"pong")
    peer.sends(".")
    peer.expects_nothing(during=SECOND)


def test_e31_what_comes_before_its_turn_is_held_until_then() -> None:
    peer, end = World().established()
    peer.sends("P.", seq=6, data=b"world")
    peer.expects(".", ack=1)
    end.reads_nothing()

    peer.sends("P.", seq=1, data=b"hello")

    peer.expects(".", ack=11)
    end.reads(b"helloworld")


def test_e31_what_comes_twice_is_acknowledged_at_once_and_read_once() -> None:
    peer, end = World().established()
    peer.sends("P.", seq=1, data=b"hello")
    peer.expects(".", ack=6, after=40 * MS)

    peer.sends("P.", seq=1, data=b"hello")

    peer.expects(".", ack=6)
    end.reads(b"hello")


def test_e31_a_segment_may_begin_with_what_is_here_already() -> None:
    peer, end = World().established()
    peer.sends("P.", seq=1, data=b"hello")

    peer.sends("P.", seq=3, data=b"llo world")

    peer.expects(".", ack=12)
    end.reads(b"hello world")


@pytest.mark.parametrize("order", [(0, 2, 1), (2, 1, 0), (2, 0, 1), (1, 2, 0)])
def test_e31_any_order_gives_the_same_bytes(order: tuple[int, ...]) -> None:
    peer, end = World().established()

    for index in order:
        peer.sends(".", seq=1 + 1000 * index, data=body(3000)[1000 * index : 1000 * index + 1000])

    end.reads(body(3000))
    assert peer.drains()[-1].ack == 3001


def test_e33_sequence_numbers_of_the_peer_wrap() -> None:
    peer, end = World().established(iss=WRAP - 3)

    peer.sends("P.", seq=7, data=b"ghijkl")
    peer.sends("P.", seq=1, data=b"abcdef")

    end.reads(b"abcdefghijkl")
    assert peer.drains()[-1].ack == 13


def test_e33_our_sequence_numbers_wrap() -> None:
    """RFC 6528's clock ticks every 4 us: a world that begins later has another first number, for the same ends."""
    peer, _ = World().established()
    assert peer.irs is not None
    world = World(begin=(WRAP - 3 - peer.irs) % WRAP * 4)

    peer, end = world.established()
    assert peer.irs == WRAP - 3
    end.writes(body(2920))

    segments = peer.expects_data(body(2920))
    assert [int.from_bytes(segment.packet[24:28], "big") for segment in segments] == [WRAP - 2, 1458]
    end.shuts()
    peer.expects("F.", seq=2921)
    peer.sends(".")
    end.is_in("FIN_WAIT_2")


# -- sending -----------------------------------------------------------------------------------------------------------


@FAMILIES
def test_e31_a_long_write_goes_in_full_segments(family: int) -> None:
    mss = 1460 if family == 4 else 1440
    peer, end = World(family).established(mss=mss)
    end.sets(nodelay=True)

    end.writes(body(5000))

    segments = peer.expects_data(body(5000), size=mss)
    assert ["P" in segment.flags for segment in segments] == [False, False, False, True], "the last one is pushed"
    assert (end.end.unsent, end.end.unacked) == (0, 0)


@pytest.mark.parametrize(("said", "used"), [(None, 536), (100, 100), (536, 536), (9000, 1460)])
def test_e31_a_segment_holds_what_the_peer_and_the_link_take(said: int | None, used: int) -> None:
    """RFC 9293 §3.7.1; of a peer that says nothing 536 bytes."""
    peer, end = World().established(mss=said)

    end.writes(body(2 * used))

    peer.expects_data(body(2 * used), size=used)


def test_e31_over_ipv6_a_peer_that_says_nothing_takes_1220() -> None:
    peer, end = World(6).established(mss=None)

    end.writes(body(2440))

    peer.expects_data(body(2440), size=1220)


def test_e31_a_small_segment_waits_while_another_is_on_its_way() -> None:
    """Nagle: RFC 9293 §3.7.4."""
    peer, end = World().established()
    end.writes(b"a")
    peer.expects("P.", seq=1, data=b"a")

    end.writes(b"b")
    end.writes(b"c")
    peer.expects_nothing()
    peer.sends(".")

    peer.expects("P.", seq=2, data=b"bc")


def test_e31_a_full_segment_does_not_wait() -> None:
    peer, end = World().established()
    end.writes(b"a")
    peer.expects("P.", data=b"a")

    end.writes(body(1461))

    peer.expects(".", data=body(1460))
    peer.expects_nothing()
    peer.sends(".")
    peer.expects("P.", length=1)


def test_e31_nodelay_sends_small_segments_at_once() -> None:
    peer, end = World().established()
    end.sets(nodelay=True)

    for letter in (b"a", b"b", b"c"):
        end.writes(letter)

        peer.expects("P.", data=letter)


def test_e31_a_cork_holds_small_segments_for_200_ms() -> None:
    """As TCP_CORK of Linux."""
    peer, end = World().established()
    end.sets(cork=True)

    end.writes(b"head")
    end.writes(body(1460))
    peer.expects(".", data=(b"head" + body(1460))[:1460])
    peer.sends(".")

    peer.expects(".", data=body(1460)[-4:], within=(199 * MS, 201 * MS))


def test_e31_more_says_that_more_follows() -> None:
    """MSG_MORE."""
    peer, end = World().established()

    end.writes(b"head", more=True)
    peer.expects_nothing()
    end.writes(b"body")

    peer.expects("P.", data=b"headbody")


def test_e33_a_buffer_that_is_full_takes_no_more_until_something_is_acknowledged() -> None:
    peer, end = World().established(win=2000)

    taken = 0
    while (got := end.end.write([memoryview(body(10_000))])) > 0:
        taken += got
    assert taken >= 65536
    assert not end.end.writable
    peer.win = 65535
    while taken > peer.heard - 1:
        peer.expects(".", within=(0, 40 * MS))
        if not peer.inbox:
            peer.sends(".")

    assert end.end.writable
    assert end.end.unacked == 0


# -- ends --------------------------------------------------------------------------------------------------------------


def test_e30_half_closed_the_other_direction_goes_on() -> None:
    """RFC 9293 §3.6: from FIN-WAIT-2 on we only listen."""
    peer, end = World().established()
    end.shuts()
    peer.expects("F.", seq=1)
    peer.sends(".")

    peer.sends("P.", data=b"still here")
    end.reads(b"still here")
    peer.expects(".", ack=11, after=40 * MS)
    end.writes_fail("EPIPE")
    peer.sends("F.")

    peer.expects(".", ack=12)
    end.reads_end()


def test_e30_after_the_peers_fin_we_may_still_send() -> None:
    """CLOSE-WAIT."""
    peer, end = World().established()
    peer.sends("F.")
    peer.expects(".", ack=2)
    end.reads_end()

    end.writes(b"last words")
    peer.expects("P.", data=b"last words")
    peer.sends(".")
    end.closes()

    peer.expects("F.", seq=11)
    peer.sends(".")
    end.is_in("CLOSED")


def test_e30_what_was_written_goes_before_the_fin() -> None:
    peer, end = World().established(win=1460)
    end.writes(body(3000))
    end.closes()

    peer.expects(".", data=body(3000)[:1460])
    peer.sends(".")
    peer.expects(".", data=body(3000)[1460:2920])
    peer.sends(".")

    peer.expects("FP.", data=body(3000)[2920:])


def test_e30_a_fin_before_its_turn_waits() -> None:
    peer, end = World().established()
    peer.sends("FP.", seq=4, data=b"def")
    peer.expects(".", ack=1)
    end.is_in("ESTABLISHED")

    peer.sends(".", seq=1, data=b"abc")

    peer.expects(".", ack=8)
    end.is_in("CLOSE_WAIT")
    end.reads(b"abcdef")
    end.reads_end()


def test_e30_a_fin_that_comes_again_is_acknowledged_again() -> None:
    peer, _ = World().established()
    peer.sends("F.")
    peer.expects(".", ack=2)

    peer.sends("F.", seq=1)

    peer.expects(".", ack=2)


def test_e30_what_comes_behind_a_fin_is_not_taken() -> None:
    peer, end = World().established()
    peer.sends("F.")
    peer.expects(".", ack=2)

    peer.sends("P.", seq=2, data=b"ghost")

    peer.expects(".", ack=2)
    end.reads_end()


def test_e30_a_fin_that_is_lost_is_repeated() -> None:
    peer, end = World().established()

    end.shuts()
    peer.expects("F.", seq=1)

    rto = end.rto
    peer.expects("F.", seq=1, after=rto)
    peer.expects("F.", seq=1, after=2 * rto)
    peer.sends(".")
    end.is_in("FIN_WAIT_2")


def test_e30_closing_with_something_unread_is_a_reset() -> None:
    """RFC 2525 §2.17: the peer must learn that its data was lost."""
    peer, end = World().established()
    peer.sends("P.", data=b"unread")
    end.closes()

    peer.expects("R.", seq=1, ack=7)
    end.is_in("CLOSED")


def test_e30_data_for_an_end_that_was_closed_is_answered_with_a_reset() -> None:
    """RFC 9293 §3.10.4.4, RFC 1122 §4.2.2.13."""
    world = World()
    peer, end = world.established()
    end.closes()
    peer.expects("F.", seq=1)
    peer.sends(".")

    peer.sends("P.", data=b"too late")

    peer.expects("R", seq=2)
    assert list(world.stack.tcp.ends) == []


def test_e30_linger_of_nothing_resets() -> None:
    """SO_LINGER with 0: ABORT of RFC 9293 §3.10.5."""
    peer, end = World().established()
    end.writes(b"going")
    peer.expects("P.", data=b"going")
    end.end.options.linger = 0

    end.closes()

    peer.expects("R.", seq=6)
    peer.expects_nothing(during=100 * SECOND)


def test_e30_a_closed_end_does_not_wait_for_ever_for_the_peers_fin() -> None:
    """FIN-WAIT-2 has no timer in the RFC; here, and in Linux, it has one once nobody holds the connection."""
    world = World()
    peer, end = world.established()
    end.closes()
    peer.expects("F.")
    peer.sends(".")
    end.is_in("FIN_WAIT_2")

    world.passes(60 * SECOND)

    peer.sends("F.")
    peer.expects("R", seq=2)
    assert list(world.stack.tcp.ends) == []


@pytest.mark.parametrize(
    ("linger2", "wait"), [(5 * SECOND, 5 * SECOND), (0, 60 * SECOND), (100 * SECOND, 100 * SECOND)]
)
@pytest.mark.parametrize("shut_first", [False, True])
def test_e30_tcp_linger2_is_how_long_it_waits(linger2: int, wait: int, shut_first: bool) -> None:
    world = World()
    peer, end = world.established()
    end.sets(linger2=linger2)
    if shut_first:
        end.shuts()
        peer.expects("F.")
        peer.sends(".")
        end.closes()
    else:
        end.closes()
        peer.expects("F.")
        peer.sends(".")

    world.passes(wait - 1)
    assert [each.state.name for each in world.stack.tcp.connections] == ["FIN_WAIT_2"]
    world.passes(1)
    assert list(world.stack.tcp.connections) == []


@pytest.mark.parametrize("shut_first", [False, True])
def test_e30_a_negative_tcp_linger2_waits_for_no_fin_at_all(shut_first: bool) -> None:
    """As on Linux: once our FIN is acknowledged and nobody holds the connection it is reset."""
    world = World()
    peer, end = world.established()
    end.sets(linger2=-1)
    if shut_first:
        end.shuts()
        peer.expects("F.", seq=1)
        peer.sends(".")
        end.is_in("FIN_WAIT_2")
        end.closes()
    else:
        end.closes()
        peer.expects("F.", seq=1)
        peer.sends(".")

    peer.expects("R.", seq=2)
    assert list(world.stack.tcp.ends) == []


def test_e30_who_lingers_is_told_of_the_acknowledgement() -> None:
    """SO_LINGER: `close` waits until the peer has everything, though nobody holds the connection by then."""
    peer, end = World().established()
    end.writes(b"last words")
    peer.expects("P.")
    told: list[str] = []
    end.closes()
    peer.expects("F.", seq=11)
    end.end.on_ready = lambda: told.append(end.state)

    peer.sends(".", ack=5)
    peer.sends(".", ack=12)

    assert told[-1:] == ["FIN_WAIT_2"], f"told in {told}"


@pytest.mark.parametrize("silent", [False, True])
def test_e50_a_closed_end_whose_peer_never_makes_room_does_not_stay_for_ever(silent: bool) -> None:
    """A peer that answers every probe keeps a connection that somebody holds, but not one that nobody will ever see."""
    world = World(tcp=TcpConfig(linger_retries=4))
    peer, end = world.established(win=0)
    end.writes(body(5000))
    end.closes()

    for _ in range(4):
        peer.expects(".", seq=1, data=body(1), within=(0, 120 * SECOND))
        if not silent:
            peer.sends(".", ack=1, win=0)
    world.passes(120 * SECOND)

    assert peer.drains() == []
    assert list(world.stack.tcp.ends) == []
    assert world.stack.tcp.counters["given_up"] == 1


def test_e50_a_closed_end_sends_its_data_again_only_so_often() -> None:
    """TcpConfig.linger_retries; another end does it five times (C25)."""
    world = World(tcp=TcpConfig(linger_retries=2))
    peer, end = world.established()
    end.writes(b"heard by nobody")
    end.closes()
    world.passes(600 * SECOND)
    assert [segment.seq for segment in peer.drains() if segment.data] == [1, 1, 1]
    assert list(world.stack.tcp.ends) == []


def test_e30_shut_for_reading_what_comes_is_still_acknowledged() -> None:
    peer, end = World().established()
    end.shuts(0)
    end.reads_end()

    peer.sends("P.", data=b"unheard")

    peer.expects(".", ack=8, after=40 * MS)


def test_e30_both_directions_shut_by_one_call() -> None:
    peer, end = World().established()

    end.shuts(2)

    peer.expects("F.", seq=1)
    end.reads_end()
    end.writes_fail("EPIPE")


def test_e33_the_end_tells_what_it_holds() -> None:
    peer, end = World().established()
    peer.sends("P.", data=b"12345")
    end.writes(b"abc")
    peer.expects("P.")
    end.writes(b"de")  # Nagle

    assert (end.end.unread, end.end.unacked, end.end.unsent) == (5, 5, 2)
    info = end.end.info()
    assert peer.irs is not None
    assert (info.snd_nxt - info.snd_una) == 3
    assert info.rcv_nxt % WRAP == (ISS + 6) % WRAP
    assert info.mss == 1460


def test_e33_peeking_leaves_what_is_there() -> None:
    peer, end = World().established()
    peer.sends("P.", data=b"hello")
    area = bytearray(5)

    assert end.end.read_into(memoryview(area), peek=True) == 5
    assert end.end.read_into(memoryview(area)[:2], peek=True, offset=3) == 2
    assert bytes(area) == b"lollo"

    end.reads(b"hello")
