"""Activation functions with Darknet's own gradients.

The fourteen of the original: darknet: activations.h, one function `NAME_activate` and one
`NAME_gradient` each; a gradient there is a function of the output. Where autograd's gradient
differs from it at single points (selu at 0, lhtan at 0 and 1, plse at its corners, stair at odd
integers), the original's is used. The rest (`FORK`) comes with the fork that is kept up
(github.com/AlexeyAB/darknet: activations.c).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Function = Callable[[Tensor], Tensor]

_SELU_SCALE, _SELU_ALPHA = 1.0507, 1.6732


def _plse(x: Tensor) -> Tensor:
    outer = torch.where(x < 0, 0.01 * (x + 4), 0.01 * (x - 4) + 1)
    return torch.where(x.abs() > 4, outer, 0.125 * x + 0.5)


def _plse_slope(y: Tensor) -> Tensor:
    return torch.where((y < 0) | (y > 1), 0.01, 0.125)


def _lhtan(x: Tensor) -> Tensor:
    outer = torch.where(x < 0, 0.001 * x, 0.001 * (x - 1) + 1)
    return torch.where((x < 0) | (x > 1), outer, x)


def _lhtan_slope(y: Tensor) -> Tensor:
    return torch.where((y > 0) & (y < 1), 1.0, 0.001)


def _stair(x: Tensor) -> Tensor:
    floor = x.floor()
    half = (x / 2).floor()
    return torch.where(floor % 2 == 0, half, x - floor + half)


def _stair_slope(y: Tensor) -> Tensor:
    return torch.where(y.floor() == y, 0.0, 1.0)


def _selu(x: Tensor) -> Tensor:
    return _SELU_SCALE * functional.elu(x, _SELU_ALPHA)


def _selu_slope(y: Tensor) -> Tensor:
    return torch.where(y >= 0, _SELU_SCALE, y + _SELU_SCALE * _SELU_ALPHA)


class _ByOutput(torch.autograd.Function):
    """A function whose gradient is given as a function of its output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Function, slope: Function) -> Tensor:
        y = function(x)
        ctx.save_for_backward(y)
        ctx.slope = slope
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (y,) = ctx.saved_tensors
        return grad * ctx.slope(y).to(grad.dtype), None, None


def _by_output(function: Function, slope: Function) -> Function:
    def activate(x: Tensor) -> Tensor:
        y: Tensor = _ByOutput.apply(x, function, slope)  # type: ignore[no-untyped-call]
        return y

    return activate


def _hard_mish(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.where(x > -2, x * x / 2 + x, 0.0))


ACTIVATIONS: dict[str, Function] = {
    "logistic": torch.sigmoid,
    "loggy": lambda x: 2 * torch.sigmoid(x) - 1,
    "relu": torch.relu,
    "elu": functional.elu,
    "selu": _by_output(_selu, _selu_slope),
    "relie": lambda x: functional.leaky_relu(x, 0.01),
    "plse": _by_output(_plse, _plse_slope),
    "hardtan": functional.hardtanh,
    "lhtan": _by_output(_lhtan, _lhtan_slope),
    "linear": lambda x: x,
    "ramp": lambda x: torch.relu(x) + 0.1 * x,
    "leaky": lambda x: functional.leaky_relu(x, 0.1),
    "tanh": torch.tanh,
    "stair": _by_output(_stair, _stair_slope),
}
"""By name in a .cfg file; each maps a tensor of any shape to one of the same shape."""

FORK: dict[str, Function] = {
    "mish": functional.mish,
    "hard_mish": _hard_mish,
    "swish": functional.silu,
    "relu6": functional.relu6,
    "gelu": lambda x: functional.gelu(x, approximate="tanh"),
}
ACTIVATIONS |= FORK
