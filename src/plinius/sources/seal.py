"""Seals data from Python or from files: split, standardized, surveyed, and told."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plinius.data.dataset_header import DatasetHeader
from plinius.data.records import Progress, Source
from plinius.data.sealed_dataset import SealedDataset, seal_dataset
from plinius.errors import SourceError, StorageError
from plinius.keys import OwnerKey, require_key
from plinius.sources.columns import columns_of, labels_of, standardized
from plinius.sources.map_style import MapStyle, map_style_source
from plinius.sources.split import split as split_source
from plinius.sources.survey import Survey
from plinius.sources.table import TableOptions, Task, arrow_table, table_source


@dataclass(frozen=True)
class SealedPart:
    """A sealed file, its header, and what its records are like; `name` is "" without a split."""

    name: str
    path: Path
    header: DatasetHeader
    survey: Survey

    @property
    def column_labels(self) -> list[str]:
        """The names of the numbers of a sample, for a table."""
        source = self.survey.source
        return labels_of(columns_of(source.about, source.name))


def seal(
    data: Source | MapStyle | Any,
    key: OwnerKey,
    path: str | Path,
    *,
    classes: int = 0,
    class_names: Sequence[str] = (),
    target: str | None = None,
    drop: Sequence[str] = (),
    categorical: Sequence[str] = (),
    ids: str | None = None,
    task: Task | None = None,
    like: str | Path | None = None,
    standardize: bool = False,
    split: Sequence[float] = (),
    seed: int = 0,
    stratify: bool = False,
    progress: Progress | None = None,
) -> list[SealedPart]:
    """Seal `data` into the new file `path`, or with `split` into one file for each part.

    `data` is a map-style dataset of pairs (sample, label) or of samples, such as a
    torch.utils.data.Dataset, to which `classes` and `class_names` belong; or a table: anything with
    an Arrow stream (pyarrow, pandas, polars), to which `target`, `drop`, `categorical`, `ids`,
    `task`, `like` (a sealed file whose columns and classes are taken) and `standardize` belong.
    The parts of `data.sealed` are `data.train.sealed`, `data.validation.sealed` and
    `data.test.sealed`.

    Raises SourceError for what cannot be sealed or trained on, StorageError, KeyFileError, and
    NotInstalledError for a table without pyarrow. After an error no file is left.
    """
    require_key(key)
    name = f"the {type(data).__name__}"
    if isinstance(data, Source):
        source = data
    elif hasattr(data, "__arrow_c_stream__"):
        if classes or class_names:
            raise SourceError("Classes of a table are the values of its target", "Name none")
        before = SealedDataset.from_file(Path(like), key) if like else None
        options = TableOptions(target, drop, categorical, ids, task, before)
        source = table_source(arrow_table(data), options, name)
    elif target or drop or categorical or ids or task or like:
        raise SourceError(f"{name} is no table", "Name columns of tables only")
    else:
        source = map_style_source(data, name, classes, class_names)
    return seal_parts(source, key, Path(path), split, seed, stratify, standardize, progress)


def seal_parts(
    source: Source,
    key: OwnerKey,
    path: Path,
    fractions: Sequence[float] = (),
    seed: int = 0,
    stratify: bool = False,
    standardize: bool = False,
    progress: Progress | None = None,
) -> list[SealedPart]:
    """Seal a source, or its parts if there are `fractions`. Raises as `seal` does."""
    if stratify and not fractions:
        raise SourceError("Only a split can be stratified", "Give the fractions of the parts too")
    parts = split_source(source, fractions, seed, stratify) if fractions else {"": source}
    names = {part: path.with_suffix(f".{part}{path.suffix}") if part else path for part in parts}
    for name in names.values():
        if os.path.lexists(name):
            what = f"{name} exists already"
            raise StorageError(what, "Choose another name, or remove it first")
    if standardize:
        parts = standardized(parts)
    sealed = []
    with ExitStack() as undo:
        for part, records in parts.items():
            survey = Survey(records)
            header = seal_dataset(survey.watched(), key, names[part], progress)
            undo.callback(names[part].unlink)
            sealed.append(SealedPart(part, names[part], header, survey))
        undo.pop_all()
    return sealed
