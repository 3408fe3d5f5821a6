"""Batch normalisation in Darknet's formula, on PyTorch's kernels.

Training, over the n values of a channel: mean m and unbiased variance v (divided by n - 1),
y = scale * (x - m) / (sqrt(v) + 1e-6) + bias. Backward takes 1 / sqrt(v + 1e-5) and divides by n,
which is close to, and not quite, the derivative of the above (darknet: batchnorm_layer.c, blas.c).
Rolling statistics move by 1 % each training pass, and start from zero.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

MOMENTUM = 0.01
_FORWARD_EPSILON = 1e-6
_BACKWARD_EPSILON = 1e-5
_aten = torch.ops.aten


def darknet_norm(
    x: Tensor, scales: Tensor, biases: Tensor, mean: Tensor, variance: Tensor, training: bool
) -> Tensor:
    """Normalise x (rows, channels, ...) of float32 or bfloat16; the rest is float32 (channels,).

    In training `mean` and `variance`, the rolling statistics, move in place; each channel then
    needs two values or more, else ValueError.
    """
    if not training:
        spread = (variance.sqrt() + _FORWARD_EPSILON).square()
        return functional.batch_norm(x, mean, spread, scales, biases, False, 0.0, 0.0)
    n = x.numel() // x.shape[1]
    if n < 2:
        raise ValueError("batch normalisation needs two values a channel: give a larger batch")
    with torch.no_grad():
        # One native pass; the rolling buffers also tell the kernel to keep float32 for bfloat16 x.
        batch_mean, biased = _aten.batch_norm_update_stats(x, mean, variance, MOMENTUM)
        unbiased = biased * (n / (n - 1))
    result: Tensor = _Normalise.apply(x, scales, biases, batch_mean, unbiased)  # type: ignore[no-untyped-call]
    return result


class _Normalise(torch.autograd.Function):
    """The affine map by batch statistics that are already known, and Darknet's backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scales: Tensor, biases: Tensor, mean: Tensor, variance: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, scales, mean, variance)
        spread = (variance.sqrt() + _FORWARD_EPSILON).square()
        return functional.batch_norm(x, mean, spread, scales, biases, False, 0.0, 0.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, scales, mean, variance = ctx.saved_tensors
        inverse = (variance + _BACKWARD_EPSILON).rsqrt()
        dx, dscales, dbiases = _aten.native_batch_norm_backward(
            grad, x, scales, None, None, mean, inverse, True, 0.0, [True, True, True]
        )
        # The kernel summed grad * (x - m) * inverse; the scale's own factor is the forward one.
        dscales /= inverse * (variance.sqrt() + _FORWARD_EPSILON)
        return dx, dscales, dbiases, None, None
