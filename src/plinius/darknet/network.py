"""A Darknet network as a PyTorch module."""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from plinius.darknet.activations import ACTIVATIONS
from plinius.darknet.cfg import Cfg, Net, Section
from plinius.darknet.layers import (
    Avgpool,
    Connected,
    Convolutional,
    Dropout,
    Layer,
    Maxpool,
    Shape,
    Weighted,
)
from plinius.darknet.losses import COSTS, Cost, LossLayer, Softmax
from plinius.errors import CfgError

MAX_FLOATS = 2**31
"""The most floats a network may hold: 8 GiB."""

MAX_PASS = 2**31
"""The most values one layer may put out in one pass: sub-batch times its outputs."""

BATCH_NORMS = ("darknet", "torch")


class Network(nn.Module):
    """The network of `cfg`, its weights drawn from `seed` in Darknet's distributions.

    Works on float32 (rows, *input_shape), in either memory format, and under bfloat16 autocast.
    `generator` draws the dropout masks after the weights: its state is part of a run's state.
    `warnings` adds to the cfg's own. Raises CfgError, before any memory is taken.
    """

    def __init__(self, cfg: Cfg, *, batch_norm: str = "darknet", seed: int = 0) -> None:
        super().__init__()
        if batch_norm not in BATCH_NORMS:
            raise ValueError(f"batch_norm is one of {BATCH_NORMS}")
        net = cfg.net
        self.input_shape = _input_shape(net)
        self.inputs = net.inputs
        self.generator = torch.Generator().manual_seed(seed)
        self.warnings = (*cfg.warnings, *_unknown_words(cfg.sections))
        shape, layers = self.input_shape, []
        for section in cfg.sections:
            layers.append(_layer(section, shape, batch_norm, self.generator))
            shape = layers[-1].out_shape
        self.layers = nn.ModuleList(layers)
        _check_rows(layers, net.sub_batch)
        self.truths = _truths(layers)
        self.parameter_count = sum(
            array.numel() for layer in layers for array in layer.arrays().values()
        )
        if self.parameter_count > MAX_FLOATS:
            what = f"{cfg.name} describes {self.parameter_count} parameters"
            raise CfgError(what, f"At most {MAX_FLOATS} are allowed; use fewer filters or outputs")
        self.to_empty(device="cpu")
        for layer in layers:
            layer.reset(self.generator)

    def forward(self, x: Tensor) -> Tensor:
        """The output of the last layer that is no [cost]: (rows, truths)."""
        return self.outputs(x)[-1].flatten(1)

    def outputs(self, x: Tensor) -> list[Tensor]:
        """The output of every layer, in the mode set by train() or eval(); [cost] passes on."""
        results = []
        x = x.reshape(-1, *self.input_shape)
        for layer in self.layers:
            x = layer(x)
            results.append(x)
        return results

    def loss(self, x: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """(objective, reported) of a batch: x (rows, *input_shape), truth (rows, truths).

        The gradient of the objective is minus the updates Darknet accumulates over the batch, a
        sum over rows: divide it by the rows of an update. Its value means nothing. `reported` is
        Darknet's network cost: the mean over the layers with a cost, each a sum over rows. Raises
        CfgError where no layer has a cost.
        """
        objective, reported = torch.zeros(()), torch.zeros(())
        costs = 0
        x = x.reshape(-1, *self.input_shape)
        if truth.shape != (len(x), self.truths):
            raise ValueError(f"the truth has the shape {len(x), self.truths}")
        for layer in self.sequence:
            y = layer(x)
            if isinstance(layer, LossLayer):
                part, cost = layer.cost(x, y, truth)
                objective, reported, costs = objective + part, reported + cost, costs + 1
            if layer.stops_backward:
                y = y.detach()
            if layer.gives_truth:
                truth = y.detach().flatten(1).float()
            x = y
        if not costs:
            raise CfgError("no layer has a cost", "End the network with [softmax] or [cost]")
        return objective + self._frozen(), reported / costs

    def _frozen(self) -> Tensor:
        """Zero, with a zero gradient for what lies under a stopbackward: decay still goes there."""
        stops = [i for i, layer in enumerate(self.sequence) if layer.stops_backward]
        last = stops[-1] + 1 if stops else 0
        zero = torch.zeros(())
        for layer in self.sequence[:last]:
            for parameter in layer.parameters():
                zero = zero + 0 * parameter.sum()
        return zero

    @property
    def sequence(self) -> tuple[Layer, ...]:
        """The layers in order, one for each section after [net]."""
        return tuple(cast(Sequence[Layer], self.layers))

    def parameter_groups(self, decay: float) -> list[dict[str, Any]]:
        """Groups for a PyTorch optimizer: weights decay, biases and scales do not.

        `rate_scale` is the layers' own factor on the learning rate.
        """
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for layer in self.sequence:
            for name, parameter in layer.named_parameters():
                key = (layer.rate_scale, decay if name == "weights" else 0.0)
                groups.setdefault(key, []).append(parameter)
        return [
            {"params": parameters, "rate_scale": scale, "weight_decay": weight_decay}
            for (scale, weight_decay), parameters in groups.items()
        ]


def _input_shape(net: Net) -> Shape:
    if net.height and net.width and net.channels:
        return (net.channels, net.height, net.width)
    return (net.inputs,)


def _layer(section: Section, shape: Shape, norm: str, generator: torch.Generator) -> Layer:
    match section.kind:
        case "convolutional":
            return Convolutional(section, shape, norm)
        case "connected":
            return Connected(section, shape, norm)
        case "maxpool":
            return Maxpool(section, shape)
        case "avgpool":
            return Avgpool(section, shape)
        case "dropout":
            return Dropout(section, shape, generator)
        case "softmax":
            return Softmax(section, shape)
        case _:
            return Cost(section, shape)


def _unknown_words(sections: Sequence[Section]) -> list[str]:
    """Darknet falls back on a default where it does not know a name: so do we, and say it."""
    warnings = []
    for key, known, default in (("activation", ACTIVATIONS, "relu"), ("type", COSTS, "sse")):
        for section in sections:
            if key in section.options and section.word(key) not in known:
                what = f"unknown {key} {section.word(key)[:40]!r} means {default}"
                warnings.append(section.locate(what, key))
    return warnings


def _check_rows(layers: Sequence[Layer], rows: int) -> None:
    for layer in layers:
        if rows * max(math.prod(layer.in_shape), math.prod(layer.out_shape)) > MAX_PASS:
            todo = f"Lower batch (at most {MAX_PASS} values in a pass)"
            raise layer.section.error("too many values in one pass", todo)
        single = rows * math.prod(layer.out_shape[1:]) < 2
        if isinstance(layer, Weighted) and layer.norm and single:
            todo = "Raise batch, or lower subdivisions"
            raise layer.section.error("batch_normalize needs two values a channel", todo)


def _truths(layers: Sequence[Layer]) -> int:
    """Truth values a record: the outputs of the last layer that is no [cost]."""
    plain = [layer for layer in layers if not isinstance(layer, Cost)]
    if not plain:
        raise layers[0].section.error("nothing to compare", "Put a layer before it")
    truths = now = math.prod(plain[-1].out_shape)
    for layer in layers:
        compares = isinstance(layer, Cost) or (isinstance(layer, Softmax) and layer.has_loss)
        inputs = math.prod(layer.in_shape)
        if compares and inputs != now:
            what = f"compares {inputs} values with a truth of {now}"
            raise layer.section.error(what, "Make both the same; noloss=1 spares a [softmax]")
        if layer.gives_truth:
            now = math.prod(layer.out_shape)
    return truths
