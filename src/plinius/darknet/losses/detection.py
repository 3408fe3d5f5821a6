"""[detection]: classes, confidences and boxes of the cells of a grid.

(darknet: detection_layer.c)
"""

import math

import numpy as np
import torch
from torch import Tensor

from plinius.darknet.cfg import Section
from plinius.darknet.layers.base import Shape
from plinius.darknet.losses.base import Array, BoxLoss
from plinius.darknet.losses.boxes import Truth, overlap
from plinius.errors import SourceError

_RANDOM_UNTIL = 64000


class Detection(BoxLoss):
    """[detection] on side * side cells, each with `num` boxes.

    The input is the classes of all cells, then the confidences of all boxes, then their boxes. A
    truth has for each cell: whether there is an object, its classes, and its box (x and y in the
    cell). The delta is that of forward_detection_layer: the box with the best overlap, or the
    nearest one, is responsible.
    """

    def __init__(self, section: Section, shape: Shape, generator: torch.Generator) -> None:
        side, count = section.integer("side"), section.integer("num")
        classes, coords = section.integer("classes"), section.integer("coords")
        inputs, wanted = math.prod(shape), side * side * ((1 + coords) * count + classes)
        if inputs != wanted:
            what = f"has {inputs} values before it, not {wanted}"
            todo = "Make them side * side * ((1 + coords) * num + classes)"
            raise section.error(what, todo)
        if coords != 4:
            raise section.error(f"coords={coords}", "Give coords=4: x, y, w, h", "coords")
        if section.integer("forced") and count < 2:
            raise section.error("forced=1 needs two boxes", "Give num=2 or more", "forced")
        super().__init__(section, (inputs,), (inputs,))
        self.cells, self.count, self.classes = side * side, count, classes
        self.truths = self.cells * (1 + coords + classes)
        self.generator = generator
        self.random = bool(section.integer("random"))

    def activate(self, x: Tensor) -> Tensor:
        """As DeltaLoss."""
        if not self.section.integer("softmax"):
            return x
        y, end = x.clone(), self.cells * self.classes
        y[:, :end] = y[:, :end].reshape(len(y), self.cells, -1).softmax(2).flatten(1)
        return y

    def found(self, output: Array) -> tuple[Array, Array]:
        """As BoxLoss (get_detection_detections)."""
        side = self.section.integer("side")
        first, second = self.cells * self.classes, self.cells * (self.classes + self.count)
        classes = output[:first].reshape(self.cells, 1, self.classes)
        sure = output[first:second].reshape(self.cells, self.count, 1)
        boxes = output[second:].reshape(self.cells, self.count, 4).copy()
        if self.section.integer("sqrt"):
            boxes[:, :, 2:] *= boxes[:, :, 2:]
        self._place(boxes, side)
        return boxes.reshape(-1, 4), (classes * sure).reshape(-1, self.classes)

    def _place(self, boxes: Array, side: int) -> None:
        """From x and y in the cell to those in the picture, of boxes (cells, n, 4), in place."""
        cells = np.arange(self.cells, dtype=np.float32)
        boxes[:, :, 0] = (boxes[:, :, 0] + (cells % side)[:, None]) / side
        boxes[:, :, 1] = (boxes[:, :, 1] + (cells // side)[:, None]) / side

    def objects(self, truth: Array) -> Truth:
        """As BoxLoss; a cell with an object has the class of its largest value."""
        cells = truth.reshape(self.cells, -1)
        boxes = cells[:, None, 1 + self.classes :].copy()
        self._place(boxes, self.section.integer("side"))
        there = cells[:, 0].astype(np.int64) != 0
        classes = cells[there, 1 : 1 + self.classes].argmax(1).astype(np.int64)
        return Truth(boxes[there, 0], classes, cells[:0, :0])

    def delta(self, output: Array, truth: Array, seen: int) -> Array:
        """As DeltaLoss."""
        real = self.section.real
        first, second = self.cells * self.classes, self.cells * (self.classes + self.count)
        classes = output[:first].reshape(self.cells, self.classes)
        sure = output[first:second].reshape(self.cells, self.count)
        boxes = output[second:].reshape(self.cells, self.count, 4)
        truths = truth.reshape(self.cells, -1)
        if not np.isfinite(truths).all():
            raise SourceError("A truth holds a number that is not finite", "Seal the data again")
        dclasses, dboxes = np.zeros_like(classes), np.zeros_like(boxes)
        dsure = np.float32(real("noobject_scale")) * -sure
        for cell in np.flatnonzero(truths[:, 0].astype(np.int64)):
            wanted = truths[cell, 1 + self.classes :].copy()
            if (wanted[2:] < 0).any():
                raise SourceError("A box of the truth has a negative side", "Seal the data again")
            scale = np.float32(real("class_scale"))
            dclasses[cell] = scale * (truths[cell, 1 : 1 + self.classes] - classes[cell])
            best, shared = self._responsible(boxes[cell], wanted, seen)
            target = shared if self.section.integer("rescore") else np.float32(1)
            dsure[cell, best] = np.float32(real("object_scale")) * (target - sure[cell, best])
            if self.section.integer("sqrt"):
                wanted[2:] = np.sqrt(wanted[2:])
            dboxes[cell, best] = np.float32(real("coord_scale")) * (wanted - boxes[cell, best])
        return np.concatenate([dclasses.ravel(), dsure.ravel(), dboxes.ravel()])

    def _responsible(self, boxes: Array, truth: Array, seen: int) -> tuple[int, np.float32]:
        """(which of the boxes (num, 4) of a cell answers for the truth, their overlap)."""
        side = np.float32(self.section.integer("side"))
        out, wanted = boxes.copy(), truth[None].copy()
        out[:, :2] /= side
        wanted[:, :2] /= side
        if self.section.integer("sqrt"):
            out[:, 2:] *= out[:, 2:]
        overlaps = np.nan_to_num(overlap(out, wanted)[:, 0])
        best = int(overlaps.argmax())
        if not overlaps[best] > 0:
            distances = np.sqrt(np.square(out.astype(np.float64) - wanted).sum(1))
            best = int(distances.argmin())
        if self.section.integer("forced"):
            best = 1 if wanted[0, 2] * wanted[0, 3] < 0.1 else 0
        if self.random and seen < _RANDOM_UNTIL:
            best = int(torch.randint(self.count, (1,), generator=self.generator))
        return best, overlaps[best]
