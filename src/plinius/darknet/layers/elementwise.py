"""Layers that change values one by one, or cut images: [activation], [dropout], [crop]."""

import torch
from torch import Tensor

from plinius.darknet.activations import ACTIVATIONS
from plinius.darknet.cfg import Section
from plinius.darknet.layers.base import Layer, Shape, activation_name, image_shape


class Activation(Layer):
    """[activation] (darknet: activation_layer.c)."""

    def __init__(self, section: Section, shape: Shape) -> None:
        super().__init__(section, shape, shape)
        self.activation = ACTIVATIONS[activation_name(section)]

    def forward(self, x: Tensor) -> Tensor:
        """Map to the same shape."""
        return self.activation(x)


class Dropout(Layer):
    """[dropout]: in training, each value is set to 0 with `probability` p, else divided by 1 - p.

    In training the output also takes the place of the input for all later layers: in the original
    both are one buffer (darknet: dropout_layer.c, forward_dropout_layer; parser.c). `mask`, if set,
    gives the masks (1 keeps) instead of the generator.
    """

    replaces_input = True

    def __init__(self, section: Section, shape: Shape, generator: torch.Generator) -> None:
        super().__init__(section, shape, shape)
        self.keep = 1 - section.real("probability")
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        """Map to the same shape; uses the generator in training only."""
        if not self.training or self.keep == 1:
            return x
        # Uniform numbers and a comparison are three times as fast as bernoulli_.
        return x * (self.kept(x).to(x.dtype) / self.keep)

    def kept(self, x: Tensor) -> Tensor:
        """Which values of x stay: bool, the shape of x."""
        draws = torch.empty_like(x, dtype=torch.float32).uniform_(generator=self.generator)
        return draws < self.keep


class Crop(Layer):
    """[crop]: a part of crop_height x crop_width pixels, mapped from 0..1 to -1..1.

    In training one place, and one decision to mirror (flip=1), are drawn for each pass; else the
    middle is taken, rounded up and left (darknet: crop_layer.c, forward_crop_layer). noadjust=1
    leaves the values as they are.
    """

    def __init__(self, section: Section, shape: Shape, generator: torch.Generator) -> None:
        channels, height, width = image_shape(section, shape)
        high, wide = section.integer("crop_height"), section.integer("crop_width")
        if high > height or wide > width:
            what = f"a crop of {high} x {wide} is larger than the image of {height} x {width}"
            raise section.error(what, "Lower crop_height and crop_width", "crop_height")
        super().__init__(section, shape, (channels, high, wide))
        self.flips = bool(section.integer("flip"))
        self.adjusts = not section.integer("noadjust")
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        """Map (records, c, h, w) to (records, c, crop_height, crop_width)."""
        x = x.reshape(-1, *self.in_shape)
        _, high, wide = self.out_shape
        spare = (self.in_shape[1] - high, self.in_shape[2] - wide)
        top, left, flip = spare[0] // 2, spare[1] // 2, False
        if self.training:
            flip = self.flips and self._draw(2) == 1
            top, left = self._draw(spare[0] + 1), self._draw(spare[1] + 1)
        if flip:
            x = x.flip(3)
        x = x[:, :, top : top + high, left : left + wide]
        return x * 2 - 1 if self.adjusts else x

    def _draw(self, below: int) -> int:
        if below == 1:
            return 0
        return int(torch.randint(below, (1,), generator=self.generator))
