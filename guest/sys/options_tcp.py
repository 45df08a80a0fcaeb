"""Options of IPPROTO_TCP. tcp(7), linux/tcp.h; values out of range, and what is made of them, as on Linux."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from guest.net.tcp.congestion import CONTROLS
from guest.net.tcp.state import State
from guest.sys import constants as c
from guest.sys.fault import fault
from guest.sys.option import Option, table, within
from guest.sys.socket_file import SocketFile
from guest.sys.stream_file import StreamFile

if TYPE_CHECKING:
    from guest.net.stack import Stack
    from guest.net.tcp.endpoint import TcpEndpoint

SECOND = 1_000_000
MSS_MIN, MSS_MAX = 88, 32767  # TCP_MIN_MSS, MAX_TCP_WINDOW
TIME_MAX, COUNT_MAX = 32767, 127  # MAX_TCP_KEEPIDLE and MAX_TCP_KEEPINTVL; MAX_TCP_KEEPCNT and MAX_TCP_SYNCNT
FIN_TIMEOUT_MAX = 120  # seconds
CLAMP_MIN = 1152  # SOCK_MIN_RCVBUF / 2
DEFAULT_MSS = 536  # before a connection has agreed on one
INT_MAX = 0x7FFF_FFFF
NAME_MAX = 16  # TCP_CA_NAME_MAX
RTO_FIRST, RTO_MAX = 1, 120  # seconds, by which TCP_DEFER_ACCEPT counts

# struct tcp_info, up to tcpi_total_retrans (Linux 2.6.26; what came later is for who asks for more than is there).
#   u8   state, ca_state, retransmits, probes, backoff, options, snd_wscale:4 rcv_wscale:4, flags
#   u32  rto, ato, snd_mss, rcv_mss; unacked, sacked, lost, retrans, fackets
#   u32  last_data_sent, last_ack_sent, last_data_recv, last_ack_recv
#   u32  pmtu, rcv_ssthresh, rtt, rttvar, snd_ssthresh, snd_cwnd, advmss, reordering; rcv_rtt, rcv_space; total_retrans
TCP_INFO = struct.Struct("<8B24I")
assert TCP_INFO.size == 104

# The kernel's numbers of the states (net/tcp_states.h).
STATE_NUMBERS = {
    State.ESTABLISHED: 1, State.SYN_SENT: 2, State.SYN_RECEIVED: 3, State.FIN_WAIT_1: 4, State.FIN_WAIT_2: 5,
    State.TIME_WAIT: 7, State.CLOSED: 7, State.CLOSE_WAIT: 8, State.LAST_ACK: 9, State.LISTEN: 10, State.CLOSING: 11,
}  # fmt: skip  # an end that still has a descriptor does not wait: Linux shows CLOSE then


def _of(file: SocketFile) -> TcpEndpoint:
    """The endpoint of a stream; the only kind of file that these options are looked up for."""
    if not isinstance(file, StreamFile):
        raise fault("ENOPROTOOPT")
    return file.endpoint


def _setting(
    name: str, attribute: str, *, read: Callable[[int], int] = int, write: Callable[[int], object] = int
) -> Option:
    """A field of `settings`: `read` makes the option's value of it, `write` checks a value and makes the field's."""

    def get(file: SocketFile, _stack: Stack) -> int:
        return read(getattr(_of(file).settings, attribute))

    def put(file: SocketFile, _stack: Stack, value: int, _raw: bytes) -> None:
        setattr(_of(file).settings, attribute, write(value))

    return Option(name, get, put)


def _flag(name: str, attribute: str) -> Option:
    return _setting(name, attribute, write=bool)


def _seconds(name: str, attribute: str) -> Option:
    """A time in seconds, at least one."""
    return _setting(
        name, attribute, read=lambda micros: micros // SECOND,
        write=lambda value: within(value, 1, TIME_MAX) * SECOND,
    )  # fmt: skip


def _count(name: str, attribute: str) -> Option:
    return _setting(name, attribute, write=lambda value: within(value, 1, COUNT_MAX))


# -- those with a behaviour of their own ---------------------------------------------------------------------------


def _get_maxseg(file: SocketFile, _stack: Stack) -> int:
    """The segment size in use; before there is a connection what was set, if anything was."""
    end = _of(file)
    wanted: int = end.settings.maxseg
    if end.state in (State.CLOSED, State.LISTEN):
        return wanted or DEFAULT_MSS
    return end.info().mss


def _set_linger2(value: int) -> int:
    return -1 if value < 0 else min(value, FIN_TIMEOUT_MAX) * SECOND


def _get_linger2(file: SocketFile, stack: Stack) -> int:
    end = _of(file)
    micros: int = end.settings.linger2
    return -1 if micros < 0 else (micros or stack.tcp.config.fin_timeout) // SECOND


def _set_defer(value: int) -> int:
    """Whole repetitions of the SYN/ACK, which double their distance; the time until the last of them is over."""
    if value <= 0:
        return 0
    step = period = RTO_FIRST
    for _ in range(254):
        if value <= period:
            break
        step = min(step * 2, RTO_MAX)
        period += step
    return period * SECOND


def _set_clamp(file: SocketFile, _stack: Stack, value: int, _raw: bytes) -> None:
    end = _of(file)
    if value == 0 and end.state is not State.CLOSED:
        raise fault("EINVAL")
    end.settings.window_clamp = max(CLAMP_MIN, value) if value else 0


def _set_user_timeout(value: int) -> int:
    if value < 0:
        raise fault("EINVAL")
    return value * 1000


def _get_congestion(file: SocketFile, _stack: Stack) -> bytes:
    return _of(file).settings.congestion.encode().ljust(NAME_MAX, b"\0")


def _set_congestion(file: SocketFile, _stack: Stack, _value: int, raw: bytes) -> None:
    if not raw:
        raise fault("EINVAL")
    name = raw[: NAME_MAX - 1].split(b"\0", 1)[0].decode("ascii", "replace")
    if name not in CONTROLS:
        raise fault("ENOENT")
    _of(file).settings.congestion = name


def _get_syncnt(file: SocketFile, stack: Stack) -> int:
    end = _of(file)
    return end.settings.syncnt or stack.tcp.config.syn_retries


def _get_info(file: SocketFile, stack: Stack) -> bytes:
    """struct tcp_info. What the kernel counts in segments is counted in full ones here; what is not known is 0."""
    end = _of(file)
    info = end.info()
    mss = info.mss or DEFAULT_MSS
    scaled = bool(info.snd_scale or info.rcv_scale)
    offered = info.timestamps | info.sack << 1 | scaled << 2 | info.ecn << 3
    unacked, sacked = -(-info.unacked // mss), -(-info.sacked // mss)
    if end.listener is not None:  # there: connections that wait, and how many may
        unacked, sacked = len(end.listener.ready), end.listener.backlog
    return TCP_INFO.pack(
        STATE_NUMBERS[info.state], (0, 3, 4)[info.recovery], info.timeouts, 0, info.timeouts, offered,
        info.snd_scale | info.rcv_scale << 4, 0,
        info.rto, stack.tcp.config.delayed_ack, mss, info.rcv_mss or DEFAULT_MSS,
        unacked, sacked, -(-info.lost // mss), 0, 0,
        0, 0, info.idle // 1000, info.idle // 1000,
        0, info.rcv_wnd, info.rtt, info.rttvar, -(-info.ssthresh // mss) or INT_MAX, info.cwnd // mss,
        info.advmss, 3, 0, end.options.rcvbuf, info.retransmits,
    )  # fmt: skip


OPTIONS = table(
    c.IPPROTO_TCP,
    _flag("TCP_NODELAY", "nodelay"),
    _flag("TCP_CORK", "cork"),
    _flag("TCP_QUICKACK", "quickack")._replace(set=lambda file, _stack, value, _raw: _of(file).quick_ack(value != 0)),
    _setting("TCP_MAXSEG", "maxseg", write=lambda value: within(value, MSS_MIN, MSS_MAX) if value else 0)._replace(
        get=_get_maxseg
    ),
    _seconds("TCP_KEEPIDLE", "keepidle"),
    _seconds("TCP_KEEPINTVL", "keepintvl"),
    _count("TCP_KEEPCNT", "keepcnt"),
    _count("TCP_SYNCNT", "syncnt")._replace(get=_get_syncnt),
    _setting("TCP_LINGER2", "linger2", write=_set_linger2)._replace(get=_get_linger2),
    _setting("TCP_DEFER_ACCEPT", "defer_accept", read=lambda micros: micros // SECOND, write=_set_defer),
    Option("TCP_WINDOW_CLAMP", lambda file, _stack: _of(file).settings.window_clamp, _set_clamp),
    _setting("TCP_USER_TIMEOUT", "user_timeout", read=lambda micros: micros // 1000, write=_set_user_timeout),
    Option("TCP_CONGESTION", _get_congestion, _set_congestion, 0),
    Option("TCP_INFO", _get_info, None),
)
