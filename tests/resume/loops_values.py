"""Loops that keep the values and containers that people keep."""

import dataclasses
import datetime
import enum
import random
import struct
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resume.loops import Step, loop, refused

Transition = namedtuple("Transition", "state action reward")


class Phase(enum.Enum):
    """Where a run is."""

    WARM = "warm"
    TRAIN = 2


class Level(enum.IntEnum):
    """A level of something."""

    LOW = 1
    HIGH = 2


class Mode(enum.StrEnum):
    """What is done."""

    MIN = "min"
    MAX = "max"


@dataclasses.dataclass
class Best:
    """The best so far."""

    loss: float = float("inf")
    iteration: int = -1
    weights: torch.Tensor | None = None
    tags: list[str] = dataclasses.field(default_factory=list)


class Celsius(float):
    """A float of its own class."""


@loop
def values_of_python() -> tuple[dict[str, Any], Step]:
    state: dict[str, Any] = {"it": None}

    def step(iteration: int) -> None:
        payload = struct.unpack(">d", (0x7FF8 << 48 | iteration).to_bytes(8, "big"))[0]
        state["it"] = {
            "nan": payload, "zero": -0.0 * iteration, "one": [1, 1.0, True][iteration % 3],
            "inf": float("-inf"), "big": 7 ** (iteration * 100), "text": "x" * iteration * 700,
            "raw": bytes([iteration]) * 500 * iteration, "array": bytearray(b"ab" * iteration),
            "complex": complex(iteration, payload), "range": range(0, iteration, 2),
            "slice": slice(None, iteration), "none": None, ("a", iteration): iteration,
        }  # fmt: skip

    return state, step


@loop
def classes_of_the_user() -> tuple[dict[str, Any], Step]:
    state: dict[str, Any] = {"phase": Phase.WARM, "best": Best(), "mode": Mode.MIN, "all": []}

    def step(iteration: int) -> None:
        state["phase"] = Phase.TRAIN if iteration > 2 else Phase.WARM
        state["level"] = Level(iteration % 2 + 1)
        state["mode"] = Mode.MAX if iteration % 2 else Mode.MIN
        state["best"].loss, state["best"].iteration = random.random(), iteration
        state["best"].weights = torch.randn(3) if iteration % 2 else None
        state["best"].tags.append(f"i{iteration}")
        state["all"].append(Transition(torch.randn(2), iteration, Celsius(random.random())))

    state["level"] = Level.LOW
    return state, step


@loop
def containers() -> tuple[dict[str, Any], Step]:
    state: dict[str, Any] = {
        "memory": deque(maxlen=4), "counts": Counter(), "lists": defaultdict(list),
        "ordered": OrderedDict(), "seen": set(), "frozen": frozenset(),
    }  # fmt: skip

    def step(iteration: int) -> None:
        state["memory"].append((torch.randn(2), iteration))
        state["counts"].update(random.choices("abc", k=3))
        state["lists"][iteration % 2].append(iteration)
        state["ordered"][f"k{iteration}"] = iteration
        state["ordered"].move_to_end("k1", last=False)
        state["seen"].add((iteration, "x"))
        state["frozen"] = frozenset(state["seen"])

    return state, step


@loop
def table_of_defaults() -> tuple[dict[str, Any], Step]:
    state: dict[str, Any] = {"q": defaultdict(lambda: defaultdict(lambda: np.zeros(3)))}

    def step(iteration: int) -> None:
        q = state["q"]
        q[random.randrange(4)][random.randrange(4)] += np.random.rand(3)

    return state, step


@loop
def dates_paths_and_money() -> tuple[dict[str, Any], Step]:
    state: dict[str, Any] = {}
    state |= {"when": None, "path": None, "cost": Decimal(0), "took": None}

    def step(iteration: int) -> None:
        state["when"] = datetime.datetime(2026, 1, iteration, tzinfo=datetime.UTC)
        state["path"] = Path("/data") / f"{iteration}.npz"
        state["cost"] += Decimal("0.10")
        state["took"] = datetime.timedelta(seconds=iteration / 3)

    return state, step


