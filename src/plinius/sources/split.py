"""Splits a source at sealing: into training, validation and test parts that share no record."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from plinius.data.records import Record, Source
from plinius.errors import SourceError

PARTS = {1: ("",), 2: ("train", "test"), 3: ("train", "validation", "test")}
"""The names of the parts, by their number."""


def split(
    source: Source, fractions: Sequence[float], seed: int = 0, stratify: bool = False
) -> dict[str, Source]:
    """Two or three parts of a source, by name; each keeps the order of the source.

    Which record goes where depends on count, fractions and `seed` alone; with `stratify`, also on
    the labels, and every class is split by the fractions, to within one record. The parts of a
    text follow each other, so that each is one text, and `seed` does not count. Raises SourceError
    for other fractions, for a part without records, and for `stratify` without class labels.
    """
    names = PARTS.get(len(fractions), ())
    possible = all(part > 0 for part in fractions) and abs(sum(fractions) - 1) <= 1e-6
    if len(names) < 2 or not possible:
        raise SourceError(
            f"{','.join(map(str, fractions))} is no split",
            "Give two fractions (train,test) or three (train,validation,test) whose sum is 1",
        )
    groups = _classes(source) if stratify else np.zeros(source.count, np.int64)
    part = np.empty(source.count, np.int64)
    order = np.argsort(_random(source.count, seed), kind="stable")
    if "text" in source.about:
        order = np.arange(source.count)
    carried = np.zeros(len(fractions))
    for group in np.unique(groups):
        members = order[groups[order] == group]
        ends, carried = _ends(len(members), fractions, carried)
        part[members] = np.searchsorted(ends, np.arange(len(members)), side="right")
    parts = {}
    for number, name in enumerate(names):
        rows = part == number
        if not rows.any():
            raise SourceError(
                f"{source.count} records of {source.name} leave none for {name}",
                "Give that part a larger fraction",
            )
        parts[name] = _chosen(source, rows, name)
    return parts


def _ends(
    count: int, fractions: Sequence[float], carried: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Where each part of `count` records ends but the last.

    What rounding took from a part in one class is `carried` to the next one, so that small classes
    do not all fall into one part.
    """
    wanted = np.asarray(fractions) * count + carried
    sizes = np.floor(np.maximum(wanted, 0)).astype(np.int64)
    while sizes.sum() > count:
        sizes[np.argmax(np.where(sizes > 0, sizes - wanted, -np.inf))] -= 1
    for _ in range(count - int(sizes.sum())):
        sizes[np.argmax(wanted - sizes)] += 1
    return np.cumsum(sizes)[:-1], wanted - sizes


def _chosen(source: Source, rows: npt.NDArray[np.bool_], part: str) -> Source:
    def records() -> Iterator[Record]:
        return itertools.compress(source, rows.tolist())

    about = dict(source.about)
    if "ids" in about:
        about["ids"] = list(itertools.compress(cast(list[Any], about["ids"]), rows.tolist()))
    name = f"the {part} part of {source.name}"
    return replace(source, name=name, count=int(rows.sum()), records=records, about=about)


def _classes(source: Source) -> npt.NDArray[np.int64]:
    if not source.label.is_index:
        raise SourceError(
            f"The labels of {source.name} are no classes", "Leave out --stratify, or seal classes"
        )
    return np.fromiter((int(label) for _, label in source), np.int64, source.count)


def _random(count: int, seed: int) -> npt.NDArray[np.uint64]:
    """Raw numbers of Philox, which NumPy specifies: the same split with every version."""
    return np.random.Philox(key=np.array([seed, 0], np.uint64)).random_raw(count)
