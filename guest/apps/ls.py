"""ls: what is in the guest's folder."""

from __future__ import annotations

from guest.apps import EX_USAGE
from guest.apps.env import Env
from guest.apps.streams import shown
from guest.apps.usage import UsageError, options

USAGE = """usage: ls [-l] [PATH]
  -l  sizes too"""
EXAMPLES = ("ls", "ls -l public")


def main(env: Env, argv: list[str]) -> int:
    """0, 1 where there is no such thing, 2 for wrong usage."""
    try:
        chosen, rest = options(argv, "l")
        if len(rest) > 1:
            raise UsageError("one path at most")
    except UsageError as error:
        env.print(f"ls: {error}\n{USAGE}")
        return EX_USAGE
    path = rest[0] if rest else ""
    files = env.guest.files
    try:
        entry = files.stat(path)
        found = files.entries(path) if entry.is_folder else [entry]
    except OSError as error:
        env.print(f"ls: {path}: {error.strerror}")
        return 1
    width = max((len(str(each.size)) for each in found), default=0)
    for each in found:
        name = shown(each.name.encode("utf-8", "backslashreplace")) + "/" * each.is_folder
        env.print(f"{each.size:>{width}}  {name}" if "-l" in chosen else name)
    return 0
