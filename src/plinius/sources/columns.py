"""How the columns of a table become the numbers of a sample, and back to their names.

The list of columns is sealed with the records, so that other tables are encoded the same way.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from plinius.data.records import Record, Source
from plinius.errors import FormatError, SourceError
from plinius.jsonvalue import Json
from plinius.sources.survey import Survey

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Column:
    """One column: a number, which becomes (x - mean) / scale, or one 0 or 1 for each category."""

    name: str
    categories: tuple[str, ...] = ()
    mean: float = 0.0
    scale: float = 1.0

    @property
    def width(self) -> int:
        """How many numbers of a sample it takes."""
        return len(self.categories) or 1

    @property
    def labels(self) -> list[str]:
        """The name of each of its numbers."""
        return [f"{self.name}={category}" for category in self.categories] or [self.name]

    def standardized(self, values: Floats) -> Floats:
        """Numbers (n, width) in the scale of the training data; categories stay as they are."""
        if self.categories:
            return values
        return ((values.astype(np.float64) - self.mean) / self.scale).astype(np.float32)

    def to_json(self) -> dict[str, Json]:
        """The column as a member of the meta block."""
        if self.categories:
            return {"name": self.name, "categories": [*self.categories]}
        return {"name": self.name, "mean": self.mean, "scale": self.scale}


def columns_of(about: dict[str, Any], name: str) -> list[Column]:
    """The columns in an opened meta block, none if it is of no table. Raises FormatError."""
    try:
        found = [
            Column(
                str(entry["name"]),
                tuple(map(str, entry.get("categories", ()))),
                float(entry.get("mean", 0.0)),
                float(entry.get("scale", 1.0)),
            )
            for entry in about.get("columns", ())
        ]
    except (TypeError, ValueError, KeyError, AttributeError):
        raise FormatError(f"The columns of {name} are not valid", "Seal the data again") from None
    return found


def labels_of(columns: Sequence[Column]) -> list[str]:
    """The name of each number of a sample, in order."""
    return [label for column in columns for label in column.labels]


def standardized(parts: dict[str, Source]) -> dict[str, Source]:
    """Parts of a table whose columns have mean 0 and standard deviation 1 in the first part.

    Mean and scale are those of the first part alone, so that nothing of the others gets into
    training. A column that never changes keeps scale 1. Raises SourceError if it is no table.
    """
    first = next(iter(parts.values()))
    columns = columns_of(first.about, first.name)
    if not columns:
        raise SourceError(f"{first.name} is no table", "Leave out --standardize")
    survey, at, fitted = Survey(first).measure(), 0, []
    for column in columns:
        if not column.categories:
            scale = float(survey.std[at]) or 1.0
            column = replace(column, mean=float(survey.mean[at]), scale=scale)
        fitted.append(column)
        at += column.width
    return {name: _mapped(part, fitted) for name, part in parts.items()}


def _mapped(source: Source, columns: list[Column]) -> Source:
    ends = np.cumsum([column.width for column in columns])[:-1]

    def records() -> Iterator[Record]:
        for sample, label in source:
            pieces = np.split(sample, ends)
            numbers = [c.standardized(piece) for c, piece in zip(columns, pieces, strict=True)]
            yield np.concatenate(numbers), label

    about = source.about | {"columns": [column.to_json() for column in columns]}
    return replace(source, records=records, about=about)
