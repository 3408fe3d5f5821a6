"""The report of a benchmark: what it found, as it goes into JSON, a table, a plot and the page."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

from plinius.data.records import Progress
from plinius_benchmarks.machine import Machine

__all__ = ["Progress", "Report", "Row", "Target", "no_progress", "ratio", "spread"]

Row = dict[str, Any]


class Target(NamedTuple):
    """A figure that is judged, and the least or the most that it may be."""

    what: str
    value: float
    bound: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        """Whether the figure is on the right side of the bound."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def row(self) -> Row:
        """As JSON."""
        return {**self._asdict(), "met": self.met}


class Report(TypedDict):
    """What a benchmark found. The name says which table and which plot show it."""

    name: str
    title: str
    machine: Machine
    rows: list[Row]
    targets: list[Row]
    notes: list[str]


def no_progress(done: int, total: int) -> None:
    """For a caller that does not want to hear of it."""


def spread(values: Sequence[float]) -> list[float]:
    """Least, median and most."""
    return [min(values), statistics.median(values), max(values)]


def ratio(ones: Sequence[float], others: Sequence[float]) -> float:
    """The median over the rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(ones, others, strict=True))
