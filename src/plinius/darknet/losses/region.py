"""[region]: boxes on a grid, from anchors in cells (darknet: region_layer.c)."""

import numpy as np
import torch
from torch import Tensor

from plinius.darknet.cfg import Section
from plinius.darknet.layers.base import Shape, image_shape
from plinius.darknet.losses.base import Array, BoxLoss
from plinius.darknet.losses.boxes import Truth, overlap, predicted_boxes, read_truth
from plinius.darknet.losses.yolo import checked_map, read_anchors
from plinius.darknet.tree import Tree

_PRIOR_UNTIL = 12800
"""Until so many records, all boxes are drawn towards their anchors (forward_region_layer)."""

_ONLY_CLASS = 100_000
"""A truth with a larger x and y has a class, and no box."""


class Region(BoxLoss):
    """[region] with coords + 1 + classes channels for each of `num` anchors.

    The output is the sigmoid of x, y and the object, and a softmax over the classes (softmax=1), of
    each group of a `tree`, or their sigmoids. A truth is `max` entries of x, y, w, h, ..., class.
    The delta is that of the original's forward pass. Its backward pass on the CPU is empty; here
    the delta is passed on, as its GPU code does.
    """

    def __init__(
        self, section: Section, shape: Shape, tree: Tree | None, class_map: tuple[int, ...] | None
    ) -> None:
        channels = image_shape(section, shape)[0]
        classes, coords = section.integer("classes"), section.integer("coords")
        count = section.integer("num")
        if channels != count * (coords + 1 + classes):
            wanted = count * (coords + 1 + classes)
            what = (
                f"has {channels} channels before it, not {count} anchors * "
                f"({coords} coords + 1 + {classes} classes) = {wanted}"
            )
            raise section.error(what, "Correct filters of the layer before it, classes or num")
        if tree and tree.classes != classes:
            what = f"the tree has {tree.classes} classes, not {classes}"
            raise section.error(what, "Give the tree of this network", "tree")
        if section.integer("background"):
            raise section.error("background is not supported", "Remove the line", "background")
        super().__init__(section, shape, shape)
        self.classes, self.coords, self.tree = classes, coords, tree
        self.anchors = read_anchors(section, count)
        self.map = checked_map(section, class_map, classes)
        self.truths = (coords + 1) * section.integer("max")

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], len(self.anchors), -1, *self.in_shape[1:])

    def activate(self, x: Tensor) -> Tensor:
        """As DeltaLoss."""
        y, first = self._split(x).clone(), self.coords + 1
        y[:, :, :2] = y[:, :, :2].sigmoid()
        y[:, :, self.coords] = y[:, :, self.coords].sigmoid()
        classes = y[:, :, first:]
        if self.tree:
            parts = classes.split(self.tree.group_sizes, 2)
            y[:, :, first:] = torch.cat([part.softmax(2) for part in parts], 2)
        else:
            soft = self.section.integer("softmax")
            y[:, :, first:] = classes.softmax(2) if soft else classes.sigmoid()
        return y.reshape(x.shape)

    def boxes(self, output: Array) -> Array:
        """The predicted boxes (anchors, h, w, 4) of the output of one record."""
        y = output.reshape(len(self.anchors), -1, *self.in_shape[1:])
        height, width = self.in_shape[1:]
        return predicted_boxes(y, self.anchors, (width, height))

    def found(self, output: Array) -> tuple[Array, Array]:
        """As BoxLoss; a score is object times class, in a tree times those of its parents."""
        y = output.reshape(len(self.anchors), -1, *self.in_shape[1:])
        classes = y[:, self.coords + 1 :].copy()
        for label, parent in enumerate(self.tree.parents if self.tree else ()):
            if parent >= 0:
                classes[:, label] *= classes[:, parent]
        scores = np.moveaxis(classes * y[:, self.coords : self.coords + 1], 1, -1)
        return self.boxes(output).reshape(-1, 4), scores.reshape(-1, self.classes)

    def objects(self, truth: Array) -> Truth:
        """As BoxLoss."""
        return read_truth(truth, self.coords + 1, self.classes, self.map)

    def delta(self, output: Array, truth: Array, seen: int) -> Array:
        """As DeltaLoss."""
        y = output.reshape(len(self.anchors), -1, *self.in_shape[1:])
        delta = np.zeros_like(y)
        objectness = y[:, self.coords]
        delta[:, self.coords] = np.float32(self.section.real("noobject_scale")) * -objectness
        label = self._only_class(truth)
        if label is not None:
            self._classify_only(delta, y, label)
            return delta.reshape(output.shape)
        objects = self.objects(truth)
        predicted = self.boxes(output)
        if len(objects.boxes):
            overlaps = overlap(predicted.reshape(-1, 4), objects.boxes)
            best = np.nan_to_num(overlaps).max(1).reshape(objectness.shape)
            delta[:, self.coords][best > self.section.real("thresh")] = 0
        if seen < _PRIOR_UNTIL:
            delta[:, :2] = np.float32(0.01) * (np.float32(0.5) - y[:, :2])
            delta[:, 2:4] = np.float32(0.01) * (0 - y[:, 2:4])
        for t in range(len(objects.boxes)):
            self._assign(delta, y, predicted, objects, t)
        return delta.reshape(output.shape)

    def _assign(self, delta: Array, y: Array, predicted: Array, objects: Truth, t: int) -> None:
        """Make the best anchor at the cell of truth t responsible for it."""
        real, box = self.section.real, objects.boxes[t]
        height, width = self.in_shape[1:]
        column, row = int(box[0] * width), int(box[1] * height)
        candidates = predicted[:, row, column].copy()
        if self.section.integer("bias_match"):
            candidates[:, 2:] = self.anchors / np.array([width, height], np.float32)
        moved = box[None].copy()
        moved[:, :2] = candidates[:, :2] = 0
        n = int(np.nan_to_num(overlap(candidates, moved)[:, 0]).argmax())
        here, out = delta[n, :, row, column], y[n, :, row, column]
        wanted = np.array(
            [
                box[0] * np.float32(width) - np.float32(column),
                box[1] * np.float32(height) - np.float32(row),
                np.log(float(box[2]) * width / float(self.anchors[n, 0])),
                np.log(float(box[3]) * height / float(self.anchors[n, 1])),
            ],
            np.float32,
        )
        scale = np.float32(real("coord_scale") * (2 - float(box[2]) * float(box[3])))
        here[:4] = scale * (wanted - out[:4])
        if self.coords > 4:
            more = np.float32(real("mask_scale"))
            here[4 : self.coords] = more * (objects.rest[t] - out[4 : self.coords])
        target = np.float32(1)
        if self.section.integer("rescore"):
            target = overlap(predicted[n, row, column][None], box[None])[0, 0]
        here[self.coords] = np.float32(real("object_scale")) * (target - out[self.coords])
        self._classify(here, out, int(objects.classes[t]))

    def _classify(self, here: Array, out: Array, label: int) -> None:
        """The delta of the classes of one cell (delta_region_class)."""
        scale, first = np.float32(self.section.real("class_scale")), self.coords + 1
        if self.tree:
            while label >= 0:
                group = self.tree.groups[label]
                start = first + self.tree.offsets[group]
                end = start + self.tree.group_sizes[group]
                here[start:end] = scale * -out[start:end]
                here[first + label] = scale * (1 - out[first + label])
                label = self.tree.parents[label]
        elif here[first] and not self.section.integer("softmax"):
            here[first + label] = scale * (1 - out[first + label])
        else:
            here[first:] = scale * -out[first:]
            here[first + label] = scale * (1 - out[first + label])

    def _only_class(self, truth: Array) -> int | None:
        """The class of a record whose truth has no box: only networks with a tree take these."""
        if not self.tree:
            return None
        entries = truth.reshape(-1, self.coords + 1)
        ends = np.flatnonzero(entries[:, 0] == 0)
        for entry in entries[: ends[0]] if len(ends) else entries:
            if entry[0] > _ONLY_CLASS and entry[1] > _ONLY_CLASS:
                label = float(entry[self.coords])
                return int(label) if 0 <= label < self.classes else None
        return None

    def _classify_only(self, delta: Array, y: Array, label: int) -> None:
        """Teach the class to the prediction that is surest of it."""
        assert self.tree
        sure = y[:, self.coords].copy()
        at = label
        while at >= 0:
            sure = sure * y[:, self.coords + 1 + at]
            at = self.tree.parents[at]
        n, row, column = np.unravel_index(int(sure.argmax()), sure.shape)
        self._classify(delta[n, :, row, column], y[n, :, row, column], label)
        delta[n, self.coords, row, column] = 0
