"""Opens sealed records, one batch at a time, as the tensors that a network takes."""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from plinius.darknet.augmentation.augmentation import Augmentation, flat
from plinius.darknet.augmentation.moved_boxes import Labels, in_cells, present
from plinius.darknet.augmentation.pictures import centre_crops
from plinius.darknet.losses.base import BoxLoss
from plinius.darknet.losses.boxes import read_truth
from plinius.darknet.losses.classes import Softmax
from plinius.darknet.losses.detection import Detection
from plinius.darknet.network import Network
from plinius.data.records import ABSENT, Array
from plinius.data.sealed_dataset import SealedDataset
from plinius.errors import MismatchError, SourceError

_COUNTED_AT_ONCE = 256


class Samples:
    """The samples of a dataset as float32 for a network.

    Unsigned integers are scaled to 0..1 (uint8 by float32(1/255), as the original does); floats
    are used as they are. Sequences of unsigned integers, for a network with more inputs, are tokens
    and become one-hot. Raises SourceError if they do not fit the network.
    """

    def __init__(self, dataset: SealedDataset, network: Network) -> None:
        sample, shape = dataset.header.sample, network.input_shape
        steps = network.time_steps
        self._dataset, self._steps = dataset, steps
        self.are_tokens = (
            steps > 1 and sample.shape == (steps,) and sample.dtype.kind == "u" and shape != (1,)
        )
        wanted = shape if steps == 1 else (steps, *shape)
        self._opened = wanted
        if network.crops and len(shape) == len(sample.shape) and sample.shape[0] == shape[0]:
            self._opened = sample.shape
        self._wanted = wanted
        if not self.are_tokens and (
            math.prod(sample.shape) != math.prod(self._opened)
            or (len(sample.shape) == len(wanted) > 1 and sample.shape != self._opened)
        ):
            raise SourceError(
                f"The samples of {dataset.name} are {_dimensions(sample.shape)}, "
                f"but the network's input is {_dimensions(wanted)}",
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
        return self.fitting(self.tensor(self._dataset.open_batch(indices)[0]))

    def tensor(self, samples: Array) -> torch.Tensor:
        """Opened samples as (n, *input_shape); larger pictures for a network that crops."""
        if self.are_tokens:
            return one_hot(samples, math.prod(self._wanted[1:]), self._dataset.name)
        x = torch.from_numpy(samples.astype(np.float32, copy=False))
        if self._scale is not None:
            x.mul_(self._scale)
        return x.reshape(len(samples), *self._opened)

    def fitting(self, x: torch.Tensor) -> torch.Tensor:
        """Pictures of another size as those of the network: the middle (image.c, center_crop)."""
        if self._opened == self._wanted:
            return x
        return centre_crops(x, (self._wanted[2], self._wanted[1]))


class Batches:
    """Opens records for a network, and the truths that it compares with.

    In a recurrent network a record is a sequence of rows, each with its truth. A label that is a
    class index becomes one-hot, as do tokens; boxes (boxes, 5) of x, y, w, h, class become the
    truth of the network's heads. With `augmentation`, pictures and boxes are changed by it and
    `seed`. Raises SourceError if the dataset does not fit the network, MismatchError if
    `augmentation` needs pictures and it holds none.
    """

    def __init__(
        self,
        dataset: SealedDataset,
        network: Network,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self._samples = Samples(dataset, network)
        self._dataset, self._steps = dataset, network.time_steps
        self._truths = network.truths
        self._augmentation, self._seed = augmentation, seed
        label = dataset.header.label
        self._class_index = label.is_index
        self._head = _head_of_boxes(network, label.shape)
        self._tokens = self._samples.are_tokens and label.dtype.kind == "u"
        if augmentation:
            self._require_pictures(network)
        if self._head or self._tokens:
            return
        if label == ABSENT:
            raise SourceError(
                f"{dataset.name} has no labels to train on or to compare with",
                "Seal it with its labels (of a table: --target), or use plinius predict",
            )
        truths = self._steps * self._truths
        classes = dataset.header.classes if label.is_index else math.prod(label.shape)
        if classes > truths or (not label.is_index and classes != truths):
            raise SourceError(
                f"The labels of {dataset.name} have {classes} classes, "
                f"but the network's output has {truths}",
                "Give the network's last layer as many outputs as there are classes",
            )

    @property
    def are_tokens(self) -> bool:
        """Whether records are pieces of a text, which follow each other."""
        return self._tokens

    def open(
        self, indices: npt.NDArray[np.int64], iteration: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The records as (n, *input_shape) float32 and (n, truths) float32.

        Sequences are (n, steps, *input_shape) and (n, steps, truths): see `by_time`. Pictures are
        changed as those of `iteration`; without one they are left, or cropped in the middle.

        Raises SealError, which names the record that does not open, and SourceError for a label
        that is not a class of the network.
        """
        samples, labels = self._dataset.open_batch(indices)
        x = self._samples.tensor(samples)
        boxes = labels.astype(np.float32, copy=False) if self._head else None
        if self._augmentation and iteration is not None:
            x, boxes = self._augmentation.apply(x, boxes, self._seed, iteration)
        else:
            x = self._samples.fitting(x)
        if self._head and boxes is not None:
            return x, self._boxes(self._head, boxes)
        if self._tokens:
            return x, one_hot(labels, self._truths, self._dataset.name)
        truth = torch.from_numpy(labels.astype(np.int64 if self._class_index else np.float32))
        if self._class_index:
            if truth.numel() and not 0 <= int(truth.min()) <= int(truth.max()) < self._truths:
                raise SourceError(
                    f"{self._dataset.name} holds a label that is not a class of the network",
                    f"Labels must be from 0 to {self._truths - 1}",
                )
            truth = functional.one_hot(truth, self._truths).float()
        if self._steps > 1:
            return x, truth.reshape(len(indices), self._steps, -1)
        return x, truth.reshape(len(indices), -1)

    def _boxes(self, head: BoxLoss, boxes: Labels) -> torch.Tensor:
        if isinstance(head, Detection):
            for one in boxes:
                read_truth(one.reshape(-1), 5, head.classes)  # refuses what lies in no cell
            return torch.from_numpy(in_cells(boxes, head.section.integer("side"), head.classes))
        most = self._truths // 5
        if present(boxes)[:, most:].any():
            raise SourceError(
                f"A picture of {self._dataset.name} has more boxes than the network takes: {most}",
                f"Give max={boxes.shape[1]} in the [yolo] or [region] sections",
            )
        return flat(boxes[:, :most], self._truths)

    def _require_pictures(self, network: Network) -> None:
        """The samples are pictures, and labels either boxes or nothing that has a place in them."""
        sample, label = self._dataset.header.sample.shape, self._dataset.header.label
        channels, height, width = network.input_shape
        pictures = len(sample) == 3 or (channels == 1 and sample == (height, width))
        if not pictures:
            raise MismatchError(
                f"The cfg asks for changed training pictures, but the samples of "
                f"{self._dataset.name} are {_dimensions(sample)}, no pictures",
                "Seal pictures of channels x height x width, or remove these keys from the cfg",
            )
        if network.finds_boxes != (self._head is not None) or len(label.shape) > (
            2 if self._head else 1
        ):
            raise MismatchError(
                f"The cfg asks for changed training pictures, but the labels of "
                f"{self._dataset.name} are {_dimensions(label.shape)}, which would not follow",
                "Seal boxes with --boxes, or remove the keys that change pictures from the cfg",
            )


def _head_of_boxes(network: Network, label: tuple[int, ...]) -> BoxLoss | None:
    """The head that labels (boxes, 5) are for; None for another network, or for other labels."""
    if not network.finds_boxes or len(label) != 2 or label[1] != 5:
        return None
    head = network.box_head()
    if head.section.kind == "region" and head.section.integer("coords") != 4:
        return None
    return head


def one_hot(tokens: Array, values: int, name: str) -> torch.Tensor:
    """Tokens (n, steps) as float32 (n, steps, values). Raises SourceError for a larger one."""
    whole = torch.from_numpy(tokens.astype(np.int64))
    if whole.numel() and int(whole.max()) >= values:
        raise SourceError(
            f"{name} holds token {int(whole.max())}, but the network knows {values}",
            "Give inputs, and outputs of the last layer, for all tokens: 256 for bytes",
        )
    return functional.one_hot(whole, values).float()


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
