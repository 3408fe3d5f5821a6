"""Recurrent layers: [rnn], [gru], [lstm] and [crnn].

A pass has time_steps * B rows, row t * B + b being step t of sequence b. The state of the last step
is a buffer, so that it is part of the run state: [gru] and [lstm] begin a pass with the state that
the pass before left, [rnn] and [crnn] do so in evaluation and begin at 0 in training (darknet:
rnn_layer.c, forward_rnn_layer). A pass with another number of sequences begins at 0. Gradients go
back through the steps of one pass. Batch normalisation takes the statistics of each step.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from plinius.darknet.cfg import Section
from plinius.darknet.layers.base import Layer, Shape, activation_name
from plinius.darknet.layers.connected import ConnectionPart
from plinius.darknet.layers.convolutional import ConvolutionPart, Window
from plinius.darknet.layers.weighted import Weighted


class Recurrent(Layer):
    """A layer with parts and states.

    `rows` are the rows of a pass, a multiple of `steps`. A subclass gives `part_names` in the order
    of a .weights file, and `state_names`.
    """

    part_names: tuple[str, ...]
    state_names: tuple[str, ...] = ("state",)
    resets_in_training = False

    def __init__(
        self, section: Section, in_shape: Shape, out_shape: Shape, steps: int, rows: int
    ) -> None:
        super().__init__(section, in_shape, out_shape)
        self.steps, self.sequences = steps, rows // steps

    def add_states(self, shape: Shape) -> None:
        """Register the buffers of the states, of `shape` each sequence."""
        for name in self.state_names:
            empty = torch.empty((self.sequences, *shape), device="meta")
            self.register_buffer(name, empty)

    def parts(self) -> list[tuple[str, Weighted]]:
        """As Layer."""
        found = []
        for name in self.part_names:
            part = self.get_submodule(name)
            assert isinstance(part, Weighted)
            found.append((name, part))
        return found

    def states(self) -> Iterator[tuple[str, Tensor]]:
        """As Layer."""
        for name in self.state_names:
            yield name, self.get_buffer(name)

    def reset(self, generator: torch.Generator) -> None:
        """As Layer; states begin at 0."""
        super().reset(generator)
        for _, state in self.states():
            state.zero_()

    def steps_of(self, x: Tensor) -> Tensor:
        """The rows by steps: (steps, sequences, ...)."""
        if len(x) % self.steps:
            raise ValueError(f"{len(x)} rows are not a multiple of {self.steps} time steps")
        return x.reshape(self.steps, -1, *x.shape[1:])

    def begin(self, sequences: int) -> list[Tensor]:
        """The states that a pass of so many sequences begins with."""
        starts = []
        for _, state in self.states():
            fresh = sequences != len(state) or (self.training and self.resets_in_training)
            at = state.new_zeros((sequences, *state.shape[1:])) if fresh else state.clone()
            starts.append(at)
        return starts

    def end(self, *states: Tensor) -> None:
        """Keep the states that a pass ended with."""
        for (_, kept), state in zip(self.states(), states, strict=True):
            if len(kept) == len(state):
                kept.copy_(state.detach())

    def operations(self) -> int:
        """As Layer."""
        pixels = math.prod(self.out_shape[1:])
        return sum(2 * part.weights.numel() * pixels for _, part in self.parts())


class _Simple(Recurrent):
    """s = input(x) + self(s) [+ s, with shortcut=1]; y = output(s); each part is activated."""

    part_names = ("input", "self", "output")
    resets_in_training = True

    def set_parts(self, make: Callable[[int, int], Weighted], sizes: tuple[int, int, int]) -> None:
        """Add the parts, made for (inputs, outputs) each; sizes are input, hidden, output."""
        inputs, hidden, outputs = sizes
        self.add_module("input", make(inputs, hidden))
        self.add_module("self", make(hidden, hidden))
        self.add_module("output", make(hidden, outputs))
        self.shortcut = bool(self.section.integer("shortcut"))

    def forward(self, x: Tensor) -> Tensor:
        """Map (rows, *in_shape) to (rows, *out_shape)."""
        (_, read), (_, again), (_, write) = self.parts()
        inputs = self.steps_of(x)
        (state,) = self.begin(inputs.shape[1])
        outputs = []
        for step in inputs:
            before = state
            state = read(step) + again(state)
            if self.shortcut:
                state = state + before
            outputs.append(write(state))
        self.end(state)
        return torch.cat(outputs)


class Rnn(_Simple):
    """[rnn] (darknet: rnn_layer.c)."""

    def __init__(self, section: Section, shape: Shape, norm: str, steps: int, rows: int) -> None:
        n = section.integer("output")
        super().__init__(section, shape, (n,), steps, rows)
        name = activation_name(section)
        norm = norm if section.integer("batch_normalize") else ""
        self.set_parts(lambda i, o: ConnectionPart(i, o, name, norm), (math.prod(shape), n, n))
        self.add_states((n,))

    def forward(self, x: Tensor) -> Tensor:
        """Map (rows, ...) to (rows, output)."""
        return super().forward(x.flatten(1))


class Crnn(_Simple):
    """[crnn]: an [rnn] whose parts are 3x3 convolutions with padding 1 (darknet: crnn_layer.c).

    With `size` they are of that size, and values are images of one pixel (fork: crnn_layer.c).
    The original gives its parts a learning rate of 0, so that they are never trained; here they
    are.
    """

    def __init__(self, section: Section, shape: Shape, norm: str, steps: int, rows: int) -> None:
        channels, height, width = shape if len(shape) == 3 else (math.prod(shape), 1, 1)
        own, fork = ("hidden_filters", "output_filters"), ("hidden", "output")
        hidden, filters = (
            section.integer(new if section.options[new] else old)
            for old, new in zip(own, fork, strict=True)
        )
        size, padding = 3, 1
        if section.options["size"]:
            size, padding = section.integer("size"), section.integer("padding")
            padding = size // 2 if section.integer("pad") else padding
            if 2 * padding != size - 1:
                raise section.error(
                    "the state would change its size", "Give pad=1, size odd", "size"
                )
        super().__init__(section, shape, (filters, height, width), steps, rows)
        name = activation_name(section)
        norm = norm if section.integer("batch_normalize") else ""
        window = Window(padding=padding)
        self.set_parts(
            lambda i, o: ConvolutionPart(i, o, size, window, name, norm),
            (channels, hidden, filters),
        )
        self.add_states((hidden, height, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map (rows, c, h, w) to (rows, output_filters, h, w)."""
        image = (-1, *self.out_shape[1:])
        return super().forward(x.reshape(len(x), *image))


