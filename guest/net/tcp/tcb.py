"""The transmission control block: what a connection knows (RFC 9293 §3.3.1), and how a segment of it leaves.

Sequence numbers count without end (segment.py); `iss` and `irs` are the wire's first ones. `snd_una`, `snd_nxt`,
`rcv_nxt` are the RFC's; `rcv_adv` is the right edge of the window that was offered, which never moves back.

The classes build on each other, each with one concern, and a file each:
    Tcb ← Sender (what may be sent) ← LossRecovery (what must be sent again) ← Receiver ← Connection (states, timers)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from guest.net.pbuf import PacketBuffer
from guest.net.tcp.buffers import ReceiveBuffer, SendBuffer
from guest.net.tcp.config import TcpConfig
from guest.net.tcp.congestion import CONTROLS, Control
from guest.net.tcp.rtt import RttEstimator
from guest.net.tcp.scoreboard import Scoreboard
from guest.net.tcp.segment import ACK, ECE, MASK, MAX_SCALE, Options, options_of
from guest.net.tcp.state import Event, State, after
from guest.net.tcp.timers import NEVER

if TYPE_CHECKING:
    from guest.net.family import IpInterface
    from guest.net.tcp.endpoint import TcpEndpoint

Ends = tuple[int, int, int, int]  # local address and port, remote address and port

DEFAULT_MSS = 536  # RFC 9293 §3.7.1: of a peer that does not say; IPv6: 1220
DEFAULT_MSS_V6 = 1220
TIMESTAMP_SIZE = 12


class Segment:
    """A received segment.

    Attributes:
        seq, ack, flags, window, urgent: as on the wire. options: parsed.
        packet: with its headers pulled. length: of its payload. congested: it came with CE (RFC 3168).
    """

    __slots__ = ("ack", "congested", "flags", "length", "options", "packet", "seq", "urgent", "window")

    def __init__(
        self, seq: int, ack: int, flags: int, window: int, urgent: int, options: Options, packet: PacketBuffer,
        length: int, congested: bool,
    ) -> None:  # fmt: skip
        self.seq = seq
        self.ack = ack
        self.flags = flags
        self.window = window
        self.urgent = urgent
        self.options = options
        self.packet = packet
        self.length = length
        self.congested = congested


class Host(Protocol):
    """What a connection asks of the TCP that it belongs to."""

    config: TcpConfig
    counters: Counter[str]

    def emit(
        self, tcb: Tcb, seq: int, flags: int, window: int, urgent: int, options: bytes,
        views: Sequence[memoryview], length: int, ect: bool,
    ) -> None:  # fmt: skip
        """Send a segment; `seq` counts without end, `window` is the field."""

    def room(self, tcb: Tcb) -> int:
        """Bytes of TCP header options and payload that a packet to the peer takes."""

    def burst(self, tcb: Tcb) -> int:
        """The same for a packet that the interface below cuts into segments; 0 where it does not."""

    def tx_room(self, tcb: Tcb) -> int:
        """How many packets may be sent now."""

    def hold(self, tcb: Tcb) -> IpInterface | None:
        """The interface that packets leave by, which holds them back until its `release`; None where there is none."""

    def wait_for_room(self, tcb: Tcb) -> None:
        """Flush the connection when more may be sent."""

    def arm(self, tcb: Tcb) -> None:
        """The connection's deadline has changed."""

    def gone(self, tcb: Tcb) -> None:
        """The connection has ended, and is to be found no longer."""

    def wait(self, tcb: Tcb, now: int) -> None:
        """The connection is in TIME-WAIT: remember what that needs, and forget the rest."""

    def challenge(self, now: int) -> bool:
        """Whether one more challenge ACK may be sent (RFC 5961 §7)."""


