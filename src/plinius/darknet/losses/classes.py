"""Costs of classes: [softmax] and [logistic]."""

import math
from typing import Any

import torch
from torch import Tensor

from plinius.darknet.cfg import Section
from plinius.darknet.layers.base import Shape
from plinius.darknet.losses.base import LossLayer, passing
from plinius.darknet.tree import Tree


class Softmax(LossLayer):
    """[softmax] in `groups` of equal size, or in those of a `tree`, of input / temperature.

    Unless noloss=1, its delta is truth - output (darknet: softmax_layer.c; blas.c,
    softmax_x_ent_cpu). Backward passes the gradient on unchanged, as in Darknet
    (backward_softmax_layer). Together this is the gradient of the cross-entropy if the softmax is
    the last layer, the truth of each group sums to 1, and the temperature is 1.
    """

    def __init__(self, section: Section, shape: Shape, tree: Tree | None) -> None:
        inputs, groups = math.prod(shape), section.integer("groups")
        if inputs % groups:
            todo = f"Make groups={groups} divide the {inputs} inputs"
            raise section.error("the groups do not divide evenly", todo, "groups")
        if tree and tree.classes != inputs:
            what = f"the tree has {tree.classes} classes for {inputs} inputs"
            raise section.error(what, "Give the tree of this network", "tree")
        super().__init__(section, shape, (inputs,))
        self.groups, self.temperature = groups, section.real("temperature")
        self.sizes = tree.group_sizes if tree else None
        self.truths = None if section.integer("noloss") else inputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (records, ...) to (records, inputs), float32."""
        x = x.flatten(1).float()
        if self.sizes:
            with torch.no_grad():
                parts = (x / self.temperature).split(self.sizes, 1)
                y = torch.cat([part.softmax(1) for part in parts], 1)
            return passing(x, y)
        result: Tensor = _PassingSoftmax.apply(x, self.groups, self.temperature)  # type: ignore[no-untyped-call]
        return result

    def cost(self, x: Tensor, output: Tensor, truth: Tensor, seen: int) -> tuple[Tensor, Tensor]:
        """The reported cost is the sum of -log(output) over the entries whose truth is not 0."""
        if self.truths is None:
            return output.new_zeros(()), output.new_zeros(())
        with torch.no_grad():
            x = x.flatten(1).float()
            if self.sizes:
                parts = (x / self.temperature).split(self.sizes, 1)
                logs = torch.cat([part.log_softmax(1) for part in parts], 1)
            else:
                logs = _grouped(x, self.groups, self.temperature).log_softmax(2).flatten(1)
            reported = -logs.where(truth != 0, 0).sum()
        return (output - truth).square().sum() / 2, reported


def _grouped(x: Tensor, groups: int, temperature: float) -> Tensor:
    return x.reshape(x.shape[0], groups, -1) / temperature


class _PassingSoftmax(torch.autograd.Function):
    """Softmax whose gradient is the identity."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor, groups: int, temperature: float) -> Tensor:
        return _grouped(x, groups, temperature).softmax(2).flatten(1)

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad, None, None


class Logistic(LossLayer):
    """[logistic]: the sigmoid; its delta is truth - output (darknet: logistic_layer.c).

    That is the gradient of the binary cross-entropy, which is reported (blas.c,
    logistic_x_ent_cpu). A gradient through the output passes on unchanged.
    """

    truths: int

    def __init__(self, section: Section, shape: Shape) -> None:
        super().__init__(section, shape, shape)
        self.truths = math.prod(shape)

    def forward(self, x: Tensor) -> Tensor:
        """Map to the same shape, float32."""
        x = x.float()
        with torch.no_grad():
            y = torch.sigmoid(x)
        return passing(x, y)

    def cost(self, x: Tensor, output: Tensor, truth: Tensor, seen: int) -> tuple[Tensor, Tensor]:
        """The reported cost is the binary cross-entropy."""
        output = output.flatten(1)
        with torch.no_grad():
            reported = torch.nn.functional.binary_cross_entropy_with_logits(
                x.flatten(1).float(), truth, reduction="sum"
            )
        return (output - truth).square().sum() / 2, reported
