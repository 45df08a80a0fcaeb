"""halt: end the guest."""

from __future__ import annotations

from guest.apps import EX_USAGE
from guest.apps.env import Env
from guest.apps.usage import UsageError, options, whole

USAGE = """usage: halt [STATUS]
  STATUS  the guest's exit status, 0 to 255 (default 0)"""
EXAMPLES = ("halt", "halt 3")


def main(env: Env, argv: list[str]) -> int:
    """The guest ends in here; 2 for wrong usage."""
    try:
        _, rest = options(argv, "")
        if len(rest) > 1:
            raise UsageError("one status at most")
        status = whole("status", rest[0], 0, 255) if rest else 0
    except UsageError as error:
        env.print(f"halt: {error}\n{USAGE}")
        return EX_USAGE
    env.guest.halt(status)
    return status