class Tcb:
    """The variables of a connection; see above, and:

    Attributes:
        ends: local address and port, remote address and port.
        end: the communication end that users hold; None once they have let go of it. holder: that same end, for good.
        mss: payload bytes of a full segment, options of every segment subtracted. peer_mss: what its SYN said.
        adv_mss: what ours said.
        snd_wnd: what the peer offers beyond snd_una; snd_wl1, snd_wl2: the segment that said so.
        max_wnd: the most that it ever offered.
        snd_scale, rcv_scale: shifts of the windows; both 0 without RFC 7323.
        fin_seq: of our FIN once it is in the stream (sent or about to be), else None.
        limit: bytes of the receive buffer, beyond which no window is offered.
        rcv_acked: rcv_nxt as the peer was last told.
        urgent: position of the peer's last urgent byte, until it was passed; urgent_byte: that byte, once it came;
            urgent_read: whether it was read by itself.
        stamps: whether segments have timestamps; ts_offset, ts_recent, ts_recent_at: RFC 7323 §4.
        error: why it ended, an errno; 0 for in order. soft_error: what ICMP said of it meanwhile (RFC 5461).
        rto_at, probe_at, reorder_at, ack_at, alive_at, end_at: when its timers fire, or NEVER.
    """

    __slots__ = (
        "ack_at", "ack_due", "ack_now", "adv_mss", "alive_at", "config", "control", "copied", "copied_since",
        "corked", "counters", "cwr_due", "dup_acks", "ece_due", "echo", "ecn", "ecn_point", "end", "end_at", "ends",
        "error", "fin_seq", "forced", "heard_at", "holder", "host", "interface", "irs", "iss", "keepalives", "limit",
        "limit_fixed", "max_wnd", "mss", "nodelay", "oow_at", "peer_fin", "peer_mss", "probe_at", "probe_end",
        "probe_resent", "pseudo", "push_at", "quick", "rack_end", "rack_rtt", "rack_sent", "rcv", "rcv_acked",
        "rcv_adv", "rcv_mss", "rcv_nxt", "rcv_rtt", "rcv_scale", "recovery", "recovery_end", "reorder_at",
        "reorder_seen", "reorder_steps", "resent_stamp", "retransmits", "rto_at", "rtt", "sack", "sack_dup",
        "scaling", "scheduled", "scoreboard", "sent_at", "small_end", "snd", "snd_nxt", "snd_scale", "snd_una",
        "snd_up", "snd_wl1", "snd_wl2", "snd_wnd", "soft_error", "stamps", "state", "stuck_at", "tell", "timeouts",
        "ts_offset", "ts_recent", "ts_recent_at", "urgent", "urgent_byte", "urgent_read", "v4", "wide_mss",
    )  # fmt: skip

    def __init__(self, host: Host, ends: Ends, iss: int, ts_offset: int, now: int) -> None:
        config = host.config
        self.host = host
        self.config = config
        self.counters = host.counters
        self.ends = ends
        self.v4 = ends[2] >> 32 == 0xFFFF
        self.end: TcpEndpoint | None = None
        self.holder: TcpEndpoint
        self.interface: IpInterface | None = None  # that packets must leave by, of link-local or bound ends
        self.state = State.CLOSED
        self.scheduled = NEVER
        self.tell = False  # the end is to be told at the next flush
        self.error = 0
        self.soft_error = 0
        # sending
        self.iss = iss
        self.snd_una = iss
        self.snd_nxt = iss
        self.snd_wnd = 0
        self.snd_wl1 = 0
        self.snd_wl2 = 0
        self.max_wnd = 0
        self.snd_scale = 0
        self.snd_up: int | None = None  # behind the last urgent byte that was written (RFC 6093)
        self.snd = SendBuffer(iss + 1)
        self.fin_seq: int | None = None
        self.nodelay = False
        self.corked = False
        self.small_end = iss  # behind the last segment that was not full (RFC 896, as Minshall has it)
        self.sent_at = now  # when new data was sent last
        self.peer_mss = DEFAULT_MSS if self.v4 else DEFAULT_MSS_V6
        self.wide_mss = 0  # what the peer said, while less is tried
        self.adv_mss = 0
        self.mss = self.peer_mss
        # what was sent
        self.scoreboard = Scoreboard()
        self.rtt = RttEstimator(config.rto_initial, config.rto_min, config.rto_max, config.rto_min)
        self.control: Control = CONTROLS[config.congestion](self.mss, 2 * self.mss)
        self.recovery = 0
        self.recovery_end = iss
        self.forced = False  # the first segment of a recovery goes whatever is in flight
        self.resent_stamp: int | None = None  # our timestamp when a recovery began (RFC 3522)
        self.dup_acks = 0
        self.timeouts = 0
        self.stuck_at = now  # when that was sent first which the timer fires about
        self.retransmits = 0
        self.rack_sent = self.rack_end = self.rack_rtt = 0
        self.reorder_seen = False
        self.reorder_steps = 1
        self.probe_end: int | None = None
        self.probe_resent = False
        # receiving
        self.irs = 0
        self.rcv_nxt = 0
        self.rcv_adv = 0
        self.rcv_acked = 0
        self.rcv_scale = 0
        self.rcv_mss = DEFAULT_MSS
        self.rcv = ReceiveBuffer(0, config.blocks)
        self.limit = config.window
        self.limit_fixed = False
        self.copied = 0
        self.copied_since = now
        self.echo = 0  # of our timestamps, the last one that came with data
        self.rcv_rtt = 0  # microseconds in which an acknowledgement of ours brings more data
        self.peer_fin: int | None = None  # of the peer's FIN, once it came, maybe before its turn
        self.urgent: int | None = None  # position of the peer's last urgent byte, until it was passed
        self.urgent_byte: int | None = None
        self.urgent_read = False
        self.ack_now = False
        self.ack_due = 0  # duplicate acknowledgements that are owed to a peer without SACK
        self.quick = config.quick_acks  # segments that are still to be acknowledged at once
        self.sack_dup: tuple[int, int] | None = None  # what came twice (RFC 2883)
        self.oow_at = -NEVER
        # options
        self.scaling = config.window_scale
        self.sack = False
        self.stamps = False
        self.ts_offset = ts_offset
        self.ts_recent = 0
        self.ts_recent_at = now
        self.ecn = False
        self.ece_due = False
        self.cwr_due = False
        self.ecn_point = iss
        # timers
        self.rto_at = self.probe_at = self.reorder_at = self.ack_at = self.alive_at = self.end_at = NEVER
        self.push_at = NEVER
        self.heard_at = now
        self.keepalives = 0
        self.pseudo = ends[0] + ends[2] + 6 + ends[1] + ends[3]  # of the checksum, with both ports

    def __repr__(self) -> str:
        return f"<{self.state.value} {self.ends[1]} > {self.ends[3]}>"

    # -- states --------------------------------------------------------------------------------------------------

    def event(self, event: Event) -> None:
        """Go where the table of states says."""
        self.state = after(self.state, event)
        self.tell = True

    @property
    def synchronized(self) -> bool:
        """Whether both SYNs were exchanged."""
        return self.snd_una > self.iss

    @property
    def snd_end(self) -> int:
        """Behind the last byte of the stream that was written, and the FIN."""
        return self.snd.end + (self.fin_seq is not None)

    # -- the clock of timestamps ---------------------------------------------------------------------------------

    def stamp(self, now: int) -> int:
        """Our timestamp: milliseconds, shifted (RFC 7323 §4.1, §7.1)."""
        return now // 1000 + self.ts_offset & MASK

    # -- windows -------------------------------------------------------------------------------------------------

    def window_edge(self) -> int:
        """Where the receive window may end now: not before where it ended, and moved on only in steps that are worth a
        segment (RFC 9293 §3.8.6.2.2).
        """
        rcv = self.rcv
        edge = self.rcv_nxt + self.limit - (rcv.end - rcv.start)
        if edge - self.rcv_adv >= min(self.rcv_mss, self.limit // 2):
            scale = self.rcv_scale
            return max(self.rcv_adv, self.rcv_nxt + ((edge - self.rcv_nxt) >> scale << scale))
        return self.rcv_adv

    def window_field(self) -> int:
        """The field that offers the window, and the note that it was offered. Rounded up where that is what keeps the
        edge from moving back. Each time it then moves on a little, so that a peer of small segments would never find
        the end of the buffer: an eighth beyond that, the field is rounded down (RFC 7323 §2.4).
        """
        nxt, scale = self.rcv_nxt, self.rcv_scale
        left = max(self.window_edge() - nxt, 0)  # a FIN may stand where the window ends
        field = (left + (1 << scale) - 1) >> scale
        if nxt + (field << scale) > self.rcv.start + self.limit * 9 // 8:
            field = left >> scale
        field = min(field, 0xFFFF)
        self.rcv_adv = max(self.rcv_adv, nxt + (field << scale))
        return field

    # -- sending one segment -------------------------------------------------------------------------------------

    def send(
        self, seq: int, flags: int, now: int, views: Sequence[memoryview] = (), length: int = 0, *, urgent: int = 0,
        ect: bool = False,
    ) -> None:  # fmt: skip
        """Send a segment that acknowledges everything, after the handshake."""
        stamps = (self.stamp(now), self.ts_recent) if self.stamps else None
        sacks: Sequence[tuple[int, int]] = ()
        if self.sack and (self.sack_dup is not None or self.rcv.has_gap):
            sacks = self._sacks()
        if self.ece_due:
            flags |= ECE
        self.ack_now = False
        self.ack_due = 0
        self.ack_at = NEVER
        field = self.window_field()
        self.rcv_acked = self.rcv_nxt
        options = options_of(stamps, sacks) if stamps or sacks else b""
        self.host.emit(self, seq, flags | ACK, field, urgent, options, views, length, ect)

    def _sacks(self) -> list[tuple[int, int]]:
        """The blocks to report: what came twice, then the runs, latest first (RFC 2883 §4, RFC 2018 §4)."""
        runs = self.rcv.runs()
        twice, self.sack_dup = self.sack_dup, None
        return runs if twice is None else [twice, *runs]

    def sack_size(self) -> int:
        """Bytes that SACK blocks take of the next segment."""
        if not self.sack or (self.sack_dup is None and not self.rcv.has_gap):
            return 0
        return 4 + 8 * min(self.rcv.count + (self.sack_dup is not None), 3 if self.stamps else 4)

    def send_ack(self, now: int) -> None:
        """Send an acknowledgement and nothing else."""
        self.send(self.snd_nxt, ACK, now)

    def send_challenge(self, now: int) -> None:
        """Let the peer prove that it is the peer (RFC 5961); rate-limited."""
        if self.host.challenge(now):
            self.counters["tx_challenge_acks"] += 1
            self.send_ack(now)
        else:
            self.counters["tx_challenge_acks_withheld"] += 1

    # -- invariants ----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises AssertionError where the variables contradict each other: `TcpConfig.check`."""
        board = self.scoreboard
        assert self.snd_una <= self.snd_nxt, "snd_una is ahead of snd_nxt"
        assert self.snd.start <= self.snd.end, "the send buffer runs backwards"
        at = self.snd_una
        for segment in board:
            assert segment.start == at < segment.end, f"a hole before {segment}"
            at = segment.end
        assert len(board) == 0 or at == self.snd_nxt, "what was sent does not reach snd_nxt"
        board.check()
        if self.state in (State.CLOSED, State.LISTEN, State.SYN_SENT):
            return
        fin = self.peer_fin is not None and self.rcv_nxt > self.peer_fin
        assert self.rcv.end + fin == self.rcv_nxt, "rcv_nxt is not where the received bytes end"
        assert self.rcv_acked <= self.rcv_nxt, "more was acknowledged than came"
        assert self.rcv_nxt <= self.rcv_adv + 1, "more came than was offered"


def scale_for(limit: int, fixed: bool, config: TcpConfig) -> int:
    """The shift that the largest window needs that a connection may ever offer."""
    most = limit if fixed else max(limit, config.window_max)
    scale = 0
    while most >> scale > 0xFFFF and scale < MAX_SCALE:
        scale += 1
    return scale
