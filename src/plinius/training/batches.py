"""Opens sealed records, one batch at a time, as the tensors that a network takes."""

import math

import numpy as np
import numpy.typing as npt
import torch

from plinius.darknet.losses.classes import Softmax
from plinius.darknet.network import Network
from plinius.data.records import Array
from plinius.data.sealed_dataset import SealedDataset
from plinius.errors import SourceError

_COUNTED_AT_ONCE = 256


class Samples:
    """The samples of a dataset as float32 for a network that takes `input_shape`.

    Unsigned integers are scaled to 0..1 (uint8 by float32(1/255), as the original does); floats
    are used as they are. Raises SourceError if they do not fit the network.
    """

    def __init__(self, dataset: SealedDataset, input_shape: tuple[int, ...]) -> None:
        sample = dataset.header.sample
        self._dataset, self._input_shape = dataset, input_shape
        if math.prod(sample.shape) != math.prod(input_shape) or (
            len(sample.shape) == len(input_shape) > 1 and sample.shape != input_shape
        ):
            raise SourceError(
                f"The samples of {dataset.name} are {_dimensions(sample.shape)}, "
                f"but the network's input is {_dimensions(input_shape)}",
                "Correct height, width and channels (or inputs) in [net], or name another dataset",
            )
        if sample.dtype.kind not in "uf":
            raise SourceError(
                f"The samples of {dataset.name} are {sample.dtype}",
                "Seal unsigned integers or floats",
            )
        self._scale = None
        if sample.dtype.kind == "u":
            self._scale = float(np.float32(1 / np.iinfo(sample.dtype).max))

    def open(self, indices: npt.NDArray[np.int64]) -> torch.Tensor:
        """The samples of records, (n, *input_shape). Raises SealError."""
        return self.tensor(self._dataset.open_batch(indices)[0])

    def tensor(self, samples: Array) -> torch.Tensor:
        """Opened samples as (n, *input_shape)."""
        x = torch.from_numpy(samples.astype(np.float32, copy=False))
        if self._scale is not None:
            x.mul_(self._scale)
        return x.reshape(len(samples), *self._input_shape)


class Batches:
    """Opens records for a network that takes `input_shape` and compares with `truths` values.

    With `steps` above 1 a record is a sequence of so many rows, each with its truth. A label that
    is a class index becomes one-hot. Raises SourceError if the dataset does not fit the network.
    """

    def __init__(
        self,
        dataset: SealedDataset,
        input_shape: tuple[int, ...],
        truths: int,
        steps: int = 1,
    ) -> None:
        if steps > 1:
            input_shape, truths = (steps, *input_shape), steps * truths
        self._samples = Samples(dataset, input_shape)
        self._dataset, self._truths, self._steps = dataset, truths, steps
        header, label = dataset.header, dataset.header.label
        self._class_index = label.is_index
        classes = header.classes if label.is_index else math.prod(label.shape)
        if classes > truths or (not label.is_index and classes != truths):
            raise SourceError(
                f"The labels of {dataset.name} have {classes} classes, "
                f"but the network's output has {truths}",
                "Give the network's last layer as many outputs as there are classes",
            )

    def open(self, indices: npt.NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """The records as (n, *input_shape) float32 and (n, truths) float32.

        Sequences are (n, steps, *input_shape) and (n, steps, truths): see `by_time`.

        Raises SealError, which names the record that does not open, and SourceError for a label
        that is not a class of the network.
        """
        samples, labels = self._dataset.open_batch(indices)
        truth = torch.from_numpy(labels.astype(np.int64 if self._class_index else np.float32))
        if self._class_index:
            if truth.numel() and not 0 <= int(truth.min()) <= int(truth.max()) < self._truths:
                raise SourceError(
                    f"{self._dataset.name} holds a label that is not a class of the network",
                    f"Labels must be from 0 to {self._truths - 1}",
                )
            truth = torch.nn.functional.one_hot(truth, self._truths).float()
        x = self._samples.tensor(samples)
        if self._steps > 1:
            return x, truth.reshape(len(indices), self._steps, -1)
        return x, truth.reshape(len(indices), -1)


def balance_classes(network: Network, batches: Batches, count: int) -> None:
    """Set the weights of the classes wherever the cfg has class_weights=balanced.

    That opens all `count` records once, some at a time, and counts their labels. Raises SealError,
    SourceError.
    """
    layers = [it for it in network.sequence if isinstance(it, Softmax) and it.balanced]
    if not layers:
        return
    counts = torch.zeros(network.truths, dtype=torch.float64)
    for start in range(0, count, _COUNTED_AT_ONCE):
        _, truth = batches.open(np.arange(start, min(start + _COUNTED_AT_ONCE, count)))
        counts += truth.flatten(0, -2).sum(0, dtype=torch.float64)
    for layer in layers:
        layer.balance(counts)


def by_time(x: torch.Tensor, steps: int) -> torch.Tensor:
    """The rows of a pass: x itself, or of n sequences row t * n + i, step t of sequence i."""
    return x if steps == 1 else x.transpose(0, 1).flatten(0, 1)


def _dimensions(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "single numbers"
