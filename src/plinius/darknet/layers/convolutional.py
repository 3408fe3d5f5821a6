"""Filters that slide over an image: [convolutional], [deconvolutional] and [local]."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from plinius.darknet.cfg import Section
from plinius.darknet.layers.base import Layer, Shape, activation_name, image_shape
from plinius.darknet.layers.weighted import Weighted


@dataclass(frozen=True)
class Window:
    """How filters slide: all pairs are (height, width)."""

    stride: tuple[int, int] = (1, 1)
    padding: int = 0
    dilation: int = 1
    groups: int = 1


class Convolution(Weighted):
    """Zero padding, stride, dilation and groups (darknet: convolutional_layer.c).

    Weights are (filters, channels / groups, size, size), drawn as sqrt(2 / fan_in) * normal(0, 1)
    (make_convolutional_layer). Unlike in the original, 1x1 filters obey their stride too.
    """

    file_order = ("biases", "norms", "weights")
    flipped = False

    def filter(
        self,
        channels: int,
        filters: int,
        size: int,
        window: Window,
        activation: str,
        norm: str,
    ) -> None:
        """Create the arrays."""
        self.allocate((filters, channels // window.groups, size, size), filters, activation, norm)
        self.window = window
        self.binary = False

    def _draw(self, generator: torch.Generator) -> None:
        fan_in = math.prod(self.weights.shape[1:])
        self.weights.normal_(generator=generator).mul_(math.sqrt(2 / fan_in))

    def as_stored(self, name: str, transposed: bool) -> Tensor:
        """As Weighted; with flipped=1, filters are stored as (c, size, size, filters)."""
        array = super().as_stored(name, transposed)
        return array.permute(1, 2, 3, 0) if name == "weights" and self.flipped else array

    def convolve(self, x: Tensor) -> Tensor:
        """Map (records, c, h, w) to (records, filters, h', w'), activated."""
        bias = None if self.norm else self.biases
        stride = self.window.stride
        if self.weights.shape[-1] == 1 and self.window.padding == 0:
            # Select the pixels first, which gives the same result: torch 2.13 on one thread
            # crashes in the backward pass of a strided 1x1 convolution of channels_last images.
            x, stride = x[..., :: stride[0], :: stride[1]], (1, 1)
        y = self._slide(x, self.weights, bias, stride)
        if self.binary:
            with torch.no_grad():
                mean = self.weights.abs().mean((1, 2, 3), keepdim=True)
                signs = torch.where(self.weights > 0, mean, -mean)
                binary = self._slide(torch.where(x > 0, 1.0, -1.0), signs, bias, stride)
            y = y + (binary - y).detach()
        return self.finish(y)

    def _slide(
        self, x: Tensor, weights: Tensor, bias: Tensor | None, stride: tuple[int, int]
    ) -> Tensor:
        window = self.window
        return functional.conv2d(
            x, weights, bias, stride, window.padding, window.dilation, window.groups
        )


class ConvolutionPart(Convolution):
    """A convolution inside another layer."""

    def __init__(
        self, channels: int, filters: int, size: int, window: Window, activation: str, norm: str
    ) -> None:
        nn.Module.__init__(self)
        self.filter(channels, filters, size, window, activation, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map (records, c, h, w) to (records, filters, h', w')."""
        return self.convolve(x)


