"""[connected]: every output depends on every input."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from plinius.darknet.cfg import Section
from plinius.darknet.layers.base import Layer, Shape, activation_name
from plinius.darknet.layers.weighted import Weighted


class Connection(Weighted):
    """Weights (outputs, inputs), drawn as sqrt(2 / inputs) * uniform(-1, 1).

    (darknet: connected_layer.c, make_connected_layer)
    """

    def connect(self, inputs: int, outputs: int, activation: str, norm: str) -> None:
        """Create the arrays."""
        self.allocate((outputs, inputs), outputs, activation, norm)

    def _draw(self, generator: torch.Generator) -> None:
        bound = math.sqrt(2 / self.weights.shape[1])
        self.weights.uniform_(-1, 1, generator=generator).mul_(bound)

    def as_stored(self, name: str, transposed: bool) -> Tensor:
        """As Weighted; weights are (inputs, outputs) in a file that transposes them."""
        array = super().as_stored(name, transposed)
        return array.T if name == "weights" and transposed else array

    def apply_to(self, x: Tensor) -> Tensor:
        """Map (records, inputs) to (records, outputs), activated."""
        return self.finish(functional.linear(x, self.weights, None if self.norm else self.biases))


class ConnectionPart(Connection):
    """A connection inside another layer."""

    def __init__(self, inputs: int, outputs: int, activation: str, norm: str) -> None:
        nn.Module.__init__(self)
        self.connect(inputs, outputs, activation, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map (records, inputs) to (records, outputs)."""
        return self.apply_to(x)


class Connected(Layer, Connection):
    """[connected], inputs in order of channel, row, column (darknet: connected_layer.c)."""

    def __init__(self, section: Section, shape: Shape, norm: str) -> None:
        output = section.integer("output")
        Layer.__init__(self, section, shape, (output, 1, 1))
        norm = norm if section.integer("batch_normalize") else ""
        self.connect(math.prod(shape), output, activation_name(section), norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map (records, ...) to (records, outputs)."""
        return self.apply_to(x.flatten(1))

    def operations(self) -> int:
        """As Layer."""
        return 2 * self.weights.numel()
