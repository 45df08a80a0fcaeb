"""Congestion control: how many bytes may be under way (cwnd), and what loss and delivery do to that.

Read RFC 5681 (slow start, avoidance, timeout), RFC 3465 (counting bytes), RFC 9438 (CUBIC); RFC 6582 and 6675 for what
the connection does while it recovers: it enters recovery and calls `on_loss`, which leaves cwnd at ssthresh, and if it
inflates cwnd on the way, `after_recovery` brings it back there.

Promises:
- Integers only: bytes and microseconds. There is no clock in here; `now` is handed in.
- cwnd is never below one mss, ssthresh never below two. No loss, mark or timeout makes cwnd larger.
- cwnd grows only where it was the limit (RFC 7661's aim, RFC 9438 §5.8): an ack of a flight that left more than an mss
  unused teaches nothing about the path. In slow start half of cwnd is enough, since acks that are handled in one batch
  leave each other a smaller flight.

Sections: `Control` (what all share), `Reno`, `Cubic`, `NoControl`, `CONTROLS`.
"""

from __future__ import annotations

from typing import TypeAlias

SECOND = 1_000_000
UNLIMITED = 1 << 62  # ssthresh before the first loss: as high as it goes (RFC 5681 §3.1)

Saved: TypeAlias = tuple[int, ...]  # what `undo` brings back


