"""Loops over modules, optimizers, schedulers and loaders as people combine them."""

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import plinius
from resume.loops import Step, loop, refused


def net() -> nn.Sequential:
    """A small network with everything that has a state of its own."""
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3)
    )


def trained(
    model: nn.Module, optimizer: Any, scheduler: Any = None, clear: bool = True
) -> tuple[dict[str, Any], Step]:
    """The usual loop."""

    def step(iteration: int) -> None:
        nn.functional.cross_entropy(model(torch.randn(5, 6)), torch.randint(0, 3, (5,))).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        if clear:
            optimizer.zero_grad()

    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    return {name: part for name, part in parts.items() if part is not None}, step


@loop
def frozen_then_thawed() -> tuple[dict[str, Any], Step]:
    model = net()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    state, step = trained(model, optimizer)

    def thawing(iteration: int) -> None:
        if iteration == 3:
            model[0].requires_grad_(True)
            model[1].eval()
        step(iteration)

    return state, thawing


@loop
def evaluated_in_between() -> tuple[dict[str, Any], Step]:
    model = net()
    state, step = trained(model, torch.optim.SGD(model.parameters(), lr=0.1))

    def sometimes(iteration: int) -> None:
        model.train(iteration % 2 == 0)  # left as it is until the next iteration
        step(iteration)

    return state, sometimes


@loop
def lazy_layers() -> tuple[dict[str, Any], Step]:
    model = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Linear(4, 2))

    def step(iteration: int) -> None:
        model(torch.randn(5, 7)).square().mean().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.sub_(0.1 * parameter.grad)
        model.zero_grad()

    return {"model": model}, step


@loop
def weight_and_spectral_norm() -> tuple[dict[str, Any], Step]:
    model = net()
    parametrizations.weight_norm(model[0])
    parametrizations.spectral_norm(model[4])
    return trained(model, torch.optim.SGD(model.parameters(), lr=0.1))


@loop
def pruned_before_it_was_opened() -> tuple[dict[str, Any], Step]:
    model = net()
    prune.random_unstructured(model[0], "weight", 0.5)
    return trained(model, torch.optim.SGD(model.parameters(), lr=0.1))


@refused("model is not as it was when the mirror was opened: model/0.weight was")
def pruned_midway() -> tuple[dict[str, Any], Step]:
    model = net()
    state, step = trained(model, torch.optim.SGD(model.parameters(), lr=0.1))

    def pruning(iteration: int) -> None:
        step(iteration)
        if iteration == 3:
            prune.random_unstructured(model[0], "weight", 0.5)

    return state, pruning


@refused("teacher is a module that was not there when the mirror was opened")
def a_module_that_appears() -> tuple[dict[str, Any], Step]:
    state: dict[str, Any] = {"model": net(), "teacher": None}

    def step(iteration: int) -> None:
        if iteration == 3:
            state["teacher"] = copy.deepcopy(state["model"])

    return state, step


@refused("weights is a tensor whose storage was freed")
def a_storage_that_is_gone() -> tuple[dict[str, Any], Step]:
    state: dict[str, Any] = {"weights": torch.zeros(9)}

    def step(iteration: int) -> None:
        if iteration == 3:
            state["weights"].untyped_storage().resize_(0)

    return state, step


@loop
def storages_that_are_resized() -> tuple[dict[str, Any], Step]:
    state: dict[str, Any] = {"weights": torch.zeros(9), "out": torch.zeros(0)}

    def step(iteration: int) -> None:
        state["weights"].resize_(9 + iteration).fill_(iteration)
        torch.add(torch.randn(iteration), 1, out=state["out"].resize_(0))
        spare = torch.zeros(4)
        spare.untyped_storage().resize_(0)

    return state, step


