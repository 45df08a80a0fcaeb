"""What a test needs of the machine it runs on: said in one line, skipped without it, failed where all must run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest


def require(condition: object, reason: str) -> None:
    """Go on if `condition`; otherwise skip with `reason`, or fail under CI=true or VRING_REQUIRE_ALL=1."""
    if condition:
        return
    if os.environ.get("CI") == "true" or os.environ.get("VRING_REQUIRE_ALL") == "1":
        pytest.fail(f"required here: {reason}", pytrace=False)
    pytest.skip(reason)


def require_root() -> None:
    """The test makes network namespaces and TAPs."""
    require(os.geteuid() == 0, "needs root")


def require_program(name: str) -> str:
    """The path of the program `name`."""
    path = shutil.which(name)
    require(path, f"needs the program {name}")
    return path or ""


def require_header(path: str) -> None:
    """The C header `path`, as an #include names it."""
    require(Path("/usr/include", path).exists(), f"needs the header <{path}>")
