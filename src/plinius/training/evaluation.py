"""The network of a mirrored run, what it was trained on, and its outputs for a sealed dataset."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plinius.darknet.cfg import read_cfg
from plinius.darknet.losses.classes import Softmax
from plinius.darknet.network import Network
from plinius.data.dataset_extent import EXTENT, open_dataset
from plinius.data.records import Progress
from plinius.data.sealed_dataset import DatasetHeader, SealedDataset
from plinius.errors import CfgError, DivergedError, MismatchError
from plinius.history.live_region import read_region
from plinius.history.reading import snapshot_of
from plinius.keys import OwnerKey
from plinius.pm.region import Region
from plinius.snapshot import Snapshot
from plinius.sources.columns import Column, columns_of
from plinius.sources.record_ids import record_ids
from plinius.sources.tokenizer import Tokens
from plinius.state.restore import load_tensors
from plinius.state.tensor_memory import tensor_of
from plinius.training.batches import Batches, Samples, by_time
from plinius.training.identity import require_same_recipe

_BATCH = 256


def trained_network(cfg_path: Path, snapshot: Snapshot) -> Network:
    """The network of a cfg with the parameters of a snapshot, in evaluation mode.

    Raises CfgError, StorageError, and MismatchError if the run of the snapshot has another cfg.
    """
    cfg = read_cfg(cfg_path)
    require_same_recipe(cfg, snapshot.identity)
    network = Network(cfg)
    stored = {t.name: tensor_of(t) for t in snapshot.tensors if t.name.startswith("model/")}
    load_tensors(network, "model", stored)
    network.eval()
    return network


@dataclass(frozen=True)
class TrainingData:
    """What the dataset in a region says of classes and columns; nothing if there is none."""

    class_names: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    labels_are_classes: bool = False
    tokens: Tokens | None = None

    @classmethod
    def of_region(cls, path: Path, key: OwnerKey) -> "TrainingData":
        """Of the dataset in a region. Raises what Region.open and SealedDataset raise."""

        def read(region: Region) -> TrainingData:
            if region.extent(EXTENT) is None:
                return cls()
            return cls.of(open_dataset(region, key))

        return read_region(path, read)

    @classmethod
    def of(cls, found: SealedDataset) -> "TrainingData":
        """Of an open dataset."""
        columns = columns_of(found.about, found.name)
        return cls(
            found.class_names,
            tuple(columns),
            found.header.label.is_index,
            Tokens.of(found.about, found.name),
        )

    def require_alike(self, dataset: SealedDataset) -> None:
        """Raise MismatchError if a dataset has other classes, columns or tokens.

        Names and their order count. What one of the two does not have is not compared.
        """
        for what, ours, theirs in (
            ("classes", self.class_names, dataset.class_names),
            ("columns", self._names(self.columns), self._names(columns_of(dataset.about, ""))),
        ):
            if ours and theirs and ours != theirs:
                raise MismatchError(  # without the names, which are sealed
                    f"{dataset.name} does not have the {what} that the network was trained on, in "
                    "their order",
                    "Seal it with --like and the dataset of the training",
                )
        tokens = Tokens.of(dataset.about, dataset.name)
        if self.tokens and tokens and not self.tokens.is_like(tokens):
            raise MismatchError(
                f"The tokens of {dataset.name} are not those that the network was trained on: they "
                "were made by another tokenizer, or by none",
                "Seal it with --like and the dataset of the training",
            )
        scaled = columns_of(dataset.about, dataset.name)
        if self.columns and scaled and tuple(scaled) != self.columns:
            raise MismatchError(
                f"{dataset.name} has columns of another scale or other categories than those that "
                "the network was trained on",
                "Seal it with --like and the dataset of the training",
            )

    @staticmethod
    def _names(columns: tuple[Column, ...] | list[Column]) -> tuple[str, ...]:
        return tuple(column.name for column in columns)


Require = Callable[[Snapshot, DatasetHeader], None]
"""Raises what is not allowed, before a record is opened."""


@dataclass(frozen=True)
class Opened:
    """A mirrored network in evaluation mode, and a dataset that is like the one of its training."""

    snapshot: Snapshot
    network: Network
    known: TrainingData
    dataset: SealedDataset

    @classmethod
    def of(
        cls,
        cfg: str | Path,
        data: str | Path,
        region: str | Path,
        key: OwnerKey,
        run_key: OwnerKey | None,
        require: Require,
        commit: str,
    ) -> "Opened":
        """Raises as `predict`."""
        snapshot = snapshot_of(Path(region), run_key or key, commit)
        network = trained_network(Path(cfg), snapshot)
        known = TrainingData.of_region(Path(region), key)
        dataset = SealedDataset.from_file(Path(data), key)
        require(snapshot, dataset.header)
        known.require_alike(dataset)
        return cls(snapshot, network, known, dataset)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, none if they are unknown."""
        return self.known.class_names or self.dataset.class_names

    @property
    def ids(self) -> list[str]:
        """The owner's names of the records, or their numbers."""
        return record_ids(self.dataset.about, self.dataset.header.count, self.dataset.name)


def ends_in_probabilities(network: Network) -> bool:
    """Whether its outputs are those of a softmax layer, perhaps with a cost after it."""
    return any(isinstance(layer, Softmax) for layer in network.sequence[-2:])


def outputs(
    network: Network, dataset: SealedDataset, progress: Progress | None = None
) -> Iterator[Tensor]:
    """The outputs (n, truths) for batch after batch of a dataset, with labels or without.

    As many records are opened at a time as fit into memory. `progress` counts records. Raises
    SourceError if the dataset does not fit, SealError, DivergedError for outputs that are not
    finite, and CfgError for a network that finds boxes or works on sequences.
    """
    network.require_classes()
    if network.time_steps > 1:
        raise CfgError(
            f"{network.name} has time_steps, and predictions are for single records",
            "Give time_steps=1 to predict row by row, or let plinius generate write text",
        )
    samples = Samples(dataset, network)
    for indices in _batches(network, dataset, progress):
        with torch.inference_mode():
            yield _finite(network(samples.open(indices)), network)


def outputs_and_truths(
    network: Network, dataset: SealedDataset, progress: Progress | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """The outputs and the truths, both (n, truths), for batch after batch.

    In a recurrent network a record is a sequence, which begins at state 0, and n counts its steps.
    Raises as `outputs`, but takes sequences.
    """
    network.require_classes()
    steps = network.time_steps
    batches = Batches(dataset, network)
    for indices in _batches(network, dataset, progress):
        x, truth = batches.open(indices)
        network.reset_states()
        with torch.inference_mode():
            yield _finite(network(by_time(x, steps)), network), by_time(truth, steps)


def _finite(y: Tensor, network: Network) -> Tensor:
    if not bool(y.isfinite().all()):
        raise DivergedError(
            f"{network.name} gives outputs that are not finite numbers",
            "Check the data, or train again with a lower learning_rate",
        )
    return y


def _batches(
    network: Network, dataset: SealedDataset, progress: Progress | None
) -> Iterator[npt.NDArray[np.int64]]:
    count, steps = dataset.header.count, network.time_steps
    at_once = network.rows_that_fit(_BATCH * steps) // steps
    for start in range(0, count, at_once):
        end = min(start + at_once, count)
        yield np.arange(start, end)
        if progress:
            progress(end, count)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
