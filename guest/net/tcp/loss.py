"""What acknowledgements say, and what is lost: RFC 5681, RFC 6298 §5, RFC 6582, RFC 6675, RFC 2883, RFC 8985.

With SACK, loss is found by time (RACK): a segment is lost when one that was sent later has arrived, and a little more
than a round trip is over since. A lost tail is probed for (TLP). Without SACK three duplicate acknowledgements say that
the first segment is lost, and a partial acknowledgement that the next one is (NewReno). When all that says nothing, the
retransmission timer does; while it runs the window is one segment.

`recovery` is 0 in order, FAST after loss was found by acknowledgements, SLOW after the timer fired, until everything
that had been sent by then is acknowledged. cwnd is cut once for each.
"""

from __future__ import annotations

from guest.net.tcp.scoreboard import Sent
from guest.net.tcp.segment import ECE, HALF, MASK, SYN, unwrap
from guest.net.tcp.sender import Sender
from guest.net.tcp.state import SYNCHRONIZED
from guest.net.tcp.tcb import Segment
from guest.net.tcp.timers import NEVER

FAST = 1
SLOW = 2

DUPLICATES = 3  # RFC 5681 §3.2
PROBE_DELAY = 200_000  # RFC 8985 §7.2: how late the acknowledgement of a single segment may be
MAX_STEPS = 16


