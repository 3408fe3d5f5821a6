"""Darknet's layers as PyTorch modules.

A layer is built from its cfg section and the shape of one input record, (channels, height, width)
or (values,). It maps (records, *in_shape) to (records, *out_shape); a shape (n, 1, 1) can also be
passed as (records, n). Parameters are created on the meta device, without memory; `reset` sets
their starting values after they have been given memory.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from plinius.darknet.activations import ACTIVATIONS
from plinius.darknet.cfg import Section
from plinius.darknet.cfg_options import MAX_VALUES
from plinius.darknet.norm import MOMENTUM, darknet_norm

Shape = tuple[int, ...]


class Layer(nn.Module):
    """Shapes, and the options of any section. Raises CfgError if the output is too large."""

    def __init__(self, section: Section, in_shape: Shape, out_shape: Shape) -> None:
        super().__init__()
        if not 0 < math.prod(out_shape) <= MAX_VALUES:
            raise section.error(f"the output would be {out_shape}", "Check size, stride, padding")
        self.section = section
        self.in_shape, self.out_shape = in_shape, out_shape
        self.rate_scale = section.real("learning_rate")
        self.stops_backward = bool(section.integer("stopbackward"))
        self.gives_truth = bool(section.integer("truth"))

    def arrays(self) -> dict[str, Tensor]:
        """The layer's arrays by name, in their order in a .weights file."""
        return {}

    def reset(self, generator: torch.Generator) -> None:
        """Set the starting values, drawn from `generator`."""


def image_shape(section: Section, shape: Shape) -> Shape:
    """`shape`, if it is (channels, height, width). Raises CfgError otherwise."""
    if len(shape) != 3:
        raise section.error("needs an image before it", "Give [net] height, width and channels")
    return shape


def _parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, device="meta"))


class Weighted(Layer):
    """A layer with weights: output = activation(norm(weights * input) + biases).

    Without batch_normalize, norm is the identity; with it, norm also multiplies by the scales.
    `norm` is "darknet" or "torch", whose formula it has. `fan_in` is the number of inputs that one
    output depends on.
    """

    def __init__(
        self, section: Section, in_shape: Shape, out_shape: Shape, weights: Shape, norm: str
    ) -> None:
        super().__init__(section, in_shape, out_shape)
        self.activation = ACTIVATIONS.get(section.text("activation"), torch.relu)
        self.norm = norm if section.integer("batch_normalize") else ""
        self.fan_in = math.prod(weights[1:])
        n = weights[0]
        self.weights = _parameter(*weights)
        self.biases = _parameter(n)
        if self.norm:
            self.scales = _parameter(n)
            self.register_buffer("rolling_mean", torch.empty(n, device="meta"))
            self.register_buffer("rolling_variance", torch.empty(n, device="meta"))

    rolling_mean: Tensor
    rolling_variance: Tensor

    def _norms(self) -> dict[str, Tensor]:
        if not self.norm:
            return {}
        return {
            "scales": self.scales,
            "rolling_mean": self.rolling_mean,
            "rolling_variance": self.rolling_variance,
        }

    def reset(self, generator: torch.Generator) -> None:
        """Set biases and rolling statistics to 0, scales to 1, and draw the weights."""
        with torch.no_grad():
            self.biases.zero_()
            if self.norm:
                self.scales.fill_(1)
                self.rolling_mean.zero_()
                self.rolling_variance.zero_()
            self._draw(generator)

    def _draw(self, generator: torch.Generator) -> None:
        raise NotImplementedError

    def _finish(self, x: Tensor) -> Tensor:
        """Normalise if the section asks for it, then apply the activation."""
        if self.norm:
            statistics = (self.rolling_mean, self.rolling_variance)
            if self.norm == "darknet":
                x = darknet_norm(x, self.scales, self.biases, *statistics, self.training)
            else:
                x = functional.batch_norm(
                    x, *statistics, self.scales, self.biases, self.training, MOMENTUM
                )
        return self.activation(x)


