"""Row E34: windows. RFC 9293 §3.8.6 (probes, silly windows on both sides), RFC 7323 §2 (scaling)."""

from __future__ import annotations

import pytest

from guest.net.tcp.config import TcpConfig
from tests.tcp_world import MS, SECOND, World
from tests.test_tcp_data import body

FIXED = TcpConfig(window=8000, window_max=8000)  # a receiver whose buffer does not grow


# -- scaling -----------------------------------------------------------------------------------------------------------


def test_rfc7323_2_2_the_window_of_a_syn_is_not_scaled_and_others_are() -> None:
    world = World()
    server = world.listens(80)
    peer = world.peer(80)

    peer.sends("S", win=65535, ws=2, mss=1460)
    peer.expects("S.", win=65535, ws=7)
    peer.sends(".", win=500)
    end = server.accepts()
    end.writes(body(4000))

    first = peer.expects(".", data=body(4000)[:1460])
    assert first.win in (511, 512), "65535 / 128, rounded down or up"
    peer.expects_nothing()
    assert end.end.info().snd_wnd == 2000


@pytest.mark.parametrize("ws", [0, 14])
def test_rfc7323_2_3_the_peers_shift_counts_for_what_we_send(ws: int) -> None:
    peer, end = World().established(ws=ws, win=4 << ws)
    if ws == 14:
        end.writes(body(4380))
        peer.expects_data(body(4380))
    else:
        end.writes(body(4))
        peer.expects("P.", length=4)


def test_rfc7323_2_3_a_shift_above_14_counts_as_14() -> None:
    """Row H58."""
    world = World()
    server = world.listens(80)
    peer = world.peer(80)
    peer.sends("S", ws=255, mss=1460)
    peer.expects("S.", ws=7)
    peer.sends(".", win=1)

    end = server.accepts()
    end.writes(body(20_000))

    sent = sum(len(segment.data) for segment in peer.drains())
    assert sent == 14_600, "the congestion window is the limit, not 1 << 255"
    assert end.end.info().snd_wnd == 1 << 14


def test_rfc7323_2_2_without_the_peers_offer_nothing_is_scaled() -> None:
    peer, end = World().established(ws=None)
    end.writes(b"x")

    peer.expects("P.", win=65535)


def test_c24_the_window_is_65535_and_a_setting() -> None:
    peer, end = World().established()
    end.writes(b"x")
    peer.expects("P.", win=65535)

    peer, end = World(tcp=TcpConfig(window=5000, window_max=5000)).established()
    end.writes(b"x")
    peer.expects("P.", win=5000)


# -- receiving ---------------------------------------------------------------------------------------------------------


def test_e34_what_is_not_read_is_not_offered_again() -> None:
    peer, _ = World(tcp=FIXED).established()

    peer.sends(".", data=body(1460))
    peer.expects(".", ack=1461, win=8000 - 1460, after=40 * MS)
    peer.sends(".", data=body(1460))
    peer.sends(".", data=body(1460))

    peer.expects(".", ack=4381, win=8000 - 4380)


def test_e34_a_full_buffer_closes_the_window_and_takes_nothing_more() -> None:
    peer, end = World(tcp=FIXED).established()
    peer.sends_data(body(8000))
    end.world.passes(40 * MS)
    assert (last := peer.drains()[-1]).win == 0
    assert last.ack == 8001

    peer.sends("P.", data=b"one too many", seq=8001)

    peer.expects(".", ack=8001, win=0)
    end.reads(body(8000))


def test_e34_a_fin_where_a_full_window_ends_is_taken_and_acknowledged() -> None:
    """It needs no room; the window is nothing then, not one less."""
    peer, end = World().established()
    data = body(65535)
    for at in range(0, len(data), 1460):
        peer.sends(".", data=data[at : at + 1460])
    peer.drains()

    peer.sends("F.")

    peer.expects(".", ack=65537, win=0)
    end.is_in("CLOSE_WAIT")
    end.reads(data)
    end.reads_end()


def test_e34_what_reaches_beyond_the_window_is_cut() -> None:
    peer, end = World(tcp=FIXED).established()
    peer.sends_data(body(7300))
    peer.drains()

    peer.sends(".", seq=7301, data=body(1460))

    peer.expects(".", ack=8001, win=0)
    end.reads(body(7300) + body(700))


