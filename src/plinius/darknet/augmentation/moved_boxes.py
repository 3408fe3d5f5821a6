"""Boxes that follow their picture when it is placed, cut or mirrored; truths made of them."""

import numpy as np
import numpy.typing as npt

from plinius.darknet.augmentation.draws import Floats

Labels = npt.NDArray[np.float32]

_SMALLEST = 0.001
_SMALLEST_IN_CELL = 0.005


def moved(
    labels: Labels,
    scale: tuple[Floats, Floats],
    shift: tuple[Floats, Floats],
    mirrored: npt.NDArray[np.bool_],
    order: Floats,
) -> Labels:
    """Labels (n, boxes, 5) of x, y, w, h, class after edge * scale - shift, cut at the picture.

    The boxes of each picture come in the order of the random numbers `order` (n, boxes). Those with
    a side below 0.001 are gone (darknet: data.c, randomize_boxes, correct_boxes,
    fill_truth_detection).
    """
    there = present(labels)
    shuffled = np.argsort(np.where(there, order, 2.0), axis=1, kind="stable")
    labels = np.take_along_axis(labels, shuffled[..., None], 1)
    there = np.take_along_axis(there, shuffled, 1)
    edges = []
    for axis in (0, 1):
        middle, half = labels[..., axis], labels[..., axis + 2] / 2
        factor, offset = scale[axis][:, None], shift[axis][:, None]
        low, high = (middle - half) * factor - offset, (middle + half) * factor - offset
        if axis == 0:
            turned = mirrored[:, None]
            low, high = np.where(turned, 1 - high, low), np.where(turned, 1 - low, high)
        edges.append((low.clip(0, 1), high.clip(0, 1)))
    out = np.zeros_like(labels)
    for axis, (low, high) in enumerate(edges):
        out[..., axis], out[..., axis + 2] = (low + high) / 2, high - low
    out[..., 4] = labels[..., 4]
    there &= (out[..., 2] >= _SMALLEST) & (out[..., 3] >= _SMALLEST)
    out[~there] = 0
    front = np.argsort(~there, axis=1, kind="stable")
    return np.take_along_axis(out, front[..., None], 1)


def present(labels: Labels) -> npt.NDArray[np.bool_]:
    """Which entries are boxes: those before the first whose x is 0; bool (n, boxes)."""
    return np.logical_and.accumulate(labels[..., 0] != 0, axis=1)


def in_cells(labels: Labels, side: int, classes: int) -> Labels:
    """The truth of [detection]: (n, side * side * (5 + classes)) of labels (n, boxes, 5).

    The cell of a box's middle has 1, its class one-hot, and x and y in the cell, w, h; of two boxes
    in a cell the first counts (darknet: data.c, fill_truth_region).
    """
    out = np.zeros((len(labels), side * side, 5 + classes), np.float32)
    there = present(labels) & (labels[..., 2:4] >= _SMALLEST_IN_CELL).all(-1)
    for record, at in np.argwhere(there):
        x, y, w, h, label = labels[record, at]
        column, row = min(int(x * side), side - 1), min(int(y * side), side - 1)
        cell = out[record, column + row * side]
        if cell[0]:
            continue
        cell[0] = 1
        if 0 <= label < classes:
            cell[1 + int(label)] = 1
        cell[1 + classes :] = x * side - column, y * side - row, w, h
    return out.reshape(len(labels), -1)
