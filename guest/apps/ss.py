"""ss: the UDP sockets of the guest, as iproute2's ss shows them."""

from __future__ import annotations

from guest.apps import EX_USAGE
from guest.apps.env import Env
from guest.apps.usage import UsageError, options
from guest.net.address import format_address, is_unspecified, is_v4
from guest.net.udp import UdpEndpoint

USAGE = """usage: ss [-u] [-l | -a] [-n] [-4] [-6] [-e]
  -u      UDP sockets (the only kind here)
  -l      those that have no peer; without it those that have one
  -a      both
  -n      ports as numbers
  -4, -6  sockets of one family only
  -e      what each has dropped, too"""

# Names that services(5) gives to the ports that the guest's own programs use.
SERVICES = {7: "echo", 53: "domain", 67: "bootps", 68: "bootpc", 123: "ntp"}


def main(env: Env, argv: list[str]) -> int:
    """0, 2 for wrong usage."""
    try:
        chosen, rest = options(argv, "ulan46e")
        if rest:
            raise UsageError(f"what is {rest[0]}?")
    except UsageError as error:
        env.print(f"ss: {error}\n{USAGE}")
        return EX_USAGE
    families = [family for family in (4, 6) if f"-{family}" in chosen] or [4, 6]
    rows: list[tuple[str, ...]] = [("State", "Recv-Q", "Send-Q", "Local Address:Port", "Peer Address:Port")]
    if "-e" in chosen:
        rows[0] = (*rows[0], "Dropped")
    for end in env.guest.stack.udp:
        connected = end.remote is not None
        if end.family not in families or ("-a" not in chosen and connected == ("-l" in chosen)):
            continue
        rows.append(_row(end, "-n" in chosen, "-e" in chosen))
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for row in rows:
        env.print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _row(end: UdpEndpoint, numbers: bool, drops: bool) -> tuple[str, ...]:
    row = (
        "UNCONN" if end.remote is None else "ESTAB",
        str(end.queued_bytes),
        "0",
        _place(end.local, numbers, end),
        _place(end.remote, numbers, end),
    )
    return (*row, str(end.drops)) if drops else row


def _place(place: tuple[int, int] | None, numbers: bool, end: UdpEndpoint) -> str:
    """Address and port; a dual-stack wildcard is `*`."""
    port = 0 if place is None else place[1]
    name = "*" if not port else str(port) if numbers else SERVICES.get(port, str(port))
    if place is None or is_unspecified(place[0]):
        if end.family == 4:
            return f"0.0.0.0:{name}"
        return f"[::]:{name}" if end.options.v6only else f"*:{name}"
    text = format_address(place[0])
    if end.family == 4:
        return f"{text}:{name}"
    return f"[::ffff:{text}]:{name}" if is_v4(place[0]) else f"[{text}]:{name}"
