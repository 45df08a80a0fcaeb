"""cat: print files of the guest's folder."""

from __future__ import annotations

from guest.apps import EX_USAGE
from guest.apps.env import Env
from guest.apps.streams import CHUNK, shown
from guest.apps.usage import UsageError, options

USAGE = "usage: cat FILE..."
EXAMPLES = ("cat index.html",)


def main(env: Env, argv: list[str]) -> int:
    """0, 1 when a file cannot be read, 2 for wrong usage."""
    try:
        _, rest = options(argv, "")
        if not rest:
            raise UsageError("a file is needed")
    except UsageError as error:
        env.print(f"cat: {error}\n{USAGE}")
        return EX_USAGE
    status = 0
    for path in rest:
        try:
            with env.guest.files.open(path) as file:
                while line := file.readline(CHUNK):
                    env.print(shown(line.rstrip(b"\r\n")))
        except OSError as error:
            env.print(f"cat: {path}: {error.strerror}")
            status = 1
    return status
