"""Puts a fresh interpreter in the place of this one, for `vring run`: nothing is imported there but what vring/run.py
imports, so a program's modules can be given a guest's sockets from the start.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent  # where `vring` is found
# Not from the current directory, which is the program's and may have modules of any name.
BOOTSTRAP = "import sys; sys.path[:] = [sys.argv.pop(1), *filter(None, sys.path)]; from vring.run import main; main()"


def split(words: Sequence[str], valued: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our options, and the program with its arguments.

    That begins with `-m`, behind `--`, or with the first word that is no option and no option's value.

    Args:
        words: behind `vring run`.
        valued: the options that have a value in the next word.
    """
    at = 0
    while at < len(words):
        word = words[at]
        if word == "--":
            return list(words[:at]), list(words[at + 1 :])
        if word.startswith("-m") or not word.startswith("-"):
            return list(words[:at]), list(words[at:])
        at += 2 if word in valued else 1
    return list(words), []


def named(program: Sequence[str]) -> tuple[bool, str, list[str]]:
    """Whether it is a module, its name, and its arguments. Raises ValueError without a name."""
    first, *rest = program or [""]
    if first == "-m":
        first, *rest = ["-m" + word for word in rest[:1]] + rest[1:] or [""]
    if first in ("", "-m"):
        raise ValueError("a program is needed: a script, or -m and a module")
    by_name = first.startswith("-m")
    return by_name, first[2:] if by_name else first, list(rest)


def become(options: dict[str, Any], by_name: bool, name: str, arguments: Sequence[str]) -> NoReturn:
    """Run the program in a fresh interpreter in this process; what follows is vring/run.py."""
    sys.stdout.flush()
    sys.stderr.flush()
    words = [str(ROOT), json.dumps(options), "-m" if by_name else "", name, *arguments]
    os.execv(sys.executable, [sys.executable, "-c", BOOTSTRAP, *words])
