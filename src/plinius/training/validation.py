"""Validation while training: how well the network does on a sealed dataset, every N iterations.

The history of scores is part of the run state, and everything else follows from it: the best
score, how long ago it was, and whether to stop early. So a killed run ends as one that was not.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from plinius.darknet.cfg import Cfg
from plinius.darknet.network import Network
from plinius.data.sealed_dataset import SealedDataset
from plinius.errors import SourceError
from plinius.keys import OwnerKey
from plinius.training.batches import Batches
from plinius.training.evaluation import TrainingData
from plinius.training.metrics import ValidationMetrics
from plinius.training.permission import Permission
from plinius.training.scores import evaluate, require_labels, sure_of_classes

BEST = "best"
"""The name of the kept commit of the best validation."""
METRICS = ("accuracy", "mean_average_precision", "rmse")
"""What may be the score, by task. The largest is the best, of the last one the smallest."""


@dataclass(frozen=True)
class ValidationPlan:
    """Validate on the sealed dataset `data` after every `every` iterations.

    If `every` is None, that is as often as the records of the training fit into batches: once an
    epoch. Training stops early once `patience` validations in a row were no better than the best
    one; None: never. None of this changes what an iteration computes.
    """

    data: Path
    every: int | None = None
    patience: int | None = None


def no_history() -> dict[str, Any]:
    """The part of the run state before the first validation.

    `dataset` is the id (hex) of the validation dataset, `metric` one of METRICS, and `history` a
    row (iteration, score) for each validation, float64 (n, 2). Its size depends on n alone.
    """
    return {"dataset": "", "metric": "", "history": torch.zeros(0, 2, dtype=torch.float64)}


class Validation:
    """The validation of a run that trains the network of `cfg` on the dataset `training`.

    Raises SourceError and MismatchError if the dataset of the plan has no labels, does not fit the
    network or has other classes or columns than `training`; what SealedDataset.from_file raises;
    and what `permission` does not allow.
    """

    def __init__(
        self,
        plan: ValidationPlan,
        cfg: Cfg,
        training: SealedDataset,
        key: OwnerKey,
        permission: Permission | None = None,
    ) -> None:
        self.dataset = SealedDataset.from_file(plan.data, key)
        self.every = plan.every or -(-training.header.count // cfg.net.batch)
        self.patience = plan.patience
        # A network of its own: modes, recurrent states and random numbers of the training stay.
        self._network = Network(cfg)
        self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._network.eval()
        require_labels(self.dataset)
        Batches(self.dataset, self._network)  # refuses what does not fit
        TrainingData.of(training).require_alike(self.dataset)
        self._coarseness = None
        if permission:
            permission.require_validation(self.dataset.header, self.every)
            self._coarseness = permission.coarseness
            if not (self._network.finds_boxes or sure_of_classes(self._network, self.dataset)):
                raise SourceError(
                    f"{self.dataset.name} may hold numbers, and a job lets an accuracy leave only",
                    "Leave out --validate",
                )

    def due(self, iteration: int) -> bool:
        """Whether to validate after this iteration, from 1."""
        return iteration % self.every == 0

    def measure(self, network: Network, iteration: int, state: dict[str, Any]) -> ValidationMetrics:
        """Validate a network, and write the score into the state: what `no_history` describes.

        The history begins anew for another dataset. Raises DivergedError and SealError.
        """
        self._network.load_state_dict(network.state_dict())
        found = evaluate(self._network, self.dataset)
        metric = next(name for name in METRICS if name in found)
        score = float(cast(float, found[metric]))
        if self._coarseness:
            # Also what stops a run early has to be a function of what leaves.
            score = self._coarseness.score(score)
        if (state["dataset"], state["metric"]) != (self.dataset.header.id.hex(), metric):
            state |= no_history() | {"dataset": self.dataset.header.id.hex(), "metric": metric}
        row = torch.tensor([[iteration, score]], dtype=torch.float64)
        state["history"] = torch.cat([state["history"], row])
        best = Best.of(state)
        assert best is not None
        return ValidationMetrics(metric, score, best.score, best.iteration)

    def is_over(self, state: dict[str, Any]) -> bool:
        """Whether the score of this dataset has not been better for `patience` validations."""
        if self.patience is None or state["dataset"] != self.dataset.header.id.hex():
            return False
        best = Best.of(state)
        return best is not None and best.since >= self.patience


@dataclass(frozen=True)
class Best:
    """The best validation of a run, the first of equal ones.

    `since` is how many validations came after it.
    """

    metric: str
    score: float
    iteration: int
    since: int

    @classmethod
    def of(cls, state: dict[str, Any]) -> "Best | None":
        """The best in a state that `no_history` describes, None before the first validation."""
        rows = state["history"].tolist()
        if not rows:
            return None
        sign = -1 if state["metric"] == "rmse" else 1
        at = max(range(len(rows)), key=lambda row: (sign * rows[row][1], -row))
        return cls(state["metric"], rows[at][1], int(rows[at][0]), len(rows) - 1 - at)