class Control:
    """What all congestion controls share. On its own it is half of Reno: slow start, and no avoidance.

    Args:
        mss: bytes of payload in a full segment.
        initial_window: bytes that the first flight may have (RFC 6928 §2), and the first after an idle time.

    Attributes:
        cwnd, ssthresh: bytes; who recovers may write cwnd meanwhile.
        mss: see above; `set_mss` changes it.
    """

    __slots__ = ("_initial_window", "_recovering", "_saved", "cwnd", "mss", "ssthresh")

    # What is left of a flight after a loss, as a fraction.
    BETA = (1, 2)

    def __init__(self, mss: int, initial_window: int) -> None:
        self.mss = mss
        self._initial_window = max(initial_window, mss)
        self.cwnd = self._initial_window
        self.ssthresh = UNLIMITED
        self._recovering = False
        self._saved: Saved | None = None

    # -- growth --------------------------------------------------------------------------------------------------

    def on_ack(self, acked: int, now: int, srtt: int, flight: int) -> None:
        """`acked` bytes were newly delivered, outside of recovery; `flight` bytes were under way before that ack."""
        if flight + self.mss < self.cwnd and not (self.cwnd < self.ssthresh and self.cwnd < 2 * flight):
            self._unlimited(now)
            return
        room = self.ssthresh - self.cwnd
        if room > 0:
            step = min(self._slow_start_step(acked), room)
            self.cwnd += step
            if step < room:
                return
            acked -= step
        if acked > 0:
            self._avoid(acked, now, srtt)

    def _slow_start_step(self, acked: int) -> int:
        """By how much `acked` bytes open cwnd in slow start."""
        return acked

    def _avoid(self, acked: int, now: int, srtt: int) -> None:
        """Open cwnd for `acked` bytes in congestion avoidance."""

    def _unlimited(self, now: int) -> None:
        """There was an ack, and cwnd had not been the limit."""

    # -- reduction -----------------------------------------------------------------------------------------------

    def _reduce(self, flight: int) -> None:
        """Set ssthresh after a congestion event (RFC 5681 equation 4, RFC 9438 §4.6).

        What limited transmit sent beyond cwnd does not count (RFC 5681 §3.2 step 2), so neither does what is above it.
        """
        part, whole = self.BETA
        self.ssthresh = max(min(flight, self.cwnd) * part // whole, 2 * self.mss)

    def on_loss(self, flight: int, now: int) -> None:
        """Loss was found by SACK, duplicate acks or RACK; to be called once a recovery. cwnd and ssthresh are set."""
        self._saved = self._save()
        self._reduce(flight)
        self.cwnd = min(self.cwnd, self.ssthresh)
        self._recovering = True

    def on_timeout(self, flight: int, now: int) -> None:
        """The retransmission timer expired, the first time in a series: cwnd is one segment (RFC 5681 §3.1)."""
        self._saved = self._save()
        self._reduce(flight)
        self.cwnd = self.mss
        self._recovering = False

    def on_ecn(self, flight: int, now: int) -> None:
        """The peer echoed a congestion mark; to be called once a window: as for a loss (RFC 3168 §6.1.2).

        Nothing can show a mark to have been a mistake, so what came before it is past undoing.
        """
        self._reduce(flight)
        self.cwnd = min(self.cwnd, self.ssthresh)
        self._saved = None

    def after_recovery(self, now: int) -> None:
        """All that was under way at `on_loss` is acked: cwnd is ssthresh (RFC 6582 §3.2 step 3, RFC 6675 §5).

        Does nothing where a timeout or an undo has ended that recovery.
        """
        if self._recovering:
            self._recovering = False
            self.cwnd = self.ssthresh

    def after_idle(self, idle: int, rto: int) -> None:
        """The sender is about to send after `idle` microseconds of silence (RFC 5681 §4.1: the restart window)."""
        if idle > rto:
            self.cwnd = min(self.cwnd, self._initial_window)

    # -- second thoughts -----------------------------------------------------------------------------------------

    def undo(self) -> None:
        """The last `on_loss` or `on_timeout` was spurious: all is as before it. Nothing to undo: nothing happens."""
        if self._saved is not None:
            self._restore(self._saved)
            self._saved = None
            self.cwnd = max(self.cwnd, self.mss)
            self.ssthresh = max(self.ssthresh, 2 * self.mss)

    def _save(self) -> Saved:
        return (self.cwnd, self.ssthresh, self._recovering)

    def _restore(self, saved: Saved) -> None:
        self.cwnd, self.ssthresh = saved[:2]
        self._recovering = bool(saved[2])

    def set_mss(self, mss: int) -> None:
        """Segments have another size now. Smaller ones do not become more at once (RFC 5681 §3.1, last paragraph)."""
        if mss < self.mss:
            self.cwnd = self.cwnd * mss // self.mss
        self._initial_window = max(self._initial_window * mss // self.mss, mss)
        self.mss = mss
        self.cwnd = max(self.cwnd, mss)
        self.ssthresh = max(self.ssthresh, 2 * mss)


class Reno(Control):
    """RFC 5681, bytes counted as in RFC 3465: an ack opens cwnd by two segments at most, by one after a timeout."""

    __slots__ = ("_counted", "_timed_out")

    def __init__(self, mss: int, initial_window: int) -> None:
        super().__init__(mss, initial_window)
        self._counted = 0  # bytes acked in congestion avoidance since cwnd grew (RFC 3465 §2.1)
        self._timed_out = False  # this slow start follows a timeout (§2.3)

    def _slow_start_step(self, acked: int) -> int:
        return min(acked, self.mss if self._timed_out else 2 * self.mss)

    def _avoid(self, acked: int, now: int, srtt: int) -> None:
        self._timed_out = False
        self._counted += acked
        if self._counted >= self.cwnd:
            self._counted = min(self._counted - self.cwnd, self.cwnd)  # one mss a round trip, however long the ack
            self.cwnd += self.mss

    def _reduce(self, flight: int) -> None:
        super()._reduce(flight)
        self._counted = 0

    def on_timeout(self, flight: int, now: int) -> None:
        super().on_timeout(flight, now)
        self._timed_out = True

    def _save(self) -> Saved:
        return (*super()._save(), self._counted, self._timed_out)

    def _restore(self, saved: Saved) -> None:
        super()._restore(saved)
        self._counted = saved[3]
        self._timed_out = bool(saved[4])


def cube_root(number: int) -> int:
    """The largest integer whose cube is not above `number` (not negative), by Newton's method from above."""
    if number == 0:
        return 0
    root = 1 << -(-number.bit_length() // 3)
    while True:
        better = (2 * root + number // (root * root)) // 3
        if better >= root:
            return root
        root = better


class Cubic(Control):
    """RFC 9438, with C = 0.4 and beta = 0.7. In slow start each acked byte opens cwnd by one (§4.10 leaves that open).

    The RFC counts segments and seconds: W segments are W * mss bytes, and C * t³ is mss * 2/5 * t³ / 10¹⁸ bytes for t
    in microseconds. Its names are kept: w_max, w_est, k, cwnd_prior, epoch (when this congestion avoidance began).
    """

    __slots__ = ("_counted", "_cwnd_prior", "_epoch", "_est_counted", "_idle", "_k", "_last", "_w_est", "_w_max")

    BETA = (7, 10)
    SCALE = 5 * SECOND**3  # C = 2 / 5, and microseconds
    ALPHA = (9, 17)  # 3 * (1 - beta) / (1 + beta), §4.3

    def __init__(self, mss: int, initial_window: int) -> None:
        super().__init__(mss, initial_window)
        self._w_max = 0  # bytes; 0 until there was a loss, and after a timeout (§4.8)
        self._cwnd_prior = 0
        self._epoch = -1  # none: the next ack in congestion avoidance begins one
        self._k = 0  # microseconds
        self._w_est = 0
        self._est_counted = 0  # what w_est has not grown by yet, in 1 / (17 * cwnd)
        self._counted = 0  # likewise cwnd, in 1 / cwnd
        self._last = 0  # when there was an ack last
        self._idle = False  # time does not count since then

    def _unlimited(self, now: int) -> None:
        self._skip(now)
        self._last = now

    def after_idle(self, idle: int, rto: int) -> None:
        super().after_idle(idle, rto)
        self._idle = True

    def _skip(self, now: int) -> None:
        """The time since the last ack does not count as growth (§5.8)."""
        self._idle = False
        if self._epoch >= 0:
            self._epoch += max(0, now - self._last)

    def _w_cubic(self, since: int) -> int:
        """Equation 1, bytes, `since` microseconds into the epoch."""
        return self._w_max + 2 * self.mss * (since - self._k) ** 3 // self.SCALE

    def _avoid(self, acked: int, now: int, srtt: int) -> None:
        if self._idle:
            self._skip(now)
        self._last = now
        cwnd = self.cwnd
        if self._epoch < 0:
            self._epoch = now
            if self._w_max > cwnd:
                self._k = cube_root((self._w_max - cwnd) * self.SCALE // (2 * self.mss))  # equation 2
            else:
                self._k = 0
                self._w_max = cwnd
            self._w_est = cwnd
            self._counted = self._est_counted = 0
        since = now - self._epoch
        # Which of the two is ahead is seen before this ack counts, so that more bytes never open cwnd less.
        friendly = self._w_cubic(since) < self._w_est
        part, whole = self.ALPHA if self._w_est < self._cwnd_prior else (1, 1)  # §4.3: as Reno, once it is where it was
        self._est_counted += part * self.mss * acked * 17 // whole  # equation 4
        step, self._est_counted = divmod(self._est_counted, 17 * cwnd)
        self._w_est += step
        if friendly:
            self.cwnd = max(cwnd, self._w_est)
            return
        target = min(max(self._w_cubic(since + srtt), cwnd), cwnd * 3 // 2)  # §4.2
        self._counted += (target - cwnd) * min(acked, cwnd)  # §4.4, §4.5
        step, self._counted = divmod(self._counted, cwnd)
        self.cwnd = cwnd + step

    def _reduce(self, flight: int) -> None:
        cwnd = self.cwnd
        self._cwnd_prior = cwnd
        # §4.7, fast convergence: who did not get back to where it was gives up more, for newcomers.
        self._w_max = cwnd * 17 // 20 if cwnd < self._w_max else cwnd
        self._epoch = -1
        super()._reduce(flight)

    def on_timeout(self, flight: int, now: int) -> None:
        super().on_timeout(flight, now)
        self._w_max = 0

    def set_mss(self, mss: int) -> None:
        super().set_mss(mss)
        self._epoch = -1

    def _save(self) -> Saved:
        return (
            *super()._save(),
            self._w_max, self._cwnd_prior, self._epoch, self._k, self._w_est, self._est_counted, self._counted,
            self._last, self._idle,
        )  # fmt: skip

    def _restore(self, saved: Saved) -> None:
        super()._restore(saved)
        (
            self._w_max, self._cwnd_prior, self._epoch, self._k, self._w_est, self._est_counted, self._counted,
            self._last,
        ) = saved[3:-1]  # fmt: skip
        self._idle = bool(saved[-1])


class NoControl(Control):
    """No limit but the peer's window: the first version of the guest's TCP had none (profile phase6)."""

    __slots__ = ()

    def __init__(self, mss: int, initial_window: int) -> None:
        super().__init__(mss, initial_window)
        self.cwnd = UNLIMITED

    def on_ack(self, acked: int, now: int, srtt: int, flight: int) -> None:
        pass

    def on_loss(self, flight: int, now: int) -> None:
        pass

    def on_timeout(self, flight: int, now: int) -> None:
        pass

    def on_ecn(self, flight: int, now: int) -> None:
        pass

    def after_recovery(self, now: int) -> None:
        self.cwnd = UNLIMITED  # whatever who recovered made of it

    def after_idle(self, idle: int, rto: int) -> None:
        pass

    def undo(self) -> None:
        pass

    def set_mss(self, mss: int) -> None:
        self.mss = mss


CONTROLS: dict[str, type[Control]] = {"reno": Reno, "cubic": Cubic, "none": NoControl}
