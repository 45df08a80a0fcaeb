"""TIME-WAIT: what is left of a connection that both sides have closed (RFC 9293 §3.6.1, RFC 1337, RFC 6191).

It answers late segments and waits for the last of them to die out. A SYN that is newer than everything that the old
connection sent, by sequence number or by timestamp, opens a new one at once. A reset does not end the wait.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from guest.net.tcp.segment import ACK, FIN, HALF, MASK, RST, SYN, options_of, unwrap
from guest.net.tcp.tcb import Ends, Segment, Tcb
from guest.net.tcp.timers import NEVER

if TYPE_CHECKING:
    from guest.net.tcp.layer import Tcp


class TimeWait:
    """One of them.

    Attributes:
        ends: as of a connection. expires: when it is over. since: when it began.
        reuse_addr: whether its port may be bound by whoever has SO_REUSEADDR.
        stamps: whether it had timestamps. connection: what it was, as long as its end is held.
    """

    __slots__ = (
        "_answered_at", "_field", "_host", "_offset", "_recent", "_recent_at", "connection", "ends", "expires",
        "interface", "rcv_nxt", "reuse_addr", "since", "snd_nxt", "stamps",
    )  # fmt: skip

    def __init__(self, host: Tcp, tcb: Tcb, reuse_addr: bool, now: int) -> None:
        self._host = host
        self.ends: Ends = tcb.ends
        self.connection: Tcb | None = None if tcb.end is None else tcb
        self.interface = tcb.interface
        self.snd_nxt = tcb.snd_nxt
        self.rcv_nxt = tcb.rcv_nxt
        self._field = max(0, tcb.rcv_adv - tcb.rcv_nxt) >> tcb.rcv_scale
        self.stamps = tcb.stamps
        self._offset = tcb.ts_offset
        self._recent = tcb.ts_recent
        self._recent_at = tcb.ts_recent_at
        self.reuse_addr = reuse_addr
        self.since = now
        self.expires = now + host.config.time_wait
        self._answered_at = -NEVER

    def arrives(self, segment: Segment, now: int) -> bool:
        """Answer a late segment; whether it is a SYN that opens a new connection."""
        flags = segment.flags
        seq = unwrap(self.rcv_nxt, segment.seq)
        stamp = segment.options.ts_val
        older = self.stamps and stamp is not None and (stamp - self._recent) & MASK >= HALF
        if flags & RST:
            self._host.counters["rx_dropped_reset"] += 1
            return False
        if flags & (SYN | ACK) == SYN:
            newer = self.stamps and stamp is not None and stamp != self._recent and not older
            if newer or (seq > self.rcv_nxt and not older):
                return True
        if flags & FIN and not older:
            self.since = now
            self.expires = now + self._host.config.time_wait
            self._host.waits.again(self)
        if flags & SYN or segment.length or flags & FIN or seq != self.rcv_nxt:
            if not segment.length and not flags & FIN:  # it may be an answer to ours: do not let two talk for ever
                if now - self._answered_at < self._host.config.oow_interval:
                    self._host.counters["rx_dropped_outside_window"] += 1
                    return False
                self._answered_at = now
            if self.stamps and stamp is not None and not older and seq <= self.rcv_nxt:
                self._recent = stamp
            clock = now // 1000 + self._offset & MASK
            options = options_of((clock, self._recent), ()) if self.stamps else b""
            self._host.reply(self.ends, self.snd_nxt, self.rcv_nxt, ACK, self._field, options, self.interface)
        return False

    def reusable(self, now: int) -> bool:
        """Whether our side may open a new connection between the same ends, thanks to timestamps (RFC 6191)."""
        return self.stamps and now - self.since >= self._host.config.reuse_after


class WaitLine:
    """All of them, in the order in which they end: they all take the same time."""

    __slots__ = ("members",)

    def __init__(self) -> None:
        self.members: OrderedDict[Ends, TimeWait] = OrderedDict()

    def __len__(self) -> int:
        return len(self.members)

    def add(self, wait: TimeWait) -> None:
        """One more."""
        self.members[wait.ends] = wait

    def again(self, wait: TimeWait) -> None:
        """One has begun anew."""
        self.members.move_to_end(wait.ends)

    def discard(self, wait: TimeWait) -> None:
        """One is over."""
        if self.members.get(wait.ends) is wait:
            del self.members[wait.ends]

    def oldest(self) -> TimeWait | None:
        """The one that ends first."""
        return next(iter(self.members.values()), None)
