"""What a connection does with what comes: RFC 9293 §3.10.7.4, §3.8.6, RFC 2018, RFC 5961, RFC 6093, RFC 7323.

Data in order goes to the reader, data before its turn is held and reported (SACK). Of bytes that come twice the first
ones count. Acknowledgements are for whole batches: a batch that brought two full segments or more is answered with one
at its end, less than that when the delayed-acknowledgement timer fires, unless something is sent before; what is out of
order, fills a hole or was here before is answered at once.
"""

from __future__ import annotations

from guest.net.tcp.loss import LossRecovery
from guest.net.tcp.segment import FIN, MASK
from guest.net.tcp.state import MAY_RECEIVE
from guest.net.tcp.tcb import Segment
from guest.net.tcp.timers import NEVER

TUNE_LEAST = 1000  # microseconds that a round trip is taken to last, at least, when the receive buffer is tuned


class Receiver(LossRecovery):
    """The receiving half of a connection."""

    __slots__ = ()

    # -- data ----------------------------------------------------------------------------------------------------

    def receive(self, segment: Segment, seq: int, now: int) -> None:
        """Take the payload of an acceptable segment whose acknowledgement was looked at."""
        length = segment.length
        packet = segment.packet
        if length > self.rcv_mss:
            self.rcv_mss = min(length, max(self.adv_mss, self.rcv_mss))
        nxt = self.rcv_nxt
        skip = 0
        if seq < nxt:  # what came before counts (RFC 9293 §3.10.7.4)
            skip = min(length, nxt - seq)
            if self.sack:
                self.sack_dup = (seq, seq + skip)
            self.ack_now = True
            self.counters["rx_duplicate_bytes"] += skip
            seq += skip
            length -= skip
        beyond = seq + length - (self.rcv_adv if self.peer_fin is None else min(self.rcv_adv, self.peer_fin))
        if beyond > 0:
            beyond = min(beyond, length)
            self.counters["rx_beyond_window_bytes"] += beyond
            self.ack_now = True
            length -= beyond
        if not length:
            return
        if packet.lease is not None:
            packet = packet.keep()
        if packet.frags:
            views = clip(packet.views(), skip, length)
        else:
            at = packet.data + skip
            views = [packet.area[at : at + length]]
        if seq != nxt or self.rcv.has_gap:
            self._out_of_order(seq, length, views, packet.lease)
            return
        for view in views:
            self.rcv.append(view, len(view) if packet.frags else packet.end, packet.lease)
        self.rcv_nxt = nxt + length
        self._grown()
        if self.quick:
            self.quick -= 1
            self.ack_now = True
        if segment.options.ts_ecr:
            self.echo = segment.options.ts_ecr

    def _out_of_order(self, seq: int, length: int, views: list[memoryview], lease: object) -> None:
        """Data that does not simply follow what is here: before its turn, or the start of what fills a hole."""
        self.ack_now = True
        self.ack_due += 1
        self.quick = self.config.quick_acks
        rcv = self.rcv
        before = rcv.held
        at = seq
        for view in views:
            if not rcv.insert(at, view, lease):
                self.counters["rx_dropped_out_of_order_full"] += 1
                return
            at += len(view)
        self.counters["rx_out_of_order"] += 1
        if rcv.held == before and self.sack:
            self.sack_dup = (seq, seq + length)
            self.counters["rx_duplicate_bytes"] += length
        if seq == self.rcv_nxt:
            rcv.join()
            self.rcv_nxt = rcv.end
            self._grown()

    def _grown(self) -> None:
        """There is more for the reader."""
        self.tell = True
        if self.urgent is not None and self.urgent_byte is None:
            self._urgent_arrived()

    def finished(self, position: int) -> bool:
        """The peer's FIN stands at `position`; whether everything before it is here."""
        self.peer_fin = position
        return self.take_fin()

    def take_fin(self) -> bool:
        """Pass over the peer's FIN if it is its turn; whether it was."""
        if self.peer_fin is None or self.peer_fin != self.rcv_nxt or self.rcv.has_gap:
            return False
        self.rcv_nxt += 1
        self.ack_now = True
        self.tell = True
        return True

    # -- urgent data ---------------------------------------------------------------------------------------------

    def points_at_urgent(self, segment: Segment, seq: int) -> None:
        """A segment says where urgent data ends. As Linux has it the pointer is to the byte behind (RFC 6093 §2)."""
        pointer = segment.urgent
        position = min(seq + max(pointer - 1, 0), self.rcv_adv)
        if position < self.rcv.start or (self.urgent is not None and position <= self.urgent):
            return
        if position < self.rcv_nxt and self.urgent is None and position < self.rcv.end:
            self.counters["rx_urgent_late"] += 1
            return  # it came as ordinary data, and was counted as such
        self.urgent = position
        self.urgent_byte = None
        self.urgent_read = False
        self.tell = True

    def _urgent_arrived(self) -> None:
        """Keep the urgent byte aside once it is here."""
        position = self.urgent
        if position is not None and self.rcv.start <= position < self.rcv.end:
            self.urgent_byte = self.rcv.byte_at(position)

    # -- reading -------------------------------------------------------------------------------------------------

    def readable_bytes(self, inline: bool) -> int:
        """Bytes that the next read can have. It ends before the urgent byte; one that begins there steps over it, or
        inline goes on with it.
        """
        rcv = self.rcv
        urgent = self.urgent
        if urgent is None or not rcv.start <= urgent < rcv.end:
            return rcv.end - rcv.start
        if urgent > rcv.start:
            return urgent - rcv.start
        return rcv.end - rcv.start - (not inline)

    def read(self, target: memoryview, peek: bool, inline: bool, offset: int = 0) -> int:
        """Copy what there is into `target`, as far as it goes; how many bytes."""
        rcv = self.rcv
        skip = not inline and self.urgent is not None and self.urgent == rcv.start < rcv.end
        count = min(self.readable_bytes(inline) - offset, len(target))
        if peek:
            if count > 0:
                rcv.copy_out(target, count, offset + skip)
            return max(count, 0)
        if skip:
            rcv.take(None, 1)
        if count > 0:
            rcv.take(target, count)
        if self.urgent is not None and rcv.start > self.urgent:
            self._past_urgent()
        return max(count, 0)

    def _past_urgent(self) -> None:
        self.urgent = None
        self.urgent_byte = None

    def was_read(self, count: int, now: int) -> None:
        """The reader took bytes: maybe there is a window to offer, and maybe a larger buffer would serve it better."""
        if not self.limit_fixed and self.limit < self.config.window_max:
            self._tune(count, now)
        if self.state in MAY_RECEIVE and self.window_edge() - self.rcv_adv >= min(2 * self.rcv_mss, self.limit // 2):
            self.send_ack(now)

    def _tune(self, count: int, now: int) -> None:
        """Let the buffer hold twice of what a reader takes in a round trip (dynamic right-sizing)."""
        self.copied += count
        if now - self.copied_since < max(self.rcv_rtt or self.rtt.srtt, TUNE_LEAST):
            return
        if 2 * self.copied > self.limit:
            self.limit = min(2 * self.copied + 16 * self.rcv_mss, self.config.window_max)
        self.copied = 0
        self.copied_since = now

    def _time_round(self, now: int) -> None:
        """How long an acknowledgement of ours took to bring this data: a round trip, or more where the sender waited.
        The smallest counts, and is let go of slowly.
        """
        took = max((self.stamp(now) - self.echo & MASK) * 1000, TUNE_LEAST)
        self.echo = 0
        known = self.rcv_rtt
        self.rcv_rtt = took if not known or took < known else known + (took - known) // 8

    # -- acknowledging -------------------------------------------------------------------------------------------

    def acknowledge_batch(self, now: int) -> None:
        """Send the acknowledgement that a batch is due, or see that it is sent soon."""
        if self.echo:
            self._time_round(now)
        if self.ack_now:
            if self.ack_due > 1 and not self.sack:
                for _ in range(min(self.ack_due, 16) - 1):  # each one counts where nothing else says what arrived
                    self.send_ack(now)
            self.send_ack(now)
            return
        waiting = self.rcv_nxt - self.rcv_acked
        if waiting <= 0:
            return
        if waiting >= 2 * self.rcv_mss:
            self.send_ack(now)
        elif self.ack_at == NEVER:
            self.ack_at = now + self.config.delayed_ack

    def outside(self, segment: Segment, seq: int, now: int) -> None:
        """A segment outside of the window: tell the peer where we are, but do not let it make us talk without end."""
        self.counters["rx_dropped_outside_window"] += 1
        if segment.length or segment.flags & FIN:
            if self.sack and seq < self.rcv_nxt:
                self.sack_dup = (seq, min(seq + segment.length, self.rcv_nxt)) if segment.length else None
            self.send_ack(now)
        elif now - self.oow_at >= self.config.oow_interval:
            self.oow_at = now
            self.send_ack(now)


def clip(views: list[memoryview], skip: int, length: int) -> list[memoryview]:
    """`length` bytes of `views`, without the first `skip`."""
    kept: list[memoryview] = []
    for view in views:
        if skip >= len(view):
            skip -= len(view)
            continue
        part = view[skip : skip + length]
        skip = 0
        if len(part):
            kept.append(part)
            length -= len(part)
    return kept
