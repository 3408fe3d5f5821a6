"""The optimizers in a state, and which tensors are theirs."""

from collections.abc import Iterator, MutableMapping, Set
from typing import Any

import torch
from torch import nn


def optimizers_in(value: object, path: str = "") -> Iterator[tuple[str, torch.optim.Optimizer]]:
    """The optimizers in a state, by path; of a wrapper, the inner one."""
    yield from _optimizers(value, path, set())


def owned_by(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    """The parameters of an optimizer, and the tensors in its state."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield parameter
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, torch.Tensor):
                    yield value


def _optimizers(
    value: object, path: str, seen: set[int]
) -> Iterator[tuple[str, torch.optim.Optimizer]]:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.optim.Optimizer):
        inner = getattr(value, "optimizer", None)  # of a wrapper (Accelerate's), which has no hooks
        yield path, inner if isinstance(inner, torch.optim.Optimizer) else value
    elif isinstance(value, MutableMapping):
        for key, item in value.items():
            yield from _optimizers(item, f"{path}/{key}" if path else str(key), seen)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _optimizers(item, f"{path}/{index}" if path else str(index), seen)


def lost_parameters(optimizers: Iterator[tuple[str, Any]], held: Set[int]) -> list[str]:
    """The paths of optimizers that step parameters which are not at any address in `held`."""
    lost = []
    for path, optimizer in optimizers:
        there = [it for group in optimizer.param_groups for it in group["params"]]
        if any(issubclass(kind, nn.UninitializedParameter) for kind in {*map(type, there)}):
            there = [it for it in there if not isinstance(it, nn.UninitializedParameter)]
        if not held >= {*map(torch.Tensor.data_ptr, there)} and any(
            it.numel() and it.data_ptr() not in held for it in there
        ):
            lost.append(path)
    return lost