class Convolutional(Weighted):
    """[convolutional], with zero padding, stride and groups (darknet: convolutional_layer.c).

    Weights are drawn as sqrt(2 / fan_in) * normal(0, 1) (make_convolutional_layer). Unlike in the
    original, 1x1 filters obey their stride too.
    """

    def __init__(self, section: Section, shape: Shape, norm: str) -> None:
        channels, height, width = image_shape(section, shape)
        filters, size = section.integer("filters"), section.integer("size")
        padding = size // 2 if section.integer("pad") else section.integer("padding")
        stride, groups = section.integer("stride"), section.integer("groups")
        if channels % groups or filters % groups:
            todo = f"Make groups={groups} divide channels={channels} and filters={filters}"
            raise section.error("the groups do not divide evenly", todo, "groups")
        out_height = (height + 2 * padding - size) // stride + 1
        out_width = (width + 2 * padding - size) // stride + 1
        out = (filters, max(out_height, 0), max(out_width, 0))
        super().__init__(section, shape, out, (filters, channels // groups, size, size), norm)
        self.stride, self.padding, self.groups = stride, padding, groups

    def arrays(self) -> dict[str, Tensor]:
        """Biases, [scales, rolling mean, rolling variance], weights (filters, c / groups, k, k)."""
        return {"biases": self.biases, **self._norms(), "weights": self.weights}

    def _draw(self, generator: torch.Generator) -> None:
        self.weights.normal_(generator=generator).mul_(math.sqrt(2 / self.fan_in))

    def forward(self, x: Tensor) -> Tensor:
        """Map (records, c, h, w) to (records, filters, h', w')."""
        x = x.reshape(-1, *self.in_shape)
        bias = None if self.norm else self.biases
        stride = self.stride
        if self.weights.shape[-1] == 1 and self.padding == 0:
            # Select the pixels first, which gives the same result: torch 2.13 on one thread
            # crashes in the backward pass of a strided 1x1 convolution of channels_last images.
            x, stride = x[..., ::stride, ::stride], 1
        x = functional.conv2d(x, self.weights, bias, stride, self.padding, groups=self.groups)
        return self._finish(x)


class Connected(Weighted):
    """[connected]: every output depends on every input, in order of channel, row, column.

    Weights are drawn as sqrt(2 / inputs) * uniform(-1, 1) (darknet: connected_layer.c,
    make_connected_layer).
    """

    def __init__(self, section: Section, shape: Shape, norm: str) -> None:
        output, inputs = section.integer("output"), math.prod(shape)
        super().__init__(section, shape, (output, 1, 1), (output, inputs), norm)

    def arrays(self) -> dict[str, Tensor]:
        """Biases, weights (outputs, inputs), [scales, rolling mean, rolling variance]."""
        return {"biases": self.biases, "weights": self.weights, **self._norms()}

    def _draw(self, generator: torch.Generator) -> None:
        self.weights.uniform_(-1, 1, generator=generator).mul_(math.sqrt(2 / self.fan_in))

    def forward(self, x: Tensor) -> Tensor:
        """Map (records, ...) to (records, outputs)."""
        return self._finish(
            functional.linear(x.flatten(1), self.weights, None if self.norm else self.biases)
        )


class Maxpool(Layer):
    """[maxpool] (darknet: maxpool_layer.c).

    `padding` (default size - 1) is the sum of both sides; padding // 2 goes to the left and the
    top. Output side: (side + padding - size) // stride + 1.
    """

    def __init__(self, section: Section, shape: Shape) -> None:
        channels, height, width = image_shape(section, shape)
        stride = section.integer("stride")
        size = section.integer("size") if section.options["size"] else stride
        given = section.options["padding"]
        padding = size - 1 if given is None else section.integer("padding")
        before = padding // 2
        outs, afters = [], []
        for side in (height, width):
            out = (side + padding - size) // stride + 1
            last = (out - 1) * stride - before
            if out < 1 or before >= size or last >= side:
                raise section.error("a window lies outside the image", "Lower size or padding")
            outs.append(out)
            afters.append(max(0, last + size - side))
        super().__init__(section, shape, (channels, *outs))
        self.size, self.stride = size, stride
        self.pads = (before, afters[1], before, afters[0])

    def forward(self, x: Tensor) -> Tensor:
        """Map (records, c, h, w) to (records, c, h', w')."""
        x = x.reshape(-1, *self.in_shape)
        if any(self.pads):
            x = functional.pad(x, self.pads, value=-math.inf)
        return functional.max_pool2d(x, self.size, self.stride)


class Avgpool(Layer):
    """[avgpool]: the mean of each channel (darknet: avgpool_layer.c)."""

    def __init__(self, section: Section, shape: Shape) -> None:
        super().__init__(section, shape, (image_shape(section, shape)[0], 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (records, c, h, w) to (records, c)."""
        return x.reshape(-1, *self.in_shape).mean((2, 3))


class Dropout(Layer):
    """[dropout]: in training, each value is set to 0 with `probability` p, else divided by 1 - p.

    (darknet: dropout_layer.c, forward_dropout_layer)
    """

    def __init__(self, section: Section, shape: Shape, generator: torch.Generator) -> None:
        super().__init__(section, shape, shape)
        self.keep = 1 - section.real("probability")
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        """Map to the same shape; uses the generator in training only."""
        if not self.training or self.keep == 1:
            return x
        # Uniform numbers and a comparison are three times as fast as bernoulli_.
        draws = torch.empty_like(x, dtype=torch.float32).uniform_(generator=self.generator)
        return x * ((draws < self.keep).to(x.dtype) / self.keep)
