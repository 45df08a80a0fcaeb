"""sniff: a line for every frame that a front end receives, through a raw outlet."""

from __future__ import annotations

from guest.apps import EX_USAGE
from guest.apps.decode import decode
from guest.apps.env import Env
from guest.apps.usage import UsageError, options, seconds, whole
from guest.ol import OutletError, RawOutlet

USAGE = """usage: sniff [ethN] [-c COUNT] [-t SECONDS]
  ethN        the front end (default eth0); whoever has an outlet there loses it
  -c COUNT    stop after so many frames (default: go on)
  -t SECONDS  stop after so long (default: go on)"""


def main(env: Env, argv: list[str]) -> int:
    """0 in the end, 1 when the outlet cannot be opened or is closed, 2 for wrong usage."""
    try:
        chosen, rest = options(argv, "c:t:")
        if len(rest) > 1:
            raise UsageError("one front end at most")
        count = whole("-c", chosen["-c"], 1, 1 << 32) if "-c" in chosen else None
        end = env.now() + seconds("-t", chosen["-t"]) if "-t" in chosen else None
    except UsageError as error:
        env.print(f"sniff: {error}\n{USAGE}")
        return EX_USAGE
    name = rest[0] if rest else "eth0"
    try:
        outlet = env.guest.outlets.open(name, owner=env.process)
    except OutletError as error:
        env.print(f"sniff: {error}")
        return 1
    seen = 0
    try:
        seen = _listen(env, outlet, name, count, end)
    finally:
        outlet.close()
        dropped = outlet.counters["rx_dropped_mailbox_full"]
        env.print(f"{outlet.counters['rx_packets']} frames received, {dropped} dropped")
    return 0 if count is None or seen == count or end is not None else 1


def _listen(env: Env, outlet: RawOutlet, name: str, count: int | None, end: int | None) -> int:
    """Print frames; how many."""
    seen = 0
    while count is None or seen < count:
        left = None if end is None else end - env.now()
        message = env.receive(left) if left is None or left > 0 else None
        if message is None:
            break
        match message:
            case (port, ("data", bytes(frame))) if port is outlet:
                seen += 1
                env.print(f"{name} < {decode(frame)}")
            case (port, ("closed", reason)) if port is outlet:
                env.print(f"sniff: the outlet was closed: {reason}")
                break
    return seen
