"""A Darknet network as a PyTorch module."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from plinius.darknet.augmentation.augmentation import crops, without_effect
from plinius.darknet.build import (
    build_layers,
    input_shape,
    require_memory,
    require_truths,
    truths_of,
    unknown_costs,
)
from plinius.darknet.cfg import Cfg
from plinius.darknet.layers.base import Layer
from plinius.darknet.layers.normalisation import Batchnorm, needs_two_values
from plinius.darknet.losses.base import BoxLoss, DeltaLoss, LossLayer
from plinius.darknet.losses.cost import Cost
from plinius.darknet.memory import machine_memory, parameter_bytes, row_bytes, training_bytes
from plinius.errors import CfgError

BATCH_NORMS = ("darknet", "torch")


class Network(nn.Module):
    """The network of `cfg`; starting weights are drawn from `seed`, in Darknet's distributions.

    It takes float32 (rows, *input_shape), contiguous or channels_last, also under bfloat16
    autocast. `batch_norm` is "darknet" or "torch", whose formula is used. `generator` draws the
    weights and then the dropout masks: its state is part of the run state. `truths` is the number
    of truth values per row. `warnings` are those of the cfg and its layers. `crops` says whether
    training takes crops, so that pictures may be of other sizes. `seen` is the number of
    rows trained on, the pass under way included: whoever trains sets it before each pass, because
    [region] and a stopbackward above 1 depend on it. Raises CfgError before any memory is
    allocated, ValueError for another `batch_norm`.
    """

    def __init__(self, cfg: Cfg, *, batch_norm: str = "darknet", seed: int = 0) -> None:
        super().__init__()
        if batch_norm not in BATCH_NORMS:
            raise ValueError(f"batch_norm is one of {BATCH_NORMS}")
        self.name, self._cfg, self._batch_norm = cfg.name, cfg, batch_norm
        self.input_shape = input_shape(cfg.net)
        self.inputs = cfg.net.inputs
        self.generator = torch.Generator().manual_seed(seed)
        self.warnings = (*cfg.warnings, *unknown_costs(cfg.sections), *without_effect(cfg))
        self.crops = crops(cfg)
        layers = build_layers(cfg, batch_norm, self.generator)
        self.layers = nn.ModuleList(layers)
        self.truths = truths_of(layers)
        self.seen = 0
        self.time_steps = cfg.net.time_steps
        self._rows, self._rows_per_pass = cfg.net.rows, cfg.net.sub_batch
        self._plan = _plan(layers)
        self._result = max(i for i, layer in enumerate(layers) if not isinstance(layer, Cost))
        self._unreached: dict[int, list[nn.Parameter]] = {}
        self.parameter_count = sum(
            array.numel() for layer in layers for array in layer.arrays().values()
        )
        require_memory(cfg.name, parameter_bytes(layers), "To hold")
        self.to_empty(device="cpu")
        for layer in layers:
            layer.reset(self.generator)

    def forward(self, x: Tensor) -> Tensor:
        """The output of the last layer other than [cost], flat: (rows, values)."""
        return next(y for i, _, y in self._walk(x) if i == self._result).flatten(1)

    def outputs(self, x: Tensor) -> list[Tensor]:
        """The output of every layer, in the mode set by train() or eval()."""
        results: list[Tensor] = []
        for i, _, y in self._walk(x):
            results.append(y)
            for replaced in self._plan[i].replaces if self.training else ():
                results[replaced] = y
        return results

    def loss(self, x: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """(objective, reported cost), two scalars, for x (rows, *input_shape).

        `truth` is (rows, truths). The gradient of the objective is minus the sum over rows of the
        updates that Darknet accumulates; divide it by the rows of an update. Its value has no
        meaning. The reported cost is the mean over the layers with a cost, each a sum over rows
        (darknet: network.c, calc_network_cost). Raises CfgError if the network cannot be trained,
        ValueError if `truth` has another shape, SourceError for a truth that describes nothing.
        """
        if truth.shape != (x.shape[0], self.truths):
            raise ValueError(f"the truth has the shape {x.shape[0], self.truths}")
        self.require_trainable()
        objective, reported = torch.zeros(()), torch.zeros(())
        costs, stop = 0, self._stop()
        for i, x_in, y in self._walk(x, stop):
            layer = self.sequence[i]
            if isinstance(layer, LossLayer):
                own, cost = layer.cost(x_in, y, truth, self.seen)
                # The backward pass of the original ends at the last stop.
                objective = objective + (own.detach() if i <= stop else own)
                reported, costs = reported + cost, costs + 1
            if layer.gives_truth:
                truth = y.detach().flatten(1).float()
        return objective + self._frozen(stop), reported / costs

    def _walk(self, x: Tensor, stop: int = -1) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(number, first input, output) of each layer in order; outputs die with their last use.

        No gradient goes back beyond layer `stop`.
        """
        kept = {-1: x.reshape(-1, *self.input_shape)}
        for i, layer in enumerate(self.sequence):
            step = self._plan[i]
            sources = [kept[at] for at in layer.sources]
            y = layer(*sources)
            if i == stop:
                y = y.detach()
                kept = {at: output.detach() for at, output in kept.items()}
            kept[i] = y
            if self.training:
                kept.update({at: y for at in step.replaces if at in kept})
            first = sources[0]
            del sources
            for at in step.frees:
                kept.pop(at, None)
            yield i, first, y
            del first, y

    def require_trainable(self) -> None:
        """Raise CfgError if the network cannot be trained as its cfg describes it."""
        layers = self.sequence
        if not any(isinstance(layer, LossLayer) for layer in layers):
            raise CfgError(
                f"{self.name} has no layer with a cost", "End the network with [softmax] or [cost]"
            )
        require_truths(layers, self.truths)
        for layer in layers:
            if isinstance(layer, LossLayer):
                layer.require_trainable()

    def heads(self, x: Tensor) -> list[tuple[LossLayer, Tensor]]:
        """The layers with a cost, and their outputs."""
        pairs = ((self.sequence[i], y) for i, _, y in self._walk(x))
        return [(layer, y) for layer, y in pairs if isinstance(layer, LossLayer)]

    @property
    def finds_boxes(self) -> bool:
        """Whether a layer finds boxes of objects."""
        return any(isinstance(layer, BoxLoss) for layer in self.sequence)

    def box_head(self) -> BoxLoss:
        """The last layer that finds boxes. Raises CfgError if none, or their classes differ."""
        found = [layer for layer in self.sequence if isinstance(layer, BoxLoss)]
        if not found:
            todo = "End it with [yolo], [region] or [detection]"
            raise CfgError(f"{self.name} finds no boxes", todo)
        for layer in found:
            if layer.classes != found[-1].classes:
                what = f"has {found[-1].classes} classes, another {layer.classes}"
                raise found[-1].section.error(what, "Give all the same classes", "classes")
        return found[-1]

    def require_classes(self) -> None:
        """Raise CfgError unless the output has one value for each value of the truth."""
        for layer in self.sequence:
            if isinstance(layer, DeltaLoss):
                raise layer.section.error(
                    "finds boxes or masks, not classes", "Use find_boxes for boxes"
                )

    def rows_that_fit(self, most: int) -> int:
        """How many rows, at least 1 and at most `most`, a pass without gradients can have.

        They take a quarter of the memory of the machine. In a recurrent network the number is a
        multiple of its time steps.
        """
        fit = machine_memory() // 4 // row_bytes(self.sequence)
        return max(min(fit, most) // self.time_steps, 1) * self.time_steps

    def require_batch(self) -> None:
        """Raise CfgError if a pass of training cannot work with the batch of the cfg.

        It takes more memory than the machine has, or batch normalisation would have a single value
        of a channel to work on.
        """
        rows = self._rows_per_pass
        require_memory(self.name, training_bytes(self.sequence, rows), "To train")
        for layer in self.sequence:
            steps = getattr(layer, "steps", 1)
            if needs_two_values(layer, rows // steps):
                todo = "Raise batch, or lower subdivisions"
                raise layer.section.error("batch_normalize needs two values per channel", todo)

    def stepwise(self) -> "Network":
        """The same network for one row at a time, in evaluation mode; its states begin at 0."""
        net = replace(self._cfg.net, batch=1, subdivisions=1, time_steps=1)
        single = Network(replace(self._cfg, net=net), batch_norm=self._batch_norm)
        states = {
            f"layers.{i}.{name}"
            for i, layer in enumerate(self.sequence)
            for name, _ in layer.states()
        }
        arrays = {name: it for name, it in self.state_dict().items() if name not in states}
        single.load_state_dict(arrays, strict=False)
        return single.eval()

    def require_sizes(self, largest: tuple[int, int]) -> None:
        """Raise CfgError unless pictures of other sizes can be trained on, up to (width, height).

        That is so if no array depends on the size of the picture.
        """
        if largest != self.input_shape[:0:-1]:
            layers = self._resized(largest)
            require_memory(self.name, training_bytes(layers, self._rows_per_pass), "To train")

    def take_size(self, shape: Sequence[int]) -> None:
        """Give all layers the shapes that follow from a pass of (rows, channels, height, width).

        Its arrays stay. Raises CfgError if one depends on the size.
        """
        if len(shape) != 4 or tuple(shape[1:]) == self.input_shape:
            return
        for own, other in zip(self.sequence, self._resized((shape[3], shape[2])), strict=True):
            for name, value in vars(other).items():
                if not name.startswith("_") and name != "training":
                    setattr(own, name, value)
        self.input_shape = tuple(shape[1:])
        self.inputs = math.prod(self.input_shape)

    def _resized(self, size: tuple[int, int]) -> list[Layer]:
        """The layers for pictures of another (width, height), without their arrays."""
        width, height = size
        inputs = width * height * self._cfg.net.channels
        net = replace(self._cfg.net, width=width, height=height, inputs=inputs)
        layers = build_layers(replace(self._cfg, net=net), self._batch_norm, self.generator)
        for own, other in zip(self.sequence, layers, strict=True):
            sizes = [{k: v.shape for k, v in it.state_dict().items()} for it in (own, other)]
            if sizes[0] != sizes[1]:
                todo = "Remove random from the [yolo] or [region] sections"
                raise own.section.error("has arrays that fit one size of picture only", todo)
        return layers

    def reset_states(self) -> None:
        """Set the states of recurrent layers to 0."""
        for layer in self.sequence:
            for _, state in layer.states():
                state.zero_()

    def _stop(self) -> int:
        """The number of the last layer that ends the backward pass now, -1 if none does.

        stopbackward=1 always does, a larger one until that iteration (fork: network.c,
        backward_network).
        """
        iteration = self.seen // self._rows
        stops = [
            i
            for i, layer in enumerate(self.sequence)
            if layer.stops_backward == 1 or layer.stops_backward > iteration
        ]
        return stops[-1] if stops else -1

    def _frozen(self, stop: int) -> Tensor:
        """0, with a gradient of 0 for the parameters that no cost reaches.

        Without a gradient, the optimizer would skip them, but Darknet still decays them.
        """
        if stop not in self._unreached:
            reached = _reached(self.sequence, stop)
            self._unreached[stop] = [
                parameter
                for i, layer in enumerate(self.sequence)
                if i not in reached
                for parameter in layer.parameters()
            ]
        zero = torch.zeros(())
        for parameter in self._unreached[stop]:
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
            decaying = {id(part.weights) for _, part in layer.parts() if hasattr(part, "weights")}
            for name, parameter in layer.named_parameters():
                # The biases of [batchnorm] have no place in a .weights file: they stay 0.
                fixed = isinstance(layer, Batchnorm) and name == "biases"
                scale = 0.0 if fixed else layer.rate_scale
                key = (scale, decay if id(parameter) in decaying else 0.0)
                groups.setdefault(key, []).append(parameter)
        return [
            {"params": parameters, "rate_scale": scale, "weight_decay": weight_decay}
            for (scale, weight_decay), parameters in groups.items()
        ]


class _Step:
    """What happens after a layer ran: whose outputs it replaces, whose are needed no more."""

    def __init__(self, replaces: tuple[int, ...], frees: tuple[int, ...]) -> None:
        self.replaces, self.frees = replaces, frees


def _plan(layers: Sequence[Layer]) -> list[_Step]:
    last_use = {at: i for i, layer in enumerate(layers) for at in (*layer.sources, i)}
    steps = []
    for i, layer in enumerate(layers):
        replaces: list[int] = []
        at = i
        while at >= 0 and layers[at].replaces_input:
            at -= 1
            if at >= 0:
                replaces.append(at)
        replaced = tuple(replaces) if layer.replaces_input else ()
        frees = tuple(at for at, last in last_use.items() if last == i)
        steps.append(_Step(replaced, frees))
    return steps


def _reached(layers: Sequence[Layer], stop: int) -> set[int]:
    """The numbers of the layers that the backward pass of a cost comes to."""
    reached: set[int] = set()
    for i in range(len(layers) - 1, stop, -1):
        layer = layers[i]
        if i in reached or (isinstance(layer, LossLayer) and layer.truths is not None):
            reached.update((i, *layer.sources))
    return {i for i in reached if i > stop}
