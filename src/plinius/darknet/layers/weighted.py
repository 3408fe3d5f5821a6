"""Weights, biases and batch normalisation: what a layer, or each part of one, may hold."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from plinius.darknet.activations import ACTIVATIONS
from plinius.darknet.norm import MOMENTUM, darknet_norm

FileOrder = tuple[Literal["biases", "norms", "weights"], ...]
_NORMS = ("scales", "rolling_mean", "rolling_variance")


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


class Weighted(nn.Module):
    """Arrays for output = activation(norm(weights * input) + biases).

    Without batch normalisation, norm is the identity; with it, norm also multiplies by the scales.
    `norm` is "darknet" or "torch", whose formula it has, or "" for none. Parameters are created on
    the meta device, without memory; `reset_arrays` sets their starting values after they have been
    given memory. Only `weights` decay.
    """

    file_order: FileOrder = ("biases", "weights", "norms")
    weights: Tensor
    biases: Tensor
    scales: Tensor
    rolling_mean: Tensor
    rolling_variance: Tensor

    def allocate(
        self, weights: tuple[int, ...], biases: int, activation: str, norm: str = ""
    ) -> None:
        """Create the arrays; `biases` is their number, and that of each array of the norm."""
        self.activation: Callable[[Tensor], Tensor] = ACTIVATIONS[activation]
        self.norm = norm
        self.weights = nn.Parameter(_empty(*weights))
        self.biases = nn.Parameter(_empty(biases))
        if norm:
            self.allocate_norms(biases)

    def allocate_norms(self, n: int) -> None:
        """Create scales and rolling statistics of `n` channels."""
        self.scales = nn.Parameter(_empty(n))
        self.register_buffer("rolling_mean", _empty(n))
        self.register_buffer("rolling_variance", _empty(n))

    def stored(self) -> dict[str, Tensor]:
        """The arrays by name, in their order in a .weights file."""
        found = {}
        for group in self.file_order:
            for name in _NORMS if group == "norms" else (group,):
                if hasattr(self, name):
                    found[name] = getattr(self, name)
        return found

    def as_stored(self, name: str, transposed: bool) -> Tensor:
        """A view of an array with the shape that it has in a file.

        `transposed` says whether the file is of a version that transposes connected weights.
        """
        array: Tensor = getattr(self, name)
        return array.detach()

    def reset_arrays(self, generator: torch.Generator) -> None:
        """Set biases and rolling statistics to 0, scales to 1, and draw the weights."""
        with torch.no_grad():
            self.biases.zero_()
            if hasattr(self, "scales"):
                self.scales.fill_(1)
                self.rolling_mean.zero_()
                self.rolling_variance.zero_()
            self._draw(generator)

    def _draw(self, generator: torch.Generator) -> None:
        raise NotImplementedError

    def normalise(self, x: Tensor) -> Tensor:
        """Apply batch normalisation to x (records, channels, ...)."""
        statistics = (self.rolling_mean, self.rolling_variance)
        if self.norm == "darknet":
            return darknet_norm(x, self.scales, self.biases, *statistics, self.training)
        return functional.batch_norm(
            x, *statistics, self.scales, self.biases, self.training, MOMENTUM
        )

    def finish(self, x: Tensor) -> Tensor:
        """Normalise if the section asks for it, then apply the activation."""
        return self.activation(self.normalise(x) if self.norm else x)
