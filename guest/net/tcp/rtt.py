"""How long a round trip takes, and how long to wait for an ack: RFC 6298, RFC 7323 §4.2 and appendix G.

Integers, microseconds. Which samples are good is the caller's to know: none of a segment that was sent twice (Karn's
algorithm, RFC 6298 §3), unless a timestamp says which of the two was acked.
"""

from __future__ import annotations

SECOND = 1_000_000
FINE = 10  # srtt and rttvar are kept in 1/1024 microseconds, so that small shares of many samples are not lost


class RttEstimator:
    """Smoothed round trip time and retransmission timeout.

    Args:
        rto_initial: until there is a sample. After a SYN that had to be sent again it is to be three seconds
            (RFC 6298 §5.7): make a new estimator then.
        rto_min, rto_max: bounds of `rto`.
        granularity: G, the least that `rto` exceeds `srtt` by. The clock itself would allow 1; what Linux does is to
            have its `rto_min` there, which outlasts a delayed ack on a steady path.

    Attributes:
        srtt, rttvar, min_rtt: microseconds, 0 while `samples` is 0. The minimum is the connection's (RFC 8985 §6.2).
        latest: the last sample, 0 while there is none.
        rto: how long to wait, with what `back_off` did.
        samples: how many there were; a round trip may well take no time at all on a virtual clock.
    """

    __slots__ = (
        "_backoff", "_base", "_granularity", "_rto_max", "_rto_min", "_srtt", "_var",
        "latest", "min_rtt", "rto", "rttvar", "samples", "srtt",
    )  # fmt: skip

    def __init__(
        self,
        rto_initial: int = SECOND,
        rto_min: int = SECOND // 5,
        rto_max: int = 120 * SECOND,
        granularity: int = 1,
    ) -> None:
        self._rto_min = rto_min
        self._rto_max = rto_max
        self._granularity = granularity
        self._srtt = 0
        self._var = 0
        self._base = min(rto_initial, rto_max)
        self._backoff = 0
        self.srtt = 0
        self.rttvar = 0
        self.min_rtt = 0
        self.latest = 0
        self.samples = 0
        self.rto = self._base

    def sample(self, rtt_us: int, expected: int = 1) -> None:
        """A round trip took `rtt_us`; a negative one is ignored. Ends a backoff, as there is a new `rto`.

        `expected` is how many samples this round trip will give, with ExpectedSamples = ceil(flight / (2 * mss)): each
        then counts for so much less, and the memory of the estimate stays as long as with one (RFC 7323 appendix G).
        """
        if rtt_us < 0:
            return
        fine = rtt_us << FINE
        if not self.samples:
            self._srtt = fine  # RFC 6298 (2.2)
            self._var = fine >> 1
            self.min_rtt = rtt_us
        else:
            share = max(expected, 1)
            off = fine - self._srtt
            self._var += (abs(off) - self._var) // (4 * share)  # (2.3), the variation first
            self._srtt += off // (8 * share)
            self.min_rtt = min(self.min_rtt, rtt_us)
        self.samples += 1
        self.latest = rtt_us
        self.srtt = self._srtt >> FINE
        self.rttvar = self._var >> FINE
        margin = max(self._granularity, 4 * self._var >> FINE)
        self._base = min(max(self.srtt + margin, self._rto_min), self._rto_max)
        self._backoff = 0
        self.rto = self._base

    def back_off(self) -> None:
        """The timer expired: wait twice as long the next time, at most `rto_max` (RFC 6298 §5.5)."""
        if self.rto < self._rto_max:
            self._backoff += 1
            self.rto = min(self._base << self._backoff, self._rto_max)

    def reset_backoff(self) -> None:
        """New data was acked, though it gave no sample."""
        self._backoff = 0
        self.rto = self._base
