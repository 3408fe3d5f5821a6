"""Records written in clear, as .csv or .npz, or the file that they are the pieces of."""

import csv
import io
import math
from pathlib import Path
from typing import Any, cast

import numpy as np

from plinius.data.records import ABSENT, Source
from plinius.data.sealed_dataset import SealedDataset
from plinius.errors import SourceError
from plinius.files import publish
from plinius.sources.box_files import is_boxes, write_boxes
from plinius.sources.columns import columns_of, labels_of
from plinius.sources.record_ids import record_ids
from plinius.sources.sealed_file import SUFFIXES as FILE_SUFFIXES
from plinius.sources.sealed_file import is_file, write_file

SUFFIXES = (".csv", ".npz", ".json")
_MAX_CSV_NUMBERS = 4096


def source_of(dataset: SealedDataset) -> Source:
    """The records of a sealed dataset as a source."""
    header = dataset.header
    return Source(
        dataset.name,
        header.count,
        header.sample,
        header.label,
        lambda: map(dataset.open_record, range(header.count)),
        header.classes,
        dataset.class_names,
        {name: value for name, value in dataset.about.items() if name != "class_names"},
    )


def write_clear(source: Source, path: Path) -> None:
    """Write all records to the new file `path`, mode 0600, in the format that its suffix names.

    A .csv has a line for each record: its id, the numbers of its sample, and its label, as the name
    of the class if it has one. An .npz has arrays x, y (if there are labels), ids, class_names and
    columns. The numbers are those that were sealed: scaled, where columns were. Boxes that were
    found have a line each; only they can also be a .json. Pieces of a file are written as that
    file. Raises SourceError for a sample of more than 4096 numbers in a .csv, and for a suffix
    that does not go with the records; SealError, StorageError.
    """
    if is_file(source):
        write_file(source, path)
        return
    if path.suffix in FILE_SUFFIXES:
        raise SourceError(f"{source.name} holds records, no file", "Write .csv or .npz")
    if is_boxes(source):
        write_boxes(source, path)
        return
    if path.suffix == ".json":
        raise SourceError(f"{source.name} holds no boxes that were found", "Write .csv or .npz")
    (_write_csv if path.suffix == ".csv" else _write_npz)(source, path)


def _write_csv(source: Source, path: Path) -> None:
    size = math.prod(source.sample.shape)
    if size > _MAX_CSV_NUMBERS or math.prod(source.label.shape) > _MAX_CSV_NUMBERS:
        raise SourceError(
            f"A record of {source.name} has more than {_MAX_CSV_NUMBERS} numbers",
            "Write an .npz instead",
        )
    ids = record_ids(source.about, source.count, source.name)
    with publish(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        lines = csv.writer(text)
        lines.writerow(["id", *_columns(source), *_label_names(source)])
        for id, (sample, label) in zip(ids, source, strict=True):
            values = label.reshape(-1).tolist()
            if source.label.is_index and source.class_names:
                values = [source.class_names[int(label)]]
            lines.writerow([id, *sample.reshape(-1).tolist(), *values])
        text.flush()
        text.detach()


def _write_npz(source: Source, path: Path) -> None:
    arrays: dict[str, Any] = {
        "x": np.empty((source.count, *source.sample.shape), source.sample.dtype)
    }
    if source.label != ABSENT:
        arrays["y"] = np.empty((source.count, *source.label.shape), source.label.dtype)
    for index, (sample, label) in enumerate(source):
        arrays["x"][index] = sample
        if source.label != ABSENT:
            arrays["y"][index] = label
    arrays["ids"] = np.array(record_ids(source.about, source.count, source.name))
    if source.class_names:
        arrays["class_names"] = np.array(source.class_names)
    if columns := columns_of(source.about, source.name):
        arrays["columns"] = np.array(labels_of(columns))
    with publish(path) as file:
        np.savez(file, **arrays)


def _columns(source: Source) -> list[str]:
    names = labels_of(columns_of(source.about, source.name))
    return names or [f"x{number}" for number in range(math.prod(source.sample.shape))]


def _label_names(source: Source) -> list[str]:
    count = math.prod(source.label.shape)
    target = cast(dict[str, Any], source.about.get("target") or {})
    name = str(target.get("name", "label"))
    return [name] if count == 1 else [f"{name}{number}" for number in range(count)]