@loop
def quantization_aware() -> tuple[dict[str, Any], Step]:
    from torch.ao import quantization

    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).train()
    model.qconfig = quantization.get_default_qat_qconfig("x86")
    quantization.prepare_qat(model, inplace=True)
    return trained(model, torch.optim.SGD(model.parameters(), lr=0.1))


class Cache(nn.Module):
    """A layer that makes buffers as it goes."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: torch.Tensor | None
        self.seen: torch.Tensor
        self.register_buffer("cache", None, persistent=False)
        self.register_buffer("seen", torch.zeros(0))
        self.layer = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output, beside what it gave before."""
        y: torch.Tensor = self.layer(x)
        self.cache = y.detach() if self.cache is None else self.cache * 0.5 + y.detach()
        self.seen = torch.cat([self.seen, x.mean().detach().reshape(1)])
        return y + self.cache


@loop
def buffers_that_come_and_grow() -> tuple[dict[str, Any], Step]:
    model = Cache()
    return trained(model, torch.optim.SGD(model.parameters(), lr=0.01))


@loop
def hidden_state_carried() -> tuple[dict[str, Any], Step]:
    model = nn.LSTM(4, 5)
    optimizer = torch.optim.Adam(model.parameters())
    state: dict[str, Any] = {"model": model, "optimizer": optimizer, "hidden": None}

    def step(iteration: int) -> None:
        out, hidden = model(torch.randn(3, 4), state["hidden"])
        out.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        state["hidden"] = tuple(it.detach() for it in hidden)

    return state, step


@loop
def queue_of_keys() -> tuple[dict[str, Any], Step]:
    model, slow = nn.Linear(6, 4), nn.Linear(6, 4).requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state: dict[str, Any] = {
        "model": model, "slow": slow, "optimizer": optimizer, "queue": torch.randn(20_000, 4),
        "at": 0,
    }  # fmt: skip

    def step(iteration: int) -> None:
        x = torch.randn(3, 6)
        (model(x) @ state["queue"].T).logsumexp(1).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        state["queue"][state["at"] : state["at"] + 3] = slow(x)
        state["at"] += 3
        for mine, theirs in zip(slow.parameters(), model.parameters(), strict=True):
            mine.data.lerp_(theirs.data, 0.1)

    return state, step


@loop
def resumable_loader() -> tuple[dict[str, Any], Step]:
    data = torch.utils.data.TensorDataset(torch.arange(20.0))
    loader = plinius.ResumableLoader(data, 4, seed=3)
    state: dict[str, Any] = {"loader": loader, "seen": []}
    batches: list[Any] = [iter(())]

    def step(iteration: int) -> None:
        batch = next(batches[0], None)
        if batch is None:
            batches[0] = iter(loader)
            batch = next(batches[0])
        state["seen"].append(batch[0])

    return state, step


@loop
def stateful_loader() -> tuple[dict[str, Any], Step]:
    stateful = __import__("torchdata.stateful_dataloader", fromlist=["StatefulDataLoader"])
    loader = stateful.StatefulDataLoader(list(range(24)), batch_size=3, shuffle=True)
    state: dict[str, Any] = {"loader": loader, "seen": []}
    batches: list[Any] = []

    def step(iteration: int) -> None:
        if not batches:
            batches.append(iter(loader))
        state["seen"].append(next(batches[0]))

    return state, step


@loop
def metric_with_lists() -> tuple[dict[str, Any], Step]:
    torchmetrics = __import__("torchmetrics")
    metric = torchmetrics.CatMetric()
    metric.persistent(True)

    def step(iteration: int) -> None:
        metric.update(torch.randn(iteration))

    return {"metric": metric}, step


@loop
def a_parameter_by_itself() -> tuple[dict[str, Any], Step]:
    weight = nn.Parameter(torch.randn(4))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)

    def step(iteration: int) -> None:
        (weight * torch.randn(4)).sum().backward()
        if iteration % 2:
            optimizer.step()
            optimizer.zero_grad()

    return {"weight": weight, "optimizer": optimizer}, step
