"""`python docs/make_figures.py`: put the figures of the last `make bench` into docs/performance.md.

They go between the two comments `figures: begin` and `figures: end`, with the machine that this runs on; so run it
where the benchmarks ran.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "bench" / "results" / "latest.json"


def machine(python: str) -> str:
    """One sentence that says where the figures come from."""
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), flags=re.MULTILINE)
    name = f" ({cpu[1]})" if cpu else ""
    release = ".".join(platform.release().split(".")[:2])
    extension = "with" if importlib.util.find_spec("guest._native") else "without"
    return (
        f"{os.cpu_count()} processors{name}, Linux {release}, {platform.python_implementation()} {python}, "
        f"{extension} the C extension."
    )


def main() -> None:
    """Write the table."""
    sys.path.insert(0, str(ROOT))
    from bench.harness import Figure, spread  # noqa: PLC0415  (bench is not installed)

    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    figures = [Figure(**{key: value for key, value in each.items() if key != "ratio"}) for each in results["figures"]]
    rows = [
        f"| {figure.name} | {figure.unit} | {spread(figure.ours)} | {spread(figure.theirs)} | {figure.ratio:.2f} |"
        for figure in figures
    ]
    table = "\n".join(
        [
            machine(results["python"]),
            f"Medians [lowest..highest] of {len(figures[0].ours)} rounds.",
            "",
            "| figure | unit | vring | yardstick | ratio |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )
    begin, end = "<!-- figures: begin -->\n", "\n<!-- figures: end -->"
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    PAGE.write_text(before + begin + table + end + after, encoding="utf-8")


if __name__ == "__main__":
    main()
