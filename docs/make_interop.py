"""`python docs/make_interop.py`: run the tests against others' software, and put what came of them into the table.

The rows stand in tests/witnesses.py. The table is written only if all tests pass; as root, since some make networks of
their own, and it takes a quarter of an hour. `tests/test_interop_table.py` sees when it is out of date.
"""

from __future__ import annotations

import os
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "interop.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->"


class Outcomes:
    """A plugin of pytest's: how many tests of each file passed or did not."""

    def __init__(self) -> None:
        self.of: dict[str, Counter[str]] = defaultdict(Counter)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count calls, and what kept a test from its call."""
        if report.when == "call" or report.outcome != "passed":
            self.of[report.nodeid.partition("::")[0]][report.outcome] += 1


def main() -> int:
    """Run, tabulate; 1 where something did not pass."""
    sys.path.insert(0, str(ROOT))
    from tests.witnesses import ROWS, table  # noqa: PLC0415  (tests are not installed)

    os.chdir(ROOT)
    files = sorted({file for row in ROWS for file in row.tests})
    outcomes = Outcomes()
    pytest.main(["-q", *files], plugins=[outcomes])
    wrong = [file for file in files if set(outcomes.of[file]) != {"passed"}]
    if wrong:
        print("not written: not all tests of these passed:", *wrong, sep="\n  ", file=sys.stderr)
        return 1
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    lines = table({file: outcomes.of[file]["passed"] for file in files})
    PAGE.write_text(before + BEGIN + "\n".join(lines) + "\n" + END + rest.split(END)[1], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
