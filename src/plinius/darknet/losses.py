"""Darknet's layers that compare with the truth: [softmax] and [cost].

Each tells two things of a batch: the objective, whose gradient is minus Darknet's delta and whose
own value means nothing, and the cost that Darknet reports. Both are sums over rows and entries.
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
"""The truth that switches an entry off in [cost] type=masked."""


class LossLayer(Layer):
    """A layer with a cost."""

    def cost(self, x: Tensor, output: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """(objective, reported) for input x, its output, and truth of shape (rows, inputs)."""
        raise NotImplementedError


class Softmax(LossLayer):
    """[softmax] in `groups`; without `noloss`, its delta is truth - output.

    The gradient of later layers passes straight through, as in Darknet. That leaves the true
    gradient of the cross-entropy wherever the truth of each group sums to 1, the temperature is
    1 and the softmax is the last layer.
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
        """Map (rows, ...) to (rows, inputs), float32."""
        y: Tensor = _StraightSoftmax.apply(x.flatten(1).float(), self.groups, self.temperature)  # type: ignore[no-untyped-call]
        return y

    def cost(self, x: Tensor, output: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Reported: the sum of -log(output) where the truth is not 0, unweighted."""
        if not self.has_loss:
            return output.new_zeros(()), output.new_zeros(())
        with torch.no_grad():
            logs = _grouped(x.flatten(1).float(), self.groups, self.temperature).log_softmax(2)
            reported = -logs.flatten(1).where(truth != 0, 0).sum()
        return (output - truth).square().sum() / 2, reported


def _grouped(x: Tensor, groups: int, temperature: float) -> Tensor:
    return x.reshape(len(x), groups, -1) / temperature


class _StraightSoftmax(torch.autograd.Function):
    """Softmax whose gradient is the identity."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor, groups: int, temperature: float) -> Tensor:
        return _grouped(x, groups, temperature).softmax(2).flatten(1)

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad, None, None


class Cost(LossLayer):
    """[cost]: compares its input with the truth; its output is its input.

    Types sse, seg and wgan are squared errors; masked too, without the entries whose truth is
    -1234; L1 is the absolute error; smooth is squared up to 1 and linear beyond, with the gradient
    of that error (the original's CPU code has its sign wrong beyond 1). `scale` counts for the
    objective only.
    """

    def __init__(self, section: Section, shape: Shape) -> None:
        super().__init__(section, shape, shape)
        given = section.word("type")
        self.kind = given if given in COSTS else "sse"
        self.scale = section.real("scale")

    def forward(self, x: Tensor) -> Tensor:
        """The same tensor."""
        return x

    def cost(self, x: Tensor, output: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Reported: squared error, absolute error, or twice Huber's (smooth)."""
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
