"""[yolo]: boxes on a grid, from anchors (darknet: yolo_layer.c)."""

import numpy as np
from torch import Tensor

from plinius.darknet.cfg import Section
from plinius.darknet.layers.base import Shape, image_shape
from plinius.darknet.losses.base import Array, BoxLoss
from plinius.darknet.losses.boxes import Truth, overlap, predicted_boxes, read_truth


def read_anchors(section: Section, count: int) -> Array:
    """The anchors as (count, 2): width, height. Without any they are 0.5, as in the original.

    Raises CfgError for another number of them, and for one that is not above 0.
    """
    given = section.options["anchors"]
    if not given:
        return np.full((count, 2), 0.5, np.float32)
    assert isinstance(given, tuple)
    if len(given) < 2 * count:
        what = f"{len(given)} anchors for num={count}"
        raise section.error(what, f"Give {2 * count}: a width and a height each", "anchors")
    anchors = np.array(given[: 2 * count], np.float32).reshape(count, 2)
    if not (anchors > 0).all():
        raise section.error("an anchor is not above 0", "Correct the anchors", "anchors")
    return anchors


def checked_map(
    section: Section, class_map: tuple[int, ...] | None, classes: int
) -> tuple[int, ...] | None:
    """The map. Raises CfgError if it names a class that the network does not have."""
    if class_map is not None and not all(0 <= label < classes for label in class_map):
        raise section.error("the map names a class beyond classes", "Correct the map", "map")
    return class_map


