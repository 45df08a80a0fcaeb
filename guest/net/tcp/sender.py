"""What a connection may send, and when: RFC 9293 §3.7.4, §3.8.6, RFC 896, RFC 3042, RFC 3168 §6.1.

`transmit` sends all that windows allow. Lost segments go first (loss.py says which those are), then new data, then the
FIN with the last of it. A segment that is not full waits where it would be a silly one:
- Nagle: while another such segment is unacknowledged, unless the user said TCP_NODELAY; or TCP_CORK or MSG_MORE, for
  200 ms.
- the window is too small for more and less than half of the largest it ever was.

A window of nothing is probed by one byte of what waits, whenever the retransmission timer, here the persist timer,
fires (RFC 9293 §3.8.6.1); such a byte is a segment like any other, and is sent again until the window opens. A window
that stays small, as of a peer whose buffer has shrunk, is used whole when it fires.
"""

from __future__ import annotations

from collections.abc import Sequence

from guest.net.tcp.scoreboard import Sent
from guest.net.tcp.segment import CWR, FIN, PSH, SYN, URG
from guest.net.tcp.state import State
from guest.net.tcp.tcb import Tcb
from guest.net.tcp.timers import NEVER

CORK_TIME = 200_000
URGENT_REACH = 0xFFFF
DATA_STATES = frozenset((State.ESTABLISHED, State.CLOSE_WAIT, State.FIN_WAIT_1, State.CLOSING, State.LAST_ACK))


