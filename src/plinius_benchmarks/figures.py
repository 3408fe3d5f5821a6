"""Figures: what a benchmark found, as it goes into JSON, tables and plots."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

from plinius_benchmarks.machine import Machine

Row = dict[str, Any]


class Bar(NamedTuple):
    """A claim that is judged: a figure, and the least or the most that it may be."""

    what: str
    value: float
    bound: float
    least: bool = True

    @property
    def met(self) -> bool:
        """Whether the claim holds."""
        return self.value >= self.bound if self.least else self.value <= self.bound

    def row(self) -> Row:
        """As JSON."""
        return {**self._asdict(), "met": self.met}


class Report(TypedDict):
    """What a benchmark found."""

    name: str
    title: str
    machine: Machine
    rows: list[Row]
    bars: list[Row]
    notes: list[str]


def spread(values: Sequence[float]) -> list[float]:
    """Least, median and most."""
    return [min(values), statistics.median(values), max(values)]


def ratio(ones: Sequence[float], others: Sequence[float]) -> float:
    """The median over the rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(ones, others, strict=True))
