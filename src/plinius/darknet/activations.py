"""Darknet's fourteen activation functions, differentiable by autograd.

Formulas: darknet: activations.h, one function `NAME_activate` each.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def _plse(x: Tensor) -> Tensor:
    outer = torch.where(x < 0, 0.01 * (x + 4), 0.01 * (x - 4) + 1)
    return torch.where(x.abs() > 4, outer, 0.125 * x + 0.5)


def _lhtan(x: Tensor) -> Tensor:
    outer = torch.where(x < 0, 0.001 * x, 0.001 * (x - 1) + 1)
    return torch.where((x < 0) | (x > 1), outer, x)


def _stair(x: Tensor) -> Tensor:
    floor = x.floor()
    half = (x / 2).floor()
    return torch.where(floor % 2 == 0, half, x - floor + half)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "logistic": torch.sigmoid,
    "loggy": lambda x: 2 * torch.sigmoid(x) - 1,
    "relu": torch.relu,
    "elu": functional.elu,
    "selu": lambda x: 1.0507 * functional.elu(x, 1.6732),
    "relie": lambda x: functional.leaky_relu(x, 0.01),
    "plse": _plse,
    "hardtan": functional.hardtanh,
    "lhtan": _lhtan,
    "linear": lambda x: x,
    "ramp": lambda x: torch.relu(x) + 0.1 * x,
    "leaky": lambda x: functional.leaky_relu(x, 0.1),
    "tanh": torch.tanh,
    "stair": _stair,
}
"""By name in a .cfg file; each maps a tensor of any shape to one of the same shape."""
