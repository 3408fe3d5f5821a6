"""What every layer is: shapes, sources, weighted parts, and the options of any section."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from plinius.darknet.activations import ACTIVATIONS
from plinius.darknet.cfg import Section
from plinius.darknet.cfg_options import MAX_VALUES
from plinius.darknet.layers.weighted import Weighted

Shape = tuple[int, ...]


class Layer(nn.Module):
    """Shapes, and the options of any section. Raises CfgError if the output is too large.

    `sources` are the numbers of the layers whose outputs `forward` takes, in order; -1 is the
    input of the network. `in_shape` is the shape of the first. A subclass that has weights of its
    own is also a `Weighted`.
    """

    replaces_input = False
    """Whether, in training, the output also takes the place of the input for later layers."""

    def __init__(
        self,
        section: Section,
        in_shape: Shape,
        out_shape: Shape,
        sources: tuple[int, ...] | None = None,
    ) -> None:
        nn.Module.__init__(self)
        if not 0 < math.prod(out_shape) <= MAX_VALUES:
            raise section.error(f"the output would be {out_shape}", "Check size, stride, padding")
        self.section = section
        self.in_shape, self.out_shape = in_shape, out_shape
        self.sources = (section.index - 1,) if sources is None else sources
        self.rate_scale = section.real("learning_rate")
        self.stops_backward = section.integer("stopbackward")
        self.gives_truth = bool(section.integer("truth"))

    def parts(self) -> list[tuple[str, Weighted]]:
        """The weighted parts by name, in their order in a .weights file; "" is the layer itself."""
        return [("", self)] if isinstance(self, Weighted) else []

    def arrays(self) -> dict[str, Tensor]:
        """The layer's arrays by name, in their order in a .weights file."""
        return {
            f"{name}.{array}" if name else array: tensor
            for name, part in self.parts()
            for array, tensor in part.stored().items()
        }

    def states(self) -> Iterator[tuple[str, Tensor]]:
        """The buffers of recurrent state: (records at a time, ...) each."""
        yield from ()

    def reset(self, generator: torch.Generator) -> None:
        """Set the starting values, drawn from `generator`."""
        for _, part in self.parts():
            part.reset_arrays(generator)

    def operations(self) -> int:
        """Floating-point operations for one record, a multiplication and an addition as two.

        Counted as darknet: convolutional_layer.c does (make_convolutional_layer prints them): those
        of weighted layers only.
        """
        return 0


def image_shape(section: Section, shape: Shape) -> Shape:
    """`shape`, if it is (channels, height, width). Raises CfgError otherwise."""
    if len(shape) != 3:
        raise section.error("needs an image before it", "Give [net] height, width and channels")
    return shape


def activation_name(section: Section) -> str:
    """The activation of a section. Raises CfgError for one that is not known."""
    name = section.text("activation")
    if name not in ACTIVATIONS:
        known = ", ".join(sorted(ACTIVATIONS))
        raise section.error(f"unknown activation {name[:40]!r}", f"Known: {known}", "activation")
    return name
