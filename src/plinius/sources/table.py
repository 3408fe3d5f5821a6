"""Records from tables: CSV, Parquet, and Arrow data from Python. They are read into memory whole.

Needs pyarrow, the extra `tables`.
"""

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

from plinius.data.records import ABSENT, Array, ArraySpec, Record, Source
from plinius.data.sealed_dataset import SealedDataset
from plinius.errors import NotInstalledError, SourceError
from plinius.files import open_to_read
from plinius.sources.columns import Column, columns_of
from plinius.sources.refusals import each

if TYPE_CHECKING:
    import pyarrow as pa

Task = Literal["classification", "regression"]

_FLOAT = np.dtype("<f4")
_CLASS = ArraySpec(np.dtype("<u2"), ())
_NUMBER = ArraySpec(_FLOAT, (1,))
_MAX_CLASSES = 1000
_MAX_CATEGORIES = 1000
_LOOKED_AT = 1 << 16
_EXACT = 2**24  # up to here float32 holds every integer


@dataclass(frozen=True)
class TableOptions:
    """What the columns of a table are.

    `target` is what is to be learned; without it the records have no labels. `drop` is left out,
    `categorical` becomes one number for each value, `ids` names the records. Numbers are learned
    as a regression if they are floats, else as classes, unless `task` says so. With `like`, a
    dataset sealed before, columns, categories, scales and classes are those of that dataset.
    """

    target: str | None = None
    drop: Sequence[str] = ()
    categorical: Sequence[str] = ()
    ids: str | None = None
    task: Task | None = None
    like: SealedDataset | None = None


