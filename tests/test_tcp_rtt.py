"""The round trip's estimate and the retransmission timeout, against RFC 6298's formulas in fractions (row E35)."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest.net.tcp.rtt import RttEstimator

MS = 1000
SECOND = 1_000_000


class Model:
    """RFC 6298 §2 as it stands there, exactly."""

    def __init__(self) -> None:
        self.srtt: Fraction | None = None
        self.rttvar = Fraction(0)

    def sample(self, rtt: int, expected: int = 1) -> None:
        if self.srtt is None:
            self.srtt, self.rttvar = Fraction(rtt), Fraction(rtt, 2)
            return
        alpha, beta = Fraction(1, 8) / expected, Fraction(1, 4) / expected
        self.rttvar = (1 - beta) * self.rttvar + beta * abs(self.srtt - rtt)
        self.srtt = (1 - alpha) * self.srtt + alpha * rtt


def test_before_the_first_sample_the_timeout_is_one_second() -> None:
    """RFC 6298 (2.1)."""
    rtt = RttEstimator()

    assert (rtt.rto, rtt.srtt, rtt.rttvar, rtt.min_rtt, rtt.samples) == (SECOND, 0, 0, 0, 0)


def test_the_first_sample_counts_whole_and_half_of_it_is_the_variation() -> None:
    """RFC 6298 (2.2): RTO = R + 4 * R / 2."""
    rtt = RttEstimator()

    rtt.sample(100 * MS)

    assert (rtt.srtt, rtt.rttvar, rtt.rto) == (100 * MS, 50 * MS, 300 * MS)


def test_the_second_moves_the_estimate_by_an_eighth_and_the_variation_by_a_quarter() -> None:
    """RFC 6298 (2.3): RTTVAR = 3/4 * 50 + 1/4 * |100 - 180| = 57.5 ms; SRTT = 7/8 * 100 + 1/8 * 180 = 110 ms."""
    rtt = RttEstimator()

    rtt.sample(100 * MS)
    rtt.sample(180 * MS)

    assert (rtt.srtt, rtt.rttvar, rtt.rto) == (110 * MS, 57_500, 340 * MS)


def test_the_timeout_keeps_within_its_bounds() -> None:
    rtt = RttEstimator(rto_min=200 * MS, rto_max=2 * SECOND)

    rtt.sample(10)
    assert rtt.rto == 200 * MS
    rtt.sample(60 * SECOND)

    assert rtt.rto == 2 * SECOND


def test_on_a_steady_path_the_granularity_is_the_margin() -> None:
    """RFC 6298 §2: max(G, 4 * RTTVAR)."""
    coarse, fine = RttEstimator(granularity=200 * MS), RttEstimator()

    for _ in range(200):
        coarse.sample(500 * MS)
        fine.sample(500 * MS)

    assert coarse.rto == 700 * MS
    assert 500 * MS < fine.rto <= 500 * MS + 10


def test_each_expiry_doubles_the_timeout_up_to_its_maximum() -> None:
    """RFC 6298 (5.5): with the defaults, from one second to two minutes."""
    rtt = RttEstimator()
    waits = []

    for _ in range(10):
        rtt.back_off()
        waits.append(rtt.rto // SECOND)

    assert waits == [2, 4, 8, 16, 32, 64, 120, 120, 120, 120]
    rtt.reset_backoff()
    assert rtt.rto == SECOND


def test_a_sample_ends_the_backoff() -> None:
    rtt = RttEstimator()
    rtt.back_off()

    rtt.sample(100 * MS)

    assert rtt.rto == 300 * MS


def test_a_round_trip_without_time_is_a_sample() -> None:
    """On a virtual clock a peer may answer at once."""
    rtt = RttEstimator()

    rtt.sample(0)
    rtt.sample(80 * MS)

    assert (rtt.srtt, rtt.rttvar, rtt.min_rtt, rtt.samples) == (10 * MS, 20 * MS, 0, 2)


def test_a_negative_sample_is_ignored() -> None:
    """What a timestamp says is the peer's word."""
    rtt = RttEstimator()

    rtt.sample(-1)

    assert (rtt.samples, rtt.rto) == (0, SECOND)


def test_the_minimum_is_the_connections() -> None:
    """RFC 8985 §6.2."""
    rtt = RttEstimator()

    for sample in (70, 40, 90):
        rtt.sample(sample * MS)

    assert (rtt.min_rtt, rtt.latest) == (40 * MS, 90 * MS)


def test_many_samples_a_round_trip_weigh_as_much_as_one() -> None:
    """RFC 7323 appendix G: ten samples that each count a tenth forget about as much as one that counts whole."""
    many, one = RttEstimator(), RttEstimator()
    many.sample(100 * MS)
    one.sample(100 * MS)

    for _ in range(10):
        many.sample(200 * MS, 10)
    one.sample(200 * MS)

    assert one.srtt == 112_500
    assert abs(many.srtt - one.srtt) < MS


@given(st.lists(st.tuples(st.integers(0, 10 * SECOND), st.integers(1, 64)), min_size=1, max_size=60))
def test_e35_the_estimates_equal_the_formulas_within_two_microseconds(samples: list[tuple[int, int]]) -> None:
    rtt, model = RttEstimator(), Model()

    for sample, expected in samples:
        rtt.sample(sample, expected)
        model.sample(sample, expected)

        assert model.srtt is not None
        assert abs(rtt.srtt - model.srtt) <= 2
        assert abs(rtt.rttvar - model.rttvar) <= 2
        assert rtt.min_rtt == min(sample for sample, _ in samples[: rtt.samples])
        exact = max(model.srtt + max(1, 4 * model.rttvar), Fraction(SECOND, 5))
        assert abs(rtt.rto - min(exact, Fraction(120 * SECOND))) <= 8


@pytest.mark.parametrize("size", [MS, 100 * MS, 10 * SECOND])
def test_a_constant_round_trip_is_found(size: int) -> None:
    rtt = RttEstimator()
    rtt.sample(size * 3)

    for _ in range(400):
        rtt.sample(size)

    assert abs(rtt.srtt - size) <= 1
    assert rtt.rttvar <= 1