@loop
def arrays_of_every_kind() -> tuple[dict[str, Any], Step]:
    state: dict[str, Any] = {"names": np.array(["a"]), "rows": np.zeros(0, "i4,f8")}
    state |= {"masked": None, "scalar": np.float32(0), "day": np.datetime64("2026-01-01")}

    def step(iteration: int) -> None:
        state["names"] = np.append(state["names"], f"name{iteration}")
        state["rows"] = np.append(state["rows"], np.array([(iteration, 0.5)], "i4,f8"))
        state["masked"] = np.ma.masked_less(np.random.rand(6), 0.5)
        state["scalar"] = np.float32(np.random.rand())
        state["day"] += np.timedelta64(1, "D")
        state["text"] = np.str_(f"t{iteration}")

    state["text"] = np.str_("")
    return state, step


@loop
def histories_that_grow() -> tuple[dict[str, Any], Step]:
    state: dict[str, Any] = {
        "losses": torch.zeros(0), "scores": np.zeros(0), "log": [], "shrinks": torch.zeros(9),
        "kind": None, "dtype": torch.zeros(2), "metrics": [torch.zeros(1)],
    }  # fmt: skip

    def step(iteration: int) -> None:
        state["losses"] = torch.cat([state["losses"], torch.randn(1)])
        state["scores"] = np.append(state["scores"], np.random.rand())
        state["log"].append({"step": iteration, "loss": random.random(), "note": "ok"})
        state["shrinks"] = state["shrinks"][1:].clone()
        state["kind"] = torch.randn(3) if iteration % 2 else None
        state["dtype"] = state["dtype"].to([torch.float64, torch.float16][iteration % 2])
        state["metrics"] = [torch.randn(i + 1) for i in range(iteration % 4)]

    return state, step


@loop
def a_log_of_many_lines() -> tuple[dict[str, Any], Step]:
    state: dict[str, Any] = {"log": []}

    def step(iteration: int) -> None:
        state["log"] += [{"step": iteration, "value": random.random()} for _ in range(1500)]

    return state, step


@loop
def the_best_weights_alias_the_model() -> tuple[dict[str, Any], Step]:
    model = torch.nn.Linear(5, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state: dict[str, Any] = {"model": model, "optimizer": optimizer}
    state["best"] = dict(model.state_dict())

    def step(iteration: int) -> None:
        model(torch.randn(2, 5)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        if iteration in (2, 5):
            state["best"] = {name: t.clone() for name, t in model.state_dict().items()}
        if iteration == 4:
            state["best"] = dict(model.state_dict())

    return state, step


@loop
def one_list_in_two_places() -> tuple[dict[str, Any], Step]:
    history: list[int] = []
    state: dict[str, Any] = {"a": history, "b": {"same": history}}

    def step(iteration: int) -> None:
        state["a"].append(iteration)
        state["b"]["same"].append(-iteration)
        if iteration == 3:
            state["a"] = state["b"]["same"] = [9]

    return state, step


@loop
def generators() -> tuple[dict[str, Any], Step]:
    state: dict[str, Any] = {
        "torch": torch.Generator().manual_seed(1), "numpy": np.random.default_rng(2),
        "philox": np.random.Generator(np.random.Philox(3)), "legacy": np.random.RandomState(4),
        "python": random.Random(5), "drawn": [],
    }  # fmt: skip

    def step(iteration: int) -> None:
        state["drawn"] += [
            float(torch.rand(1, generator=state["torch"])), state["numpy"].normal(),
            state["philox"].random(), state["legacy"].randn(), state["python"].gauss(0, 1),
            random.random(), float(np.random.rand()), float(torch.rand(1)),
        ]  # fmt: skip

    return state, step


@refused("Local, a class that a new process cannot find")
def a_class_of_a_function() -> tuple[dict[str, Any], Step]:
    class Local(enum.Enum):
        A = 1

    state: dict[str, Any] = {"it": None}

    def step(iteration: int) -> None:
        state["it"] = Local.A if iteration > 2 else None

    return state, step


@refused("is a function")
def a_function_in_the_state() -> tuple[dict[str, Any], Step]:
    state: dict[str, Any] = {"it": None}

    def step(iteration: int) -> None:
        state["it"] = (lambda: 1) if iteration > 1 else None

    return state, step


@refused("is part of an autograd graph")
def a_loss_with_its_graph() -> tuple[dict[str, Any], Step]:
    model = torch.nn.Linear(2, 1)
    state: dict[str, Any] = {"model": model, "loss": torch.zeros(())}

    def step(iteration: int) -> None:
        state["loss"] = model(torch.ones(2)).sum()

    return state, step