def read_table(path: Path, kind: Literal["csv", "parquet"]) -> "pa.Table":
    """The table in a file. Raises SourceError, StorageError, NotInstalledError."""
    arrow = _pyarrow()
    with open_to_read(path) as file:
        try:
            data = _in_arrow_memory(file)
            if kind == "csv":
                from pyarrow import csv

                _require_commas(data, path)
                table = csv.read_csv(data)
            else:
                from pyarrow import parquet

                table = parquet.read_table(data)
            table.validate(full=True)
            assert isinstance(table.column_names, list)  # raises where a name is no UTF-8
            return table
        except (arrow.ArrowException, ValueError, OSError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise SourceError(
                f"{path} cannot be read as {kind.upper()}: {first.rstrip('.')}",
                "Check that it is the right file, with the names of the columns in its first row",
            ) from None


def _in_arrow_memory(file: BinaryIO) -> "pa.BufferReader":
    """The bytes of a file. Threads of pyarrow that read a Python file may abort the process as it
    ends, when Python no longer lets them in.
    """
    arrow = _pyarrow()
    buffer = arrow.allocate_buffer(os.fstat(file.fileno()).st_size)
    with memoryview(buffer) as room:
        length = file.readinto(room)  # type: ignore[attr-defined]
    return arrow.BufferReader(buffer.slice(0, length))


def _require_commas(data: "pa.BufferReader", path: Path) -> None:
    """Raise SourceError for a CSV of the kind that spreadsheets write where 1.5 is 1,5."""
    first = data.read(_LOOKED_AT).split(b"\n")[0]
    data.seek(0)
    for sign, name in ((b";", "semicolons"), (b"\t", "tabs")):
        if sign in first and b"," not in first:
            raise SourceError(
                f"{path} separates its columns by {name}",
                "Save it with commas, and with a point in decimal numbers",
            )


def arrow_table(data: Any) -> "pa.Table":
    """A table of anything that gives an Arrow stream (`__arrow_c_stream__`). Raises SourceError."""
    arrow = _pyarrow()
    try:
        return arrow.table(data)
    except (arrow.ArrowException, TypeError, ValueError) as error:
        what = f"The {type(data).__name__} cannot be read as a table: {error}"
        raise SourceError(what, "Give a table, such as a pyarrow.Table or a data frame") from None


def table_source(table: "pa.Table", options: TableOptions, name: str) -> Source:
    """Records of a table: samples are float32 (numbers,), labels class indices or float32 (1,).

    Classes are the sorted values of the target. Raises SourceError, which names the column and the
    row (the first is 1), for columns that are not there, empty cells, text that is not categorical,
    NaN, infinity, and categories or classes that `like` does not have.
    """
    _check_names(table, options, name)
    known = _known(options)
    unused = {options.target, options.ids, *options.drop}
    wanted: list[Column | str] = list(known or ())
    wanted = wanted or [column for column in table.column_names if column not in unused]
    if not wanted:
        raise SourceError(f"{name} has no columns to learn from", "Drop fewer of them")

    def encoded(column: Column | str) -> tuple[Column, Array]:
        if isinstance(column, str):
            column = _fitted(column, table.column(column), column in options.categorical, name)
        return column, _encoded(table, column, name)

    columns, numbers = zip(*each(wanted, encoded, f"columns of {name}"), strict=True)
    samples = np.concatenate(numbers, axis=1)
    labels, spec, classes = _labels(table, options, name)
    about: dict[str, Any] = {"columns": [column.to_json() for column in columns]}
    if options.target:
        task = "regression" if spec == _NUMBER else "classification"
        about["target"] = {"name": options.target, "task": task}
    if options.ids:
        about["ids"] = _texts(table.column(options.ids), options.ids, name)

    def records() -> Iterator[Record]:
        return zip(samples, labels, strict=True)

    sample = ArraySpec(_FLOAT, (samples.shape[1],))
    return Source(name, table.num_rows, sample, spec, records, len(classes), classes, about)


def _check_names(table: "pa.Table", options: TableOptions, name: str) -> None:
    has = table.column_names
    if any(re.match(r"(# )?plinius[- ]", column, re.IGNORECASE) for column in has):
        raise SourceError(  # before its line is shown as the name of a column
            f"{name} is a key file, not a table", "Give the table, and the key with --key"
        )
    if twice := sorted({n for n in has if has.count(n) > 1}):
        raise SourceError(f"{name} has columns of the same name: {_list(twice)}", "Rename them")
    asked = [options.target, options.ids, *options.drop, *options.categorical]
    if missing := [n for n in asked if n is not None and n not in has]:
        raise SourceError(
            f"{name} has no column {_list(missing)}", f"It has {_list(has)}: name one of these"
        )
    if missing := [column.name for column in _known(options) if column.name not in has]:
        raise SourceError(
            f"{name} has no column {_list(missing)}, which the dataset has that it shall be like",
            "Give a table with the columns of that dataset",
        )
    twice = [n for n in {options.target, options.ids} if n in {*options.drop, *options.categorical}]
    if twice or (options.target is not None and options.target == options.ids):
        raise SourceError("A column is named for two purposes", "Name each of them once")
    if not table.num_rows:
        raise SourceError(f"{name} has no rows", "Give a table with at least one")


def _known(options: TableOptions) -> list[Column]:
    """The columns of the dataset that the table shall be like, none without one."""
    if options.like is None:
        return []
    if options.drop or options.categorical:
        raise SourceError("A dataset to be like says what the columns are", "Name no others")
    if columns := columns_of(options.like.about, options.like.name):
        return columns
    raise SourceError(f"{options.like.name} is no table", "Name a dataset that was one")


def _fitted(column: str, values: "pa.ChunkedArray", categorical: bool, name: str) -> Column:
    if not categorical:
        return Column(column)
    found = sorted(set(_texts(values, column, name)))
    if len(found) > _MAX_CATEGORIES:
        raise SourceError(
            f"Column {column} of {name} has {len(found)} different values",
            f"At most {_MAX_CATEGORIES} can be categories: --drop it",
        )
    return Column(column, tuple(found))


def _encoded(table: "pa.Table", column: Column, name: str) -> Array:
    values = table.column(column.name)
    if not column.categories:
        return column.standardized(_numbers(values, column.name, name).reshape(-1, 1))
    texts = _texts(values, column.name, name)
    place = {category: number for number, category in enumerate(column.categories)}
    _require_known(texts, place, f"Column {column.name} of {name}", "category")
    return np.eye(len(place), dtype=_FLOAT)[[place[text] for text in texts]]


def _labels(
    table: "pa.Table", options: TableOptions, name: str
) -> tuple[Sequence[Array], ArraySpec, tuple[str, ...]]:
    """The labels, their spec, and the names of the classes."""
    classes = options.like.class_names if options.like else ()
    if options.target is None:
        return [np.zeros(0, np.uint8)] * table.num_rows, ABSENT, classes
    values = table.column(options.target)
    arrow = _pyarrow()
    task = options.task
    if options.like and options.like.header.label != ABSENT:
        task = "classification" if options.like.header.label.is_index else "regression"
    elif task is None:
        task = "regression" if arrow.types.is_floating(values.type) else "classification"
    if task == "regression":
        numbers = _numbers(values, options.target, name)
        return list(numbers.reshape(-1, 1)), _NUMBER, ()
    texts = _texts(values, options.target, name)
    classes = classes or tuple(_sorted(set(texts), values.type))
    if len(classes) > _MAX_CLASSES:
        raise SourceError(
            f"Column {options.target} of {name} has {len(classes)} different values",
            f"At most {_MAX_CLASSES} can be classes: for numbers, give --task regression",
        )
    place = {text: number for number, text in enumerate(classes)}
    _require_known(texts, place, f"Column {options.target} of {name}", "class")
    return [np.array(place[text], _CLASS.dtype) for text in texts], _CLASS, classes


def _numbers(values: "pa.ChunkedArray", column: str, name: str) -> Array:
    """A column as float32 (rows,)."""
    arrow = _pyarrow()
    kind = values.type
    if not (
        arrow.types.is_integer(kind)
        or arrow.types.is_floating(kind)
        or arrow.types.is_boolean(kind)
        or arrow.types.is_decimal(kind)
    ):
        _require_utf8(values, column, name)
        word = shlex.quote(column)
        if arrow.types.is_temporal(kind):
            raise SourceError(
                f"Column {column} of {name} holds {kind}, not numbers",
                f"Make it a number, such as days since a date, or --drop {word}",
            )
        raise SourceError(
            f"Column {column} of {name} holds {kind}, not numbers",
            f"Name it with --categorical {word} or --drop {word}",
        )
    _require_filled(values, column, name)
    if arrow.types.is_boolean(kind):
        values = values.cast(arrow.uint8())
    elif arrow.types.is_decimal(kind):
        values = values.cast(arrow.float64())
    with np.errstate(over="ignore"):  # a number too large for float32 is refused as infinite
        numbers: Array = values.to_numpy().astype(_FLOAT)
    if bad := np.flatnonzero(~np.isfinite(numbers)).tolist():
        raise SourceError(
            f"Column {column} of {name} is not finite in {_rows(bad)}",
            "Only finite numbers can be trained on: replace them, or leave the rows out",
        )
    if arrow.types.is_integer(kind) and np.abs(numbers).max() > _EXACT:
        found = len(values.unique())
        if (left := len(np.unique(numbers))) < found:
            raise SourceError(
                f"Column {column} of {name} has {found} different integers, of which float32 tells "
                f"only {left} apart",
                f"If it is a name of the records, --drop {shlex.quote(column)} or give it with "
                "--id; else subtract something from it, or divide it",
            )
    return numbers


def _texts(values: "pa.ChunkedArray", column: str, name: str) -> list[str]:
    _require_filled(values, column, name)
    _require_utf8(values, column, name)
    try:
        return [str(value) for value in values.to_pylist()]
    except (ValueError, OverflowError) as error:  # a date that Python does not have, say
        what = f"Column {column} of {name} cannot be read: {error}"
        raise SourceError(what, f"Correct it, or --drop {shlex.quote(column)}") from None


def _require_utf8(values: "pa.ChunkedArray", column: str, name: str) -> None:
    """Raise SourceError for bytes: pyarrow reads text as such if it is not UTF-8."""
    types = _pyarrow().types
    if types.is_binary(values.type) or types.is_large_binary(values.type):
        raise SourceError(
            f"Column {column} of {name} is no text in UTF-8", "Save the table in UTF-8"
        )


def _require_filled(values: "pa.ChunkedArray", column: str, name: str) -> None:
    if values.null_count:
        empty = np.flatnonzero(values.is_null().to_numpy()).tolist()
        raise SourceError(
            f"Column {column} of {name} is empty in {_rows(empty)}",
            f"Fill it in, leave the rows out, or --drop {shlex.quote(column)}",
        )


def _require_known(texts: list[str], place: dict[str, int], what: str, kind: str) -> None:
    if new := sorted({text for text in texts if text not in place}):
        raise SourceError(
            f"{what} holds {_list(new)}, no {kind} of the dataset that it shall be like",
            f"Its {kind} is one of {_list(list(place))}",
        )


def _sorted(texts: set[str], kind: "pa.DataType") -> list[str]:
    """Class names in order: numbers as numbers, so that 10 comes after 9."""
    return sorted(texts, key=int) if _pyarrow().types.is_integer(kind) else sorted(texts)


def _rows(indices: list[int]) -> str:
    shown = ", ".join(str(index + 1) for index in indices[:5])
    more = f" and {len(indices) - 5} more" if len(indices) > 5 else ""
    return f"row {shown}" if len(indices) == 1 else f"rows {shown}{more}"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError:
        raise NotInstalledError(
            "pyarrow, which reads tables, is not installed", "Run pip install 'plinius[tables]'"
        ) from None
    return pyarrow
