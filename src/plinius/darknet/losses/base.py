"""What layers with a cost have in common."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plinius.darknet.layers.base import Layer
from plinius.darknet.losses.boxes import Truth

Array = npt.NDArray[np.float32]


class LossLayer(Layer):
    """A layer that compares with the truth (the labels).

    `truths` is how many values of truth it compares with per record, None if with none.
    """

    truths: int | None = None

    def cost(self, x: Tensor, output: Tensor, truth: Tensor, seen: int) -> tuple[Tensor, Tensor]:
        """(objective, reported cost), two scalars: sums over all records and entries.

        The gradient of the objective is minus the `delta` of Darknet; its value has no meaning.
        `truth` is (records, truths); `seen` is the number of records trained on, this pass
        included.
        """
        raise NotImplementedError

    def require_trainable(self) -> None:
        """Raise CfgError if the section has an option that training does not know."""


class _Passing(torch.autograd.Function):
    """A value whose gradient goes to x unchanged."""

    @staticmethod
    def forward(_ctx: Any, _x: Tensor, y: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def passing(x: Tensor, y: Tensor) -> Tensor:
    """`y`, which was computed from x without gradient; later gradients go to x unchanged.

    The original does so in the backward pass of every layer with a cost (axpy_cpu).
    """
    result: Tensor = _Passing.apply(x, y)  # type: ignore[no-untyped-call]
    return result


class DeltaLoss(LossLayer):
    """A layer that computes Darknet's `delta`, and reports the sum of its squares.

    A gradient through the output of the layer passes on unchanged.
    """

    truths: int

    def forward(self, x: Tensor) -> Tensor:
        """Map (records, ...) to (records, *out_shape), float32."""
        x = x.reshape(-1, *self.in_shape).float()
        with torch.no_grad():
            y = self.activate(x)
        return passing(x, y).reshape(-1, *self.out_shape)

    def activate(self, x: Tensor) -> Tensor:
        """The output for x (records, *in_shape); called without gradient."""
        raise NotImplementedError

    def delta(self, output: Array, truth: Array, seen: int) -> Array:
        """Darknet's delta (truth - output, scaled) for one record, in the shape of `output`.

        `output` is (*out_shape), `truth` (truths,). Raises SourceError for a truth that describes
        nothing.
        """
        raise NotImplementedError

    def cost(self, x: Tensor, output: Tensor, truth: Tensor, seen: int) -> tuple[Tensor, Tensor]:
        """As LossLayer."""
        outputs = output.detach().reshape(-1, *self.out_shape).cpu().numpy()
        truths = truth.detach().float().cpu().numpy()
        deltas = [self.delta(y, t, seen) for y, t in zip(outputs, truths, strict=True)]
        delta = torch.from_numpy(np.stack(deltas)).to(x.device)
        objective = -(delta * x.reshape(delta.shape).float()).sum()
        return objective, delta.square().sum()


class BoxLoss(DeltaLoss):
    """A layer that finds boxes of objects of some classes."""

    classes: int

    def found(self, output: Array) -> tuple[Array, Array]:
        """(boxes (n, 4), scores (n, classes)) of the output (*out_shape) of one record."""
        raise NotImplementedError

    def objects(self, truth: Array) -> Truth:
        """The objects in the truth (truths,) of one record. Raises SourceError."""
        raise NotImplementedError
