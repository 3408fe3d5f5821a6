"""The losses of a run: their running average, and what of them leaves the trainer."""

import math
from typing import Any

import torch

from plinius.training.metrics import Coarseness


class Losses:
    """Keeps the losses in the run state `state`, which is mirrored.

    With a `coarseness` only means over many iterations leave, and the sum since the last one that
    left is kept as well.
    """

    def __init__(self, state: dict[str, Any], coarseness: Coarseness | None) -> None:
        self._state, self._coarseness = state, coarseness
        state["average_loss"] = None
        if coarseness:
            # Of one size whatever their values: the host sees how long a commit is.
            state["average_loss"] = torch.full((), math.nan, dtype=torch.float64)
            state["total_loss"] = torch.zeros((), dtype=torch.float64)

    def add(self, loss: float, iteration: int) -> float | None:
        """Add the loss of an iteration; returns the one that leaves after it, if one does."""
        average = self._average()
        average = loss if average is None else average
        self._keep("average_loss", 0.9 * average + 0.1 * loss)
        if self._coarseness is None:
            return loss
        total = float(self._state["total_loss"]) + loss
        self._keep("total_loss", 0.0 if self._coarseness.ends(iteration) else total)
        return self._coarseness.loss(iteration, total)

    def leaving_average(self, iteration: int) -> float | None:
        """The running average as it may leave after an iteration, None before the first."""
        average = self._average()
        if self._coarseness:
            return self._coarseness.average_loss(iteration, average)
        return average

    def _average(self) -> float | None:
        average = self._state["average_loss"]
        return None if average is None or math.isnan(average) else float(average)

    def _keep(self, name: str, value: float) -> None:
        if isinstance(self._state[name], torch.Tensor):
            self._state[name].fill_(value)
        else:
            self._state[name] = value
