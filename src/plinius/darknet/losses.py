"""Darknet's layers that compare with the truth (the labels): [softmax] and [cost].

Each returns two numbers for a batch: the objective, whose gradient is minus the `delta` of
Darknet and whose value has no meaning, and the cost that Darknet reports. Both are sums over all
records and entries.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from plinius.darknet.cfg import Section
from plinius.darknet.layers import Layer, Shape

COSTS = frozenset({"sse", "masked", "smooth", "L1", "seg", "wgan"})

MASKED = -1234.0
"""An entry with this truth is ignored by [cost] type=masked (darknet: SECRET_NUM)."""


class LossLayer(Layer):
    """A layer with a cost."""

    def cost(self, x: Tensor, output: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """(objective, reported cost), two scalars; `truth` is (records, inputs)."""
        raise NotImplementedError


class Softmax(LossLayer):
    """[softmax] in `groups` of equal size, of input / temperature.

    Unless noloss=1, its delta is truth - output (darknet: softmax_layer.c; blas.c,
    softmax_x_ent_cpu). Backward passes the gradient on unchanged, as in Darknet
    (backward_softmax_layer). Together this is the gradient of the cross-entropy if the softmax is
    the last layer, the truth of each group sums to 1, and the temperature is 1.
    """

    def __init__(self, section: Section, shape: Shape) -> None:
        inputs, groups = math.prod(shape), section.integer("groups")
        if inputs % groups:
            todo = f"Make groups={groups} divide the {inputs} inputs"
            raise section.error("the groups do not divide evenly", todo, "groups")
        super().__init__(section, shape, (inputs,))
        self.groups, self.temperature = groups, section.real("temperature")
        self.has_loss = not section.integer("noloss")

    def forward(self, x: Tensor) -> Tensor:
        """Map (records, ...) to (records, inputs), float32."""
        y: Tensor = _PassingSoftmax.apply(x.flatten(1).float(), self.groups, self.temperature)  # type: ignore[no-untyped-call]
        return y

    def cost(self, x: Tensor, output: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """The reported cost is the sum of -log(output) over the entries whose truth is not 0."""
        if not self.has_loss:
            return output.new_zeros(()), output.new_zeros(())
        with torch.no_grad():
            logs = _grouped(x.flatten(1).float(), self.groups, self.temperature).log_softmax(2)
            reported = -logs.flatten(1).where(truth != 0, 0).sum()
        return (output - truth).square().sum() / 2, reported


def _grouped(x: Tensor, groups: int, temperature: float) -> Tensor:
    return x.reshape(len(x), groups, -1) / temperature


class _PassingSoftmax(torch.autograd.Function):
    """Softmax whose gradient is the identity."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor, groups: int, temperature: float) -> Tensor:
        return _grouped(x, groups, temperature).softmax(2).flatten(1)

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad, None, None


class Cost(LossLayer):
    """[cost]: compares its input with the truth; its output is its input (darknet: cost_layer.c).

    Types: sse, seg, wgan: the squared error (blas.c, l2_cpu). masked: the same without entries
    whose truth is -1234. L1: the absolute error (blas.c, l1_cpu). smooth: the squared error up to
    1 and 2 * error - 1 beyond (blas.c, smooth_l1_cpu), with the gradient of that function: the
    original has the wrong sign beyond 1. `scale` applies to the objective only. An unknown type is
    sse, as in the original.
    """

    def __init__(self, section: Section, shape: Shape) -> None:
        super().__init__(section, shape, shape)
        given = section.text("type")
        self.kind = given if given in COSTS else "sse"
        self.scale = section.real("scale")

    def forward(self, x: Tensor) -> Tensor:
        """The same tensor."""
        return x

    def cost(self, x: Tensor, output: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
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