def test_h62_small_segments_do_not_push_the_window_on_for_ever() -> None:
    """A scaled field is rounded up, so that the edge does not move back; that must not add up without end."""
    world = World()
    peer, end = world.established(ws=7)
    taken = 0
    for _ in range(1500):  # each repeats a byte, so that each is acknowledged at once
        peer.sends("P.", seq=taken, data=bytes(100))
        taken = peer.drains()[-1].ack - 1

    assert taken <= 65535 * 9 // 8 + 128, f"{taken} bytes wait for a reader that was to have 65,535 at most"
    assert end.end.unread == taken


def test_e34_reading_reopens_the_window_when_that_is_worth_a_segment() -> None:
    """RFC 9293 §3.8.6.2.2: by at least a full segment or half the buffer, whichever is less."""
    peer, end = World(tcp=FIXED).established()
    peer.sends_data(body(8000))
    end.world.passes(40 * MS)
    peer.drains()

    end.reads_some(body(8000)[:1000])
    peer.expects_nothing(during=10 * SECOND)
    end.reads_some(body(8000)[1000:4000])

    opened = peer.expects(".", ack=8001)
    assert opened.win >= 1460
    end.reads(body(8000)[4000:])


def test_e34_a_peer_that_probes_learns_the_window() -> None:
    """RFC 9293 §3.8.6.1: a receiver answers with its current window, also if that is none."""
    peer, end = World(tcp=FIXED).established()
    peer.sends_data(body(8000))
    end.world.passes(40 * MS)
    peer.drains()

    peer.sends(".", seq=8001, data=b"p")
    peer.expects(".", ack=8001, win=0)
    end.reads(body(8000))
    peer.drains()
    peer.sends(".", seq=8001, data=b"p")

    peer.expects(".", ack=8002, within=(0, 40 * MS))


def test_e34_the_right_edge_never_moves_back() -> None:
    """RFC 9293 §3.8.6, SHLD-14: a receiver should not shrink the window, not even where its shift is too coarse."""
    peer, end = World().established(ws=7)
    edge = 0
    for size in (1, 100, 1460, 77, 1460, 1, 1000):
        peer.sends("P.", data=body(size))
        got = peer.expects(".", ack=peer.nxt, within=(0, 40 * MS))
        assert got.ack + (got.win << 7) >= edge
        edge = got.ack + (got.win << 7)
        if size == 77:
            assert end.read(500) == (body(1) + body(100) + body(1460))[:500]
            peer.drains()


# -- sending -----------------------------------------------------------------------------------------------------------


def test_e34_no_more_is_sent_than_the_peer_offers() -> None:
    peer, end = World().established(win=3000)
    end.writes(body(10_000))

    peer.expects(".", data=body(10_000)[:1460])
    peer.expects(".", data=body(10_000)[1460:2920])
    peer.expects_nothing()
    peer.sends(".", win=2920)

    peer.expects(".", seq=2921, length=1460)
    peer.expects(".", seq=4381, length=1460)
    peer.expects_nothing()


def test_e34_a_sender_waits_for_more_window_than_a_silly_one() -> None:
    """RFC 9293 §3.8.6.2.1: a full segment, or half of the largest window ever offered."""
    peer, end = World().established(win=1460)
    end.writes(body(4000))
    peer.expects(".", length=1460)

    peer.sends(".", win=729)
    peer.expects_nothing(during=100 * MS)
    peer.sends(".", win=730)

    peer.expects(".", seq=1461, length=730)


def test_e34_a_window_that_stays_silly_is_used_in_the_end() -> None:
    """The override timeout of RFC 9293 §3.8.6.2.1 (4): between 0.1 and 1 s."""
    peer, end = World().established(win=1460)
    end.writes(body(4000))
    peer.expects(".", length=1460)

    peer.sends(".", win=100)

    peer.expects(".", seq=1461, data=body(4000)[1460:1560], within=(100 * MS, SECOND))
    peer.expects_nothing(during=100 * MS)
    peer.sends(".", win=100)
    peer.expects(".", seq=1561, data=body(4000)[1560:1660], within=(100 * MS, SECOND))


