"""Listening: half-open connections, the queue of open ones, and SYN cookies (RFC 9293 §3.10.7.2, RFC 4987).

A SYN becomes a `Request`, which is small, answers with SYN,ACK and repeats that. The ACK that completes it makes the
connection, as a new end in the accept queue. A full accept queue lets no SYN in and no request complete: the peer
tries again, and so do we. When too many requests are waiting the answer to a SYN is a cookie that needs no memory; what
comes back with it makes a connection as if there had been a request.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from guest.net.tcp.connection import Connection
from guest.net.tcp.secrets import PERIOD, PERIODS, Cookie
from guest.net.tcp.segment import ACK, CWR, ECE, HALF, MASK, RST, SYN, Options, syn_options, unwrap
from guest.net.tcp.state import Event
from guest.net.tcp.tcb import DEFAULT_MSS, DEFAULT_MSS_V6, Ends, Segment, scale_for
from guest.net.tcp.timers import NEVER

if TYPE_CHECKING:
    from guest.net.family import IpInterface
    from guest.net.tcp.endpoint import TcpEndpoint
    from guest.net.tcp.layer import Tcp


class Request:
    """A connection that has received a SYN and sent SYN,ACK.

    Attributes:
        ends: as of a connection. iss, irs: the first sequence numbers. mss, scale, sack, ecn: what its SYN has offered.
        stamp: the peer's timestamp, None without. ts_offset: of ours.
        tries: how often SYN,ACK was sent again. answered_at: when it was sent; -1 for nobody knows.
    """

    __slots__ = (
        "_at", "_listener", "answered_at", "ecn", "ends", "interface", "irs", "iss", "mss", "sack", "scale",
        "scheduled", "stamp", "tries", "ts_offset",
    )  # fmt: skip

    def __init__(
        self, listener: Listener, ends: Ends, iss: int, irs: int, ts_offset: int, offered: Cookie, stamp: int | None,
        interface: IpInterface | None,
    ) -> None:  # fmt: skip
        self._listener = listener
        self.ends = ends
        self.iss = iss
        self.irs = irs
        self.ts_offset = ts_offset
        self.mss, self.scale, self.sack, self.ecn = offered
        self.stamp = stamp
        self.interface = interface
        self.tries = 0
        self.answered_at = -1
        self.scheduled = NEVER
        self._at = NEVER

    def answer(self, now: int) -> None:
        """Send SYN,ACK, and see that it is sent again."""
        config = self._listener.host.config
        self.answered_at = now
        self._at = now + min(config.rto_initial << self.tries, config.rto_max)
        clock = None if self.stamp is None else (now // 1000 + self.ts_offset) & MASK
        self._listener.send_syn_ack(self, clock, ecn=self.ecn and not self.tries)
        self._listener.host.arm_request(self)

    def deadline(self) -> int:
        return self._at

    def poll(self, now: int) -> None:
        """Answer again, or give up."""
        listener = self._listener
        if self.tries >= listener.host.config.synack_retries:
            listener.host.counters["syn_queue_expired"] += 1
            listener.forget(self)
            return
        self.tries += 1
        listener.host.counters["tx_retransmits"] += 1
        self.answer(now)

    def dismiss(self) -> None:
        """Do nothing more."""
        self._at = NEVER

    def arrives(self, segment: Segment, now: int) -> None:
        """RFC 9293 §3.10.7.4 for SYN-RECEIVED."""
        listener = self._listener
        counters = listener.host.counters
        flags = segment.flags
        seq = unwrap(self.irs + 1, segment.seq)
        window = min(listener.window(), 0xFFFF)
        stamp = segment.options.ts_val
        old = self.stamp is not None and stamp is not None and (stamp - self.stamp) & MASK >= HALF
        if flags & RST:
            if seq == self.irs + 1:
                counters["rx_resets"] += 1
                listener.forget(self)
            else:
                counters["rx_dropped_reset"] += 1
            return
        if flags & SYN:
            self.answer(now)  # our answer was lost; or it is a challenge (RFC 5961 §4.2)
            return
        if old or not self.irs + 1 <= seq <= self.irs + 1 + window:
            counters["rx_dropped_outside_window"] += 1
            self.answer(now)
            return
        if not flags & ACK:
            counters["rx_dropped_no_ack"] += 1
            return
        if segment.ack != self.iss + 1 & MASK:
            counters["rx_dropped_ack"] += 1
            listener.host.reset(self.ends, segment, self.interface)
            return
        listener.complete(self, segment, now)


class Listener:
    """The listening side of an end.

    Args:
        host: the TCP that it belongs to.
        end: that listens.
        backlog: connections that may wait to be accepted; as on Linux one more than that is let in.

    Attributes:
        requests: half-open connections. ready: open ones that wait to be accepted.
    """

    def __init__(self, host: Tcp, end: TcpEndpoint, backlog: int) -> None:
        self.host = host
        self.end = end
        self.backlog = backlog
        self.requests: dict[Ends, Request] = {}
        self.ready: deque[TcpEndpoint] = deque()
        self._cookie_at = -NEVER  # when a cookie was sent last

    @property
    def full(self) -> bool:
        """Whether no more connections may wait."""
        return len(self.ready) > self.backlog

    def window(self) -> int:
        """Bytes that a new connection offers."""
        return self.end.receive_limit()

    # -- segments ------------------------------------------------------------------------------------------------

    def arrives(self, ends: Ends, segment: Segment, interface: IpInterface | None, now: int, above: int | None) -> None:
        """A segment for this end that belongs to no connection; `above` is a sequence number to start beyond."""
        flags = segment.flags
        if flags & RST:
            self.host.counters["rx_dropped_reset"] += 1
        elif flags & ACK:
            if flags & SYN or not self._cookie_returns(ends, segment, interface, now):
                self.host.counters["rx_dropped_ack"] += 1
                self.host.reset(ends, segment, interface)
        elif flags & SYN:
            self._syn(ends, segment, interface, now, above)
        else:
            self.host.counters["rx_dropped_no_ack"] += 1

    def _syn(self, ends: Ends, segment: Segment, interface: IpInterface | None, now: int, above: int | None) -> None:
        host, config = self.host, self.host.config
        counters = host.counters
        if self.full:
            counters["rx_dropped_accept_queue"] += 1
            return
        options = segment.options
        mss = options.mss or (DEFAULT_MSS if ends[2] >> 32 == 0xFFFF else DEFAULT_MSS_V6)
        stamp = options.ts_val if config.timestamps else None
        scale = options.scale if config.window_scale else None
        sack = options.sack_permitted and config.sack
        ecn = config.ecn > 0 and segment.flags & (ECE | CWR) == ECE | CWR
        offered = Cookie(mss, scale, sack, ecn)
        iss, offset = host.secrets.sequence(ends, now)
        if above is not None:
            iss = above & MASK
        request = Request(self, ends, iss, segment.seq, offset, offered, stamp, interface)
        if len(self.requests) >= max(1, min(self.backlog, config.syn_queue)):
            if not config.syn_cookies:
                counters["rx_dropped_syn_queue"] += 1
                return
            counters["tx_syn_cookies"] += 1
            self._cookie_at = now
            request.iss = host.secrets.cookie(ends, segment.seq, mss, now)
            clock = None
            if stamp is not None:
                clock = host.secrets.cookie_stamp((now // 1000 + offset) & MASK, scale, sack, ecn)
            else:
                request.scale, request.sack, request.ecn = None, False, False
            self.send_syn_ack(request, clock, ecn=request.ecn)
            return
        counters["rx_opened"] += 1
        self.requests[ends] = request
        host.entries[ends] = request
        request.answer(now)

    def send_syn_ack(self, request: Request, clock: int | None, *, ecn: bool) -> None:
        """Answer a SYN."""
        host = self.host
        stamps = None if clock is None or request.stamp is None else (clock, request.stamp)
        scale = None
        if request.scale is not None:
            scale = scale_for(self.window(), self.end.options.rcvbuf_fixed, host.config)
        maxseg = self.end.settings.maxseg
        room = host.room_of(request.ends, request.interface)
        options = syn_options(min(room, maxseg) if maxseg else room, scale, request.sack, stamps)
        flags = SYN | ACK | (ECE if ecn else 0)
        field = min(self.window(), 0xFFFF)
        host.reply(request.ends, request.iss, request.irs + 1, flags, field, options, request.interface)

    def _cookie_returns(self, ends: Ends, segment: Segment, interface: IpInterface | None, now: int) -> bool:
        """Whether an ACK answers a cookie of ours; then there is a connection."""
        if now - self._cookie_at > PERIODS * PERIOD:
            return False
        host = self.host
        irs, cookie = segment.seq - 1 & MASK, segment.ack - 1 & MASK
        options = segment.options
        _, offset = host.secrets.sequence(ends, now)
        stamp = None
        if options.ts_val is not None:
            stamp = options.ts_ecr
        offered = host.secrets.check_cookie(ends, irs, cookie, stamp, now)
        if offered is None:
            return False
        host.counters["rx_syn_cookies"] += 1
        request = Request(self, ends, cookie, irs, offset, offered, options.ts_val, interface)
        self.complete(request, segment, now)
        return True

    # -- connections ---------------------------------------------------------------------------------------------

    def complete(self, request: Request, segment: Segment, now: int) -> None:
        """The handshake is over: make the connection, and let it see the segment."""
        host = self.host
        if self.full:
            host.counters["rx_dropped_accept_queue"] += 1
            return
        if self.end.settings.defer_accept and not segment.length and request.tries == 0:
            host.counters["rx_deferred"] += 1
            return
        self.forget(request)
        connection = Connection(host, request.ends, request.iss, request.ts_offset, now)
        child = self.end.child(connection, request.interface)
        connection.stamps = request.stamp is not None
        connection.sack = request.sack
        connection.rcv_scale = scale_for(self.window(), self.end.options.rcvbuf_fixed, host.config)
        connection.event(Event.PASSIVE_OPEN)
        connection.event(Event.SYN)
        connection.snd_nxt = request.iss + 1
        connection.retransmits = request.tries
        if request.tries == 0 and request.answered_at >= 0:
            connection.rtt.sample(now - request.answered_at)
        connection.adv_mss = connection.own_mss()
        offered = Options(request.mss, request.scale, request.sack, request.stamp)
        syn = Segment(request.irs, 0, SYN | (ECE | CWR if request.ecn else 0), 0, 0, offered, segment.packet, 0, False)
        connection.accepted(syn, request.irs, now)
        host.entries[request.ends] = connection
        connection.arrives(segment, now)
        if connection.error or not connection.synchronized:
            child.close()  # the segment was no good
            return
        host.counters["accepted"] += 1
        self.ready.append(child)
        host.touched(connection)
        self.end.changed()

    def accept(self) -> TcpEndpoint | None:
        """The connection that has waited longest, or None."""
        return self.ready.popleft() if self.ready else None

    def forget(self, request: Request) -> None:
        """A request is over."""
        request.dismiss()
        self.host.disarm_request(request)
        if self.requests.pop(request.ends, None) is not None:
            self.host.entries.pop(request.ends, None)

    def close(self) -> None:
        """Listen no more: requests are forgotten, and connections that nobody accepted are reset."""
        for request in list(self.requests.values()):
            self.forget(request)
        while self.ready:
            self.ready.popleft().kill()
