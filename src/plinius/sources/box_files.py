"""Boxes that a network found, in clear: a line of a .csv for each, or .json or .npz by picture."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plinius.data.records import ABSENT, Array, ArraySpec, Record, Source
from plinius.files import publish
from plinius.jsonvalue import Json
from plinius.sources.record_ids import record_ids

FIELDS = ("x", "y", "w", "h", "class", "score")
"""Middle and sides in fractions of the picture, class, and score from 0 to 1."""

TASK = "found boxes"


def boxes_source(
    pictures: Sequence[Array], most: int, ids: list[str], class_names: tuple[str, ...]
) -> Source:
    """The boxes (n, 6) of each picture as records of `most` rows of FIELDS, then 0; best first."""

    def records() -> Iterator[Record]:
        for boxes in pictures:
            sample = np.zeros((most, len(FIELDS)), np.float32)
            sample[: len(boxes)] = boxes[:most]
            yield sample, np.zeros(0, np.uint8)

    spec = ArraySpec(np.dtype("<f4"), (most, len(FIELDS)))
    about: dict[str, Json] = {"ids": [*ids], "target": {"name": "boxes", "task": TASK}}
    name = "the boxes that were found"
    return Source(name, len(pictures), spec, ABSENT, records, 0, class_names, about)


def is_boxes(source: Source) -> bool:
    """Whether the records of a source are boxes that were found."""
    target, shape = source.about.get("target"), source.sample.shape
    named = isinstance(target, dict) and target.get("task") == TASK
    return named and len(shape) == 2 and shape[1] == len(FIELDS)


def write_boxes(source: Source, path: Path) -> None:
    """Write boxes to the new file `path`, mode 0600, in the format that its suffix names.

    An .npz has `boxes` (pictures, most, 6), rows of 0 after the last, `ids` and `class_names`.
    Raises StorageError.
    """
    ids = record_ids(source.about, source.count, source.name)
    names = source.class_names
    with publish(path) as file:
        if path.suffix == ".npz":
            boxes = np.stack([sample for sample, _ in source])
            np.savez(file, boxes=boxes, ids=np.array(ids), class_names=np.array(names))
            return
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        if path.suffix == ".csv":
            lines = csv.writer(text)
            lines.writerow(["id", *FIELDS])
            for id, (sample, _) in zip(ids, source, strict=True):
                lines.writerows([id, *box.values()] for box in _boxes(sample, names))
        else:
            found: list[Any] = [
                {"id": id, "boxes": list(_boxes(sample, names))}
                for id, (sample, _) in zip(ids, source, strict=True)
            ]
            json.dump(found, text, indent=1)
            text.write("\n")
        text.flush()
        text.detach()


def _boxes(sample: Array, names: tuple[str, ...]) -> Iterator[dict[str, float | str]]:
    for row in sample[sample[:, 5] > 0]:
        values: dict[str, float | str] = {
            field: round(float(value), 6) for field, value in zip(FIELDS, row, strict=True)
        }
        label = int(row[4])
        values["class"] = names[label] if label < len(names) else str(label)
        yield values
