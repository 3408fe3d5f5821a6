"""How well a network does on a sealed dataset: by class, or by number for a regression."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plinius.darknet.network import Network
from plinius.data.records import Progress
from plinius.data.sealed_dataset import SealedDataset
from plinius.errors import SourceError
from plinius.jsonvalue import Json
from plinius.training.detection import mean_average_precision
from plinius.training.evaluation import ends_in_probabilities, outputs_and_truths

Floats = npt.NDArray[np.float64]


def evaluate(
    network: Network, dataset: SealedDataset, progress: Progress | None = None
) -> dict[str, Json]:
    """How well a network in evaluation mode does: `scores`, or of boxes `mean_average_precision`.

    Raises as these do.
    """
    if not network.finds_boxes:
        return scores(network, dataset, progress)
    precision = mean_average_precision(network, dataset, progress)
    return {
        "task": "detection",
        "samples": dataset.header.count,
        "mean_average_precision": precision,
    }


def require_labels(dataset: SealedDataset) -> None:
    """Raise SourceError if a dataset has no labels."""
    if dataset.header.label.nbytes == 0:
        raise SourceError(
            f"{dataset.name} has no labels to compare with", "Use plinius predict, or seal labels"
        )


def sure_of_classes(network: Network, dataset: SealedDataset) -> bool:
    """Whether the task is a classification whatever the numbers in the labels are."""
    return dataset.header.label.is_index or ends_in_probabilities(network)


def scores(
    network: Network, dataset: SealedDataset, progress: Progress | None = None
) -> dict[str, Json]:
    """What a network does on a dataset with labels, as values for JSON.

    Of a text it is how many tokens are predicted, and with how many bits each. Else the task is a
    classification if labels are class indices, if the network ends in [softmax], or
    if every label is one-hot; else a regression, of which no accuracy is told. `progress` counts
    records. Raises SourceError if the dataset has no labels or does not fit, SealError, and
    DivergedError for outputs that are not finite, CfgError for a network that finds boxes or masks.
    """
    require_labels(dataset)
    sure = sure_of_classes(network, dataset)
    one_hot = network.truths > 1
    tokens = network.time_steps > 1 and dataset.header.label.dtype.kind == "u"
    bits = 0.0
    found, wanted, margins, pairs = [], [], [], []
    for y, truth in outputs_and_truths(network, dataset, progress):
        found.append(y.argmax(1))
        wanted.append(truth.argmax(1))
        if tokens:
            bits -= float((y.double().clamp_min(1e-30).log2() * truth).sum())
        if network.truths == 2:
            margins.append(y[:, 1] - y[:, 0])
        if not sure:
            pairs.append((y, truth))
            one_hot = one_hot and _one_hot(truth)
    if sure or one_hot:
        predicted, actual = torch.cat(found).numpy(), torch.cat(wanted).numpy()
        if tokens:
            return {
                "task": "tokens",
                "samples": dataset.header.count,
                "accuracy": float((predicted == actual).mean()),
                "bits_per_token": bits / len(actual) if ends_in_probabilities(network) else None,
            }
        report = classification(predicted, actual, network.truths, dataset.class_names)
        report["samples"] = dataset.header.count  # of which each may be a sequence of rows
        if margins:
            report["auc"] = area_under_curve(torch.cat(margins).double().numpy(), actual == 1)
        return report
    ys, truths = zip(*pairs, strict=True)
    return regression(torch.cat(ys).double().numpy(), torch.cat(truths).double().numpy())


def classification(
    predicted: npt.NDArray[np.int64],
    actual: npt.NDArray[np.int64],
    classes: int,
    names: tuple[str, ...] = (),
) -> dict[str, Json]:
    """Accuracy; confusion, with a row for each true class and a column for each predicted one;
    recall of each class, None where no record has it; all in the order of `classes`.
    """
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (actual, predicted), 1)
    right, total = confusion.diagonal(), confusion.sum(1)
    rows: list[Json] = [row.tolist() for row in confusion]
    return {
        "task": "classification",
        "samples": len(actual),
        "accuracy": float(right.sum() / len(actual)),
        "classes": [*names] or [str(number) for number in range(classes)],
        "confusion": rows,
        "recall": [int(r) / int(t) if t else None for r, t in zip(right, total, strict=True)],
    }


def area_under_curve(scores: Floats, positive: npt.NDArray[np.bool_]) -> float | None:
    """The area under the ROC curve: the chance that a positive scores above a negative (n,).

    Equal scores count half (Mann and Whitney, 1947). None if one of the two kinds is absent.
    """
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        return None
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[place]
    above = ranks[positive].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def regression(found: Floats, wanted: Floats) -> dict[str, Json]:
    """Mean absolute error, root mean square error and R2 over all numbers (n, truths).

    R2 is the mean over the columns of 1 - (sum of squared errors) / (sum of squared distances to
    the mean); None if a column never changes.
    """
    error = found - wanted
    spread = ((wanted - wanted.mean(0)) ** 2).sum(0)
    return {
        "task": "regression",
        "samples": len(wanted),
        "mae": float(np.abs(error).mean()),
        "rmse": float(np.sqrt((error**2).mean())),
        "r2": float((1 - (error**2).sum(0) / spread).mean()) if spread.all() else None,
    }


def _one_hot(truth: Tensor) -> bool:
    return bool(((truth == 0) | (truth == 1)).all() and (truth.sum(1) == 1).all())
