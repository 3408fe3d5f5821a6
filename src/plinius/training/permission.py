"""What a run asks before it starts, where somebody has said what it may do (trust/permit.py)."""

from typing import Protocol

from plinius.darknet.cfg import Cfg
from plinius.data.sealed_dataset import DatasetHeader
from plinius.training.metrics import Coarseness


class RunSettings(Protocol):
    """Of the settings of a run, those that a permission is about."""

    @property
    def seed(self) -> int:
        """The seed of the run."""

    @property
    def precision(self) -> str:
        """What it computes in."""

    @property
    def dataset_id(self) -> str | None:
        """The id (hex) that its dataset must have, if one is pinned."""

    @property
    def upto(self) -> int | None:
        """How many layers the file of parameters holds, None for all."""

    @property
    def clear(self) -> bool:
        """Whether the schedule begins anew, whatever the parameters have seen."""

    @property
    def from_iteration(self) -> int | None:
        """The iteration of a kept commit that the run goes back to, if it does."""

    @property
    def run_id(self) -> str | None:
        """The id (hex) that the run must have, if one is pinned."""


class Permission(Protocol):
    """`digest` names it and becomes part of the run's identity; `coarseness` is of its metrics."""

    @property
    def digest(self) -> str:
        """Its SHA-256, in hex."""

    @property
    def coarseness(self) -> Coarseness:
        """How coarse the metrics are that leave."""

    def require_training(self, cfg: Cfg, weights_sha256: str | None, settings: RunSettings) -> None:
        """Raise PliniusError unless a run may have this cfg, these parameters and settings."""

    def require_validation(self, header: DatasetHeader, every: int) -> None:
        """Raise PliniusError unless a run may be validated on this dataset, so often."""