class Sender(Tcb):
    """The sending half of a connection, without loss."""

    __slots__ = ()

    # -- what the user does --------------------------------------------------------------------------------------

    def queue(self, pieces: Sequence[memoryview], room: int) -> int:
        """Take up to `room` bytes of `pieces` into the send buffer; how many."""
        taken = 0
        for piece in pieces:
            part = piece if len(piece) <= room - taken else piece[: room - taken]
            self.snd.append(part)
            taken += len(part)
            if taken == room:
                break
        return taken

    def send_room(self) -> int:
        """Bytes that the send buffer still takes. Unless the user fixed it, it holds two congestion windows."""
        end = self.end
        if end is not None and end.options.sndbuf_fixed:
            most = end.options.sndbuf // 2
        else:
            most = min(self.config.sndbuf_max, max(2 * self.control.cwnd, 65536))
        return max(0, most - len(self.snd))

    # -- sizes ---------------------------------------------------------------------------------------------------

    def set_mss(self) -> None:
        """Work out what a full segment holds: the peer's word, the path, and the options that each segment has."""
        most = min(self.peer_mss, self.host.room(self))
        self.mss = max(most - (12 if self.stamps else 0), 8)
        self.control.set_mss(self.mss)

    def _burst(self) -> int:
        """Payload bytes of the largest packet to hand down: several segments, where the interface cuts them."""
        most = self.host.burst(self)
        if most <= self.mss:
            return self.mss
        return max(self.mss, (most - 12) // self.mss * self.mss)

    # -- sending -------------------------------------------------------------------------------------------------

    def transmit(self, now: int) -> None:
        """Send what may be sent."""
        board = self.scoreboard
        room = self.host.tx_room(self)
        if board.lost:
            room = self._retransmit(now, room)
            if board.lost:
                if room <= 0:
                    self.host.wait_for_room(self)
                return
        snd = self.snd
        fin = self.fin_seq
        if self.snd_nxt >= (snd.end if fin is None else fin + 1) or self.state not in DATA_STATES:
            return
        mss = self.mss
        most = self._burst()
        if board_room := self.sack_size():
            most = max(8, most - board_room)
        limit = self.snd_una + self.snd_wnd
        if not len(board) and now - self.sent_at > self.rtt.rto:
            self.control.after_idle(now - self.sent_at, self.rtt.rto)
        cwnd = self.control.cwnd
        while True:
            nxt = self.snd_nxt
            waiting = snd.end - nxt
            if waiting <= 0:
                if fin is not None and nxt == fin:
                    self._send_new(nxt, nxt, now)  # the FIN alone
                break
            size = waiting if waiting < most else most
            if size > limit - nxt:
                size = limit - nxt
                if size <= 0:
                    break
            flying = board.in_flight - (0 if self.sack else self.dup_acks * mss)  # RFC 3042: they have left the path
            if flying + (size if size < mss else mss) > cwnd:
                break
            if size > mss:  # several segments in one packet: whole ones, as far as cwnd reaches
                size = min(size, max(mss, cwnd - flying))
                if size < waiting:
                    size -= size % mss
            if size < mss and size < most and not self._worthwhile(size, waiting, now):
                break
            if room <= 0:
                self.host.wait_for_room(self)
                return
            room -= 1
            self._send_new(nxt, nxt + size, now)
        if len(board):
            if self.rto_at == NEVER:
                self.rto_at = now + self.rtt.rto
        elif self.snd_nxt < snd.end and self.push_at == NEVER and self.rto_at == NEVER:
            self.rto_at = now + self.rtt.rto  # nothing is on its way that could open the window: persist

    def _worthwhile(self, size: int, waiting: int, now: int) -> bool:
        """Whether a segment that is not full may go."""
        if size < waiting:  # the window cuts it
            return size * 2 >= self.max_wnd
        if self.fin_seq is not None:
            return True
        if self.corked:
            if self.push_at == NEVER:
                self.push_at = now + CORK_TIME
            return False
        urgent = self.snd_up is not None and self.snd_up > self.snd_nxt
        return self.nodelay or self.small_end <= self.snd_una or urgent

    def _send_new(self, start: int, end: int, now: int) -> None:
        """Send bytes for the first time, and the FIN where it follows them."""
        flags = 0
        last = end == self.snd.end
        views = self.snd.views(start, end) if end > start else ()
        length = end - start
        if last:
            flags = PSH if length else 0
            if self.fin_seq == end:
                flags |= FIN
                end += 1
            elif not length:
                return
        self.scoreboard.add(Sent(start, end, flags & FIN, now))
        self.snd_nxt = end
        self.sent_at = now
        self.quick = 0  # a conversation: our next answer acknowledges what comes
        if length < self.mss:
            self.small_end = end
        if self.cwr_due:
            self.cwr_due = False
            flags |= CWR
        self._send_data(start, flags, views, length, now, ect=self.ecn)

    def _send_data(
        self, start: int, flags: int, views: Sequence[memoryview], length: int, now: int, *, ect: bool = False
    ) -> None:
        urgent = 0
        if self.snd_up is not None:
            reach = self.snd_up - start
            if 0 < reach <= URGENT_REACH:
                urgent = reach
                flags |= URG
            elif reach > URGENT_REACH:
                urgent = URGENT_REACH
                flags |= URG
        self.send(start, flags, now, views, length, urgent=urgent, ect=ect and length > 0)

    def push(self, now: int) -> None:
        """Let what was held back by a cork go."""
        self.push_at = NEVER
        nxt, end = self.snd_nxt, self.snd.end
        room = min(self.snd_una + self.snd_wnd, nxt + max(8, self.mss - self.sack_size()), end)
        if nxt < room and not self.scoreboard.lost:
            self._send_new(nxt, room, now)
            if self.rto_at == NEVER:
                self.rto_at = now + self.rtt.rto

    def probe_window(self, now: int) -> None:
        """Send what the peer has room for, one byte where it has none, to hear what its window is."""
        nxt, end = self.snd_nxt, self.snd.end
        if nxt < end:
            self.counters["tx_window_probes"] += 1
            most = max(nxt + 1, self.snd_una + self.snd_wnd)
            self._send_new(nxt, min(end, most, nxt + max(8, self.mss - self.sack_size())), now)

    # -- sending again -------------------------------------------------------------------------------------------

    def _retransmit(self, now: int, room: int) -> int:
        """Send lost segments as far as the window of the network and the interface allow; what room is left."""
        board = self.scoreboard
        lost = board.lost
        left = 0 if self.sack else self.dup_acks * self.mss
        edge = self.snd_una + self.snd_wnd if self.synchronized else self.snd_nxt
        while lost:
            segment = lost[0]
            if not segment.lost:
                lost.popleft()
                continue
            if segment.start >= edge:  # the window has shrunk: the timer probes it (RFC 9293 §3.8.6)
                break
            flying = board.in_flight - left
            size = min(segment.end - segment.start, self.mss)
            if flying > 0 and not self.forced and flying + size > self.control.cwnd:
                break
            if room <= 0:
                break
            room -= 1
            self.forced = False
            if self.resent_stamp is None and self.stamps:
                self.resent_stamp = self.stamp(now)
            lost.popleft()
            self.resend(segment, now)
        return room

    def resend(self, segment: Sent, now: int, *, probe: bool = False) -> None:
        """Send a segment again; one that is too long by now goes in pieces, the rest of it as a lost one. As a `probe`
        of a closed window that is no retransmission.
        """
        board = self.scoreboard
        if segment.flags & SYN:
            board.resent(segment, now)
            self.resend_syn(now)
            return
        size = segment.end - segment.start - (segment.flags & FIN)
        most = max(8, self._burst() - self.sack_size())
        if size > most:
            rest = board.split(segment, most)
            board.mark_lost(rest)
            size = most
        board.resent(segment, now)
        if not probe:
            self.retransmits += 1
            self.counters["tx_retransmits"] += 1
        start = segment.start
        flags = segment.flags & FIN
        if start + size == self.snd.end and size:
            flags |= PSH
        views = self.snd.views(start, start + size) if size else ()
        self._send_data(start, flags, views, size, now)
        if self.rto_at == NEVER:
            self.rto_at = now + self.rtt.rto

    def resend_syn(self, now: int) -> None:
        """The connection's own to do: it knows which SYN it sent."""
        raise AssertionError("Connection sends SYNs")
