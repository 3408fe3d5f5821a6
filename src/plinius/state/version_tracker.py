"""Versions of tensors by torch's own count: what a user may trust instead of the bytes.

torch counts the writes to a tensor (its version). It does not count writes through `.data`, an
array or a buffer of the same memory, DLPack, another process, or a fused kernel. Steps of the
optimizers in the state are counted here as well, because of their fused kernels.
"""

import weakref
from collections.abc import Callable, Hashable
from typing import Any

import torch

from plinius.state.optimizers import owned_by
from plinius.state.tensor_memory import Memory, storage_of

Optimizers = list[torch.optim.Optimizer]


class VersionTracker:
    """Counts the steps of optimizers, and gives tensors a version that includes these."""

    def __init__(self, before_step: Callable[[], None] | None = None) -> None:
        """`before_step` is called before any step of an optimizer that is watched."""
        self._before_step = before_step
        self._steps = 0
        self._last_step: dict[int, int] = {}  # storage -> the last step that wrote to it
        self._handles: dict[int, list[Any]] = {}

    def watch(self, optimizers: Optimizers) -> None:
        """Count the steps of these optimizers from now on, and of no others."""
        for key in self._handles.keys() - {id(it) for it in optimizers}:
            self._drop(key)
        for optimizer in optimizers:
            if id(optimizer) not in self._handles:
                handles = [optimizer.register_step_post_hook(_weak_hook(self._stepped))]
                if self._before_step:
                    handles.append(optimizer.register_step_pre_hook(_weak_hook(self._step)))
                self._handles[id(optimizer)] = handles

    def version(self, tensor: torch.Tensor, memory: Memory) -> Hashable:
        """Equal versions mean the same memory and no counted write; None if nothing is counted."""
        if tensor.is_inference() or not memory.own:
            return None
        return memory, tensor._version, self._last_step.get(storage_of(tensor), 0)

    def close(self) -> None:
        """Remove the hooks."""
        for key in [*self._handles]:
            self._drop(key)

    def _drop(self, key: int) -> None:
        for handle in self._handles.pop(key):
            handle.remove()

    def _step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._before_step:
            self._before_step()

    def _stepped(self, optimizer: torch.optim.Optimizer) -> None:
        self._steps += 1
        for tensor in owned_by(optimizer):
            self._last_step[storage_of(tensor)] = self._steps


def _weak_hook(method: Callable[[torch.optim.Optimizer], None]) -> Callable[..., None]:
    """A hook that does not keep its object alive: an optimizer may live longer than its mirror."""
    reference = weakref.WeakMethod(method)

    def hook(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        alive = reference()
        if alive:
            alive(optimizer)

    return hook
