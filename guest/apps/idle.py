"""idle: keep the guest up, for a while or for ever."""

from __future__ import annotations

from guest.apps import EX_USAGE
from guest.apps.env import Env
from guest.apps.usage import UsageError, options, seconds

USAGE = "usage: idle [SECONDS]"


def main(env: Env, argv: list[str]) -> int:
    """Sleep for the given time; without one, until the guest is closed."""
    try:
        _, rest = options(argv, "")
        if len(rest) > 1:
            raise UsageError("one number of seconds at most")
        duration = seconds("idle", rest[0]) if rest else None
    except UsageError as error:
        env.print(f"idle: {error}\n{USAGE}")
        return EX_USAGE
    env.wait(timeout=duration)
    return 0
