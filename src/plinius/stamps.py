"""Stamps: what tells whether a tensor was written to since it was last sealed.

torch counts the writes to a tensor (its version), but not all: fused optimizers write without
counting, and so does whatever goes through `.data` or a NumPy array of the same memory. So a stamp
also has the number of the optimizer step that last moved the tensor, and a sample of its bytes; or,
where tensors are checked, a digest of all of them.
"""

import hashlib
import random
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from plinius.tensors import Memory

_SAMPLES = 16


class Stamps:
    """Gives stamps for the tensors of a state; `optimizers` are those that move some of them."""

    def __init__(self, optimizers: Iterable[torch.optim.Optimizer], *, checked: bool) -> None:
        self._optimizers = list(optimizers)
        self._checked = checked
        self._steps = 0
        self._moved: dict[int, int] = {}  # storage -> the step that last moved it
        self._handles = [
            optimizer.register_step_post_hook(_weakly(self._stepped))
            for optimizer in self._optimizers
        ]

    def stamp(self, tensor: torch.Tensor, memory: Memory) -> Hashable:
        """Equal stamps: the same memory, not written to in between. None if that cannot be told."""
        if tensor.is_inference() or not memory.own:
            return None
        data = memory.data
        return (
            memory,
            tensor._version,
            self._moved.get(memory.storage, 0),
            hashlib.sha256(data).digest() if self._checked else _sample(data),
        )

    def owned(self) -> set[int]:
        """The storages that only a step of an optimizer writes to: its parameters and state."""
        return {
            tensor.untyped_storage()._cdata
            for optimizer in self._optimizers
            for parameter in _parameters(optimizer)
            for tensor in (parameter, *_state_tensors(optimizer, parameter))
        }

    def close(self) -> None:
        """Take the hooks back."""
        for handle in self._handles:
            handle.remove()

    def _stepped(self, optimizer: torch.optim.Optimizer) -> None:
        self._steps += 1
        for parameter in _parameters(optimizer):
            if parameter.grad is not None:
                for tensor in (parameter, *_state_tensors(optimizer, parameter)):
                    self._moved[tensor.untyped_storage()._cdata] = self._steps


def _weakly(method: Callable[[torch.optim.Optimizer], None]) -> Callable[..., None]:
    """A hook that does not keep its object alive; an optimizer outlives a mirror of it."""
    reference = weakref.WeakMethod(method)

    def hook(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        alive = reference()
        if alive:
            alive(optimizer)

    return hook


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _state_tensors(
    optimizer: torch.optim.Optimizer, parameter: torch.Tensor
) -> Iterator[torch.Tensor]:
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, torch.Tensor):
            yield value


def _sample(data: memoryview) -> bytes:
    if len(data) <= 4 * _SAMPLES:
        return bytes(data)
    return bytes(np.frombuffer(data, np.uint8)[_places(len(data))])


@lru_cache(4096)
def _places(length: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The same places of all tensors of a length, but not to be guessed from the length alone."""
    return np.array([random.Random(f"{length}/{i}").randrange(length) for i in range(_SAMPLES)])  # noqa: S311
