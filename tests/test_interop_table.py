"""The table of docs/interop.md says what tests/witnesses.py says, of tests that are there, and that they passed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.witnesses import ROWS, Row, cells

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "interop.md").read_text(encoding="utf-8")
TABLE = PAGE.partition("<!-- table: begin -->\n")[2].partition("<!-- table: end -->")[0].splitlines()[2:]


def test_the_table_has_a_line_for_each_row() -> None:
    assert len(TABLE) == len(ROWS), "python docs/make_interop.py writes it anew"


@pytest.mark.parametrize(("row", "line"), list(zip(ROWS, TABLE, strict=False)), ids=lambda _: "")
def test_each_line_says_what_its_row_says_and_that_its_tests_passed(row: Row, line: str) -> None:
    counterpart, versions, side, features, shown, files, result = line.strip("| ").split(" | ")
    assert (counterpart, side, features, shown) == cells(row), "python docs/make_interop.py writes it anew"
    assert [name.strip("`") for name in files.split(", ")] == list(row.tests)
    assert re.fullmatch(r"[1-9]\d* passed", result)
    assert versions.count(", ") == len(row.versions) - 1


def test_every_file_is_there() -> None:
    assert [file for row in ROWS for file in row.tests if not (ROOT / file).exists()] == []
