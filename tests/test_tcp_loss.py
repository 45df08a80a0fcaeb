"""Row E31: what is lost is sent again. RFC 6298 (timer), RFC 5681 and 6582 (without SACK), RFC 2018 and 6675 (with it),
RFC 2883 (duplicates), RFC 3042 (limited transmit), RFC 8985 (RACK, tail probes).
"""

from __future__ import annotations

import pytest

from guest.net.tcp.config import TcpConfig
from tests.tcp_world import MS, SECOND, Peer, Program, World
from tests.test_tcp_data import body

RTT = 50 * MS
PLAIN = TcpConfig(rack=False, tail_probe=False)


def flow(
    *, sack: bool = False, ts: bool = False, tcp: TcpConfig | None = None, segments: int = 10
) -> tuple[Peer, Program]:
    """A connection whose round trips take 50 ms, with `segments` of 1000 bytes just sent and nothing acknowledged."""
    world = World(tcp=tcp)
    peer, end = world.established(mss=1000 + (12 if ts else 0), sack=sack, ts=ts, rtt=RTT)
    end.sets(nodelay=True)
    for _ in range(6):  # six round trips, so that the estimate is near
        end.writes(b"x" * 1000)
        peer.expects("P.", length=1000)
        world.passes(RTT)
        peer.sends(".")
    peer.base = peer.heard
    end.writes(body(1000 * segments))
    for number in range(segments):
        peer.expects(".", seq=at(peer, number), length=1000)
    peer.expects_nothing()
    world.passes(RTT)
    return peer, end


def at(peer: Peer, number: int) -> int:
    """Where segment `number` of the flow starts."""
    return peer.base + 1000 * number


# -- the timer ---------------------------------------------------------------------------------------------------------


def test_rfc6298_5_the_timer_repeats_the_first_segment_ever_later_and_then_gives_up() -> None:
    """Row C25: five retries."""
    peer, end = World().established()
    end.writes(b"hello")
    peer.expects("P.", seq=1, data=b"hello")

    wait = end.rto
    for _ in range(5):
        peer.expects("P.", seq=1, data=b"hello", after=wait)
        wait *= 2
    peer.expects_nothing(during=wait)

    end.is_in("CLOSED")
    end.reads_fail("ETIMEDOUT")


def test_c25_the_number_of_retries_is_a_setting() -> None:
    peer, end = World(tcp=TcpConfig(retries=2)).established()
    end.writes(b"hello")
    peer.expects("P.")
    rto = end.rto
    peer.expects("P.", after=rto)
    peer.expects("P.", after=2 * rto)

    peer.expects_nothing(during=4 * rto)

    end.is_in("CLOSED")