class Convolutional(Layer, Convolution):
    """[convolutional].

    With xnor=1 the forward pass uses the signs of the input, and of each filter its signs times
    the mean of its absolute values; gradients are those of the real weights and inputs (darknet:
    convolutional_layer.c, forward_convolutional_layer). `dilation`, `stride_x` and `stride_y` are
    the fork's.
    """

    def __init__(self, section: Section, shape: Shape, norm: str) -> None:
        channels, height, width = image_shape(section, shape)
        filters, size = section.integer("filters"), section.integer("size")
        padding = size // 2 if section.integer("pad") else section.integer("padding")
        dilation = section.integer("dilation") if size > 1 else 1
        stride = (
            section.integer("stride_y") or section.integer("stride"),
            section.integer("stride_x") or section.integer("stride"),
        )
        groups = section.integer("groups")
        if channels % groups or filters % groups:
            todo = f"Make groups={groups} divide channels={channels} and filters={filters}"
            raise section.error("the groups do not divide evenly", todo, "groups")
        reach = dilation * (size - 1) + 1
        padding *= dilation
        sides = [
            max((side + 2 * padding - reach) // step + 1, 0)
            for side, step in zip((height, width), stride, strict=True)
        ]
        Layer.__init__(self, section, shape, (filters, *sides))
        window = Window(stride, padding, dilation, groups)
        norm = norm if section.integer("batch_normalize") else ""
        self.filter(channels, filters, size, window, activation_name(section), norm)
        self.binary = bool(section.integer("xnor"))
        self.flipped = bool(section.integer("flipped"))

    def forward(self, x: Tensor) -> Tensor:
        """Map (records, c, h, w) to (records, filters, h', w')."""
        return self.convolve(x.reshape(-1, *self.in_shape))

    def operations(self) -> int:
        """As Layer."""
        return 2 * self.weights.numel() * math.prod(self.out_shape[1:])


class Deconvolutional(Layer, Weighted):
    """[deconvolutional]: the transpose of a convolution (darknet: deconvolutional_layer.c).

    Output side: (side - 1) * stride + size - 2 * padding. Weights are (channels, filters, size,
    size), drawn as 0.02 * normal(0, 1) * (pixels out / pixels in).
    """

    file_order = ("biases", "norms", "weights")

    def __init__(self, section: Section, shape: Shape, norm: str) -> None:
        channels, height, width = image_shape(section, shape)
        filters, size = section.integer("filters"), section.integer("size")
        padding = size // 2 if section.integer("pad") else section.integer("padding")
        stride = section.integer("stride")
        sides = [(side - 1) * stride + size - 2 * padding for side in (height, width)]
        Layer.__init__(self, section, shape, (filters, *(max(side, 0) for side in sides)))
        norm = norm if section.integer("batch_normalize") else ""
        self.allocate((channels, filters, size, size), filters, activation_name(section), norm)
        self.stride, self.padding = stride, padding

    def _draw(self, generator: torch.Generator) -> None:
        grown = math.prod(self.out_shape[1:]) / math.prod(self.in_shape[1:])
        self.weights.normal_(generator=generator).mul_(0.02 * grown)

    def forward(self, x: Tensor) -> Tensor:
        """Map (records, c, h, w) to (records, filters, h', w')."""
        bias = None if self.norm else self.biases
        x = x.reshape(-1, *self.in_shape)
        return self.finish(
            functional.conv_transpose2d(x, self.weights, bias, self.stride, self.padding)
        )

    def operations(self) -> int:
        """As Layer."""
        return 2 * self.weights.numel() * math.prod(self.in_shape[1:])


class Local(Layer, Weighted):
    """[local]: a convolution whose weights differ from place to place (darknet: local_layer.c).

    Weights are (places, filters, channels * size * size), biases one for each output. They are
    drawn as sqrt(2 / fan_in) * uniform(-1, 1), where the original draws those of the first place
    and leaves the others at 0. With pad=1, size must be 3: for others the original computes one
    size of output and fills another.
    """

    def __init__(self, section: Section, shape: Shape) -> None:
        channels, height, width = image_shape(section, shape)
        filters, size = section.integer("filters"), section.integer("size")
        padding, stride = section.integer("pad"), section.integer("stride")
        if padding and size != 2 * padding + 1:
            todo = f"Give size={2 * padding + 1}, or leave out pad"
            raise section.error(f"pad={padding} does not go with size={size}", todo, "pad")
        sides = [max((n + 2 * padding - size) // stride + 1, 0) for n in (height, width)]
        Layer.__init__(self, section, shape, (filters, *sides))
        weights = (math.prod(sides), filters, channels * size * size)
        self.allocate(weights, math.prod(self.out_shape), activation_name(section))
        self.size, self.padding, self.stride = size, padding, stride

    def _draw(self, generator: torch.Generator) -> None:
        bound = math.sqrt(2 / self.weights.shape[2])
        self.weights.uniform_(-1, 1, generator=generator).mul_(bound)

    def forward(self, x: Tensor) -> Tensor:
        """Map (records, c, h, w) to (records, filters, h', w')."""
        x = x.reshape(-1, *self.in_shape).contiguous()
        columns = functional.unfold(x, self.size, padding=self.padding, stride=self.stride)
        y = torch.einsum("bkl,lnk->bnl", columns, self.weights).flatten(1) + self.biases
        return self.activation(y).reshape(-1, *self.out_shape)

    def operations(self) -> int:
        """As Layer."""
        return 2 * self.weights.numel()
