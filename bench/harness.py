"""Rounds of two contestants in turn, medians, spreads, and their ratio."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

Round = Callable[[], float]


@dataclass
class Figure:
    """One comparison. Rates are per second and more is better, unless `unit` is a time."""

    name: str
    unit: str
    yardstick: str
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    note: str = ""

    @property
    def ratio(self) -> float:
        """Ours ÷ yardstick, of the medians."""
        return statistics.median(self.ours) / statistics.median(self.theirs)

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {**asdict(self), "ratio": self.ratio}


def compare(figure: Figure, ours: Round, theirs: Round, rounds: int) -> Figure:
    """One round of each to warm up, then `rounds` of each in turn."""
    ours()
    theirs()
    for _ in range(rounds):
        figure.ours.append(ours())
        figure.theirs.append(theirs())
    return figure


def spread(values: list[float]) -> str:
    """Median and range, readable."""
    return f"{_short(statistics.median(values))} [{_short(min(values))}..{_short(max(values))}]"


def _short(value: float) -> str:
    if value >= 100_000:
        return f"{value / 1000:,.0f}k"
    if value >= 1000:
        return f"{value / 1000:,.1f}k"
    return f"{value:,.3g}"
