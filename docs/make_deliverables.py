"""`python docs/make_deliverables.py`: run the tests of every deliverable, and put what came of them into the table.

Which tests those are stands in tests/track.py and docs/status.md. The table is written only if all of them pass; as
root, since some make networks of their own. `tests/test_track.py` sees when it is out of date.
"""

from __future__ import annotations

import os
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "deliverables.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->"


class Outcomes:
    """A plugin of pytest's: how often each test, with whatever parameters, passed or did not."""

    def __init__(self) -> None:
        self.of: dict[str, Counter[str]] = defaultdict(Counter)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count calls, and what kept a test from its call."""
        if report.when == "call" or report.outcome != "passed":
            file, _, name = report.nodeid.partition("[")[0].rpartition("/")[2].partition("::")
            self.of[f"{file}::{name}"][report.outcome] += 1


def main() -> int:
    """Run, tabulate; 1 where something did not pass."""
    sys.path.insert(0, str(ROOT))
    from tests.track import DELIVERABLES, named_tests, shown_by, table  # noqa: PLC0415  (tests are not installed)

    os.chdir(ROOT)
    rows = named_tests()
    tests = list(dict.fromkeys(test for each in DELIVERABLES for test in shown_by(each, rows)))
    outcomes = Outcomes()
    pytest.main(["-p", "no:cacheprovider", *(f"tests/{test}" for test in tests)], plugins=[outcomes])
    wrong = [test for test in tests if set(outcomes.of[test]) != {"passed"}]
    if wrong:
        print("not written: not all of these passed:", *wrong, sep="\n  ", file=sys.stderr)
        return 1
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    lines = table({test: outcomes.of[test]["passed"] for test in tests})
    PAGE.write_text(before + BEGIN + "\n".join(lines) + "\n" + END + rest.split(END)[1], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
