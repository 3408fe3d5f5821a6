"""Batch normalisation by Darknet's formula, on PyTorch's kernels.

In training, with mean m and unbiased variance v (divided by n - 1) of the n values of a channel:

    y = scale * (x - m) / (sqrt(v) + 1e-6) + bias            (darknet: blas.c, normalize_cpu)

The backward pass uses 1 / sqrt(v + 1e-5) and divides by n (blas.c, mean_delta_cpu,
variance_delta_cpu, normalize_delta_cpu), which is nearly the derivative of the above. Each
training pass sets rolling = 0.99 * rolling + 0.01 * batch for mean and variance, which start at 0
and replace m and v in evaluation (batchnorm_layer.c, forward_batchnorm_layer).
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
    """Normalise x (records, channels, ...), float32 or bfloat16; the rest is (channels,) float32.

    `mean` and `variance` are the rolling statistics; in training they are updated in place. Raises
    ValueError in training for fewer than two values per channel.
    """
    if not training:
        spread = (variance.sqrt() + _FORWARD_EPSILON).square()
        return functional.batch_norm(x, mean, spread, scales, biases, False, 0.0, 0.0)
    n = x.numel() // x.shape[1]
    if n < 2:
        raise ValueError("batch normalisation needs two values per channel: give a larger batch")
    result: Tensor = _Normalise.apply(x, scales, biases, mean, variance)  # type: ignore[no-untyped-call]
    return result


class _Normalise(torch.autograd.Function):
    """y = scale * (x - mean) / (sqrt(variance) + 1e-6) + bias, with Darknet's backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scales: Tensor, biases: Tensor, rolling: Tensor, variance: Tensor
    ) -> Tensor:
        # One pass over x; given float32 rolling buffers, the kernel sums bfloat16 x in float32.
        mean, spread = _aten.batch_norm_update_stats(x, rolling, variance, MOMENTUM)
        n = x.numel() // x.shape[1]
        spread.mul_(n / (n - 1))
        root = spread.sqrt().add_(_FORWARD_EPSILON)
        ctx.save_for_backward(x, scales, mean, spread, root)
        return functional.batch_norm(x, mean, root.square(), scales, biases, False, 0.0, 0.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, scales, mean, variance, root = ctx.saved_tensors
        inverse = (variance + _BACKWARD_EPSILON).rsqrt_()
        dx, dscales, dbiases = _aten.native_batch_norm_backward(
            grad, x, scales, None, None, mean, inverse, True, 0.0, [True, True, True]
        )
        # The kernel summed grad * (x - m) * inverse; the forward pass has another factor.
        dscales /= inverse.mul_(root)
        return dx, dscales, dbiases, None, None
