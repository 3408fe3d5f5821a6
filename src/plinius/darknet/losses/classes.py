"""Costs of classes: [softmax] and [logistic]."""

import math
from typing import Any

import torch
from torch import Tensor

from plinius.darknet.cfg import Section
from plinius.darknet.cfg_options import numbers
from plinius.darknet.layers.base import Shape
from plinius.darknet.losses.base import LossLayer, passing
from plinius.darknet.tree import Tree


class Softmax(LossLayer):
    """[softmax] in `groups` of equal size, or in those of a `tree`, of input / temperature.

    Unless noloss=1, its delta is truth - output (darknet: softmax_layer.c; blas.c,
    softmax_x_ent_cpu). Backward passes the gradient on unchanged, as in Darknet
    (backward_softmax_layer). Together this is the gradient of the cross-entropy if the softmax is
    the last layer, the truth of each group sums to 1, and the temperature is 1.

    `class_weights` (not Darknet's) multiply delta and cost of each record by the weight of its
    class, as the `weight` of torch's cross_entropy does before it is averaged. They are numbers, or
    "balanced": then `class_weights` holds 1 until whoever trains sets what `balance` computes.
    """

    class_weights: Tensor

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
        self._weights = _class_weights(section, inputs)
        if self._weights and (groups > 1 or tree or self.truths is None):
            todo = "Leave them out, or groups, tree and noloss"
            raise section.error("class_weights are for one group with a loss", todo)
        self.balanced = section.options["class_weights"] == "balanced"
        if self._weights:
            # Part of the run state, but not of exported parameters.
            self.register_buffer("class_weights", torch.ones(inputs), persistent=False)

    def reset(self, generator: torch.Generator) -> None:
        """Set the starting values."""
        super().reset(generator)
        if self._weights:
            self.class_weights.copy_(torch.tensor(self._weights))

    def balance(self, counts: Tensor) -> None:
        """Weigh each class by records / (classes that occur * records of it); `counts` (classes,).

        So each class that occurs counts the same in sum (King and Zeng, 2001).
        """
        occur = counts > 0
        balanced = counts.sum() / (occur.sum() * counts.where(occur, 1))
        self.class_weights.copy_(balanced.where(occur, 1))

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
            costs = -logs.where(truth != 0, 0)
        if self._weights:
            weights = (truth @ self.class_weights).unsqueeze(1)
            return (weights * (output - truth).square()).sum() / 2, (weights * costs).sum()
        return (output - truth).square().sum() / 2, costs.sum()


def _class_weights(section: Section, classes: int) -> list[float]:
    """The weights at the start, none without the key. Raises CfgError."""
    given = section.options["class_weights"]
    if given is None:
        return []
    if given == "balanced":
        return [1.0] * classes
    weights = numbers().read(str(given))
    if not isinstance(weights, tuple) or len(weights) != classes or min(weights) < 0:
        todo = f"Give class_weights=balanced, or {classes} numbers from 0 with commas between them"
        raise section.error("class_weights need one number for each class", todo, "class_weights")
    return [*weights]


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
