"""Boxes of objects: overlap, and the truth of detection networks.

A box is (x, y, w, h): its middle and its sides, in fractions of the picture (darknet: box.c).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from plinius.errors import SourceError

Boxes = npt.NDArray[np.float32]


def overlap(a: Boxes, b: Boxes) -> Boxes:
    """Intersection over union of each box in a (n, 4) with each in b (m, 4): (n, m)."""
    first, second = a[:, None], b[None]
    low = np.maximum(first[..., :2] - first[..., 2:] / 2, second[..., :2] - second[..., 2:] / 2)
    high = np.minimum(first[..., :2] + first[..., 2:] / 2, second[..., :2] + second[..., 2:] / 2)
    sides = high - low
    inside = np.where((sides < 0).any(-1), 0, sides[..., 0] * sides[..., 1])
    union = first[..., 2] * first[..., 3] + second[..., 2] * second[..., 3] - inside
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(inside / union, np.float32)


@dataclass(frozen=True)
class Truth:
    """The objects of one picture: boxes (n, 4), classes (n,), and the rest of each entry."""

    boxes: Boxes
    classes: npt.NDArray[np.int64]
    rest: Boxes


def read_truth(
    values: npt.NDArray[np.float32],
    entry: int,
    classes: int,
    class_map: tuple[int, ...] | None = None,
) -> Truth:
    """The objects of one record: entries of `entry` values, x y w h ... class, up to the first x=0.

    A map has the class of the network for each class of the data.
    Raises SourceError unless boxes lie in the picture and classes are below `classes`.
    """
    classes = classes if class_map is None else len(class_map)
    entries = values.reshape(-1, entry)
    ends = np.flatnonzero(entries[:, 0] == 0)
    entries = entries[: ends[0]] if len(ends) else entries
    boxes, labels = entries[:, :4], entries[:, entry - 1]
    with np.errstate(invalid="ignore"):
        fits = (boxes[:, :2] >= 0) & (boxes[:, :2] < 1) & (boxes[:, 2:] > 0) & (boxes[:, 2:] <= 1)
        known = (labels >= 0) & (labels < classes)
    if not fits.all():
        raise SourceError(
            "A box of the truth does not lie in its picture",
            "Give middles from 0 to below 1, and sides above 0 and at most 1",
        )
    if not known.all():
        raise SourceError(
            "A box of the truth has a class that the network does not have",
            f"Classes are 0 to {classes - 1}",
        )
    found = labels.astype(np.int64)
    if class_map is not None:
        found = np.array(class_map, np.int64)[found]
    return Truth(boxes, found, entries[:, 4 : entry - 1])


def predicted_boxes(y: npt.NDArray[np.float32], anchors: Boxes, grid: tuple[float, float]) -> Boxes:
    """The boxes (n, h, w, 4) of outputs y (n, 4+, h, w).

    x = (column + y0) / w, y = (row + y1) / h, sides = exp(y2), exp(y3) times the anchor, divided by
    `grid`, which is (width, height) in the unit of the anchors.
    """
    _, _, height, width = y.shape
    columns = np.arange(width, dtype=np.float32)[None, None, :]
    rows = np.arange(height, dtype=np.float32)[None, :, None]
    with np.errstate(over="ignore"):
        sides = np.exp(y[:, 2:4].astype(np.float64))
    boxes = [
        (columns + y[:, 0]) / np.float32(width),
        (rows + y[:, 1]) / np.float32(height),
        sides[:, 0] * anchors[:, 0, None, None] / grid[0],
        sides[:, 1] * anchors[:, 1, None, None] / grid[1],
    ]
    return np.stack(boxes, -1).astype(np.float32)
