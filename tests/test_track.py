"""The lesson track: phases and groups of tests that can be chosen, and the table of deliverables (E46, E47, E58)."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from bench import hook, hub, ring
from tests.track import (
    DELIVERABLES,
    GROUPS,
    PHASES,
    ROOT,
    Deliverable,
    all_tests,
    expand,
    marks_of,
    means,
    named_tests,
    rows_of,
    shown_by,
    table,
)

THERE = all_tests()
PAGE = ROOT / "docs" / "deliverables.md"
TRACK = ROOT / "docs" / "teaching" / "README.md"

# The rows of the project's list that come from that course: what its phases ask for.
ASKED = [f"E{at}" for at in (*range(1, 12), *range(17, 25), *range(26, 29), *range(30, 38), *range(40, 59))]


def chosen(mark: str) -> list[str]:
    return [test for test in THERE if mark in marks_of(test)]


def collected(*words: str) -> set[str]:
    """What pytest itself chooses, as `test_x.py::test_y`."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-o", "addopts=", *words],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return {
        f"{file}.py::{name}"
        for file, name in re.findall(r"^tests/(\w+)\.py::([\w:]+)", done.stdout, flags=re.MULTILINE)
    }


# -- the words -------------------------------------------------------------------------------------------------------


def test_a_name_has_its_rows() -> None:
    assert rows_of("test_x.py::test_e21_e22_every_error") == {"E21", "E22"}
    assert rows_of("test_x.py::test_ipv6_over_rfc9293") == set()


@pytest.mark.parametrize(
    ("word", "test", "meant"),
    [
        ("E2", "test_x.py::test_e2_sends", True),
        ("E2", "test_x.py::test_e21_errors", False),
        ("test_x.py", "test_x.py::test_y", True),
        ("test_x.py", "test_xy.py::test_y", False),
        ("test_x.py::test_y*", "test_x.py::test_yes", True),
        ("test_x.py::test_y*", "test_z.py::test_yes", False),
        ("*loop*", "test_x.py::test_a_loop", True),
        ("*loop*", "test_loop.py::test_a", False),
    ],
)
def test_a_word_means_these_tests(word: str, test: str, meant: bool) -> None:
    assert means(word, test) == meant


@pytest.mark.parametrize("mark", [*PHASES, *GROUPS])
def test_every_word_means_a_test(mark: str) -> None:
    subset = (PHASES | GROUPS)[mark]
    # A row without tests that have its name is one that docs/status.md names the tests of; see below.
    words = subset.words.split()
    idle = [word for word in words if not any(means(each, test) for test in THERE for each in expand(word))]

    assert [word for word in idle if not re.fullmatch(r"[A-Z]\d+", word)] == []


# -- phases ----------------------------------------------------------------------------------------------------------


def test_e58_the_phases_have_all_that_the_course_asks_for() -> None:
    asked = [row for subset in PHASES.values() for row in expand(subset.words) if re.fullmatch(r"E\d+", row)]

    assert sorted(set(asked), key=lambda row: int(row[1:])) == ASKED


@pytest.mark.parametrize("phase", PHASES)
def test_e58_every_row_of_a_phase_has_a_test_in_it(phase: str) -> None:
    """Those that docs/status.md names for the row count: a phase that chooses none of them does not show it."""
    named = named_tests()
    inside = set(chosen(phase))
    for row in expand(PHASES[phase].words):
        if row in named:
            assert inside & set(named[row]), f"{phase} chooses no test of {row}: {named[row]}"
    assert len(inside) > 30


def test_e58_the_marker_of_a_phase_chooses_its_tests_and_no_others() -> None:
    files = ("test_net_arp.py", "test_net_forward.py", "test_udp.py", "test_guest_apps.py", "test_cmdline.py")
    here = [test for test in THERE if test.partition("::")[0] in files]

    for phase in ("phase_6_1", "phase_6_2"):
        found = collected("-m", phase, *(f"tests/{file}" for file in files))
        assert found == {test for test in here if phase in marks_of(test)}
    assert marks_of("test_cmdline.py::test_x") == (), "and there are tests of no phase"


