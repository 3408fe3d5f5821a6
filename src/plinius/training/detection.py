"""Boxes that a network finds, and their mean average precision on a sealed dataset."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from plinius.darknet.losses.base import BoxLoss
from plinius.darknet.losses.boxes import Boxes, Truth, overlap
from plinius.darknet.network import Network
from plinius.data.records import Progress
from plinius.data.sealed_dataset import SealedDataset
from plinius.training.batches import Batches, by_time

_BATCH = 64
_THRESHOLD = 0.005
_SUPPRESS = 0.45
_MATCH = 0.5


@dataclass(frozen=True)
class Found:
    """Boxes (n, 4) of one picture with their class and score each, best first."""

    boxes: Boxes
    classes: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]


def detect(network: Network, x: torch.Tensor, threshold: float = _THRESHOLD) -> list[Found]:
    """What a network in evaluation mode finds in each of x (records, *input_shape).

    Of boxes of a class that overlap by more than 0.45 only the best stays (darknet: box.c,
    do_nms_sort).
    """
    heads = [
        (layer, y.reshape(len(x), *layer.out_shape).numpy())
        for layer, y in network.heads(x)
        if isinstance(layer, BoxLoss)
    ]
    return [_in_one(heads, record, threshold) for record in range(len(x))]


def _in_one(
    heads: Sequence[tuple[BoxLoss, npt.NDArray[np.float32]]], record: int, threshold: float
) -> Found:
    pairs = [layer.found(outputs[record]) for layer, outputs in heads]
    boxes = np.concatenate([boxes for boxes, _ in pairs])
    scores = np.concatenate([scores for _, scores in pairs])
    kept: list[tuple[float, int, int]] = []
    for label in range(scores.shape[1]):
        column = scores[:, label]
        order = np.flatnonzero(column > threshold)
        order = order[np.argsort(-column[order], kind="stable")]
        while len(order):
            first, rest = order[0], order[1:]
            kept.append((-float(column[first]), label, int(first)))
            shared = overlap(boxes[first][None], boxes[rest])[0]
            order = rest[~(shared > _SUPPRESS)]
    kept.sort()
    which = np.array([at for _, _, at in kept], np.int64)
    return Found(
        boxes[which],
        np.array([label for _, label, _ in kept], np.int64),
        np.array([-score for score, _, _ in kept], np.float32),
    )


def mean_average_precision(
    network: Network, dataset: SealedDataset, progress: Progress | None = None
) -> float:
    """The mean over the classes that occur of the average precision at an overlap of 0.5.

    That of a class is the area under precision over recall, where precision is the best at that
    recall or a larger one, as in the VOC challenge since 2010. `progress` counts records. Raises
    SourceError if the dataset does not fit, SealError, CfgError. It is 0 if no class occurs.
    """
    head, steps = network.box_head(), network.time_steps
    batches = Batches(dataset, network)
    count, found, truths = dataset.header.count, list[Found](), list[Truth]()
    at_once = network.rows_that_fit(_BATCH * steps) // steps
    with torch.inference_mode():
        for start in range(0, count, at_once):
            x, truth = batches.open(np.arange(start, min(start + at_once, count)))
            network.reset_states()
            truths += [head.objects(values) for values in by_time(truth, steps).numpy()]
            found += detect(network, by_time(x, steps))
            if progress:
                progress(min(start + at_once, count), count)
    present = np.unique(np.concatenate([truth.classes for truth in truths]))
    if not len(present):
        return 0.0
    return float(np.mean([average_precision(found, truths, int(label)) for label in present]))


def average_precision(found: Sequence[Found], truths: Sequence[Truth], label: int) -> float:
    """The average precision of one class over pictures; 0 if none has a truth of it."""
    wanted = [truth.boxes[truth.classes == label] for truth in truths]
    total = sum(map(len, wanted))
    taken = [np.zeros(len(boxes), bool) for boxes in wanted]
    ranked = sorted(
        (-float(score), picture, at)
        for picture, one in enumerate(found)
        for at, score in enumerate(one.scores)
        if one.classes[at] == label
    )
    if not total or not ranked:
        return 0.0
    right = np.zeros(len(ranked))
    for rank, (_, picture, at) in enumerate(ranked):
        if not len(wanted[picture]):
            continue
        shared = np.nan_to_num(overlap(found[picture].boxes[at][None], wanted[picture])[0])
        best = int(shared.argmax())
        if shared[best] > _MATCH and not taken[picture][best]:
            taken[picture][best], right[rank] = True, 1
    hits = right.cumsum()
    precision = hits / np.arange(1, len(ranked) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float((precision * right).sum() / total)
