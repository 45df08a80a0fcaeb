"""Row E35: what congestion control makes of acks, losses, marks and timeouts, against vectors computed here from the
RFCs' formulas: Reno exactly, in fractions of a byte; CUBIC within a stated tolerance of a naive model in floats.
"""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import pairwise
from math import cbrt

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from guest.net.tcp.congestion import CONTROLS, UNLIMITED, Control, Cubic, NoControl, Reno, cube_root

MSS = 1000
MS = 1000
SECOND = 1_000_000


class Flow:
    """A sender that always has data: it fills cwnd, and each of its segments is acked one round trip later."""

    def __init__(self, control: Control, rtt: int = 100 * MS, acks_cover: int = 1) -> None:
        self.control = control
        self.rtt = rtt
        self.acks_cover = acks_cover  # segments
        self.now = 5 * SECOND

    def round_trip(self) -> int:
        """One window is acked, evenly over the round trip; the segments of cwnd afterwards, rounded down."""
        control = self.control
        left = control.cwnd // control.mss
        acks = -(-left // self.acks_cover)
        start = self.now
        for number in range(acks):
            covered = min(self.acks_cover, left)
            left -= covered
            self.now = start + self.rtt * (number + 1) // acks
            control.on_ack(covered * control.mss, self.now, self.rtt, control.cwnd)
        return control.cwnd // control.mss

    def trace(self, rounds: int) -> list[int]:
        return [self.round_trip() for _ in range(rounds)]


def reno(cwnd: int, ssthresh: int = UNLIMITED) -> Reno:
    """In segments."""
    control = Reno(MSS, cwnd * MSS)
    control.ssthresh = ssthresh if ssthresh == UNLIMITED else ssthresh * MSS
    return control


def cubic(cwnd: int) -> Cubic:
    return Cubic(MSS, cwnd * MSS)


# -- Reno, by hand ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("acks_cover", [1, 2], ids=["every segment acked", "delayed acks"])
def test_e35_slow_start_doubles_each_round_trip(acks_cover: int) -> None:
    flow = Flow(reno(10), acks_cover=acks_cover)

    assert flow.trace(4) == [20, 40, 80, 160]


def test_e35_an_ack_for_many_segments_opens_cwnd_by_two() -> None:
    """RFC 3465 §2.2: L = 2."""
    flow = Flow(reno(8), acks_cover=8)

    assert flow.trace(3) == [10, 14, 18], "one ack for 8 segments, two for 10 (8 and 2), two for 14"


def test_e35_slow_start_ends_at_ssthresh_and_avoidance_adds_a_segment_a_round_trip() -> None:
    flow = Flow(reno(4, ssthresh=16))

    assert flow.trace(6) == [8, 16, 17, 18, 19, 20]


def test_e35_fast_recovery_halves_the_flight_and_goes_on_in_avoidance() -> None:
    flow = Flow(reno(32, ssthresh=16))
    assert flow.trace(2) == [33, 34]

    flow.control.on_loss(34 * MSS, flow.now)
    assert (flow.control.cwnd, flow.control.ssthresh) == (17 * MSS, 17 * MSS)
    flow.control.cwnd += 3 * MSS  # as RFC 6582 §3.2 step 2 inflates it
    flow.control.after_recovery(flow.now)

    assert flow.control.cwnd == 17 * MSS, "deflated"
    assert flow.trace(2) == [18, 19]


def test_e35_a_timeout_starts_again_from_one_segment_with_one_segment_an_ack() -> None:
    """RFC 5681 §3.1, RFC 3465 §2.3."""
    flow = Flow(reno(20), acks_cover=2)

    flow.control.on_timeout(20 * MSS, flow.now)

    assert (flow.control.cwnd, flow.control.ssthresh) == (MSS, 10 * MSS)
    assert flow.trace(5) == [2, 3, 5, 8, 10], "each ack, of two segments, opens cwnd by one"
    assert flow.trace(2) == [11, 12], "avoidance"
    flow.control.cwnd, flow.control.ssthresh = 4 * MSS, 16 * MSS
    assert flow.trace(1) == [8], "a later slow start, after an idle time, is one of two segments an ack again"


def test_e35_limited_transmit_does_not_count_as_flight() -> None:
    """RFC 5681 §3.2 step 2."""
    control = reno(10)

    control.on_loss(12 * MSS, 0)

    assert control.ssthresh == 5 * MSS


def test_e35_a_mark_reduces_like_a_loss_and_is_past_undoing() -> None:
    """RFC 3168 §6.1.2."""
    control = reno(20)
    control.on_loss(20 * MSS, 0)
    control.after_recovery(0)

    control.on_ecn(10 * MSS, 0)
    control.undo()  # of the loss, which comes too late now

    assert (control.cwnd, control.ssthresh) == (5 * MSS, 5 * MSS)


def test_e35_idle_longer_than_the_timeout_restarts_from_the_initial_window() -> None:
    """RFC 5681 §4.1."""
    flow = Flow(reno(10))
    flow.trace(2)

    flow.control.after_idle(200 * MS, 200 * MS)
    assert flow.control.cwnd == 40 * MSS, "not longer yet"
    flow.control.after_idle(201 * MS, 200 * MS)

    assert flow.control.cwnd == 10 * MSS
    assert flow.control.ssthresh == UNLIMITED


def test_e35_smaller_segments_do_not_become_more_at_once() -> None:
    """RFC 5681 §3.1, last paragraph."""
    control = reno(10)

    control.set_mss(500)
    assert (control.cwnd, control.mss) == (10 * 500, 500)
    control.set_mss(1400)

    assert control.cwnd == 5000, "larger ones: as many bytes as before"

    control.on_timeout(5000, 0)
    control.set_mss(8000)
    control.undo()
    assert control.cwnd == 8000, "one segment is the least, also of what is brought back"


# -- Reno, against the formulas ----------------------------------------------------------------------------------------


class RenoModel:
    """RFC 5681 and RFC 3465, formula by formula, in segments that are fractions."""

    def __init__(self, cwnd: int) -> None:
        self.cwnd = Fraction(cwnd)
        self.ssthresh = Fraction(UNLIMITED, MSS)
        self.bytes_acked = Fraction(0)
        self.limit = 2

    def ack(self, segments: Fraction) -> None:
        if self.cwnd < self.ssthresh:
            step = min(segments, Fraction(self.limit), self.ssthresh - self.cwnd)
            self.cwnd += step
            if self.cwnd < self.ssthresh:
                return
            segments -= step  # what is left counts in avoidance
        if segments == 0:
            return
        self.limit = 2
        self.bytes_acked += segments
        if self.bytes_acked >= self.cwnd:
            self.bytes_acked = min(self.bytes_acked - self.cwnd, self.cwnd)
            self.cwnd += 1

    def event(self) -> None:
        half = int(self.cwnd / 2 * MSS)
        self.ssthresh = max(Fraction(half, MSS), Fraction(2))
        self.bytes_acked = Fraction(0)

    def loss(self) -> None:
        self.event()
        self.cwnd = min(self.cwnd, self.ssthresh)

    def recovered(self) -> None:
        self.cwnd = self.ssthresh

    def timeout(self) -> None:
        self.event()
        self.cwnd, self.limit = Fraction(1), 1


@pytest.mark.parametrize("seed", range(8))
def test_e35_reno_equals_the_formulas_through_a_whole_life(seed: int) -> None:
    rng = random.Random(seed)
    control, model = reno(10), RenoModel(10)
    ours, reference = [], []

    for now in range(2000):
        what = rng.choices(["ack", "loss", "timeout"], [200, 2, 1])[0]
        if what == "ack":
            acked = rng.choice([1, 400, MSS, 2 * MSS, 5 * MSS])
            control.on_ack(acked, now, 1, control.cwnd)
            model.ack(Fraction(acked, MSS))
        elif what == "loss":
            control.on_loss(control.cwnd, now)
            control.after_recovery(now)
            model.loss()
            model.recovered()
        else:
            control.on_timeout(control.cwnd, now)
            model.timeout()
        ours.append((what, control.cwnd, control.ssthresh))
        reference.append((what, model.cwnd * MSS, model.ssthresh * MSS))

    assert ours == reference


# -- CUBIC -------------------------------------------------------------------------------------------------------------


class CubicModel:
    """RFC 9438 in floats: segments and seconds, one equation after the other."""

    C, BETA = 0.4, 0.7

    def __init__(self, cwnd: float) -> None:
        self.cwnd = cwnd
        self.ssthresh = float("inf")
        self.w_max = 0.0
        self.cwnd_prior = 0.0
        self.epoch: float | None = None

    def ack(self, segments: float, now: float, rtt: float) -> None:
        if self.cwnd < self.ssthresh:
            step = min(segments, self.ssthresh - self.cwnd)
            self.cwnd += step
            segments -= step
            if segments <= 0:
                return
        if self.epoch is None:
            self.epoch = now
            self.w_est = self.cwnd
            if self.w_max > self.cwnd:
                self.k = cbrt((self.w_max - self.cwnd) / self.C)
            else:
                self.k, self.w_max = 0.0, self.cwnd
        t = now - self.epoch
        before = self.w_est
        alpha = 3 * (1 - self.BETA) / (1 + self.BETA) if self.w_est < self.cwnd_prior else 1.0
        self.w_est += alpha * segments / self.cwnd
        if self.w_cubic(t) < before:
            self.cwnd = max(self.cwnd, self.w_est)
            return
        target = min(max(self.w_cubic(t + rtt), self.cwnd), 1.5 * self.cwnd)
        self.cwnd += (target - self.cwnd) * min(segments / self.cwnd, 1)

    def w_cubic(self, t: float) -> float:
        return self.C * (t - self.k) ** 3 + self.w_max

    def event(self) -> None:
        self.ssthresh = max(self.cwnd * self.BETA, 2.0)
        self.cwnd_prior = self.cwnd
        self.w_max = self.cwnd * (1 + self.BETA) / 2 if self.cwnd < self.w_max else self.cwnd
        self.epoch = None

    def loss(self) -> None:
        self.event()
        self.cwnd = self.ssthresh

    def timeout(self) -> None:
        self.event()
        self.cwnd, self.w_max = 1.0, 0.0


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("rtt", [MS, 30 * MS, 300 * MS])
def test_e35_cubic_follows_the_equations_within_half_a_percent(rtt: int, seed: int) -> None:
    """The tolerance: half a percent or two segments, whichever is more, at every ack of 60 round trips and 6 events."""
    rng = random.Random(seed)
    control, model = cubic(10), CubicModel(10.0)
    now = 7 * SECOND

    for number in range(60):
        if number % 10 == 7:
            if rng.random() < 0.7:
                control.on_loss(control.cwnd, now)
                control.after_recovery(now)
                model.loss()
            else:
                control.on_timeout(control.cwnd, now)
                model.timeout()
        acks = min(max(1, control.cwnd // (2 * MSS)), 200)
        size = control.cwnd // acks
        start = now
        for ack in range(acks):
            now = start + rtt * (ack + 1) // acks
            before = control.cwnd
            control.on_ack(size, now, rtt, before)
            assert control.cwnd >= before, "an ack never closes it"
            model.ack(size / MSS, now / SECOND, rtt / SECOND)
            off = abs(control.cwnd / MSS - model.cwnd)
            assert off <= max(model.cwnd * 0.005, 2), (number, ack, control.cwnd / MSS, model.cwnd)


def test_e35_cubic_is_back_at_its_old_window_after_k_seconds() -> None:
    """Equation 2: 1000 segments, 0.3 of them given up, C = 0.4: K = cbrt(750) = 9.09 s."""
    flow = Flow(cubic(1000))
    flow.control.on_loss(1000 * MSS, flow.now)
    flow.control.after_recovery(flow.now)
    assert flow.control.cwnd == 700 * MSS

    trace = flow.trace(140)

    assert abs(trace[90] - 1000) <= 5, "W_max, 9.1 s later"
    steps = [after - before for before, after in pairwise(trace)]
    assert steps[0] > steps[30] > steps[60] >= steps[85], "concave: ever slower up to W_max"
    assert steps[100] <= steps[120] < steps[138], "convex: ever faster beyond"


def test_e35_cubic_is_never_slower_than_reno_would_be() -> None:
    """§4.3, 1 ms round trips: what Reno adds in that time is far more than what the cubic function does."""
    flow = Flow(cubic(200), rtt=MS)
    flow.control.on_loss(200 * MSS, flow.now)
    flow.control.after_recovery(flow.now)

    trace = flow.trace(150)

    alpha = Fraction(9, 17)  # segments a round trip, until it is back at 200; then one
    for number in (20, 60, 100):
        assert abs(trace[number - 1] - (140 + number * alpha)) <= 1, f"{number} round trips after the loss"
    assert abs(trace[149] - trace[129] - 20) <= 1, "a segment a round trip, as Reno"


def test_e35_cubic_grows_by_half_a_window_a_round_trip_at_most() -> None:
    """§4.2: the target is not above 1.5 cwnd, here with a round trip in which the curve would rise by 400000."""
    control = cubic(100)
    control.on_loss(100 * MSS, 0)
    control.after_recovery(0)

    control.on_ack(70 * MSS, 0, 100 * SECOND, 70 * MSS)
    assert control.cwnd == 105 * MSS
    control.on_ack(MSS, 0, 100 * SECOND, 105 * MSS)
    assert control.cwnd == 105 * MSS, "Reno's estimate is ahead of the curve here, and both behind the window"
    control.on_ack(500 * MSS, 100 * MS, 100 * SECOND, 500 * MSS)

    assert control.cwnd <= 158 * MSS, "one ack of far more than a window is still one round trip"


def test_e35_cubic_converges_fast_when_it_lost_ground() -> None:
    """§4.7: a loss below the last W_max makes the next W_max 0.85 of the window instead of the window."""
    flow = Flow(cubic(1000))
    flow.control.on_loss(1000 * MSS, flow.now)
    flow.control.after_recovery(flow.now)
    flow.control.on_loss(700 * MSS, flow.now)
    flow.control.after_recovery(flow.now)
    assert flow.control.cwnd == 490 * MSS

    trace = flow.trace(80)

    # W_max = 595: K = cbrt(105 / 0.4) = 6.4 s. With W_max = 700 it would be at 595 after 3.6 s.
    assert abs(trace[64] - 595) <= 4
    assert trace[40] < 594


def test_e35_cubic_after_a_timeout_grows_from_where_slow_start_ended() -> None:
    """§4.8: K = 0 and W_max is the window at that time, so growth is convex from the start."""
    flow = Flow(cubic(1000))
    flow.control.on_timeout(1000 * MSS, flow.now)
    assert (flow.control.cwnd, flow.control.ssthresh) == (MSS, 700 * MSS)

    trace = flow.trace(90)

    assert trace[:9] == [2, 4, 8, 16, 32, 64, 128, 256, 512]
    assert trace[9] == 700
    assert abs(trace[39] - (700 + 30 * 9 / 17)) <= 2, "3 s into avoidance Reno is still ahead of 0.4 * 3³"
    assert abs(trace[89] - (700 + 0.4 * 8**3)) <= 15, "8 s into it the curve is"


def test_e35_time_without_full_windows_does_not_count_for_cubic() -> None:
    """§5.8: ten idle seconds, or ten with little to send, must not end in a jump along the curve."""
    silent, sparse = Flow(cubic(1000)), Flow(cubic(1000))
    for flow in (silent, sparse):
        flow.control.on_loss(1000 * MSS, flow.now)
        flow.control.after_recovery(flow.now)
        flow.trace(20)
    before = silent.control.cwnd

    silent.control.after_idle(10 * SECOND, 20 * SECOND)
    silent.now += 10 * SECOND
    for _ in range(100):
        sparse.now += 100 * MS
        sparse.control.on_ack(MSS, sparse.now, 100 * MS, MSS)
    assert sparse.control.cwnd == before, "the window was not the limit"

    assert silent.round_trip() - before // MSS <= 12
    assert sparse.round_trip() - before // MSS <= 12


@given(st.integers(0, 1 << 200))
@example(0)
@example(1)
@example(7)
@example(8)
@example((1 << 60) - 1)
def test_the_cube_root_is_the_largest_that_fits(number: int) -> None:
    root = cube_root(number)

    assert root**3 <= number < (root + 1) ** 3


# -- what holds for all ------------------------------------------------------------------------------------------------

EVENTS = st.one_of(
    st.tuples(st.just("ack"), st.integers(0, 100_000)),
    st.tuples(st.sampled_from(["loss", "timeout", "ecn", "recovered", "idle", "undo"]), st.integers(0, 300)),
    st.tuples(st.just("mss"), st.sampled_from([48, 536, 1220, 1448, 8948])),
)
KINDS = sorted(CONTROLS)


def play(control: Control, events: list[tuple[str, int]], share: int = 100) -> None:
    """Let things happen, 7 ms apart; `share` percent of the window are in use."""
    now = 0
    for what, value in events:
        now += 7 * MS
        flight = min(control.cwnd, 1 << 30) * share // 100
        if what == "ack":
            control.on_ack(value, now, 20 * MS, flight)
        elif what == "loss":
            control.on_loss(flight * value // 100, now)
        elif what == "timeout":
            control.on_timeout(flight * value // 100, now)
        elif what == "ecn":
            control.on_ecn(flight, now)
        elif what == "recovered":
            control.after_recovery(now)
        elif what == "idle":
            control.after_idle(value * 10 * MS, SECOND)
        elif what == "undo":
            control.undo()
        else:
            control.set_mss(value)


@given(st.sampled_from(KINDS), st.lists(EVENTS, max_size=40))
def test_e35_cwnd_is_at_least_a_segment_and_ssthresh_two(kind: str, events: list[tuple[str, int]]) -> None:
    control = CONTROLS[kind](MSS, 10 * MSS)

    for event in events:
        play(control, [event])

        assert control.cwnd >= control.mss, event
        assert control.ssthresh >= 2 * control.mss, event
        assert isinstance(control.cwnd, int)


@given(st.sampled_from(["reno", "cubic"]), st.lists(EVENTS, max_size=20), st.integers(0, 1 << 40))
def test_e35_no_event_of_congestion_makes_cwnd_larger(kind: str, events: list[tuple[str, int]], flight: int) -> None:
    for what in (Control.on_loss, Control.on_timeout, Control.on_ecn):
        control = CONTROLS[kind](MSS, 10 * MSS)
        play(control, events)
        before = control.cwnd

        getattr(control, what.__name__)(flight, SECOND)

        assert control.cwnd <= before, what.__name__


@given(st.sampled_from(["reno", "cubic"]), st.lists(EVENTS, max_size=20), st.integers(1, 1 << 24), st.integers(0, 49))
def test_e35_cwnd_never_grows_where_it_was_not_the_limit(
    kind: str, events: list[tuple[str, int]], acked: int, share: int
) -> None:
    control = CONTROLS[kind](MSS, 10 * MSS)
    play(control, events)
    before = control.cwnd
    flight = before * share // 100

    for _ in range(50):
        control.on_ack(acked, SECOND, 20 * MS, flight)

    if flight + control.mss < before:
        assert control.cwnd == before


@given(
    st.sampled_from(["reno", "cubic"]), st.lists(EVENTS, max_size=20), st.integers(0, 1 << 22), st.integers(0, 1 << 22)
)
def test_e35_more_bytes_acked_never_open_cwnd_less(
    kind: str, events: list[tuple[str, int]], fewer: int, extra: int
) -> None:
    one, other = (CONTROLS[kind](MSS, 10 * MSS) for _ in range(2))
    play(one, events)
    play(other, events)
    before = one.cwnd

    one.on_ack(fewer, SECOND, 20 * MS, one.cwnd)
    other.on_ack(fewer + extra, SECOND, 20 * MS, other.cwnd)

    assert before <= one.cwnd <= other.cwnd


@example("cubic", [("loss", 0), ("ack", 1), ("idle", 0)], [("ack", 1)], False)  # the idle time is not forgotten
@given(st.sampled_from(["reno", "cubic"]), st.lists(EVENTS, max_size=20), st.lists(EVENTS, max_size=5), st.booleans())
def test_e35_undo_makes_it_as_if_the_loss_had_not_been_found(
    kind: str, events: list[tuple[str, int]], meanwhile: list[tuple[str, int]], timeout: bool
) -> None:
    control, other = (CONTROLS[kind](MSS, 10 * MSS) for _ in range(2))
    play(control, events)
    play(other, events)

    if timeout:
        control.on_timeout(control.cwnd, SECOND)
    else:
        control.on_loss(control.cwnd, SECOND)
    play(control, [event for event in meanwhile if event[0] in ("ack", "recovered")])
    control.undo()

    assert (control.cwnd, control.ssthresh) == (other.cwnd, other.ssthresh)
    control.undo()  # there is nothing more to undo
    assert (control.cwnd, control.ssthresh) == (other.cwnd, other.ssthresh)
    for flow in (Flow(control), Flow(other)):
        flow.now = 2 * SECOND
        flow.trace(3)
    assert control.cwnd == other.cwnd, "and it grows as if nothing had been"


def test_acks_handled_in_one_batch_still_open_cwnd_in_slow_start() -> None:
    """The flight shrinks from ack to ack before anything new is sent: half a window is still a full one."""
    control = cubic(10)

    for flight in (10, 8, 6):
        control.on_ack(2 * MSS, 0, 1, flight * MSS)

    assert control.cwnd == 14 * MSS, "the third finds a flight of less than half: it was not the limit"


def test_a_timeout_while_recovering_is_not_ended_by_the_recovery() -> None:
    control = reno(20)
    control.on_loss(20 * MSS, 0)
    control.on_timeout(10 * MSS, 0)

    control.after_recovery(0)

    assert control.cwnd == MSS


def test_phase6_has_no_limit_whatever_happens() -> None:
    control = NoControl(MSS, 4 * MSS)

    play(control, [("ack", 10 * MSS), ("loss", 100), ("timeout", 100), ("ecn", 0), ("idle", 300), ("mss", 536)])

    assert control.cwnd == UNLIMITED


def test_the_names_of_tcp_congestion_lead_to_the_classes() -> None:
    assert sorted(CONTROLS.items()) == [("cubic", Cubic), ("none", NoControl), ("reno", Reno)]
