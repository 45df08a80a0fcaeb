"""Rows of docs/status.md that no other file shows."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("hw", "guest", "vring")
KERNEL_CODE = re.compile(r"<linux/(?:module|kernel|init)\.h>|^obj-m|\binsmod\b|\bmodprobe\b", re.MULTILINE)


def test_b7_nothing_is_built_for_the_kernel() -> None:
    """The C there is includes headers of the C library alone, and nothing loads a module."""
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.suffix in (".py", ".c", ".h")]
    files += [ROOT / "Makefile", ROOT / "setup.py"]
    found = {str(path.relative_to(ROOT)) for path in files if KERNEL_CODE.search(path.read_text(encoding="utf-8"))}

    assert found == set()
    assert KERNEL_CODE.search("#include <linux/module.h>")
    assert KERNEL_CODE.search("all:\nobj-m += ring.o\n")


@pytest.mark.parametrize("side", ["hw", "guest"])
def test_b7_the_extension_includes_the_c_library_alone(side: str) -> None:
    build = importlib.import_module(f"{side}._native_build")
    headers = re.findall(r"#include <(\S+)>", Path(str(build.__file__)).read_text(encoding="utf-8"))

    assert headers
    assert {header for header in headers if not re.fullmatch(r"std\w+\.h|string\.h", header)} == set()