class Yolo(BoxLoss):
    """[yolo] with classes + 5 channels for each anchor in `mask`: x, y, w, h, object, classes.

    The output is the sigmoid of all but w and h. A truth is `max` entries of x, y, w, h, class,
    up to the first whose x is 0. Its delta (darknet: yolo_layer.c, forward_yolo_layer):

    - object: 0 - output; nothing where a predicted box overlaps a truth by more than ignore_thresh;
      1 - output with box and class of that truth where it does by more than truth_thresh;
    - for each truth, at the cell of its middle and its best anchor of all, if that is in `mask`:
      box times (2 - w * h), object 1 - output, and class.

    `anchors` are in pixels of the network's input. `scale_x_y` stretches x and y about the middle,
    and `new_coords` takes the input as it is (fork: yolo_layer.c). Of the fork's box losses only
    iou_loss=mse can be trained.
    """

    def __init__(
        self,
        section: Section,
        shape: Shape,
        sides: tuple[int, int],
        class_map: tuple[int, ...] | None,
    ) -> None:
        channels = image_shape(section, shape)[0]
        classes, total = section.integer("classes"), section.integer("num")
        mask = section.options["mask"] or tuple(range(total))
        assert isinstance(mask, tuple)
        if not all(n == int(n) and 0 <= n < total for n in mask):
            raise section.error(
                "mask names no anchor", f"Give numbers from 0 to {total - 1}", "mask"
            )
        if channels != len(mask) * (classes + 5):
            wanted = f"{len(mask)} anchors * ({classes} classes + 5) = {len(mask) * (classes + 5)}"
            what = f"has {channels} channels before it, not {wanted}"
            raise section.error(what, "Correct filters of the layer before it, classes or mask")
        super().__init__(section, shape, shape)
        self.classes, self.mask = classes, tuple(int(n) for n in mask)
        self.anchors = read_anchors(section, total)
        self.sides = (float(sides[0]), float(sides[1]))
        self.truths = 5 * section.integer("max")
        self.ignore = section.real("ignore_thresh")
        self.assign = section.real("truth_thresh")
        self.scale_x_y = section.real("scale_x_y")
        self.raw = bool(section.integer("new_coords"))
        self.map = checked_map(section, class_map, classes)

    def require_trainable(self) -> None:
        """As LossLayer."""
        loss = self.section.text("iou_loss")
        if loss != "mse" or self.raw:
            key = "new_coords" if self.raw else "iou_loss"
            raise self.section.error(
                f"{key} can be used, but not trained", "Train with iou_loss=mse, new_coords=0", key
            )

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], len(self.mask), self.classes + 5, *self.in_shape[1:])

    def activate(self, x: Tensor) -> Tensor:
        """As DeltaLoss."""
        y = self._split(x).clone()
        if not self.raw:
            y[:, :, :2] = y[:, :, :2].sigmoid()
            y[:, :, 4:] = y[:, :, 4:].sigmoid()
        if self.scale_x_y != 1:
            y[:, :, :2] = y[:, :, :2] * self.scale_x_y - 0.5 * (self.scale_x_y - 1)
        return y.reshape(x.shape)

    def boxes(self, output: Array) -> Array:
        """The predicted boxes (anchors, h, w, 4) of the output of one record."""
        y = output.reshape(len(self.mask), self.classes + 5, *self.in_shape[1:])
        anchors = self.anchors[list(self.mask)]
        if self.raw:
            y = y.copy()
            with np.errstate(divide="ignore"):
                y[:, 2:4] = 2 * np.log(2 * y[:, 2:4])
        return predicted_boxes(y, anchors, self.sides)

    def found(self, output: Array) -> tuple[Array, Array]:
        """As BoxLoss; a score is object times class."""
        y = output.reshape(len(self.mask), self.classes + 5, *self.in_shape[1:])
        scores = np.moveaxis(y[:, 5:] * y[:, 4:5], 1, -1)
        return self.boxes(output).reshape(-1, 4), scores.reshape(-1, self.classes)

    def objects(self, truth: Array) -> Truth:
        """As BoxLoss."""
        return read_truth(truth, 5, self.classes, self.map)

    def delta(self, output: Array, truth: Array, seen: int) -> Array:
        """As DeltaLoss."""
        objects = self.objects(truth)
        y = output.reshape(len(self.mask), self.classes + 5, *self.in_shape[1:])
        delta = np.zeros_like(y)
        delta[:, 4] = 0 - y[:, 4]
        if not len(objects.boxes):
            return delta.reshape(output.shape)
        height, width = self.in_shape[1:]
        overlaps = overlap(self.boxes(output).reshape(-1, 4), objects.boxes)
        overlaps = np.where(np.isnan(overlaps), 0, overlaps)
        best = overlaps.max(1).reshape(y[:, 4].shape)
        which = overlaps.argmax(1).reshape(best.shape)
        delta[:, 4][best > self.ignore] = 0
        for n, row, column in np.argwhere(best > self.assign):
            place = (int(n), int(row), int(column))
            self._assign(delta, y, place, objects.boxes, objects.classes, int(which[place]))
        shapes = np.zeros((len(self.anchors), 4), np.float32)
        shapes[:, 2:] = self.anchors / np.array(self.sides, np.float32)
        moved = objects.boxes.copy()
        moved[:, :2] = 0
        nearest = overlap(moved, shapes).argmax(1)
        for t, box in enumerate(objects.boxes):
            if int(nearest[t]) in self.mask:
                at = self.mask.index(int(nearest[t]))
                place = (at, int(box[1] * height), int(box[0] * width))
                self._assign(delta, y, place, objects.boxes, objects.classes, t)
        return delta.reshape(output.shape)

    def _assign(
        self,
        delta: Array,
        y: Array,
        place: tuple[int, int, int],
        boxes: Array,
        classes: np.ndarray[tuple[int], np.dtype[np.int64]],
        t: int,
    ) -> None:
        """Make the prediction at (anchor of the mask, row, column) responsible for truth t."""
        n, row, column = place
        height, width = self.in_shape[1:]
        wide, high = (float(side) for side in boxes[t, 2:])
        anchor = self.anchors[self.mask[n]]
        wanted = np.array(
            [
                boxes[t, 0] * np.float32(width) - np.float32(column),
                boxes[t, 1] * np.float32(height) - np.float32(row),
                np.log(wide * self.sides[0] / float(anchor[0])),
                np.log(high * self.sides[1] / float(anchor[1])),
            ],
            np.float32,
        )
        here, out = delta[n, :, row, column], y[n, :, row, column]
        here[:4] = np.float32(2 - wide * high) * (wanted - out[:4])
        here[4] = 1 - out[4]
        if here[5]:  # the cell has a class already: add one (delta_yolo_class)
            here[5 + classes[t]] = 1 - out[5 + classes[t]]
        else:
            here[5:] = -out[5:]
            here[5 + classes[t]] += 1
