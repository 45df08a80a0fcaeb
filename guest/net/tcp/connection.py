"""A connection: what each segment and each call does to it (RFC 9293 §3.10), and its timers.

Sans-I/O: segments and `now` go in through `arrives`, calls and `poll`; segments come out through `Host.emit`, and
`deadline` says when `poll` is due. `flush` ends each of these: it sends what may be sent and acknowledged, and tells
the end. Whoever hands in a batch of segments flushes once, at its end.

Which state follows which is state.py's to say. LISTEN is listener.py's, TIME-WAIT timewait.py's; a connection passes
through both on its way in and out.
"""

from __future__ import annotations

import errno

from guest.net.tcp.congestion import CONTROLS
from guest.net.tcp.loss import SLOW
from guest.net.tcp.receiver import Receiver
from guest.net.tcp.rtt import RttEstimator
from guest.net.tcp.scoreboard import Scoreboard, Sent
from guest.net.tcp.segment import ACK, CWR, ECE, FIN, HALF, MASK, RST, SYN, URG, Options, syn_options, unwrap
from guest.net.tcp.state import MAY_RECEIVE, Event, State
from guest.net.tcp.tcb import DEFAULT_MSS, DEFAULT_MSS_V6, Segment, scale_for
from guest.net.tcp.timers import NEVER

STAMP_AGE = 24 * 24 * 3600 * 1_000_000  # RFC 7323 §5.5: a timestamp that is older says nothing
RTO_AFTER_SYN_LOSS = 3_000_000  # RFC 6298 §5.7
BUSY_RETRY = 500_000  # until a timer that found no room on the card tries again


