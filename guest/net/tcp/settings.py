"""What an end of TCP can be told besides `SocketOptions`, and what it tells of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from guest.net.tcp.config import TcpConfig
from guest.net.tcp.state import State


@dataclass(slots=True)
class TcpSettings:
    """The TCP_* options; times are microseconds, 0 stands for the stack's default or for "not set".

    Attributes:
        nodelay: TCP_NODELAY. cork: TCP_CORK. maxseg: TCP_MAXSEG, bytes.
        keepidle, keepintvl, keepcnt: TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT.
        syncnt: TCP_SYNCNT. linger2: TCP_LINGER2. defer_accept: TCP_DEFER_ACCEPT.
        window_clamp: TCP_WINDOW_CLAMP. user_timeout: TCP_USER_TIMEOUT.
        congestion: TCP_CONGESTION. quickack: TCP_QUICKACK, as last set; `TcpEndpoint.quick_ack` sets it.
    """

    keepidle: int
    keepintvl: int
    keepcnt: int
    congestion: str
    nodelay: bool = False
    cork: bool = False
    maxseg: int = 0
    syncnt: int = 0
    linger2: int = 0
    defer_accept: int = 0
    window_clamp: int = 0
    user_timeout: int = 0
    quickack: bool = True

    @classmethod
    def of(cls, config: TcpConfig) -> TcpSettings:
        """The defaults of a stack."""
        return cls(config.keepalive_idle, config.keepalive_interval, config.keepalive_probes, config.congestion)


class TcpInfo(NamedTuple):
    """What `ss -i` and TCP_INFO show; sequence numbers as on the wire, times in microseconds, sizes in bytes.

    Attributes:
        state: of the connection. congestion: its control's name.
        snd_una, snd_nxt, rcv_nxt, snd_wnd, rcv_wnd: RFC 9293 §3.3.1. snd_scale, rcv_scale: of the windows.
        mss, advmss, rcv_mss: of segments that are sent, that we offered to take, that come.
        cwnd, ssthresh: RFC 5681; ssthresh is 0 before the first loss.
        rto, rtt, rttvar, min_rtt: RFC 6298.
        unsent, unacked, in_flight, sacked, lost, unread: bytes.
        retransmits: segments that were sent again, in all. timeouts: in a row, now. recovery: 0, 1 by acknowledgements,
            2 by the timer.
        timestamps, sack, ecn: what was agreed.
        idle: since something was heard.
    """

    state: State
    congestion: str
    snd_una: int
    snd_nxt: int
    rcv_nxt: int
    snd_wnd: int
    rcv_wnd: int
    snd_scale: int
    rcv_scale: int
    mss: int
    advmss: int
    rcv_mss: int
    cwnd: int
    ssthresh: int
    rto: int
    rtt: int
    rttvar: int
    min_rtt: int
    unsent: int
    unacked: int
    in_flight: int
    sacked: int
    lost: int
    unread: int
    retransmits: int
    timeouts: int
    recovery: int
    timestamps: bool
    sack: bool
    ecn: bool
    idle: int
