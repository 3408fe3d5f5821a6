"""Versions of tensors by torch's own count: what a user may trust instead of the bytes.

torch counts the writes to a tensor (its version). It does not count writes through `.data`, an
array or a buffer of the same memory, DLPack, another process, or a fused kernel. Steps of the
optimizers in the state are counted here as well, because of their fused kernels.
"""

import weakref
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch

from plinius.state.optimizers import owned_by
from plinius.state.tensor_memory import storages_of

Optimizers = list[torch.optim.Optimizer]


class VersionTracker:
    """Counts the steps of optimizers, and the writes to tensors with these included."""

    def __init__(self, before_step: Callable[[], None] | None = None) -> None:
        """`before_step` is called before any step of an optimizer that is watched."""
        self._before_step = before_step
        self.steps = 0
        self._stepped: dict[int, int] = {}  # optimizer -> its last step since the last `watch`
        self._owned: dict[int, set[int]] = {}  # optimizer -> storages that its steps may write to
        self._last_step: dict[int, int] = {}  # storage -> the last step that may have written to it
        self._handles: dict[int, list[Any]] = {}

    def watch(self, optimizers: Optimizers) -> None:
        """Count the steps of these optimizers from now on, and of no others.

        What they own before a step or after it counts as written by it.
        """
        for key in self._handles.keys() - {id(it) for it in optimizers}:
            self._add_steps(key)
            self._drop(key)
        for optimizer in optimizers:
            key = id(optimizer)
            if key not in self._handles:
                handles = [optimizer.register_step_post_hook(_weak_hook(self._after_step))]
                if self._before_step:
                    handles.append(optimizer.register_step_pre_hook(_weak_hook(self._step)))
                self._handles[key] = handles
            elif key not in self._stepped:
                continue
            self._add_steps(key)
            self._owned[key] = set(storages_of(owned_by(optimizer)))
            self._add_steps(key)
            self._stepped.pop(key, None)

    def counts(self, tensors: Sequence[torch.Tensor]) -> tuple[list[object], list[int]]:
        """The counted writes to tensors, and the last steps of optimizers that may have written.

        To an inference tensor none are counted: its count is always another.
        """
        if any(map(torch.Tensor.is_inference, tensors)):
            writes = [object() if it.is_inference() else it._version for it in tensors]
        else:
            writes = [*map(attrgetter("_version"), tensors)]
        last = self._last_step
        return writes, [last.get(storage, 0) for storage in storages_of(tensors)]

    def close(self) -> None:
        """Remove the hooks."""
        for key in [*self._handles]:
            self._drop(key)

    def _drop(self, key: int) -> None:
        for handle in self._handles.pop(key):
            handle.remove()
        self._stepped.pop(key, None)
        self._owned.pop(key, None)

    def _add_steps(self, key: int) -> None:
        step = self._stepped.get(key)
        if step is not None:
            self._last_step.update(dict.fromkeys(self._owned.get(key, ()), step))

    def _step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._before_step:
            self._before_step()

    def _after_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.steps += 1
        self._stepped[id(optimizer)] = self.steps


def _weak_hook(method: Callable[[torch.optim.Optimizer], None]) -> Callable[..., None]:
    """A hook that does not keep its object alive: an optimizer may live longer than its mirror."""
    reference = weakref.WeakMethod(method)

    def hook(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        alive = reference()
        if alive:
            alive(optimizer)

    return hook