def test_e58_the_track_has_every_phase_with_its_marker() -> None:
    text = TRACK.read_text(encoding="utf-8")

    assert [phase for phase in PHASES if f"`{phase}`" not in text] == []
    assert [group for group in GROUPS if f"`{group}`" not in text] == []


# -- lessons ---------------------------------------------------------------------------------------------------------

CONCEPTS = (
    "OSI and TCP/IP layered model", "Ethernet frames and addressing", "ARP protocol operation",
    "IP addressing, routing, and fragmentation", "TCP state machine and connection management",
    "TCP sliding window and flow control", "Socket programming interface", "Network byte order (big-endian)",
    "Checksum algorithms", "Interrupt-driven I/O for networking",
)  # fmt: skip


@pytest.mark.parametrize("concept", CONCEPTS)
def test_e57_each_concept_has_a_lesson_with_an_example_that_is_run(concept: str) -> None:
    """tests/test_docs.py runs every python block, and compares what it prints with the text block behind it."""
    row = re.search(rf"^\| {re.escape(concept)} \| \[[^]]+\]\(([\w-]+\.md)\)", TRACK.read_text(), flags=re.MULTILINE)
    assert row is not None, "the table of docs/teaching/README.md has a lesson for each"
    lesson = (TRACK.parent / row[1]).read_text(encoding="utf-8")

    assert re.search(r"^```python\n.*?^```\n\n```text\n.+?^```", lesson, flags=re.MULTILINE | re.DOTALL)
    assert "<details><summary>Answer</summary>" in lesson.partition("## Exercise")[2]
    assert re.search(r"^## Read beside it\n\n.*(RFC|virtio|IEEE|POSIX)", lesson, flags=re.MULTILINE)
    assert re.search(r"^In the code: .*`\w+/[\w/]+\.py`", lesson, flags=re.MULTILINE)
    assert f"]({row[1]})" in TRACK.read_text().partition("| to understand")[0], "and it stands among the lessons"


# -- groups ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", GROUPS)
def test_e47_each_group_has_tests_and_its_marker_chooses_them(group: str) -> None:
    tests = chosen(group)
    files = sorted({test.partition("::")[0] for test in tests})[:3]
    few = [test for test in tests if test.partition("::")[0] in files]

    assert len(tests) >= 10
    assert collected("-m", group, *(f"tests/{file}" for file in files)) == set(few)


def test_e47_an_unknown_group_is_no_group() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--markers"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    known = set(re.findall(r"^@pytest\.mark\.((?:phase|group)_\w+):", done.stdout, flags=re.MULTILINE))

    assert known == {*PHASES, *GROUPS}


# -- deliverables ----------------------------------------------------------------------------------------------------


def shown() -> list[str]:
    return [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]


def test_e46_the_table_is_the_one_that_would_be_made_now() -> None:
    """`python docs/make_deliverables.py` makes it, and writes none where a test does not pass."""
    rows = named_tests()
    now = table({test: 1 for each in DELIVERABLES for test in shown_by(each, rows)})
    without_number = [re.sub(r"\| \d+ passed \|$", "| passed |", line) for line in (*shown(), "", *now)]

    assert without_number[: len(now)] == without_number[-len(now) :], "run: python docs/make_deliverables.py"


def test_e46_every_test_of_the_table_is_there() -> None:
    named = re.findall(r"`(test_\w+\.py::\w+)`", "\n".join(shown()))

    assert len(named) > 50
    assert sorted(set(named) - set(THERE)) == []


def test_e46_what_is_stale_or_missing_would_be_seen() -> None:
    rows = named_tests()
    with pytest.raises(KeyError):
        shown_by(Deliverable("a box", "E999"), rows)
    assert shown_by(Deliverable("a box", "E8", "test_x.py::test_y"), rows)[-1] == "test_x.py::test_y"
    assert "not run" in table({})[2]


def test_e48_the_page_on_performance_has_every_figure_that_is_measured_here() -> None:
    """Measured in a moment, so the figures mean nothing; their names must be those of the table."""
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    figures = [figure for part in (ring, hub, hook) for figure in part.measure(1, 0.02)]

    assert [figure.name for figure in figures if f"| {figure.name} | {figure.unit} |" not in text] == []
    assert all(figure.ratio > 0 for figure in figures)