class _Gated(Recurrent):
    """Parts without activation; those in `from_input` see the input, the others a state."""

    from_input: tuple[str, ...]

    def __init__(self, section: Section, shape: Shape, norm: str, steps: int, rows: int) -> None:
        inputs, n = math.prod(shape), section.integer("output")
        super().__init__(section, shape, (n,), steps, rows)
        norm = norm if section.integer("batch_normalize") else ""
        for name in self.part_names:
            sees = inputs if name in self.from_input else n
            self.add_module(name, ConnectionPart(sees, n, "linear", norm))
        self.add_states((n,))


class Gru(_Gated):
    """[gru] (darknet: gru_layer.c, forward_gru_layer).

    z = sigmoid(wz(s) + uz(x)); r = sigmoid(wr(s) + ur(x)); h = sigmoid(uh(x) + wh(r * s)), or tanh
    of it with tanh=1; s = z * s + (1 - z) * h; y = s. The original has no backward pass on the CPU.
    """

    part_names = ("wz", "wr", "wh", "uz", "ur", "uh")
    from_input = ("uz", "ur", "uh")

    def forward(self, x: Tensor) -> Tensor:
        """Map (rows, ...) to (rows, output)."""
        inputs = self.steps_of(x.flatten(1))
        part = dict(self.parts())
        candidate = torch.tanh if self.section.integer("tanh") else torch.sigmoid
        (state,) = self.begin(inputs.shape[1])
        outputs = []
        for step in inputs:
            keep = torch.sigmoid(part["wz"](state) + part["uz"](step))
            remember = torch.sigmoid(part["wr"](state) + part["ur"](step))
            new = candidate(part["uh"](step) + part["wh"](remember * state))
            state = keep * state + (1 - keep) * new
            outputs.append(state)
        self.end(state)
        return torch.cat(outputs)


class Lstm(_Gated):
    """[lstm] (darknet: lstm_layer.c, forward_lstm_layer).

    i, f, o = sigmoid(w(s) + u(x)) of their parts, g = tanh(wg(s) + ug(x)); c = f * c + i * g;
    s = o * tanh(c); y = s. `state` is s, `cell` is c.
    """

    part_names = ("wi", "wf", "wo", "wg", "ui", "uf", "uo", "ug")
    from_input = ("ui", "uf", "uo", "ug")
    state_names = ("state", "cell")

    def forward(self, x: Tensor) -> Tensor:
        """Map (rows, ...) to (rows, output)."""
        inputs = self.steps_of(x.flatten(1))
        part = dict(self.parts())
        state, cell = self.begin(inputs.shape[1])
        outputs = []
        for step in inputs:
            i, f, o, g = (part[f"w{k}"](state) + part[f"u{k}"](step) for k in "ifog")
            cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
            state = torch.sigmoid(o) * torch.tanh(cell)
            outputs.append(state)
        self.end(state, cell)
        return torch.cat(outputs)
