"""ss: the sockets of the guest, and what TCP knows of its connections, as iproute2's ss shows them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from guest.apps import EX_USAGE
from guest.apps.env import Env
from guest.apps.usage import UsageError, options
from guest.net.address import format_address, is_unspecified, is_v4
from guest.net.tcp.connection import Connection
from guest.net.tcp.listener import Request
from guest.net.tcp.state import State

if TYPE_CHECKING:
    from guest.net.tcp.endpoint import TcpEndpoint
    from guest.net.tcp.layer import Tcp
    from guest.net.udp import UdpEndpoint

USAGE = """usage: ss [-t] [-u] [-l | -a] [-n] [-i] [-4] [-6] [-e]
  -t, -u  TCP's sockets, UDP's (default: both)
  -l      those that listen or have no peer; without it those that have one
  -a      both, and connections that are beginning or over
  -n      ports as numbers
  -i      what TCP knows of a connection: windows and limits in bytes, cwnd and ssthresh in segments, times in ms
  -4, -6  sockets of one family only
  -e      what each has dropped, too
A listening socket's Recv-Q is how many connections wait for it, its Send-Q how many may."""

# Names that services(5) gives to the ports that the guest's own programs use.
SERVICES = {7: "echo", 9: "discard", 53: "domain", 67: "bootps", 68: "bootpc", 80: "http", 123: "ntp"}

NAMES = {
    State.CLOSED: "UNCONN", State.LISTEN: "LISTEN", State.SYN_SENT: "SYN-SENT", State.SYN_RECEIVED: "SYN-RECV",
    State.ESTABLISHED: "ESTAB", State.FIN_WAIT_1: "FIN-WAIT-1", State.FIN_WAIT_2: "FIN-WAIT-2",
    State.CLOSE_WAIT: "CLOSE-WAIT", State.CLOSING: "CLOSING", State.LAST_ACK: "LAST-ACK",
    State.TIME_WAIT: "TIME-WAIT",
}  # fmt: skip
PASSIVE = ("UNCONN", "LISTEN")
FADING = ("SYN-RECV", "TIME-WAIT")  # no socket of anybody's

Place = tuple[int, int]  # address and port


class Row(NamedTuple):
    """A socket, before it is shown. `family` is the socket's; `dual`: IPv4 comes to it too."""

    kind: str
    state: str
    received: int
    sent: int
    local: Place
    remote: Place | None
    family: int
    dual: bool
    drops: int | None
    end: TcpEndpoint | None