class LossRecovery(Sender):
    """The sending half of a connection, with loss."""

    __slots__ = ()

    # -- an acknowledgement --------------------------------------------------------------------------------------

    def acknowledge(self, segment: Segment, ack: int, seq: int, now: int) -> None:
        """An acceptable acknowledgement came: `ack` lies between snd_una and snd_nxt."""
        board = self.scoreboard
        flying = board.in_flight
        una = self.snd_una
        options = segment.options
        delivered: list[Sent] = []
        sacked = 0
        twice = False
        fack = board.highest_sacked
        if options.sacks and self.sack:
            twice = self._is_duplicate(options.sacks, ack)
            for left, right in options.sacks:
                first, last = unwrap(una, left), unwrap(una, right)
                if una < last <= self.snd_nxt and ack <= first < last:
                    fresh = board.sack(first, last)
                    sacked += sum(each.end - each.start for each in fresh)
                    delivered += fresh
        progress = ack - una
        if progress > 0:
            delivered += self._advance(ack, segment, now)
        elif (
            not self.sack and segment.length == 0 and len(board) and not segment.flags & (SYN | 1)
            and segment.window << self.snd_scale == self.snd_wnd
        ):  # fmt: skip
            self._duplicate(now)
        self._offered(segment, ack, seq, now)
        if self.timeouts and progress <= 0 and self.snd_wnd == 0 and self.end is not None:
            self.timeouts = 0  # the peer lives, and has no room: RFC 9293 §3.8.6.1; it need not be borne for nobody
        if self.ecn and segment.flags & ECE and ack > self.ecn_point and not self.recovery:
            self.control.on_ecn(flying, now)
            self.counters["rx_ecn_echoes"] += 1
            self.cwr_due = True
            self.ecn_point = self.snd_nxt
        if progress > 0 and self.recovery and self.resent_stamp is not None:
            self._was_spurious(options.ts_ecr, now)
        if self.sack and (delivered or twice):
            if board.timed:
                self._rack(delivered, twice, fack, options.ts_ecr, now)
                self._find_lost(now)
            elif sacked and self.config.fast_retransmit:
                self._count_lost(now)
        if self.probe_end is not None and progress > 0:
            self._probe_answered(ack, twice, flying, now)
        if progress > 0 or sacked:
            if self.recovery and self.snd_una >= self.recovery_end:
                self.recovery = 0
                self.dup_acks = 0
                self.control.after_recovery(now)
            elif self.recovery == FAST and progress > 0 and not self.sack:
                self._next_lost()
            elif self.recovery != FAST:
                self.control.on_ack(max(progress, 0) + sacked, now, self.rtt.srtt, flying)
            self.schedule_probe(now)

    def _advance(self, ack: int, segment: Segment, now: int) -> list[Sent]:
        """snd_una moves on; the segments that are done with, those that were sacked before left out."""
        board = self.scoreboard
        gone = board.acknowledge(ack)
        acked = ack - self.snd_una
        self.snd_una = ack
        snd = self.snd
        if ack > snd.start:
            snd.release(min(ack, snd.end))
        self.tell = True
        fresh = [one for one in gone if not one.sacked]
        # Karn's algorithm: what fills a hole may acknowledge what arrived long before.
        latest = -1 if any(one.tries > 1 for one in gone) else max((one.sent_at for one in fresh), default=-1)
        if latest >= 0:
            self.rtt.sample(now - latest, max(1, board.in_flight // (2 * self.mss)))
        elif self.stamps and segment.options.ts_ecr and gone:
            self.rtt.sample(((self.stamp(now) - segment.options.ts_ecr) & MASK) * 1000)  # RFC 7323 §4.1
        else:
            self.rtt.reset_backoff()
        self.timeouts = 0
        self.soft_error = 0
        if not self.sack and self.dup_acks:
            self.dup_acks = max(0, self.dup_acks - max(0, acked // self.mss - 1)) if self.recovery else 0
        self.rto_at = now + self.rtt.rto if len(board) else NEVER
        return fresh

    def _offered(self, segment: Segment, ack: int, seq: int, now: int) -> None:
        """Take over the peer's window, unless it is from an older segment than the last (RFC 9293 §3.10.7.4)."""
        if seq < self.snd_wl1 or (seq == self.snd_wl1 and ack < self.snd_wl2):
            return
        window = segment.window << self.snd_scale
        self.snd_wl1 = seq
        self.snd_wl2 = ack
        if window == self.snd_wnd:
            return
        board = self.scoreboard
        if window > self.snd_wnd:
            if not len(board):
                self.rto_at = NEVER  # it was the persist timer
            elif self.snd_wnd == 0 and (first := board.first) is not None:
                board.mark_lost(first)  # what was sent into no window did not arrive
                self.rtt.reset_backoff()
                self.rto_at = now + self.rtt.rto
        self.snd_wnd = window
        self.max_wnd = max(self.max_wnd, window)

    def _is_duplicate(self, sacks: tuple[tuple[int, int], ...], ack: int) -> bool:
        """Whether the first block says that something came twice (RFC 2883 §4)."""
        left, right = unwrap(ack, sacks[0][0]), unwrap(ack, sacks[0][1])
        if left >= right:
            return False
        if left < ack:
            return right <= ack
        if len(sacks) > 1:
            outer_left, outer_right = unwrap(ack, sacks[1][0]), unwrap(ack, sacks[1][1])
            return outer_left <= left and right <= outer_right
        return False

    # -- loss without SACK ---------------------------------------------------------------------------------------

    def _duplicate(self, now: int) -> None:
        """A duplicate acknowledgement: something was received, out of order."""
        if not self.config.fast_retransmit or self.recovery == SLOW:
            return
        self.dup_acks = min(self.dup_acks + 1, len(self.scoreboard))
        if self.dup_acks == DUPLICATES and not self.recovery and self.snd_una >= self.recovery_end:
            self._recover(now)
            self._next_lost()

    def _next_lost(self) -> None:
        """The first segment that is not acknowledged is lost."""
        first = self.scoreboard.first
        if first is not None and first.tries == 1:
            self.scoreboard.mark_lost(first)

    def _recover(self, now: int) -> None:
        """Loss was found by acknowledgements."""
        self.control.on_loss(self.snd_nxt - self.snd_una, now)
        self.forced = True
        self.resent_stamp = None
        self.recovery = FAST
        self.recovery_end = self.snd_nxt
        self.probe_at = NEVER
        self.probe_end = None
        if self.ecn:
            self.cwr_due = True
            self.ecn_point = self.snd_nxt
        self.counters["recoveries"] += 1

    def _count_lost(self, now: int) -> None:
        """A segment is lost when three that were sent behind it have arrived (RFC 6675 §4): SACK without RACK."""
        above = 0
        lost = []
        for segment in reversed(list(self.scoreboard)):
            if segment.sacked:
                above += 1
            elif above >= DUPLICATES and segment.tries == 1 and segment.flying:
                lost.append(segment)
        for segment in reversed(lost):
            self.scoreboard.mark_lost(segment)
        if lost and not self.recovery:
            self._recover(now)

    def _was_spurious(self, ts_ecr: int, now: int) -> None:
        """The answer to the first segment of a recovery: if it is older than what was sent again, nothing was lost, and
        the windows are as they were (RFC 3522, RFC 4015).
        """
        stamp, self.resent_stamp = self.resent_stamp, None
        if stamp is None or not ts_ecr or (ts_ecr - stamp) & MASK < HALF:
            return
        self.counters["spurious_recoveries"] += 1
        self.control.undo()
        self.recovery = 0
        self.dup_acks = 0
        self.scoreboard.believe()

    # -- loss by time --------------------------------------------------------------------------------------------

    def _rack(self, delivered: list[Sent], twice: bool, fack: int, ts_ecr: int, now: int) -> None:
        """What has arrived tells which of the others should have (RFC 8985 §6.2)."""
        if twice:
            self.reorder_steps = min(self.reorder_steps + 1, MAX_STEPS)
        for one in delivered:
            if one.tries > 1:
                # Was it the one sent last that arrived? Not if the answer is older than that, or too soon after it.
                sent_stamp = self.stamp(one.sent_at)
                if (self.stamps and (ts_ecr - sent_stamp) & MASK >= HALF) or now - one.sent_at < self.rtt.min_rtt:
                    continue
            elif one.end < fack:
                self.reorder_seen = True
            if (one.sent_at, one.end) > (self.rack_sent, self.rack_end):
                self.rack_sent, self.rack_end = one.sent_at, one.end
                self.rack_rtt = now - one.sent_at

    def _find_lost(self, now: int) -> None:
        """Mark what was sent so long before the latest arrival that it must be lost (RFC 8985 §6.2, step 5)."""
        board = self.scoreboard
        order = board.order
        latest = (self.rack_sent, self.rack_end)
        wait = self.rack_rtt + self._reorder_window()
        self.reorder_at = NEVER
        found = False
        while order:
            segment, sent_at = order[0]
            if not segment.flying or segment.sent_at != sent_at:
                order.popleft()  # acknowledged, lost already, or sent again since
                continue
            if (sent_at, segment.end) >= latest:
                break
            due = sent_at + wait
            if due > now:
                self.reorder_at = due
                break
            order.popleft()
            board.mark_lost(segment)
            found = True
        if found and not self.recovery:
            self._recover(now)

    def _reorder_window(self) -> int:
        """How much later than in order a segment may arrive (RFC 8985 §6.2, step 4)."""
        if not self.reorder_seen and (self.recovery or self.scoreboard.sacked_count >= DUPLICATES):
            return 0
        return min(self.reorder_steps * self.rtt.min_rtt // 4, self.rtt.srtt)

    # -- the tail ------------------------------------------------------------------------------------------------

    def schedule_probe(self, now: int) -> None:
        """Set the timer of the probe for a lost tail, where there is reason for one (RFC 8985 §7.2): after new data was
        sent, and when something was acknowledged.
        """
        board = self.scoreboard
        if not self.sack or not self.config.tail_probe:
            return
        if self.recovery or self.probe_end is not None or not board.in_flight or board.sacked_count:
            self.probe_at = NEVER
            return
        wait = 2 * self.rtt.srtt if self.rtt.samples else 1_000_000
        if board.in_flight <= self.mss:
            wait += PROBE_DELAY
        self.probe_at = min(now + max(wait, 2000), self.rto_at)  # in place of a timeout that would come first

    def probe_tail(self, now: int) -> None:
        """Send something that makes the peer say what it has: new data, or the last segment again (RFC 8985 §7.3)."""
        self.probe_at = NEVER
        board = self.scoreboard
        last = board.last
        if last is None or self.recovery or self.state not in SYNCHRONIZED:
            return
        self.counters["tx_tail_probes"] += 1
        nxt = self.snd_nxt
        end = min(nxt + max(8, self.mss - self.sack_size()), self.snd.end, self.snd_una + self.snd_wnd)
        self.probe_resent = end <= nxt
        if self.probe_resent:
            if last.sacked:
                return
            self.resend(last, now)
        else:
            self._send_new(nxt, end, now)
        self.probe_end = self.snd_nxt
        self.rto_at = now + self.rtt.rto

    def _probe_answered(self, ack: int, twice: bool, flying: int, now: int) -> None:
        """What the answer to a probe says (RFC 8985 §7.4): one that mended a loss cuts the window as loss does."""
        if self.probe_end is None or ack < self.probe_end:
            return
        mended = self.probe_resent and not twice
        self.probe_end = None
        if mended and not self.recovery:
            self.control.on_loss(flying, now)
            self.control.after_recovery(now)
            self.counters["tail_losses"] += 1

    # -- the timer -----------------------------------------------------------------------------------------------

    def timed_out(self, now: int) -> None:
        """The retransmission timer fired with something unacknowledged: all of it is lost (RFC 6298 §5, RFC 8985 §6.3).

        While the peer has no room that is no loss, and the first segment alone is sent again, as a probe.
        """
        board = self.scoreboard
        first = board.first
        if first is None:
            return
        self.timeouts += 1
        self.rtt.back_off()
        self.probe_at = self.reorder_at = NEVER
        self.probe_end = None
        if first.sacked:
            board.forget_sacks()  # the receiver has thrown it away, or never had it
        if self.synchronized and self.snd_wnd == 0:
            self.counters["tx_window_probes"] += 1
            self.resend(first, now, probe=True)
            self.rto_at = now + self.rtt.rto
            return
        self.counters["timeouts"] += 1
        if self.recovery != SLOW:
            self.control.on_timeout(self.snd_nxt - self.snd_una, now)
            self.resent_stamp = None
        self.recovery = SLOW
        self.recovery_end = self.snd_nxt
        self.dup_acks = 0
        for segment in board:
            if not segment.sacked:
                segment.lost = False
                board.mark_lost(segment)
        lost = sorted({id(one): one for one in board.lost if one.lost}.values(), key=lambda one: one.start)
        board.lost.clear()
        board.lost.extend(lost)
        self.rto_at = now + self.rtt.rto