class Connection(Receiver):
    """One connection."""

    __slots__ = ()

    # -- opening -------------------------------------------------------------------------------------------------

    def open(self, now: int) -> None:
        """Send a SYN."""
        config = self.config
        self.event(Event.ACTIVE_OPEN)
        self.stamps = config.timestamps
        self.sack = config.sack
        self.rcv_scale = scale_for(self.limit, self.limit_fixed, config) if self.scaling else 0
        self.rcv_adv = min(self.limit, 0xFFFF)
        self.ecn = config.ecn == 1
        self.adv_mss = self.own_mss()
        self.scoreboard.add(Sent(self.iss, self.iss + 1, SYN, now))
        self.snd_nxt = self.iss + 1
        self.rto_at = now + self.rtt.rto
        self._send_syn(now)

    def own_mss(self) -> int:
        """What our SYN says: the most that the way back carries, or what the user wants."""
        most = self.host.room(self)
        maxseg = 0 if self.end is None else self.end.settings.maxseg
        return min(most, maxseg) if maxseg else most

    def _send_syn(self, now: int) -> None:
        """Send, or send again, our SYN; with an ACK once the peer's has come."""
        answer = self.state is State.SYN_RECEIVED
        again = self.timeouts > 0
        flags = SYN | (ACK if answer else 0)
        if self.ecn and not again:
            flags |= ECE if answer else ECE | CWR
        stamps = (self.stamp(now), self.ts_recent if answer else 0) if self.stamps else None
        scale = self.rcv_scale if self.scaling else None
        options = syn_options(self.adv_mss, scale, self.sack, stamps)
        field = min(self.limit, 0xFFFF)
        self.rcv_acked = self.rcv_nxt
        self.ack_now = False
        self.host.emit(self, self.iss, flags, field, 0, options, (), 0, False)

    def resend_syn(self, now: int) -> None:
        self.counters["tx_retransmits"] += 1
        self._send_syn(now)

    def accepted(self, segment: Segment, irs: int, now: int) -> None:
        """Take over the peer's SYN: its number and options (RFC 9293 §3.10.7.3). The state is not changed."""
        self.irs = irs
        nxt = irs + 1
        self.rcv_nxt = self.rcv_acked = nxt
        self.rcv.start = self.rcv.end = nxt
        self.rcv_adv = nxt + min(self.limit, 0xFFFF)
        self.snd_wnd = self.max_wnd = segment.window  # the window of a SYN is never scaled (RFC 7323 §2.2)
        self.snd_wl1 = irs
        self.snd_wl2 = self.snd_una
        self._agree(segment.options, segment.flags, now)

    def _agree(self, options: Options, flags: int, now: int) -> None:
        """Use what both sides have offered."""
        if options.mss is not None:
            self.peer_mss = max(options.mss, 64)  # less would be a way to make us send headers alone
        maxseg = 0 if self.end is None else self.end.settings.maxseg
        if maxseg:
            self.peer_mss = min(self.peer_mss, maxseg)
        self.scaling = self.scaling and options.scale is not None
        self.snd_scale = options.scale if self.scaling and options.scale is not None else 0
        if not self.scaling:
            self.rcv_scale = 0
        self.stamps = self.stamps and options.ts_val is not None
        if self.stamps and options.ts_val is not None:
            self.ts_recent = options.ts_val
            self.ts_recent_at = now
        self.sack = self.sack and options.sack_permitted
        if flags & ACK:
            self.ecn = self.ecn and flags & (ECE | CWR) == ECE
        else:
            self.ecn = self.config.ecn > 0 and flags & (ECE | CWR) == ECE | CWR

    def _established(self, now: int) -> None:
        """Both SYNs are acknowledged: start to send."""
        self.event(Event.SYN_ACKED)
        config = self.config
        if self.sack and config.rack:
            self.scoreboard = Scoreboard(timed=True)
        self.mss = 0
        lost = self.timeouts > 0 or self.retransmits > 0
        name = config.congestion if self.end is None else self.end.settings.congestion
        most = max(min(self.peer_mss, self.host.room(self)) - (12 if self.stamps else 0), 8)
        initial = most if lost else min(config.initial_segments * most, max(2 * most, 14600))  # RFC 6928 §2
        self.control = CONTROLS[name](most, initial)
        self.set_mss()
        if lost and not self.rtt.samples:
            self.rtt = RttEstimator(RTO_AFTER_SYN_LOSS, config.rto_min, config.rto_max, config.rto_min)
        self.timeouts = 0
        self.recovery = 0
        self.recovery_end = self.snd_una
        self.copied_since = now
        self.rto_at = NEVER
        self.keep_alive(now)

    # -- a segment arrives ---------------------------------------------------------------------------------------

    def arrives(self, segment: Segment, now: int) -> None:
        """RFC 9293 §3.10.7.3 and §3.10.7.4."""
        if self.state is State.SYN_SENT:
            self._arrives_in_syn_sent(segment, now)
        elif self.state is not State.CLOSED:
            self._arrives(segment, now)
        if self.config.check:
            self.check()

    def _arrives_in_syn_sent(self, segment: Segment, now: int) -> None:
        flags = segment.flags
        ack = unwrap(self.snd_una, segment.ack)
        acks_us = bool(flags & ACK) and ack == self.snd_nxt
        if flags & ACK and not acks_us:
            if not flags & RST:
                self.reset(segment.ack)
            self.counters["rx_dropped_ack"] += 1
            return
        if flags & RST:
            if acks_us:
                self.abort(errno.ECONNREFUSED, now)
            else:
                self.counters["rx_dropped_reset"] += 1
            return
        if not flags & SYN:
            self.counters["rx_dropped_no_syn"] += 1
            return
        if segment.options.ts_ecr and acks_us and not self.timeouts and self.stamps:
            self.rtt.sample(((self.stamp(now) - segment.options.ts_ecr) & MASK) * 1000)
        first = self.scoreboard.first
        if acks_us and first is not None and first.tries == 1:
            self.rtt.sample(now - first.sent_at)
        self.accepted(segment, segment.seq, now)
        self.heard_at = now
        self.ack_now = True
        if not acks_us:  # both have opened at once (RFC 9293 §3.5, figure 7)
            self.event(Event.SYN)
            self._send_syn(now)
            self.rto_at = now + self.rtt.rto
            return
        self.scoreboard.acknowledge(ack)
        self.snd_una = self.snd_wl2 = ack
        self._established(now)
        if segment.length or flags & FIN:
            self._take(segment, self.rcv_nxt, flags, now)

    def _arrives(self, segment: Segment, now: int) -> None:
        flags = segment.flags
        options = segment.options
        seq = unwrap(self.rcv_nxt, segment.seq)
        length = segment.length
        if flags & SYN and self.state is State.SYN_RECEIVED and seq + 1 == self.rcv_nxt:
            seq += 1  # of two that opened at once: the SYN is here already
            flags &= ~SYN
        if self.stamps and not flags & RST:
            if options.ts_val is None:
                self.counters["rx_dropped_no_timestamp"] += 1  # RFC 7323 §3.2
                return
            if (options.ts_val - self.ts_recent) & MASK >= HALF and now - self.ts_recent_at < STAMP_AGE:
                self.counters["rx_dropped_old_timestamp"] += 1  # PAWS, RFC 7323 §5.3 R1
                self.outside(segment, seq, now)
                return
        # First, the sequence number. Acknowledgements are looked at even if the window is closed.
        edge = self.rcv_adv
        behind = seq > edge or (length and seq == edge > self.rcv_nxt)
        if behind or seq + length + (flags & FIN) < self.rcv_nxt:
            if flags & RST:
                self.counters["rx_dropped_reset"] += 1
            elif flags & SYN:
                self.send_challenge(now)
            else:
                self.outside(segment, seq, now)
            return
        self.heard_at = now
        self.keepalives = 0
        if flags & (RST | SYN):
            if flags & RST:
                self._reset_arrives(seq, now)
            else:
                self.counters["rx_dropped_syn"] += 1
                self.send_challenge(now)  # RFC 5961 §4.2
            return
        if not flags & ACK:
            self.counters["rx_dropped_no_ack"] += 1
            return
        ack = unwrap(self.snd_una, segment.ack)
        if self.state is State.SYN_RECEIVED:
            if not self.snd_una < ack <= self.snd_nxt:
                self.reset(segment.ack)
                self.counters["rx_dropped_ack"] += 1
                return
            self.scoreboard.acknowledge(self.iss + 1)
            self.snd_una = self.iss + 1
            self.snd_wnd = self.max_wnd = segment.window << self.snd_scale
            self.snd_wl1 = seq
            self.snd_wl2 = ack
            self._established(now)
        if ack > self.snd_nxt or ack < self.snd_una - max(self.max_wnd, 1):
            self.counters["rx_dropped_ack"] += 1
            self.send_challenge(now)  # RFC 5961 §5.2
            return
        if self.stamps and options.ts_val is not None and seq <= self.rcv_acked:
            self.ts_recent = options.ts_val  # RFC 7323 §4.3
            self.ts_recent_at = now
        if ack >= self.snd_una:
            self.acknowledge(segment, ack, seq, now)
            if self.fin_seq is not None and ack > self.fin_seq and self._fin_acked(now):
                return
        if segment.congested:
            self.ece_due = self.ecn
            self.ack_now = self.ack_now or self.ecn
        if self.ecn and flags & CWR:
            self.ece_due = segment.congested
        self._take(segment, seq, flags, now)

    def _take(self, segment: Segment, seq: int, flags: int, now: int) -> None:
        """The urgent pointer, the payload and the FIN of a segment."""
        length = segment.length
        if self.state in MAY_RECEIVE:
            if flags & URG:
                self.points_at_urgent(segment, seq)
            if length:
                if self.end is None and seq + length > self.rcv_nxt:
                    self.counters["rx_dropped_nobody"] += 1  # nobody will ever read it (RFC 9293 §3.10.4.4)
                    self.reset(segment.ack)
                    self.abort(errno.ECONNRESET, now)
                    return
                self.receive(segment, seq, now)
        elif length or flags & FIN:
            self.ack_now = True  # it came before, or comes behind the FIN
            return
        if flags & FIN and self.peer_fin is None and self.rcv.last <= seq + length <= self.rcv_adv:
            self.finished(seq + length)
        elif flags & FIN:
            self.ack_now = True  # it came before, or beyond the window, or stands where data is: that cannot be
        if self.peer_fin is not None and (self.rcv_nxt > self.peer_fin or self.take_fin()):
            self._fin_arrives(now)

    def _fin_arrives(self, now: int) -> None:
        """Everything up to the peer's FIN is here."""
        if self.state in MAY_RECEIVE:
            self.event(Event.FIN)
            if self.state is State.TIME_WAIT:
                self._time_wait(now)

    def _fin_acked(self, now: int) -> bool:
        """The peer has our FIN; whether that was the end."""
        if self.state is State.FIN_WAIT_1:
            self.event(Event.FIN_ACKED)
            if self.end is None:
                return self._await_fin(now)
        elif self.state is State.CLOSING:
            self.event(Event.FIN_ACKED)
            self._time_wait(now)
            return True
        elif self.state is State.LAST_ACK:
            self.event(Event.FIN_ACKED)
            self._over(0)
            return True
        return False

    def _reset_arrives(self, seq: int, now: int) -> None:
        """RFC 5961 §3.2: only the number that is expected next resets at once."""
        if seq != self.rcv_nxt:
            self.counters["rx_dropped_reset"] += 1
            self.send_challenge(now)
            return
        if self.state is State.SYN_RECEIVED:
            self.abort(errno.ECONNREFUSED, now)
        elif self.state is State.CLOSE_WAIT:
            self.abort(errno.EPIPE, now)
        else:
            self.abort(errno.ECONNRESET, now)

    # -- what the user does --------------------------------------------------------------------------------------

    def finish(self, now: int) -> None:
        """Send nothing more after what waits (RFC 9293 §3.10.4)."""
        if self.state is State.SYN_SENT:
            self.event(Event.CLOSE)
            self._over(0)
        elif self.state in (State.SYN_RECEIVED, State.ESTABLISHED, State.CLOSE_WAIT):
            self.fin_seq = self.snd.end
            self.event(Event.CLOSE)

    def let_go(self, now: int) -> None:
        """Nobody holds the connection any more: it ends by itself, within bounds."""
        self.end = None
        if self.state is State.FIN_WAIT_2:
            self._await_fin(now)

    def _await_fin(self, now: int) -> bool:
        """Nobody holds the connection, and the peer's FIN is all that is missing: wait as long as TCP_LINGER2 says.

        Whether that was no time at all, and the connection is over.
        """
        wait = self.holder.settings.linger2
        if wait < 0:
            self.kill(now)
            return True
        self.end_at = now + (wait or self.config.fin_timeout)
        return False

    def reset(self, seq: int) -> None:
        """Send a reset with the number that the peer expects, as it said itself."""
        self.counters["tx_resets"] += 1
        self.host.emit(self, seq, RST, 0, 0, b"", (), 0, False)

    def kill(self, now: int) -> None:
        """Reset the connection from our side (RFC 9293 §3.10.5)."""
        if self.state in (State.CLOSED, State.SYN_SENT, State.TIME_WAIT):
            self.abort(0, now)
            return
        self.counters["tx_resets"] += 1
        self.send(self.snd_nxt, RST, now)
        self.abort(0, now)

    def abort(self, error: int, now: int) -> None:
        """The connection is over, for a reason: an errno, or 0 where it was ours."""
        if self.state is State.CLOSED:
            return
        self.event(Event.ABORT)
        self._over(error)

    def _over(self, error: int) -> None:
        """Forget everything but what the user may still read."""
        self.error = error
        self.rto_at = self.probe_at = self.reorder_at = self.ack_at = self.alive_at = self.end_at = NEVER
        self.push_at = NEVER
        self.ack_now = False
        self.scoreboard.clear()
        self.snd.clear()
        self.tell = True
        self.host.gone(self)

    def _time_wait(self, now: int) -> None:
        """Both sides have closed: what is left to do is to answer late segments."""
        self.rto_at = self.probe_at = self.reorder_at = self.alive_at = self.end_at = self.push_at = NEVER
        self.scoreboard.clear()
        self.tell = True
        if self.ack_now:
            self.send_ack(now)
        self.host.wait(self, now)

    # -- what the network says -----------------------------------------------------------------------------------

    def unreachable(self, number: int, now: int) -> None:
        """ICMP says that the peer cannot be reached: fatal only for who is still knocking (RFC 5461 §4)."""
        if self.state in (State.SYN_SENT, State.SYN_RECEIVED):
            self.abort(number, now)
        else:
            self.soft_error = number

    def path_narrowed(self, now: int) -> None:
        """The path takes less than we thought: what was too long for it is sent again in smaller pieces (RFC 1191)."""
        before = self.mss
        self.set_mss()
        if self.mss >= before or self.state is State.SYN_SENT:
            return
        self.counters["path_mtu_lowered"] += 1
        for segment in list(self.scoreboard):
            if segment.end - segment.start > self.mss:
                self.scoreboard.mark_lost(segment)

    # -- the end of a batch --------------------------------------------------------------------------------------

    def flush(self, now: int) -> None:
        """Send what may be sent, acknowledge what is due, and tell the end."""
        state = self.state
        if state is not State.CLOSED and state is not State.SYN_SENT and state is not State.TIME_WAIT:
            if self.scoreboard.lost or self.snd_nxt < self.snd_end:
                self._send_what_may_go(now)
            if self.rcv_nxt != self.rcv_acked or self.ack_now:
                self.acknowledge_batch(now)
        if self.tell:
            self.tell = False
            if self.end is not None or self.holder.closed:  # whoever has closed it may linger
                self.holder.changed()
        self.host.arm(self)

    def _send_what_may_go(self, now: int) -> None:
        """Transmit; what is more than one segment goes to the device in one batch."""
        nxt = self.snd_nxt
        if self.snd_end - nxt <= self.mss and not self.scoreboard.lost:
            self.transmit(now)
        else:
            interface = self.host.hold(self)
            try:
                self.transmit(now)
            finally:
                if interface is not None:
                    interface.release()
        if self.snd_nxt != nxt:
            self.schedule_probe(now)

    # -- timers --------------------------------------------------------------------------------------------------

    def deadline(self) -> int:
        return min(
            self.rto_at, self.ack_at, self.probe_at, self.reorder_at, self.push_at, self.alive_at, self.end_at
        )

    def poll(self, now: int) -> None:
        """Do what is due."""
        if self.ack_at <= now:
            self.ack_at = NEVER
            self.counters["delayed_acks"] += 1
            self.send_ack(now)
        if self.reorder_at <= now:
            self._find_lost(now)
        if self.push_at <= now:
            self.push(now)
        if self.probe_at <= now:
            self.probe_tail(now)
        if self.rto_at <= now:
            self._retransmission_timer(now)
        if self.alive_at <= now:
            self.keep_alive(now)
        if self.end_at <= now:
            self.counters["fin_timeouts"] += 1
            self.end_at = NEVER
            if self.state is State.FIN_WAIT_2:
                self.abort(0, now)
            elif self.state is not State.CLOSED:
                self.kill(now)
        if self.config.check:
            self.check()
        self.flush(now)

    def _retransmission_timer(self, now: int) -> None:
        """The retransmission or persist timer."""
        config = self.config
        self.rto_at = NEVER
        most = self._patience()
        limit = 0 if self.end is None else self.end.settings.user_timeout
        first = self.scoreboard.first
        if not self.timeouts:
            self.stuck_at = self.sent_at if first is None else first.sent_at
        if now - self.stuck_at >= limit if limit else self.timeouts >= most:
            self.counters["given_up"] += 1
            self.abort(self.soft_error or errno.ETIMEDOUT, now)
            return
        if first is None:
            if self.snd_nxt < self.snd.end:
                self.timeouts += 1
                self.probe_window(now)
                self.rtt.back_off()
                self.rto_at = now + self.rtt.rto
            return
        if self.host.tx_room(self) <= 0:  # our own card is busy, as when many timers fire at once: that is no loss
            self.counters["tx_stalls"] += 1
            self.rto_at = now + min(self.rtt.rto, BUSY_RETRY)
            return
        self.timed_out(now)
        black_hole = config.black_hole_after
        if black_hole and self.timeouts >= black_hole and self.recovery == SLOW and self.mss > 8:
            self._suspect_path(first)
        if limit:
            self.rto_at = min(self.rto_at, max(now, self.stuck_at + limit))
        self._retransmit(now, 1)

    def _patience(self) -> int:
        """How often a segment may be sent again."""
        config = self.config
        if self.state is State.SYN_SENT:
            wanted = 0 if self.end is None else self.end.settings.syncnt
            return wanted or config.syn_retries
        if self.state is State.SYN_RECEIVED:
            return config.synack_retries
        if self.end is not None:
            return config.retries
        return config.linger_retries if self.snd_wnd == 0 else min(config.retries, config.linger_retries)

    def _suspect_path(self, first: Sent) -> None:
        """Full segments vanish without a word: try smaller ones, and full ones again when that is no better (RFC 4821
        §7.7).
        """
        if first.end - first.start < self.mss:
            return
        wide = self.wide_mss or self.peer_mss
        sizes = (self.config.base_mss, DEFAULT_MSS) if self.v4 else (DEFAULT_MSS_V6,)
        smaller = [size for size in sizes if size < self.peer_mss]
        self.peer_mss = smaller[0] if smaller else wide
        self.wide_mss = wide if smaller else 0
        self.counters["black_holes"] += 1
        self.set_mss()

    def keep_alive(self, now: int) -> None:
        """The keepalive timer (RFC 9293 §3.8.4): probes after a long silence, and gives up after some."""
        self.alive_at = NEVER
        end = self.end
        if end is None or not end.options.keepalive or self.state in (State.CLOSED, State.SYN_SENT, State.TIME_WAIT):
            return
        settings = end.settings
        if len(self.scoreboard):
            self.alive_at = now + settings.keepidle  # the retransmission timer finds out as well
            return
        if self.keepalives:
            if (self.keepalives >= settings.keepcnt and not settings.user_timeout) or (
                settings.user_timeout and now - self.heard_at >= settings.user_timeout
            ):
                self.counters["keepalive_given_up"] += 1
                self.kill(now)
                self.error = errno.ETIMEDOUT
                return
            due = True
        else:
            due = now - self.heard_at >= settings.keepidle
        if not due:
            self.alive_at = self.heard_at + settings.keepidle
            return
        self.keepalives += 1
        self.counters["tx_keepalives"] += 1
        self.send(self.snd_una - 1, ACK, now)
        self.alive_at = now + settings.keepintvl
