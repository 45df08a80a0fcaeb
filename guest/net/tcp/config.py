"""What can be set in TCP, with its defaults. Times are microseconds, sizes bytes.

Two profiles: `TcpConfig()` is the full one, `phase6()` what a first version of a TCP has: a fixed window, no selective
acknowledgements, no congestion control, and the retransmission timer as the only sign of loss.
"""

from __future__ import annotations

from dataclasses import dataclass

SECOND = 1_000_000
MILLISECOND = 1000


@dataclass(frozen=True, slots=True)
class TcpConfig:
    """Settings of one stack's TCP.

    Attributes:
        window: what a connection offers to receive at first. window_max: how far tuning may raise that; the same as
            `window` for no tuning.
        sndbuf_max: how far tuning may raise the send buffer.
        window_scale, timestamps, sack: options that are offered and accepted (RFC 7323, RFC 2018).
        ecn: 0 never, 1 asks for it, 2 does it when asked (RFC 3168).
        congestion: "cubic", "reno" or "none".
        initial_segments: of the initial window (RFC 6928).
        fast_retransmit: find losses by acknowledgements; without it only by the timer.
        rack, tail_probe: find losses by time, and probe for a lost tail (RFC 8985); where the peer has SACK.
        rto_initial, rto_min, rto_max: RFC 6298.
        retries: of a segment before the connection is given up. syn_retries, synack_retries: the same for the first.
        quick_acks: segments that are acknowledged at once where a connection starts or was out of order, so that the
            peer's window opens fast; a connection whose ends talk in turn stops that.
        delayed_ack: how long an acknowledgement waits for company, at most (RFC 9293 §3.8.6.3).
        keepalive_idle, keepalive_interval, keepalive_probes: for connections that ask for it.
        time_wait: 2 MSL. time_waits: connections that may wait so, at most.
        reuse_after: a port whose connection is in TIME_WAIT may be connected from again after this, with timestamps
            (RFC 6191).
        fin_timeout: how long a closed connection waits for the peer's FIN.
        linger_retries: of a closed connection's data, at most, and of probes while its peer has no room.
        syn_queue: connections that a listening end may have half-open; beyond that come SYN cookies.
        syn_cookies: whether they do; otherwise SYNs are dropped.
        backlog_max: of `listen`.
        base_mss: what a path is taken to carry that loses full segments only. black_hole_after: timeouts until then; 0
            for never (RFC 4821 §7.7).
        challenge_rate: challenge ACKs a second, at most (RFC 5961 §7).
        oow_interval: between two answers to segments outside of the window that carry nothing.
        blocks: runs of out-of-order data that a connection holds, at most.
        check: verify the connection's invariants after every segment.
    """

    window: int = 65535
    window_max: int = 6 << 20
    sndbuf_max: int = 4 << 20
    window_scale: bool = True
    timestamps: bool = True
    sack: bool = True
    ecn: int = 2
    congestion: str = "cubic"
    initial_segments: int = 10
    fast_retransmit: bool = True
    rack: bool = True
    tail_probe: bool = True
    rto_initial: int = SECOND
    rto_min: int = 200 * MILLISECOND
    rto_max: int = 120 * SECOND
    retries: int = 5
    syn_retries: int = 5
    synack_retries: int = 5
    quick_acks: int = 16
    delayed_ack: int = 40 * MILLISECOND
    keepalive_idle: int = 7200 * SECOND
    keepalive_interval: int = 75 * SECOND
    keepalive_probes: int = 9
    time_wait: int = 60 * SECOND
    time_waits: int = 8192
    reuse_after: int = SECOND
    fin_timeout: int = 60 * SECOND
    linger_retries: int = 8
    syn_queue: int = 256
    syn_cookies: bool = True
    backlog_max: int = 4096
    base_mss: int = 1024
    black_hole_after: int = 3
    challenge_rate: int = 1000
    oow_interval: int = 500 * MILLISECOND
    blocks: int = 256
    check: bool = False


def phase6() -> TcpConfig:
    """The simple profile."""
    return TcpConfig(
        window=4096,
        window_max=4096,
        window_scale=False,
        timestamps=False,
        sack=False,
        ecn=0,
        congestion="none",
        fast_retransmit=False,
        rack=False,
        tail_probe=False,
    )


PROFILES = {"full": TcpConfig, "phase6": phase6}
