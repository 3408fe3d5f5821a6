"""Loops that a hostile reviewer wrote: each came back wrong, or was refused too late, once."""

import copy
import tempfile
from collections import deque, namedtuple
from typing import Any

import numpy as np
import torch
from torch import nn

from resume.loops import Step, loop, refused
from resume.loops_objects import net, trained

Move = namedtuple("Move", "state action")


@loop
def new_things_in_two_places() -> tuple[dict[str, Any], Step]:
    model = net()
    state: dict[str, Any] = {
        "model": model, "same": model, "array": None, "arrays": [], "masked": None,
        "generator": None, "generators": [], "near": deque(maxlen=2), "far": deque(maxlen=9),
    }  # fmt: skip

    def step(iteration: int) -> None:
        move = Move(np.random.rand(2), iteration)
        state["near"].append(move)
        state["far"].append(move)
        if iteration % 2:
            state["array"] = np.random.rand(iteration)
            state["masked"] = np.ma.masked_less(np.random.rand(iteration), 0.5)
            state["arrays"] = [state["array"], state["masked"]]
            state["generator"] = np.random.Generator(np.random.SFC64(iteration))
            state["generators"] = [state["generator"]]
        state["arrays"][0] += state["generators"][0].random()
        state["masked"][0] = state["generator"].random()

    return state, step


@loop
def generators_of_the_process() -> tuple[dict[str, Any], Step]:
    state: dict[str, Any] = {
        "torch": torch.default_generator, "numpy": np.random.mtrand._rand,
        "python": __import__("random")._inst, "drawn": [],
    }  # fmt: skip

    def step(iteration: int) -> None:
        state["drawn"].append([state["python"].random(), np.random.rand(), torch.rand(1)])

    return state, step


@loop
def children_of_a_generator() -> tuple[dict[str, Any], Step]:
    state: dict[str, Any] = {"root": np.random.default_rng(5), "drawn": [], "other": None}
    state["other"] = np.random.default_rng(6)

    def step(iteration: int) -> None:
        state["drawn"].append(state["root"].spawn(1)[0].random())
        if iteration == 2:
            state["other"] = np.random.Generator(np.random.Philox(7))
        state["drawn"].append(state["other"].random())

    return state, step


@loop
def keys_that_look_alike() -> tuple[dict[str, Any], Step]:
    state: dict[str, Any] = {"lists": {1: [1], "1": [2]}, "one": None, "keys": {1: "a"}}

    def step(iteration: int) -> None:
        state["one"] = state["lists"][1]
        state["one"].append(iteration)
        state["keys"] = {True: "a"} if iteration % 2 else {1.0: "a", -0.0: "b"}

    return state, step


@loop
def a_window_that_moves() -> tuple[dict[str, Any], Step]:
    text, words = torch.arange(60.0), np.arange(60.0)
    state: dict[str, Any] = {
        "window": text[:8], "text": text, "some": text[:16:2], "seen": 0.0,
        "words": words, "part": words[:8], "few": words[:16:2],
    }  # fmt: skip

    def step(iteration: int) -> None:
        state["window"] = state["text"][8 * iteration : 8 * iteration + 8]
        state["some"] = state["text"][iteration : iteration + 16 : 2]
        state["part"] = state["words"][8 * iteration : 8 * iteration + 8]
        state["few"] = state["words"][iteration : iteration + 16 : 2]
        state["seen"] += float(state["text"].sum() + state["words"].sum())

    return state, step


