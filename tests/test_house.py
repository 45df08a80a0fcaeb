"""The house is in order: versions agree, packages are listed, files are short, commands exist, imports are light."""

from __future__ import annotations

import ast
import os
import random
import re
import subprocess
import sys
import tomllib
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import pytest

from tests.requirements import require

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("hw", "guest", "vring")
LONGEST_FILE = 600

# Where a file may have come from and must not say so: a path of the machine it was written on.
HOME_PATHS = re.compile(r"(?<![\w.])/(?:root|work|home/\w+|tmp/\w+)/")

TEXTS = ("*.md", "*.toml", "*.py", "*.pyi", "*.c", "*.h", "*.txt", "*.sh", "*.cfg")
UNWATCHED = {".git", ".venv", "build", "dist", "__pycache__"}


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def text_files() -> list[Path]:
    found = {path for pattern in TEXTS for path in ROOT.rglob(pattern)} | {ROOT / "Makefile", ROOT / ".ci" / "run"}
    return sorted(
        path
        for path in found
        if not UNWATCHED & set(path.relative_to(ROOT).parts) and not any(".egg-info" in part for part in path.parts)
    )


def python_files() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def home_paths_in(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if HOME_PATHS.search(line)]


def test_the_version_is_one() -> None:
    declared = pyproject()["project"]["version"]

    assert import_module("vring").__version__ == declared
    assert f"\n## [{declared}]" in (ROOT / "CHANGELOG.md").read_text(), "the changelog does not have this version"


def test_the_installed_version_is_the_declared_one() -> None:
    try:
        installed = metadata.version("vring")
    except metadata.PackageNotFoundError:
        require(False, "needs vring installed (make install)")
        return

    assert installed == pyproject()["project"]["version"]


@pytest.mark.parametrize(
    "name",
    ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "pyproject.toml", "setup.py", ".ci/run"],
)
def test_the_house_has_its_rooms(name: str) -> None:
    assert (ROOT / name).stat().st_size > 0


def test_every_package_on_disk_is_listed() -> None:
    on_disk = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for package in PACKAGES
        for pattern in ("*.py", "*.toml")
        for path in (ROOT / package).rglob(pattern)
    }

    assert set(pyproject()["tool"]["setuptools"]["packages"]) == on_disk


def test_package_data_exists() -> None:
    for package, patterns in pyproject()["tool"]["setuptools"]["package-data"].items():
        for pattern in patterns:
            assert list((ROOT / package.replace(".", "/")).glob(pattern)), f"{package} has no {pattern}"


def test_the_console_command_exists() -> None:
    module, _, function = pyproject()["project"]["scripts"]["vring"].partition(":")

    assert callable(getattr(import_module(module), function))


def test_files_can_be_read_in_one_sitting() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in python_files()}

    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE} == {}


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(path.relative_to(ROOT)) for path in python_files() if not ast.get_docstring(ast.parse(path.read_text()))
    ]

    assert silent == []


def test_no_file_names_the_machine_it_was_written_on() -> None:
    found = {
        str(path.relative_to(ROOT)): lines for path in text_files() if (lines := home_paths_in(path.read_text()))
    }

    assert found == {}


def test_a_path_of_a_home_is_seen() -> None:
    slash = "/"
    assert home_paths_in(f"see {slash}root/notes")
    assert home_paths_in(f"open('{slash}work/main/x')")
    assert not home_paths_in(f"hw{slash}work{slash}queue and tests{slash}root{slash}x")


def test_make_has_what_the_papers_promise() -> None:
    targets = make_targets()
    assert targets >= {"help", "install", "boot", "test", "lint", "bench", "demo", "clean"}

    for paper in ("README.md", "CONTRIBUTING.md"):
        # Commands stand between backquotes or on lines of their own; prose may "make sense".
        promised = re.findall(r"(?:^\s*|`)make ([a-z][a-z-]*)", (ROOT / paper).read_text(), re.MULTILINE)
        assert set(promised) <= targets, f"{paper} promises what the Makefile does not have"


def test_make_alone_lists_every_target() -> None:
    shown = subprocess.run(["make", "-C", str(ROOT), "-s"], capture_output=True, text=True, check=True).stdout

    for target in make_targets():
        assert f"make {target} " in shown


@pytest.mark.parametrize("module", ["hw", "guest", "vring", "hw.machine", "guest.kernel"])
def test_importing_is_light(module: str) -> None:
    program = f"import {module}, sys; print(*sys.modules)"
    said = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )

    heavy = {"numpy", "rich", "typer", "pcapng", "dns", "hypothesis", "pytest"}
    assert heavy & set(said.stdout.split()) == set()


def plain_sum(data: bytes) -> int:
    """RFC 1071, section 1, word by word."""
    total = 0
    for at in range(0, len(data), 2):
        total += int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big")
        total = (total & 0xFFFF) + (total >> 16)
    return total


def native(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        require(False, f"needs {module} (a C compiler and Python's headers when vring is installed)")


@pytest.mark.parametrize(("module", "function"), [("guest._native", "vring_inet_sum"), ("hw._native", "hw_inet_sum")])
def test_sum_in_c_is_the_plain_sum(module: str, function: str) -> None:
    c_sum = getattr(native(module).lib, function)
    rng = random.Random(1071)
    cases = [b"", b"\x01", b"\0" * 40, b"\xff" * 65536, b"\xff" * 33, b"\0\0\0\1" * 9]
    cases += [rng.randbytes(length) for length in (*range(70), 1459, 1460, 65535)]

    for data in cases:
        assert c_sum(data, len(data)) == plain_sum(data), f"{len(data)} bytes {data[:20].hex()}"


@pytest.mark.parametrize(("module", "function"), [("guest._native", "vring_inet_sum"), ("hw._native", "hw_inet_sum")])
def test_sum_in_c_reads_views_from_odd_addresses(module: str, function: str) -> None:
    extension = native(module)
    memory = memoryview(bytearray(random.Random(5).randbytes(300)))

    for start in range(9):
        view = memory[start : start + 200]
        address = extension.ffi.from_buffer("uint8_t[]", view)
        assert getattr(extension.lib, function)(address, len(view)) == plain_sum(bytes(view))


@pytest.mark.parametrize(("module", "function"), [("guest._native", "vring_fence"), ("hw._native", "hw_fence")])
def test_fence_returns(module: str, function: str) -> None:
    assert getattr(native(module).lib, function)() is None


@pytest.mark.parametrize(
    ("required", "workers", "outcome"),
    [({}, [], 0), ({"CI": "true"}, [], 1), ({"VRING_REQUIRE_ALL": "1"}, [], 1), ({"CI": "true"}, ["-n", "1"], 1)],
)
def test_a_skip_fails_where_all_must_run(
    required: dict[str, str], workers: list[str], outcome: int, tmp_path: Path
) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "test_it.py").write_text(
        "import pytest\ndef test_runs(): pass\ndef test_does_not(): pytest.skip('no such thing here')\n"
    )
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("CI", "VRING_", "PYTEST_"))}

    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *workers],
        cwd=tmp_path,
        env=inherited | required | {"PYTHONPATH": str(ROOT)},  # for tests/track.py
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == outcome, ran.stdout + ran.stderr
    assert ("SKIPPED WHERE NOTHING MAY BE" in ran.stdout) == bool(required), ran.stdout
