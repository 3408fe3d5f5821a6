"""Looks at records on their way to being sealed: refuses what is no number, counts and measures."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from plinius.data.records import ABSENT, Array, Record, Source
from plinius.errors import SourceError
from plinius.jsonvalue import Json

_BLOCK = 256
_MAX_FEATURES = 65536  # above it, all values of a sample are measured as one


@dataclass
class Survey:
    """What the records of a source are like; complete once they have all been read.

    `labels` counts class indices. `minimum`, `mean`, `std` (of the population) and `maximum` have a
    value for each number of a sample, or a single one for samples of more than 65,536 numbers.
    """

    source: Source
    labels: Counter[int] = field(default_factory=Counter)
    minimum: npt.NDArray[np.float64] = field(init=False)
    maximum: npt.NDArray[np.float64] = field(init=False)
    _count: int = 0
    _mean: npt.NDArray[np.float64] = field(init=False)
    _square: npt.NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        size = int(np.prod(self.source.sample.shape))
        width = size if size <= _MAX_FEATURES else 1
        self.minimum, self.maximum = np.full(width, np.inf), np.full(width, -np.inf)
        self._mean, self._square = np.zeros(width), np.zeros(width)

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """The mean of each number of a sample."""
        return self._mean

    @property
    def std(self) -> npt.NDArray[np.float64]:
        """The standard deviation of each number of a sample."""
        found: npt.NDArray[np.float64] = np.sqrt(self._square / max(1, self._count))
        return found

    def watched(self) -> Source:
        """The same source; reading it fills this survey, from nothing each time.

        Reading raises SourceError for a number that is not finite.
        """
        return replace(self.source, records=self._records)

    def measure(self) -> "Survey":
        """Read all records, for what they are like alone."""
        for _ in self.watched():
            pass
        return self

    def _records(self) -> Iterator[Record]:
        self.labels.clear()
        self._count = 0
        self.__post_init__()
        block: list[Array] = []
        for index, (sample, label) in enumerate(self.source):
            self._require_finite(index, "sample", sample)
            self._require_finite(index, "label", label)
            if self.source.label.is_index:
                self.labels[int(label)] += 1
            if sample.size:
                block.append(sample.reshape(-1))
            if len(block) == _BLOCK:
                self._add(np.stack(block))
                block = []
            yield sample, label
        if block:
            self._add(np.stack(block))

    def _require_finite(self, index: int, what: str, values: Array) -> None:
        if values.dtype.kind != "f" or np.isfinite(values).all():
            return
        at = int(np.flatnonzero(~np.isfinite(values.reshape(-1)))[0])
        raise SourceError(
            f"The {what} of record {index} of {self.source.name} holds {values.reshape(-1)[at]} "
            f"at place {at}",
            "Only finite numbers can be trained on: replace it, or leave the record out",
        )

    def _add(self, rows: Array) -> None:
        """Add samples (n, numbers): mean and sum of squares as Chan, Golub and LeVeque (1979)."""
        values = rows.astype(np.float64)
        values = values if len(self.minimum) == values.shape[1] else values.reshape(-1, 1)
        self.minimum = np.minimum(self.minimum, values.min(0))
        self.maximum = np.maximum(self.maximum, values.max(0))
        count, mean = len(values), values.mean(0)
        total, apart = self._count + count, mean - self._mean
        self._square += ((values - mean) ** 2).sum(0) + apart**2 * (self._count * count / total)
        self._mean += apart * (count / total)
        self._count = total

    def report(self) -> dict[str, Json]:
        """Count, shapes, task, label histogram and statistics, as values for JSON."""
        source = self.source
        found: dict[str, Json] = {
            "count": source.count,
            "sample": [str(source.sample.dtype), list(source.sample.shape)],
            "label": [str(source.label.dtype), list(source.label.shape)],
            "classes": source.classes,
        }
        if source.label.is_index:
            names = source.class_names or [str(n) for n in range(max(self.labels, default=-1) + 1)]
            found["labels"] = {name: self.labels[n] for n, name in enumerate(names)}
        if source.sample != ABSENT:
            weight = np.full(len(self.mean), 1 / len(self.mean))
            mean = float(self.mean @ weight)
            spread = (self.std**2 + (self.mean - mean) ** 2) @ weight
            found["values"] = {
                "min": float(self.minimum.min()),
                "mean": mean,
                "std": float(np.sqrt(spread)),
                "max": float(self.maximum.max()),
            }
        return found

    def columns(self, names: list[str]) -> dict[str, Json]:
        """The statistics of each column of a table, by its name."""
        rows: Any = zip(names, self.minimum, self.mean, self.std, self.maximum, strict=True)
        return {
            name: dict(zip(("min", "mean", "std", "max"), map(float, numbers), strict=True))
            for name, *numbers in rows
        }