class Kept:
    """An object whose state shows a memory-mapped array and a module."""

    def __init__(self) -> None:
        self.file = tempfile.NamedTemporaryFile()  # noqa: SIM115
        self.table = np.memmap(self.file, np.float32, "w+", shape=(50,))
        self.model, self.at = nn.Linear(3, 3), 0

    def state_dict(self) -> dict[str, Any]:
        torch.rand(1)  # which must not be noticed
        return {"table": self.table, "model": self.model, "at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.table, self.model, self.at = state["table"], state["model"], state["at"]


@loop
def a_state_of_live_objects() -> tuple[dict[str, Any], Step]:
    kept = Kept()
    state: dict[str, Any] = {"kept": kept, "drawn": []}

    def step(iteration: int) -> None:
        kept.table[iteration] = iteration
        kept.at += 1
        state["drawn"].append(torch.rand(1))
        with torch.no_grad():
            kept.model.weight += torch.randn(3, 3)

    return state, step


@loop
def a_map_that_is_only_read() -> tuple[dict[str, Any], Step]:
    file = tempfile.NamedTemporaryFile()  # noqa: SIM115
    np.arange(9.0).tofile(file.name)
    state: dict[str, Any] = {"table": np.memmap(file, np.float64, "r"), "sum": 0.0}

    def step(iteration: int) -> None:
        assert file
        state["sum"] += float(state["table"][iteration])

    return state, step


@refused("table is a memory-mapped array of float64[9] that was not there")
def a_map_made_midway() -> tuple[dict[str, Any], Step]:
    state: dict[str, Any] = {"table": None}

    def step(iteration: int) -> None:
        if iteration == 3:
            with tempfile.TemporaryFile() as file:
                state["table"] = np.memmap(file, np.float64, "w+", shape=(9,))

    return state, step


@refused("best was put into the state after the mirror was opened")
def a_name_put_into_the_state() -> tuple[dict[str, Any], Step]:
    state: dict[str, Any] = {"loss": 1.0}

    def step(iteration: int) -> None:
        if iteration == 3:
            state["best"] = copy.copy(state["loss"])

    return state, step


@refused("best was taken out of the state after the mirror was opened")
def a_name_taken_out_of_the_state() -> tuple[dict[str, Any], Step]:
    state: dict[str, Any] = {"loss": 1.0, "best": 2.0}

    def step(iteration: int) -> None:
        if iteration == 3:
            del state["best"]

    return state, step


@refused("rows is an array with fields laid out by hand")
def fields_that_overlap() -> tuple[dict[str, Any], Step]:
    state: dict[str, Any] = {"rows": None}
    by_hand = np.dtype({"names": ["a", "b"], "formats": ["i4", "f4"], "offsets": [4, 0]})

    def step(iteration: int) -> None:
        state["rows"] = np.zeros(iteration, by_hand)

    return state, step


@refused("some is a nested tensor on cpu")
def a_nested_tensor() -> tuple[dict[str, Any], Step]:
    state: dict[str, Any] = {"some": None}

    def step(iteration: int) -> None:
        state["some"] = torch._nested_tensor_from_tensor_list([torch.ones(2), torch.ones(3)])

    return state, step


class Rounded(nn.Sequential):
    """A module that saves half of each number."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {name: it.half() for name, it in super().state_dict(*args, **kwargs).items()}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict({name: it.float() for name, it in state_dict.items()})


@loop
def a_state_dict_that_rounds() -> tuple[dict[str, Any], Step]:
    model = Rounded(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    return trained(model, torch.optim.SGD(model.parameters(), lr=0.1))


@loop
def channels_last_midway() -> tuple[dict[str, Any], Step]:
    model: Any = nn.Conv2d(3, 8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    state: dict[str, Any] = {"model": model, "optimizer": optimizer, "strides": None}

    def step(iteration: int) -> None:
        if iteration == 3:
            model.to(memory_format=torch.channels_last)
        model(torch.randn(2, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        state["strides"] = model.weight.stride()

    return state, step


@loop
def grads_of_what_is_frozen() -> tuple[dict[str, Any], Step]:
    state: dict[str, Any] = {"x": torch.randn(3), "p": nn.Parameter(torch.randn(2), False)}

    def step(iteration: int) -> None:
        state["x"].requires_grad_(iteration % 2 == 1)
        state["p"].requires_grad_(iteration % 3 == 1)
        for it in state.values():
            if it.requires_grad:
                (it * torch.randn(it.shape)).sum().backward()

    return state, step


@refused("optimizer steps parameters that are not in the state any more")
def a_parameter_replaced_midway() -> tuple[dict[str, Any], Step]:
    model = net()
    state, step = trained(model, torch.optim.SGD(model.parameters(), lr=0.1))

    def replacing(iteration: int) -> None:
        step(iteration)
        if iteration == 3:
            model[4].weight = nn.Parameter(torch.randn(3, 8))

    return state, replacing


@refused("model/1.weight was float32[6, 6], 0.weight itself and is float32[6, 6]")
def weights_untied_midway() -> tuple[dict[str, Any], Step]:
    model: Any = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
    model[1].weight = model[0].weight

    def step(iteration: int) -> None:
        if iteration == 3:
            model[1].weight = nn.Parameter(model[0].weight.detach().clone())

    return {"model": model}, step


class Moody:
    """An object that does not always give its state."""

    asked = 0

    def state_dict(self) -> dict[str, Any]:
        self.asked += 1
        if self.asked > 3:
            raise KeyError("now")
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state


@refused("moody is a Moody whose state_dict failed: KeyError('now')")
def a_state_dict_that_fails() -> tuple[dict[str, Any], Step]:
    return {"moody": Moody()}, lambda iteration: None
