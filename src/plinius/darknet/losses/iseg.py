"""[iseg]: classes of pixels, and embeddings that tell instances apart (darknet: iseg_layer.c)."""

import numpy as np
from torch import Tensor

from plinius.darknet.cfg import Section
from plinius.darknet.layers.base import Shape, image_shape
from plinius.darknet.losses.base import Array, DeltaLoss
from plinius.errors import SourceError

_INSTANCES = 90


class Iseg(DeltaLoss):
    """[iseg] with classes + ids channels: the sigmoid of each class, then an embedding.

    A truth has 90 entries of a class and a mask of height * width, up to a negative class. Delta of
    the classes: mask - output (0 where there is none). Delta of the embedding: 0.01 times -0.1 * e,
    and 0.1 towards the mean of the pixel's own instance and away from that of each other, by sign
    (forward_iseg_layer).
    """

    def __init__(self, section: Section, shape: Shape) -> None:
        channels, height, width = image_shape(section, shape)
        classes, ids = section.integer("classes"), section.integer("ids")
        if channels != classes + ids:
            what = f"has {channels} channels before it, not {classes} classes + {ids} ids"
            raise section.error(what, "Correct filters of the layer before it, classes or ids")
        super().__init__(section, shape, shape)
        self.classes, self.ids = classes, ids
        self.truths = _INSTANCES * (height * width + 1)

    def activate(self, x: Tensor) -> Tensor:
        """As DeltaLoss."""
        y = x.clone()
        y[:, : self.classes] = y[:, : self.classes].sigmoid()
        return y

    def delta(self, output: Array, truth: Array, seen: int) -> Array:
        """As DeltaLoss."""
        y = output.reshape(self.classes + self.ids, -1)
        delta = -y
        embedding, change = y[self.classes :], np.float32(0.1) * -y[self.classes :]
        instances: list[tuple[np.ndarray[tuple[int], np.dtype[np.bool_]], Array]] = []
        for entry in truth.reshape(_INSTANCES, -1):
            if entry[0] < 0:
                break
            if not entry[0] < self.classes:
                raise SourceError(
                    "An instance of the truth has a class that the network does not have",
                    f"Classes are 0 to {self.classes - 1}",
                )
            inside = entry[1:] != 0
            if inside.any():
                label = int(entry[0])
                delta[label, inside] = entry[1:][inside] - y[label, inside]
                instances.append((inside, embedding[:, inside].mean(1)))
        for inside, own in instances:
            for _, mean in instances:
                sign = np.float32(0.1) if mean is own else np.float32(-0.1)
                away = mean[:, None] - embedding[:, inside] < 0
                change[:, inside] += np.where(away, -sign, sign)
        delta[self.classes :] = np.float32(0.01) * change
        return delta.reshape(output.shape)
