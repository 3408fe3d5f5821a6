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

MAX_PARAMETERS = 2**31
"""The largest number of parameters of a network: 8 GiB as float32."""

MAX_VALUES_PER_PASS = 2**31
"""The largest number of values that a layer reads or writes in one pass."""

BATCH_NORMS = ("darknet", "torch")


class Network(nn.Module):
    """The network of `cfg`; starting weights are drawn from `seed`, in Darknet's distributions.

    It takes float32 (records, *input_shape), contiguous or channels_last, also under bfloat16
    autocast. `batch_norm` is "darknet" or "torch", whose formula is used. `generator` draws the
    weights and then the dropout masks: its state is part of the run state. `truths` is the number
    of truth values per record. `warnings` are those of the cfg and of its layers. Raises CfgError
    before any memory is allocated, ValueError for another `batch_norm`.
    """

    def __init__(self, cfg: Cfg, *, batch_norm: str = "darknet", seed: int = 0) -> None:
        super().__init__()
        if batch_norm not in BATCH_NORMS:
            raise ValueError(f"batch_norm is one of {BATCH_NORMS}")
        net = cfg.net
        self.name = cfg.name
        self.input_shape = _input_shape(net)
        self.inputs = net.inputs
        self.generator = torch.Generator().manual_seed(seed)
        self.warnings = (*cfg.warnings, *_unknown_names(cfg.sections))
        shape, layers = self.input_shape, []
        for section in cfg.sections:
            layers.append(_layer(section, shape, batch_norm, self.generator))
            shape = layers[-1].out_shape
        self.layers = nn.ModuleList(layers)
        _check_pass(layers, net.sub_batch)
        self.truths = _truths(layers)
        self.parameter_count = sum(
            array.numel() for layer in layers for array in layer.arrays().values()
        )
        if self.parameter_count > MAX_PARAMETERS:
            what = f"{cfg.name} describes {self.parameter_count} parameters"
            raise CfgError(what, f"At most {MAX_PARAMETERS} are possible; lower filters or output")
        self.to_empty(device="cpu")
        for layer in layers:
            layer.reset(self.generator)

    def forward(self, x: Tensor) -> Tensor:
        """The output of the last layer other than [cost]: (records, truths)."""
        return self.outputs(x)[-1].flatten(1)

    def outputs(self, x: Tensor) -> list[Tensor]:
        """The output of every layer, in the mode set by train() or eval()."""
        results = []
        x = x.reshape(-1, *self.input_shape)
        for layer in self.layers:
            x = layer(x)
            results.append(x)
        return results

    def loss(self, x: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """(objective, reported cost), two scalars, for x (records, *input_shape).

        `truth` is (records, truths). The gradient of the objective is minus the sum over records of
        the updates that Darknet accumulates; divide it by the records of an update. Its value has
        no meaning. The reported cost is the mean over the layers with a cost, each a sum over
        records (darknet: network.c, calc_network_cost). Raises CfgError if no layer has a cost,
        ValueError if `truth` has another shape.
        """
        objective, reported = torch.zeros(()), torch.zeros(())
        costs = 0
        x = x.reshape(-1, *self.input_shape)
        if truth.shape != (len(x), self.truths):
            raise ValueError(f"the truth has the shape {len(x), self.truths}")
        self.require_cost()
        for layer in self.sequence:
            y = layer(x)
            if isinstance(layer, LossLayer):
                own, cost = layer.cost(x, y, truth)
                objective, reported, costs = objective + own, reported + cost, costs + 1
            if layer.stops_backward:
                y = y.detach()
            if layer.gives_truth:
                truth = y.detach().flatten(1).float()
            x = y
        return objective + self._frozen(), reported / costs

    def require_cost(self) -> None:
        """Raise CfgError if no layer has a cost, so that the network cannot be trained."""
        if not any(isinstance(layer, LossLayer) for layer in self.sequence):
            raise CfgError(
                f"{self.name} has no layer with a cost", "End the network with [softmax] or [cost]"
            )

    def _frozen(self) -> Tensor:
        """0, with a gradient of 0 for the parameters before a stopbackward=1.

        Without a gradient, the optimizer would skip them, but Darknet still decays them.
        """
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
        """Parameter groups for a PyTorch optimizer; `decay` applies to weights only.

        `rate_scale` is the learning_rate of the layer, a factor on that of the network.
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


def _unknown_names(sections: Sequence[Section]) -> list[str]:
    """Warnings: an unknown name means a default (darknet: get_activation, get_cost_type)."""
    warnings = []
    for key, known, default in (("activation", ACTIVATIONS, "relu"), ("type", COSTS, "sse")):
        for section in sections:
            if key in section.options and section.text(key) not in known:
                what = f"unknown {key} {section.text(key)[:40]!r} means {default}"
                warnings.append(section.locate(what, key))
    return warnings


def _check_pass(layers: Sequence[Layer], rows: int) -> None:
    for layer in layers:
        if rows * max(math.prod(layer.in_shape), math.prod(layer.out_shape)) > MAX_VALUES_PER_PASS:
            todo = f"Lower batch (at most {MAX_VALUES_PER_PASS} values in a pass)"
            raise layer.section.error("too many values in one pass", todo)
        single = rows * math.prod(layer.out_shape[1:]) < 2
        if isinstance(layer, Weighted) and layer.norm and single:
            todo = "Raise batch, or lower subdivisions"
            raise layer.section.error("batch_normalize needs two values per channel", todo)


def _truths(layers: Sequence[Layer]) -> int:
    """Truth values per record: the outputs of the last layer other than [cost]."""
    plain = [layer for layer in layers if not isinstance(layer, Cost)]
    if not plain:
        raise layers[0].section.error("nothing to compare", "Put a layer before it")
    truths = current = math.prod(plain[-1].out_shape)
    for layer in layers:
        compares = isinstance(layer, Cost) or (isinstance(layer, Softmax) and layer.has_loss)
        inputs = math.prod(layer.in_shape)
        if compares and inputs != current:
            what = f"compares {inputs} values with a truth of {current}"
            raise layer.section.error(
                what, "Make them equal; a [softmax] with noloss=1 compares nothing"
            )
        if layer.gives_truth:
            current = math.prod(layer.out_shape)
    return truths
