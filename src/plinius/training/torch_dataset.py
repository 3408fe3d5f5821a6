"""A sealed dataset for any PyTorch loop: a map-style dataset whose records are tensors."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from plinius.data import sealed_dataset
from plinius.errors import MismatchError
from plinius.keys import OwnerKey
from plinius.sources.record_ids import record_ids

Item = tuple[Tensor, Tensor]


class SealedDataset(Dataset[Item]):
    """The records of a sealed file as pairs (sample, label); opened when they are asked for.

    Tensors have the dtypes and shapes of the records, except that a label that is a class index is
    int64. Without labels, a label is an empty tensor. Only what was asked for is in memory in
    clear. `DataLoader` and `plinius.ResumableLoader` open a whole batch at once.

    Worker processes of a DataLoader get it by fork, or through the pipe to a process that is being
    started (spawn, forkserver), with the key in clear in that pipe. Anything else that pickles it
    raises TypeError, so that no key gets into a file. What is refused in a worker process arrives
    as PyTorch's RuntimeError, with the sentence in it.
    """

    def __init__(self, path: Path, key: OwnerKey) -> None:
        self._path, self._key = Path(os.path.abspath(path)), key
        self._records = sealed_dataset.SealedDataset.from_file(self._path, key)
        self.id = self._records.header.id.hex()
        self.class_names = self._records.class_names

    @classmethod
    def open(cls, path: str | Path, key: OwnerKey) -> "SealedDataset":
        """Open the sealed file `path`: its header is authenticated, its records later, one by one.

        Raises StorageError, FormatError (no sealed dataset), KeyFileError (another key), SealError.
        """
        return cls(Path(path), key)

    def __repr__(self) -> str:
        header = self._records.header
        return (
            f"SealedDataset({self._path.name}: {header.count} records, "
            f"{header.sample.dtype}{list(header.sample.shape)} and "
            f"{header.label.dtype}{list(header.label.shape)})"
        )

    def __len__(self) -> int:
        return self._records.header.count

    @property
    def ids(self) -> list[str]:
        """The owner's names of the records; where there are none, their numbers from 0."""
        return record_ids(self._records.about, len(self), self._records.name)

    @property
    def classes(self) -> int:
        """The number of classes, 0 if unknown."""
        return self._records.header.classes

    def batch(self, indices: Sequence[int]) -> Item:
        """The samples (n, *sample shape) and labels (n, *label shape) of n records.

        Raises IndexError for a number that no record has, and SealError, which names the record
        that does not open.
        """
        numbers = np.asarray(indices, np.int64).reshape(-1)
        count = len(self)
        if len(numbers) and not -count <= numbers.min() <= numbers.max() < count:
            raise IndexError(f"{self._records.name} has records 0 to {count - 1}")
        samples, labels = self._records.open_batch(np.where(numbers < 0, numbers + count, numbers))
        if self._records.header.label.is_index:
            labels = labels.astype(np.int64)
        return torch.from_numpy(samples), torch.from_numpy(labels)

    def __getitem__(self, index: int) -> Item:
        samples, labels = self.batch([index])
        return samples[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """What a DataLoader calls for a batch: n pairs, which are views of one opened batch."""
        return list(zip(*self.batch(indices), strict=True))

    def __reduce__(self) -> tuple[Callable[..., "SealedDataset"], tuple[Any, ...]]:
        return _reopened, (self._path, self._key, self.id)  # the key decides whether it may


def _reopened(path: Path, key: OwnerKey, dataset: str) -> SealedDataset:
    """The same dataset in a worker. Raises MismatchError if another one has taken its name."""
    opened = SealedDataset(path, key)
    if opened.id != dataset:
        raise MismatchError(f"{path} is another dataset than before", "Put the first one back")
    return opened
