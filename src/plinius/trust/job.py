"""The job: what an owner authorises a trainer to compute, and what may leave it.

`job_text` writes and reads it as TOML, `job_file` signs and verifies it. Format and meaning are
described in docs/formats/job.md.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

MAX_COUNT = 10**9
MAX_DIGITS = 6
MAX_LARGEST = 10**6
MAX_ITEMS = 64
MAX_RECIPIENTS = 16

METRICS = ("loss", "average_loss")
OUTPUTS = ("accuracy", "digest", "predictions")
ROLES = ("train", "validate", "test")
ANCHORS = ("none", "broker", "tpm")
PRECISIONS = ("fp32", "bf16")

Role = Literal["train", "validate", "test"]


@dataclass(frozen=True)
class Recipe:
    """What is computed.

    `cfg` is the recipe digest of the network, `weights` the SHA-256 of the file of starting
    parameters ("none": they are drawn from the seed). A run takes one of `seeds`, and has at most
    `iterations`, each of at least `minimum_batch` records.
    """

    cfg: str
    weights: str
    precision: str
    seeds: tuple[int, ...]
    iterations: int
    minimum_batch: int


@dataclass(frozen=True)
class Grant:
    """A dataset (id in hex) and what it may be used for. One is for training."""

    id: str
    role: Role


@dataclass(frozen=True)
class Metrics:
    """Which metrics leave during training, and how coarse.

    Each is a mean over `every` iterations, which have at least `records` records together,
    limited to 0..`largest` and rounded to `digits` decimal places. `records` and `digits` hold for
    the accuracy too.
    """

    allowed: tuple[str, ...]
    every: int
    records: int
    digits: int
    largest: int


@dataclass(frozen=True)
class Outputs:
    """What may be asked of a run, and which parts of its state may be exported.

    At its last iteration, and the accuracy on a validation dataset also at each multiple of
    `every`. Exports and predictions are sealed to `recipients`, public halves (1216 bytes) in
    base64; if there are none, they may leave in clear.
    """

    allowed: tuple[str, ...]
    exports: tuple[str, ...]
    recipients: tuple[str, ...]
    every: int


@dataclass(frozen=True)
class Anchor:
    """Where the newest commit has to be remembered, and after how many commits at the latest."""

    kind: str
    every: int


@dataclass(frozen=True)
class Job:
    """What an owner authorises. `run` is the id of the only run, or "any"; `expires` is in UTC.

    `measurements` are those of the trainer's code that may do the job (hex); none: any code.
    """

    run: str
    expires: datetime
    measurements: tuple[str, ...]
    recipe: Recipe
    metrics: Metrics
    outputs: Outputs
    anchor: Anchor
    datasets: tuple[Grant, ...]