def main(env: Env, argv: list[str]) -> int:
    """0, 2 for wrong usage."""
    try:
        chosen, rest = options(argv, "tulani46e")
        if rest:
            raise UsageError(f"what is {rest[0]}?")
    except UsageError as error:
        env.print(f"ss: {error}\n{USAGE}")
        return EX_USAGE
    families = [family for family in (4, 6) if f"-{family}" in chosen] or [4, 6]
    kinds = [kind for kind in ("udp", "tcp") if f"-{kind[0]}" in chosen] or ["udp", "tcp"]
    head = ["State", "Recv-Q", "Send-Q", "Local Address:Port", "Peer Address:Port"]
    if len(kinds) > 1:
        head.insert(0, "Netid")
    if "-e" in chosen:
        head.append("Dropped")
    lines = [head]
    notes: list[str] = [""]
    stack = env.guest.stack
    for row in [*(map(_udp, stack.udp) if "udp" in kinds else ()), *(_tcp(stack.tcp) if "tcp" in kinds else ())]:
        passive = row.state in PASSIVE
        if row.family not in families or ("-a" not in chosen and (passive != ("-l" in chosen) or row.state in FADING)):
            continue
        cells = [row.state, str(row.received), str(row.sent)]
        cells += [_place(row.local, "-n" in chosen, row), _place(row.remote, "-n" in chosen, row)]
        if len(kinds) > 1:
            cells.insert(0, row.kind)
        if "-e" in chosen:
            cells.append("" if row.drops is None else str(row.drops))
        lines.append(cells)
        notes.append("" if "-i" not in chosen or row.end is None or row.end.listening else _info(row.end))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line, note in zip(lines, notes, strict=True):
        env.print("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())
        if note:
            env.print(note)
    return 0


def _udp(end: UdpEndpoint) -> Row:
    return Row(
        "udp", "UNCONN" if end.remote is None else "ESTAB", end.queued_bytes, 0, end.local, end.remote,
        end.family, not end.options.v6only, end.drops, None,
    )  # fmt: skip


def _tcp(tcp: Tcp) -> Iterator[Row]:
    """Those that listen, and every connection: also those that nobody holds, half-open ones and those in TIME-WAIT."""
    for end in tcp.ends:
        listener = end.listener
        if listener is not None:
            waiting, most, dual = len(listener.ready), listener.backlog, not end.options.v6only
            yield Row("tcp", "LISTEN", waiting, most, end.local, None, end.family, dual, None, end)
    for ends, entry in list(tcp.entries.items()):
        local, remote = ends[:2], ends[2:]
        if isinstance(entry, Connection):
            end = entry.holder
            yield Row("tcp", NAMES[entry.state], end.unread, end.unacked, local, remote, end.family, True, None, end)
        else:
            state = "SYN-RECV" if isinstance(entry, Request) else "TIME-WAIT"
            yield Row("tcp", state, 0, 0, local, remote, 4 if is_v4(ends[0]) else 6, True, None, None)


def _info(end: TcpEndpoint) -> str:
    """The second line of a connection."""
    info = end.info()
    mss = max(info.mss, 1)
    flags = [name for name, set_ in (("ts", info.timestamps), ("sack", info.sack), ("ecn", info.ecn)) if set_]
    values = {
        "wscale": f"{info.snd_scale},{info.rcv_scale}",
        "rto": _ms(info.rto),
        "rtt": f"{_ms(info.rtt)}/{_ms(info.rttvar)}" if info.rtt else "",
        "minrtt": _ms(info.min_rtt) if info.rtt else "",
        "mss": info.mss,
        "rcvmss": info.rcv_mss,
        "advmss": info.advmss,
        "cwnd": info.cwnd // mss,
        "ssthresh": info.ssthresh // mss,
        "snd_una": info.snd_una,
        "snd_nxt": info.snd_nxt,
        "snd_wnd": info.snd_wnd,
        "rcv_nxt": info.rcv_nxt,
        "rcv_wnd": info.rcv_wnd,
        "sndbuf": end.options.sndbuf,
        "rcvbuf": end.options.rcvbuf,
        "unacked": -(-info.unacked // mss),
        "notsent": info.unsent,
        "sacked": -(-info.sacked // mss),
        "lost": -(-info.lost // mss),
        "backoff": info.timeouts,
        "retrans": info.retransmits,
    }
    always = ("wscale", "rto", "mss", "cwnd", "snd_una", "snd_nxt", "snd_wnd", "rcv_nxt", "rcv_wnd", "sndbuf", "rcvbuf")
    shown = [f"{name}:{value}" for name, value in values.items() if value or name in always]
    return "\t " + " ".join([*flags, info.congestion, *shown])


def _ms(micros: int) -> str:
    """Milliseconds, without zeros at the end."""
    return f"{micros // 1000}.{micros % 1000:03d}".rstrip("0").rstrip(".")


def _place(place: Place | None, numbers: bool, row: Row) -> str:
    """Address and port; a dual-stack wildcard is `*`."""
    port = 0 if place is None else place[1]
    name = "*" if not port else str(port) if numbers else SERVICES.get(port, str(port))
    if place is None or is_unspecified(place[0]):
        if row.family == 4:
            return f"0.0.0.0:{name}"
        return f"*:{name}" if row.dual else f"[::]:{name}"
    text = format_address(place[0])
    if row.family == 4:
        return f"{text}:{name}"
    return f"[::ffff:{text}]:{name}" if is_v4(place[0]) else f"[{text}]:{name}"
