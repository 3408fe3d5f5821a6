"""Layers that take the outputs of earlier layers: [route], [shortcut], [sam], [scale_channels]."""

import math
from typing import cast

import torch
from torch import Tensor

from plinius.darknet.activations import ACTIVATIONS
from plinius.darknet.cfg import Section
from plinius.darknet.layers.base import Layer, Shape, activation_name, image_shape


def earlier(section: Section, key: str) -> tuple[int, ...]:
    """The numbers of the layers that `key` names; a negative number counts back from here.

    Raises CfgError unless each is an earlier layer.
    """
    given = section.options[key]
    numbers = given if isinstance(given, tuple) else (given,)
    if not numbers or given is None:
        raise section.error(f"{key} is missing", f"Give the number of a layer: {key}=-1")
    found = []
    for number in cast(tuple[float, ...], numbers):
        at = int(number) + (section.index if number < 0 else 0)
        if number != int(number) or not 0 <= at < section.index:
            what = f"{key}={number:g} is no earlier layer"
            last = section.index - 1
            raise section.error(what, f"Give -{section.index} to -1, or 0 to {last}", key)
        found.append(at)
    return tuple(found)


class Route(Layer):
    """[route]: the outputs of `layers`, one after the other (darknet: route_layer.c).

    Images of the same sides are joined by channels; others are no image any more. `groups` and
    `group_id` of the fork take one of equal parts of the channels of each.
    """

    def __init__(self, section: Section, shapes: list[Shape]) -> None:
        sources = earlier(section, "layers")
        groups, part = section.integer("groups"), section.integer("group_id")
        parts = [shapes[at] for at in sources]
        if part >= groups or any(shape[0] % groups for shape in parts):
            todo = "Make groups divide the channels, and group_id less than groups"
            raise section.error("the groups do not divide evenly", todo, "groups")
        parts = [(shape[0] // groups, *shape[1:]) for shape in parts]
        images = all(len(shape) == 3 and shape[1:] == parts[0][1:] for shape in parts)
        out: Shape = (sum(math.prod(shape) for shape in parts),)
        if images:
            out = (sum(shape[0] for shape in parts), *parts[0][1:])
        super().__init__(section, shapes[sources[0]], out, sources)
        self.groups, self.part = groups, part
        self.source_shapes, self.images = [shapes[at] for at in sources], images

    def forward(self, *outputs: Tensor) -> Tensor:
        """Map outputs (records, ...) to (records, *out_shape)."""
        pieces = []
        for x, shape in zip(outputs, self.source_shapes, strict=True):
            x = x.reshape(-1, *shape)
            if self.groups > 1:
                x = x.chunk(self.groups, 1)[self.part]
            pieces.append(x if self.images else x.flatten(1))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)


class Shortcut(Layer):
    """[shortcut]: activation(alpha * input + beta * output of `from`).

    (darknet: shortcut_layer.c; blas.c, shortcut_cpu.) Of images with other sides, every n-th pixel
    is added, or added to; of other channels, as many as both have. Where nothing is added, alpha
    does not apply. The fork's list of several layers in `from` adds them all.
    """

    def __init__(self, section: Section, shape: Shape, shapes: list[Shape]) -> None:
        sources = earlier(section, "from")
        name = activation_name(section)
        if any(shapes[at] != shape for at in sources):
            _, height, width = image_shape(section, shape)
            for at in sources:
                other = image_shape(section, shapes[at])
                ratios = {_ratio(height, other[1]), _ratio(width, other[2])}
                if len(ratios) != 1:
                    what = f"an image of {other} cannot be added to one of {shape}"
                    raise section.error(what, "Make the sides equal, or in one ratio", "from")
        super().__init__(section, shape, shape, (section.index - 1, *sources))
        self.source_shapes = [shapes[at] for at in sources]
        self.activation = ACTIVATIONS[name]
        self.alpha, self.beta = section.real("alpha"), section.real("beta")

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        """Map the input and the earlier outputs to (records, *in_shape)."""
        x = x.reshape(-1, *self.in_shape)
        for other, shape in zip(others, self.source_shapes, strict=True):
            x = self._add(x, other.reshape(-1, *shape))
        return self.activation(x)

    def _add(self, x: Tensor, other: Tensor) -> Tensor:
        alpha, beta = self.alpha, self.beta
        if x.shape == other.shape:
            if alpha != 1:
                x = alpha * x
            return x + other if beta == 1 else x + beta * other
        channels = min(x.shape[1], other.shape[1])
        stride = max(other.shape[2] // x.shape[2], 1)
        sample = max(x.shape[2] // other.shape[2], 1)
        height, width = min(x.shape[2], other.shape[2]), min(x.shape[3], other.shape[3])
        added = other[:, :channels, ::stride, ::stride][:, :, :height, :width]
        sum_ = x.clone()
        place = sum_[:, :channels, ::sample, ::sample][:, :, :height, :width]
        place.copy_(alpha * x[:, :channels, ::sample, ::sample][:, :, :height, :width])
        place.add_(added, alpha=beta)
        return sum_


def _ratio(here: int, there: int) -> tuple[int, int]:
    """(stride, sample) of darknet: blas.c, shortcut_cpu."""
    return max(there // here, 1), max(here // there, 1)


class Sam(Layer):
    """[sam] of the fork: activation(input * output of `from`), shapes equal (fork: sam_layer.c)."""

    def __init__(self, section: Section, shape: Shape, shapes: list[Shape]) -> None:
        (source,) = _single(section)
        if math.prod(shapes[source]) != math.prod(shape):
            what = f"an output of {shapes[source]} cannot multiply one of {shape}"
            raise section.error(what, "Name a layer of the same shape", "from")
        super().__init__(section, shape, shapes[source], (section.index - 1, source))
        self.activation = ACTIVATIONS[activation_name(section)]

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """Map both to (records, *out_shape)."""
        return self.activation(x.reshape(-1, *self.out_shape) * other.reshape(-1, *self.out_shape))


class ScaleChannels(Layer):
    """[scale_channels] of the fork: activation(output of `from` * input, one value a channel).

    (fork: scale_channels_layer.c)
    """

    def __init__(self, section: Section, shape: Shape, shapes: list[Shape]) -> None:
        (source,) = _single(section)
        image = image_shape(section, shapes[source])
        if math.prod(shape) != image[0]:
            what = f"{math.prod(shape)} values cannot scale {image[0]} channels"
            raise section.error(what, "Put an [avgpool] with as many channels before it", "from")
        super().__init__(section, shape, image, (section.index - 1, source))
        self.activation = ACTIVATIONS[activation_name(section)]

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """Map (records, c) and (records, c, h, w) to (records, c, h, w)."""
        other = other.reshape(-1, *self.out_shape)
        return self.activation(other * x.reshape(-1, self.out_shape[0], 1, 1))


def _single(section: Section) -> tuple[int, ...]:
    sources = earlier(section, "from")
    if len(sources) != 1:
        raise section.error("from names several layers", "Name one", "from")
    return sources
