"""Layers that normalise: [batchnorm], [normalization] and [l2norm]."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from plinius.darknet.cfg import Section
from plinius.darknet.layers.base import Layer, Shape, image_shape
from plinius.darknet.layers.weighted import Weighted


class Batchnorm(Layer, Weighted):
    """[batchnorm] of an image or of values (darknet: batchnorm_layer.c).

    The original crashes in training here, and would never update scales. Here scales are trained;
    biases stay 0, because a .weights file has no place for them (darknet: parser.c,
    save_batchnorm_weights).
    """

    file_order = ("norms",)

    def __init__(self, section: Section, shape: Shape, norm: str) -> None:
        Layer.__init__(self, section, shape, shape)
        self.norm = norm
        self.biases = torch.nn.Parameter(torch.empty(shape[0], device="meta"))
        self.allocate_norms(shape[0])

    def _draw(self, generator: torch.Generator) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        """Map to the same shape."""
        return self.normalise(x.reshape(-1, *self.in_shape))


class Normalization(Layer):
    """[normalization], also [lrn]: y = x * n ** -beta across channels.

    n of channel k is kappa + alpha * (the sum of x ** 2 of the channels k - (size - 1) // 2 to
    k + size // 2 that exist, less that of channel size // 2 if it exists). The last part is an
    accident of the original (darknet: normalization_layer.c) that is in every network trained with
    it: n can be negative, and y then is not a number. The gradient is that of this formula;
    the original's is grad * n ** -beta alone.
    """

    def __init__(self, section: Section, shape: Shape) -> None:
        super().__init__(section, image_shape(section, shape), shape)
        self.size = section.integer("size")
        self.alpha, self.beta = section.real("alpha"), section.real("beta")
        self.kappa = section.real("kappa")

    def forward(self, x: Tensor) -> Tensor:
        """Map to the same shape."""
        x = x.reshape(-1, *self.in_shape)
        squares = x.square()
        before, after = (self.size - 1) // 2, self.size // 2
        padded = functional.pad(squares, (0, 0, 0, 0, before, after))
        sums = padded.unfold(1, before + after + 1, 1).sum(-1)
        if after < self.in_shape[0]:
            sums = sums - squares[:, after : after + 1]
        return x * (self.kappa + self.alpha * sums) ** -self.beta


class L2norm(Layer):
    """[l2norm]: x / sqrt(the sum over channels of x ** 2), at each pixel.

    (darknet: l2norm_layer.c; blas.c, l2normalize_cpu.) The gradient is that of this formula; the
    original passes it on unchanged.
    """

    def __init__(self, section: Section, shape: Shape) -> None:
        super().__init__(section, shape, shape)

    def forward(self, x: Tensor) -> Tensor:
        """Map to the same shape."""
        x = x.reshape(-1, *self.in_shape)
        return x / x.square().sum(1, keepdim=True).sqrt()


def needs_two_values(layer: Layer, rows: int) -> bool:
    """Whether a part of the layer would normalise over a single value a channel."""
    if not any(part.norm for _, part in layer.parts() if hasattr(part, "norm")):
        return False
    return rows * math.prod(layer.out_shape[1:]) < 2