def test_rfc6298_2_the_timeout_follows_the_round_trip() -> None:
    """From 30 steady round trips of 400 ms to some of 550 ms: up at once, by the variation, and slowly down again."""
    world = World()
    peer, end = world.established(rtt=400 * MS)
    took = []
    for number in range(50):
        end.writes(b"a")
        peer.expects("P.")
        world.passes((550 if 30 <= number < 33 else 400) * MS)
        peer.sends(".")
        took.append(end.rto // MS)

    assert 400 <= took[29] <= 620, "close to the round trip, and never below"
    assert took[30] > took[29]
    assert took[49] < max(took[30:34])


def test_rfc6298_2_the_handshake_is_a_sample() -> None:
    """(2.2) with R = 300 ms: SRTT = R, RTO = 3 R."""
    world = World()
    program, peer = world.connects()
    peer.expects("S")
    world.passes(300 * MS)

    peer.sends("S.")

    assert (program.end.info().rtt, program.rto) == (300 * MS, 900 * MS)


def test_rfc6298_5_3_an_acknowledgement_restarts_the_timer() -> None:
    world = World(tcp=PLAIN)
    peer, end = world.established(mss=1000)
    end.sets(nodelay=True)
    end.writes(b"a")
    peer.expects("P.", seq=1)
    end.writes(b"b")
    peer.expects("P.", seq=2)
    world.passes(150 * MS)

    peer.sends(".", ack=2)

    peer.expects("P.", seq=2, data=b"b", after=end.rto)


def test_rfc6298_karn_a_segment_that_was_repeated_gives_no_sample() -> None:
    world = World()
    peer, end = world.established()
    end.writes(b"a")
    peer.expects("P.")
    before = end.end.info().rtt
    peer.expects("P.", after=end.rto)
    world.passes(100 * MS)

    peer.sends(".")

    assert end.end.info().rtt == before


def test_rfc5681_3_1_after_a_timeout_the_window_is_one_segment() -> None:
    peer, _ = flow()

    peer.expects(".", seq=at(peer, 0), within=(0, SECOND), length=1000)
    peer.expects_nothing(during=100 * MS)
    peer.sends(".", ack=at(peer, 1))

    peer.expects(".", seq=at(peer, 1), length=1000)
    peer.expects(".", seq=at(peer, 2), length=1000)
    peer.expects_nothing(during=50 * MS)


def test_rfc5681_4_1_after_idle_times_the_first_flight_is_the_initial_window() -> None:
    world = World()
    peer, end = world.established(mss=1000)
    for _ in range(4):
        end.writes(body(20_000))
        while end.end.unacked:
            world.passes(10 * MS)
            peer.drains()
            peer.sends(".")
    peer.drains()
    assert end.end.info().cwnd > 20_000

    world.passes(10 * SECOND)
    end.writes(body(40_000))

    assert len(peer.drains()) == 10


# -- without SACK ------------------------------------------------------------------------------------------------------


def test_rfc5681_3_2_the_third_duplicate_is_a_loss() -> None:
    """Fast retransmit, and the halved window."""
    peer, end = flow(tcp=TcpConfig(congestion="reno"))
    for _ in range(2):
        peer.sends(".", ack=at(peer, 0))
        peer.expects_nothing()

    peer.sends(".", ack=at(peer, 0))

    peer.expects(".", seq=at(peer, 0), length=1000)
    peer.expects_nothing()
    assert end.end.info().ssthresh == 5000


def test_rfc3042_the_first_two_duplicates_let_new_data_out() -> None:
    """Limited transmit: the ten under way fill the congestion window, and one more goes for each."""
    peer, end = flow()
    end.writes(body(5000))
    peer.expects_nothing()

    for number in (10, 11):
        peer.sends(".", ack=at(peer, 0))
        peer.expects(".", seq=at(peer, number), length=1000)
        peer.expects_nothing()


def test_rfc6582_3_2_a_partial_acknowledgement_is_the_next_loss() -> None:
    """NewReno: two losses in one window, one round trip each, and no timeout."""
    peer, end = flow()
    for _ in range(3):
        peer.sends(".", ack=at(peer, 0))
    peer.expects(".", seq=at(peer, 0), length=1000)
    peer.expects_nothing(during=RTT)

    peer.sends(".", ack=at(peer, 4))
    peer.expects(".", seq=at(peer, 4), length=1000)
    end.world.passes(RTT)
    peer.sends(".", ack=at(peer, 10))

    peer.expects_nothing(during=SECOND)
    assert (end.end.info().retransmits, end.end.unacked) == (2, 0)


def test_rfc6582_4_duplicates_after_a_timeout_are_no_new_loss() -> None:
    peer, _ = flow()
    peer.expects(".", seq=at(peer, 0), within=(0, SECOND))

    for _ in range(5):
        peer.sends(".", ack=at(peer, 0))

    assert [segment.seq for segment in peer.drains() if segment.seq == at(peer, 0)] == []


@pytest.mark.parametrize("how", ["data", "window", "older"])
def test_rfc5681_2_what_is_no_duplicate_acknowledgement(how: str) -> None:
    """It must carry no data, no other window, and be the last one again."""
    peer, _ = flow()

    for number in range(4):
        if how == "data":
            peer.sends("P.", ack=at(peer, 0), data=b"x")
        elif how == "window":
            peer.sends(".", ack=at(peer, 0), win=60_000 - number)
        else:
            peer.sends(".", ack=at(peer, -1))

    assert [segment for segment in peer.drains() if segment.data] == []


# -- with SACK ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tcp", [None, PLAIN], ids=["rack", "without rack"])
def test_rfc6675_5_only_the_hole_is_sent_again(tcp: TcpConfig | None) -> None:
    peer, end = flow(sack=True, tcp=tcp)
    for number in (3, 4, 5):
        peer.sends(".", ack=at(peer, 2), sack=[(at(peer, 3), at(peer, number + 1))])

    assert [segment.seq for segment in peer.drains()] == [at(peer, 2)]
    peer.sends(".", ack=at(peer, 10))
    peer.expects_nothing(during=SECOND)
    assert end.end.unacked == 0


def test_rfc6675_5_two_holes_are_mended_in_one_round_trip() -> None:
    peer, _ = flow(sack=True)

    peer.sends(".", ack=at(peer, 0), sack=[(at(peer, 1), at(peer, 4))])
    peer.sends(".", ack=at(peer, 0), sack=[(at(peer, 6), at(peer, 10)), (at(peer, 1), at(peer, 4))])

    got = [segment.seq for segment in peer.drains()]
    assert got == [at(peer, 0), at(peer, 4), at(peer, 5)]


def test_rfc2018_5_1_the_timer_forgets_what_was_reported() -> None:
    """A receiver may throw away what it reported (RFC 2018 §8): after a timeout it is sent again if it must be."""
    peer, end = flow(sack=True, segments=3, tcp=PLAIN)
    peer.sends(".", ack=at(peer, 0), sack=[(at(peer, 1), at(peer, 2))])

    for _ in range(3):  # the receiver drops everything, and says no more than this
        segment = peer.expects(".", within=(0, 5 * SECOND))
        assert segment.seq == at(peer, 0)
    peer.sends(".", ack=at(peer, 1))

    end.world.passes(10 * SECOND)
    assert at(peer, 1) in [segment.seq for segment in peer.drains()]


def test_rfc2018_8_a_peer_that_takes_back_what_it_reported_while_its_window_is_closed() -> None:
    """The first segment was reported, is not acknowledged, and there is no room: it is probed with all the same."""
    peer, end = flow(sack=True, segments=3, tcp=PLAIN)
    peer.sends(".", ack=at(peer, 0), win=0, sack=[(at(peer, 0), at(peer, 2))])

    peer.expects(".", seq=at(peer, 0), length=1000, within=(0, 5 * SECOND))
    peer.sends(".", ack=at(peer, 0), win=0)
    peer.expects(".", seq=at(peer, 0), length=1000, within=(0, 5 * SECOND))
    peer.sends(".", ack=at(peer, 1))

    peer.expects(".", seq=at(peer, 1), length=1000, within=(0, 5 * SECOND))  # what it has forgotten is sent again
    peer.sends(".")
    end.world.passes(20 * SECOND)
    assert end.end.unacked == 0, f"{end.end.info()}"


def test_the_one_segment_of_a_timer_waits_for_no_card() -> None:
    """tx_stalls counts where the card had no room; and who waits for a card that never tells is kept for ever."""
    peer, end = flow(segments=10)
    end.world.passes(120 * SECOND)
    assert len(peer.drains()) >= 5
    assert end.world.stack.tcp.counters["tx_stalls"] == 0
    assert end.world.stack.tcp._stalled == {}


def test_h58_sack_blocks_that_make_no_sense_change_nothing() -> None:
    peer, end = flow(sack=True)

    peer.sends(".", ack=at(peer, 0), sack=[(at(peer, 5), at(peer, 3))])  # reversed
    peer.sends(".", ack=at(peer, 0), sack=[(at(peer, 50), at(peer, 60))])  # never sent
    peer.sends(".", ack=at(peer, 0), sack=[(at(peer, -5), at(peer, -3))])  # long acknowledged
    peer.sends(".", ack=at(peer, 0), sack=[(at(peer, 4), at(peer, 4))])  # empty

    assert end.end.info().sacked == 0
    peer.drains()
    peer.sends(".", ack=at(peer, 10))
    assert end.end.unacked == 0


def test_rfc2018_4_what_came_before_its_turn_is_reported_the_latest_first() -> None:
    peer, end = World().established(sack=True)
    blocks = []
    for start in (1001, 3001, 5001, 7001, 9001):
        peer.sends(".", seq=start, data=body(1000))
        blocks.insert(0, (start, start + 1000))
        peer.expects(".", ack=1, sack=tuple(blocks[:4]))

    peer.sends(".", seq=2001, data=body(1000))
    got = peer.expects(".", ack=1)
    assert got.sack[0] == (1001, 4001), "the block that the latest segment is in, grown over its neighbour"
    peer.sends(".", seq=1, data=body(1000))

    got = peer.expects(".", ack=4001)
    assert got.sack == ((9001, 10_001), (7001, 8001), (5001, 6001))
    end.reads(body(1000) * 4)


def test_rfc2018_3_with_timestamps_there_is_room_for_three_blocks() -> None:
    peer, _ = World().established(sack=True, ts=True)
    for start in (1001, 3001, 5001, 7001):
        peer.sends(".", seq=start, data=body(1000))

    last = peer.drains()[-1]
    assert last.sack == ((7001, 8001), (5001, 6001), (3001, 4001))


def test_rfc2018_2_without_the_peers_offer_nothing_is_reported() -> None:
    peer, _ = World().established(sack=False)

    peer.sends(".", seq=1001, data=body(1000))

    peer.expects(".", ack=1, sack=())


def test_rfc2883_4_1_a_segment_that_came_twice_is_reported_once() -> None:
    peer, _ = World().established(sack=True)
    peer.sends(".", seq=1, data=body(1000))
    peer.drains()

    peer.sends(".", seq=1, data=body(1000))
    peer.expects(".", ack=1001, sack=((1, 1001),))
    peer.sends(".", seq=2001, data=body(1000))

    peer.expects(".", ack=1001, sack=((2001, 3001),))


def test_rfc2883_4_1_1_what_came_twice_before_its_turn_is_reported_with_its_block() -> None:
    peer, _ = World().established(sack=True)
    peer.sends(".", seq=2001, data=body(1000))
    peer.sends(".", seq=3001, data=body(1000))
    peer.drains()

    peer.sends(".", seq=2001, data=body(1000))

    peer.expects(".", ack=1, sack=((2001, 3001), (2001, 4001)))


def test_rfc2883_4_2_a_segment_that_is_partly_new_reports_the_part_that_is_not() -> None:
    peer, _ = World().established(sack=True)
    peer.sends(".", seq=1, data=body(1000))
    peer.drains()

    peer.sends(".", seq=501, data=body(1000))

    peer.expects(".", ack=1501, sack=((501, 1001),))


# -- RACK and tail probes ----------------------------------------------------------------------------------------------


def test_rfc8985_7_a_lost_tail_is_probed_for_after_two_round_trips() -> None:
    peer, end = flow(sack=True, segments=3)  # 50 ms are over already

    peer.expects(".", seq=at(peer, 2), within=(0, 2 * RTT), length=1000)
    end.world.passes(RTT)
    peer.sends(".", ack=at(peer, 0), sack=[(at(peer, 2), at(peer, 3))])

    got = [segment.seq for segment in peer.drains()]
    assert got == [at(peer, 0), at(peer, 1)], "what was sent before the tail, and is not there, is lost"


def test_rfc8985_7_3_new_data_is_the_better_probe() -> None:
    peer, end = World().established(mss=1000, sack=True, rtt=300 * MS)
    end.writes(b"x" * 10)
    peer.expects("P.", length=10)
    end.writes(b"y" * 10)  # Nagle holds it back

    peer.expects("P.", data=b"y" * 10, within=(2 * MS, end.rto - 1))


def test_rfc8985_7_3_a_probe_with_blocks_to_report_fits_the_path() -> None:
    world = World()
    peer, end = world.established(sack=True, ts=True)
    for start in (3001, 5001, 7001):
        peer.sends(".", seq=start, data=body(1000))
    peer.drains()
    end.writes(body(20_000))
    peer.drains()
    world.passes(MS)
    peer.sends(".", ack=1449 * 3)
    peer.drains()
    end.writes(body(20_000))

    world.passes(10 * SECOND)

    assert peer.drains(), "probes, or the timer"
    assert not world.packets
    assert all(segment.df and len(segment.packet) <= 1500 for segment in peer.drains())


def test_rfc8985_7_one_probe_and_then_the_timer() -> None:
    peer, _ = flow(sack=True, segments=3)
    peer.expects(".", seq=at(peer, 2), within=(0, 200 * MS))

    peer.expects(".", seq=at(peer, 0), within=(0, SECOND))


def test_rfc8985_6_2_what_is_only_late_is_not_sent_again() -> None:
    """A quarter of the smallest round trip is granted to reordering, once fewer than three segments are reported."""
    peer, end = flow(sack=True, segments=4)

    peer.sends(".", ack=at(peer, 0), sack=[(at(peer, 1), at(peer, 2))])
    peer.expects_nothing(during=5 * MS)
    peer.sends(".", ack=at(peer, 4))

    peer.expects_nothing(during=SECOND)
    assert end.end.info().retransmits == 0


def test_rfc8985_6_2_what_is_later_than_that_is_lost() -> None:
    peer, _ = flow(sack=True, segments=4)

    peer.sends(".", ack=at(peer, 0), sack=[(at(peer, 1), at(peer, 2))])

    peer.expects(".", seq=at(peer, 0), within=(MS, RTT // 2))


def test_rfc8985_a_repeated_segment_that_is_lost_again_is_found_without_the_timer() -> None:
    """What duplicate acknowledgements could never tell."""
    peer, end = flow(sack=True)
    peer.sends(".", ack=at(peer, 0), sack=[(at(peer, 1), at(peer, 5))])
    peer.expects(".", seq=at(peer, 0), length=1000)
    end.writes(body(3000))
    later = [segment for segment in peer.drains() if segment.seq >= at(peer, 10)]
    end.world.passes(RTT)

    peer.sends(".", ack=at(peer, 0), sack=[(at(peer, 1), at(peer, 10))])
    later += [segment for segment in peer.drains() if segment.seq >= at(peer, 10)]
    assert later, "new data goes out in recovery"
    end.world.passes(RTT)
    peer.sends(".", ack=at(peer, 0), sack=[(at(peer, 1), later[-1].end)])

    peer.expects(".", seq=at(peer, 0), within=(0, RTT))


def test_e31_the_peer_learns_of_each_hole_that_is_filled() -> None:
    """RFC 5681 §4.2: an acknowledgement at once for what fills a gap."""
    peer, end = World().established()
    peer.sends(".", seq=1001, data=body(2000)[1000:])
    peer.expects(".", ack=1)

    peer.sends(".", seq=1, data=body(2000)[:1000])

    peer.expects(".", ack=2001)
    end.reads(body(2000))