def test_e34_a_closed_window_is_probed_ever_more_slowly_and_without_end() -> None:
    """RFC 9293 §3.8.6.1: as long as the peer answers the connection stays open."""
    peer, end = World().established(win=0)
    end.writes(body(2921))

    wait = end.rto
    for _ in range(20):
        peer.expects(".", seq=1, data=body(1), after=wait)
        peer.sends(".", ack=1, win=0)
        wait = min(2 * wait, 120 * SECOND)

    end.is_in("ESTABLISHED")
    assert (end.end.info().retransmits, end.world.stack.tcp.counters["tx_window_probes"]) == (0, 20)
    peer.sends(".", ack=1, win=4000)
    got = peer.drains()
    assert b"".join(segment.data for segment in got) == body(2921)
    assert got[0].seq == 1


def test_e34_a_probe_that_was_taken_is_not_sent_again() -> None:
    peer, end = World().established(win=0)
    end.writes(body(3000))
    peer.expects(".", seq=1, length=1, after=end.rto)

    peer.sends(".", ack=2, win=65535)

    peer.expects(".", seq=2, data=body(3000)[1:1461])
    peer.expects(".", seq=1462, data=body(3000)[1461:2921])


def test_e34_probes_that_nobody_answers_end_the_connection() -> None:
    peer, end = World().established(win=0)
    end.writes(body(100))
    end.world.passes(600 * SECOND)

    probes = peer.drains()
    assert [segment.seq for segment in probes] == [1] * 5, "C25: five times"
    end.is_in("CLOSED")
    end.writes_fail("ETIMEDOUT")


def test_e34_the_window_that_opens_needs_no_probe() -> None:
    peer, end = World().established(win=0)
    end.writes(b"hello")

    peer.sends(".", ack=1, win=1000)

    peer.expects("P.", seq=1, data=b"hello")


def test_e34_an_old_segment_does_not_change_the_window() -> None:
    """RFC 9293 §3.10.7.4, SND.WL1 and SND.WL2."""
    peer, end = World().established(mss=1000, win=3000)
    end.sets(nodelay=True)
    peer.sends("P.", seq=1, data=b"abcde", win=1000)
    peer.sends(".", seq=1, ack=1, win=60_000)  # older
    end.writes(body(3000))

    assert sum(len(segment.data) for segment in peer.drains()) == 1000


def test_h61_a_window_that_shrinks_is_survived() -> None:
    """RFC 9293 §3.8.6, MUST-34: what was sent beyond the new edge is not taken back, and comes again if it must."""
    peer, end = World().established(win=4380)
    end.writes(body(6000))
    peer.expects_data(body(4380), ack=False)

    peer.sends(".", ack=1461, win=0)
    peer.expects(".", seq=1461, within=(100 * MS, 3 * SECOND))
    peer.sends(".", ack=1461, win=65535)

    end.world.passes(2 * SECOND)
    have = {at: segment for segment in peer.drains() for at in [segment.seq]}
    assert 1461 in have
    assert max(segment.end for segment in have.values()) > 4381, "and what is new goes on"
    end.is_in("ESTABLISHED")


def test_e34_a_slow_reader_gets_everything() -> None:
    """The row's whole story: full, probed, read in little bites, finished; nothing lost, nothing twice."""
    world = World(tcp=FIXED)
    peer, end = world.established()
    wanted = body(40_000)
    got = bytearray()
    allowed = 8001

    while len(got) < len(wanted):
        while peer.nxt < min(allowed, len(wanted) + 1):
            size = min(1460, allowed - peer.nxt, len(wanted) + 1 - peer.nxt)
            peer.sends(".", data=wanted[peer.nxt - 1 : peer.nxt - 1 + size])
        world.passes(100 * MS)
        got += end.read(700) or b""  # type: ignore[operator]  # bytes, or None
        for segment in peer.drains():
            allowed = max(allowed, segment.ack + segment.win)

    assert bytes(got) == wanted


def test_e34_the_buffer_grows_with_what_a_reader_takes() -> None:
    """Dynamic right-sizing: a reader that takes all that comes is offered more than it took in a round trip."""
    world = World()
    peer, end = world.established(ws=7)
    best = 0
    for _ in range(12):
        for _ in range(40):
            peer.sends(".", data=body(1460))
            end.read()
        world.passes(20 * MS)
        best = max([best, *(segment.win << 7 for segment in peer.drains())])

    assert best > 65535
