"""The cache of encodings: whatever the program does to its state, a hit is what encoding gives."""

import contextlib
import random
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from plinius.errors import StateError
from plinius.jsonvalue import to_json
from plinius.keys import OwnerKey
from plinius.mirror import Mirror
from plinius.state.capture import RunState
from plinius.state.encoding_cache import EncodingCache, _Entry
from plinius.state.tensor_memory import Memory

State = dict[str, Any]
KEY = OwnerKey(bytes(range(32)))


class Network(nn.Module):
    """A module with all that a module may have: tied weights, buffers of both kinds, submodules."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
        self.tied = nn.Linear(3, 4)
        self.tied.weight = self.inner[0].get_parameter("weight")
        self.again = self.inner[2]
        self.register_buffer("shown", torch.arange(3.0))
        self.register_buffer("hidden", torch.arange(2.0), persistent=False)
        self.register_buffer("nothing", None)
        self.images = nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last)

    def loss(self) -> torch.Tensor:
        """A loss of every parameter."""
        x = (
            self.tied.weight.sum()
            + self.again(self.inner[1](self.inner[0](torch.ones(2, 3)))).sum()
        )
        return x + self.images(torch.ones(1, 2, 3, 3)).sum()


def make_state() -> State:
    """A state with a module, an optimizer with its state, and containers of many tensors."""
    model = Network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model.loss().backward()
    optimizer.step()
    return {
        "model": model,
        "optimizer": optimizer,
        "table": {f"{i}": torch.full((i % 3,), float(i)) for i in range(20)},
        "mixed": [torch.zeros(2), [1, 2.0, "x", None], (torch.ones(1), True)] * 1
        + [torch.tensor(float(i)) for i in range(16)],
        "numbers": [*range(40)],
        "complex": torch.ones(1, dtype=torch.complex64),
    }


def grad_none(state: State) -> None:
    state["model"].zero_grad()


def grad_zero(state: State) -> None:
    state["model"].zero_grad(set_to_none=False)


def backward(state: State) -> None:
    if all(p.requires_grad for p in state["model"].parameters()):
        state["model"].loss().backward()


def step(state: State) -> None:
    with contextlib.suppress(RuntimeError, KeyError):  # a step that is a number, or alone
        state["optimizer"].step()


def freeze(state: State) -> None:
    state["model"].inner[0].bias.requires_grad_(not state["model"].inner[0].bias.requires_grad)


def evaluate(state: State) -> None:
    state["model"].inner[1].train(not state["model"].inner[1].training)


def set_data(state: State) -> None:
    state["model"].inner[2].weight.data = torch.rand(3, 4)


def move_state(state: State) -> None:
    optimizer = state["optimizer"]
    held = optimizer.state[state["model"].inner[0].bias]
    if held:
        held["exp_avg"] = torch.zeros_like(state["model"].inner[0].bias)


def number_in_state(state: State) -> None:
    for held in state["optimizer"].state.values():
        held["step"] = float(held.get("step", 0)) + random.choice([0, 1])


def drop_state(state: State) -> None:
    state["optimizer"].state.pop(state["model"].inner[0].bias, None)


def rate(state: State) -> None:
    state["optimizer"].param_groups[0]["lr"] *= -1.0


def buffer_gone(state: State) -> None:
    model = state["model"]
    model.shown = None if model.shown is not None else torch.arange(3.0)


def buffer_larger(state: State) -> None:
    state["model"].hidden = torch.zeros(len(state["model"].hidden) + 1)


def buffer_alias(state: State) -> None:
    state["model"].hidden = state["table"]["5"]


def alias(state: State) -> None:
    state["table"]["3"] = state["mixed"][0]


def alias_earlier(state: State) -> None:
    state["table"]["7"] = state["model"].inner[1].running_mean


def alias_view(state: State) -> None:
    state["table"]["8"] = state["table"]["11"][:1]


def replaced(state: State) -> None:
    state["table"]["4"] = torch.zeros(3)


def empty(state: State) -> None:
    state["table"]["9"] = torch.empty(0, 2) if state["table"]["9"].ndim == 1 else torch.empty(0)


def retyped(state: State) -> None:
    state["table"]["5"] = torch.zeros(2, dtype=random.choice([torch.int32, torch.bfloat16]))


def strided(state: State) -> None:
    state["table"]["10"] = torch.zeros(4)[::2]


def negative(state: State) -> None:
    whole = state["complex"]
    state["table"]["13"] = random.choice([whole, whole.conj()]).imag


def conjugate(state: State) -> None:
    whole = state["complex"]
    state["table"]["14"] = random.choice([whole, whole.conj(), whole.conj().clone()])


def with_grad(state: State) -> None:
    state["table"]["16"] = torch.zeros(2, requires_grad=True)


def parameter(state: State) -> None:
    state["table"]["17"] = nn.Parameter(torch.zeros(1), requires_grad=False)


def sparse(state: State) -> None:
    state["table"]["18"] = torch.ones(2).to_sparse()


def key_gone(state: State) -> None:
    if state["table"].pop("12", None) is not None:
        return
    state["table"]["12"] = torch.ones(1)


def other_key(state: State) -> None:
    state["table"][12] = state["table"].pop(12, torch.ones(1)) + 1


def order(state: State) -> None:
    state["table"]["0"] = state["table"].pop("0")


def scalar(state: State) -> None:
    state["mixed"][1][0] = random.choice([1, True, 1.0, -0.0, 0.0, float("nan"), "1", 2**70])


def same_list(state: State) -> None:
    state["mixed"][2] = (state["mixed"][1], state["mixed"][1])


def other_list(state: State) -> None:
    state["mixed"][2] = (torch.ones(1), [1])


def itself_later(state: State) -> None:
    state["numbers"] = state["mixed"][1] if state["numbers"] is not state["mixed"][1] else [3]


def array(state: State) -> None:
    state["mixed"][3] = np.ones(2) if isinstance(state["mixed"][3], torch.Tensor) else torch.ones(1)


def hook(state: State) -> None:
    model = state["model"]
    if not model._state_dict_hooks:
        model.register_state_dict_post_hook(lambda module, found, prefix, local: found)
    else:
        model._state_dict_hooks.clear()


def overridden(state: State) -> None:
    model = state["model"]
    if "state_dict" not in model.__dict__:
        model.state_dict = lambda: {"one": model.tied.bias.detach() * 1}
    else:
        del model.state_dict


MUTATIONS: list[Callable[[State], None]] = [
    grad_none, grad_zero, backward, step, freeze, evaluate, set_data, move_state, number_in_state,
    drop_state, rate, buffer_gone, buffer_larger, buffer_alias, alias, alias_earlier, alias_view,
    replaced, empty, retyped, strided, negative, conjugate, with_grad, parameter, sparse, key_gone,
    other_key, order, scalar, same_list, other_list, itself_later, array, hook, overridden,
]  # fmt: skip


def shown(run: RunState, cache: EncodingCache | None) -> tuple[Any, ...] | str:
    """All that an encoding says, or why there is none."""
    try:
        encoded = run.encode(cache=cache)
    except StateError as error:
        return str(error)
    spec = [
        (name, m.dtype, m.shape, m.order, bytes(m.data))
        for name, m in ((name, Memory(tensor)) for name, tensor in encoded.tensors.items())
    ]
    objects = {path: (it.cls, it.shape) for path, it in encoded.blueprints.items()}
    values = {key: value for key, value in encoded.json.items() if key != "~rng"}
    for name, stored in encoded.stored.items():
        assert bytes(stored.data) == bytes(Memory(encoded.tensors[name]).data)
        assert stored.name == name
    own = [it for name, it in encoded.tensors.items() if it.numel() and "~rng" not in name]
    assert {it.data_ptr() for it in own} <= encoded.addresses
    return to_json(values), spec, objects


@pytest.mark.parametrize("seed", range(12))
def test_a_cached_encoding_is_what_encoding_gives(
    seed: int, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Random changes to a state, of which most must not and some must be found."""
    hits: list[bool] = []
    add_to = _Entry.add_to

    def counted(entry: _Entry, *arguments: Any) -> bool:
        hits.append(add_to(entry, *arguments))
        return hits[-1]

    monkeypatch.setattr(_Entry, "add_to", counted)
    monkeypatch.setattr("plinius.state.capture._require_rebuildable", lambda *_: None)
    rounds = 4000 if request.config.getoption("--soak") else 150
    rng = random.Random(seed)
    random.seed(seed)
    torch.manual_seed(seed)
    state = make_state()
    run, cache = RunState(state), EncodingCache()
    for _ in range(rounds):
        for mutate in rng.choices(MUTATIONS, k=rng.choice([0, 0, 1, 1, 2, 5])):
            mutate(state)
        plain, cached = shown(run, None), shown(run, cache)
        assert cached == plain
        cache.end()
        if isinstance(plain, str) or rng.random() < 0.05:  # it was refused, or is too far changed
            state.update(make_state())
    assert 0.1 < hits.count(True) / len(hits) < 0.95, "both hits and misses"


@pytest.mark.parametrize("overlap", [False, True])
def test_gradients_are_not_kept(overlap: bool, tmp_path: Path) -> None:
    """They would stay in memory while the next backward pass makes new ones."""
    state = make_state()
    with Mirror.open(tmp_path / "r", KEY, state, overlap=overlap, trust_versions=True) as mirror:
        for iteration in range(5):
            state["model"].loss().backward()
            mirror.mirror_out(iteration)
            mirror.wait()
            gradient = weakref.ref(state["model"].images.weight.grad)
            assert gradient() is not None
            state["model"].zero_grad()
            assert gradient() is None
