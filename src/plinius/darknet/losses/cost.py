"""[cost]: compares its input with the truth."""

import math

from torch import Tensor
from torch.nn import functional

from plinius.darknet.cfg import Section
from plinius.darknet.layers.base import Shape
from plinius.darknet.losses.base import LossLayer

COSTS = frozenset({"sse", "masked", "smooth", "L1", "seg", "wgan"})

MASKED = -1234.0
"""An entry with this truth is ignored by [cost] type=masked (darknet: SECRET_NUM)."""


class Cost(LossLayer):
    """[cost]; its output is its input (darknet: cost_layer.c).

    Types: sse, seg, wgan: the squared error (blas.c, l2_cpu). masked: the same without entries
    whose truth is -1234. L1: the absolute error (blas.c, l1_cpu). smooth: the squared error up to
    1 and 2 * error - 1 beyond (blas.c, smooth_l1_cpu), with the gradient of that function: the
    original has the wrong sign beyond 1. `scale` applies to the objective only. An unknown type is
    sse, as in the original.
    """

    truths: int

    def __init__(self, section: Section, shape: Shape) -> None:
        super().__init__(section, shape, shape)
        given = section.text("type")
        self.kind = given if given in COSTS else "sse"
        self.scale = section.real("scale")
        self.truths = math.prod(shape)

    def forward(self, x: Tensor) -> Tensor:
        """The same tensor."""
        return x

    def cost(self, x: Tensor, output: Tensor, truth: Tensor, seen: int) -> tuple[Tensor, Tensor]:
        """The reported cost is the squared error, the absolute error, or twice Huber's (smooth)."""
        x = x.flatten(1).float()
        if self.kind == "L1":
            error = (truth - x).abs().sum()
            return self.scale * error, error.detach()
        if self.kind == "smooth":
            half = functional.huber_loss(x, truth, reduction="sum")
        else:
            difference = truth - x
            if self.kind == "masked":
                difference = difference.where(truth != MASKED, 0)
            half = difference.square().sum() / 2
        return self.scale * half, 2 * half.detach()
