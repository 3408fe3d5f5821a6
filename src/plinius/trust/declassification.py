"""How much a job lets leave, in bits: an upper bound, whatever the data and the recipe are.

A number that is one of n values says at most log2(n) bits (Shannon 1948). Formula and table are in
THREATS.md.
"""

import math
from dataclasses import dataclass

from plinius.trust.job import Job

_DIGEST_BITS = 256


@dataclass(frozen=True)
class Declassification:
    """Upper bounds in bits for one run of a job from its first to its last iteration.

    `release` is one set of metrics, `releases` how many of them leave; `total` is all that leaves
    with the numbers of `test` and `digest` and with where a run stops. `seeds` is how many such
    runs the job allows. `unbounded` names what has no bound: exported parameters, predictions,
    unless they are sealed to recipients.
    """

    release: float
    releases: int
    total: float
    iteration: float
    seeds: int
    unbounded: tuple[str, ...]


def declassification(job: Job) -> Declassification:
    """The bounds for a job."""
    metrics, outputs, last = job.metrics, job.outputs, job.recipe.iterations
    levels = metrics.largest * 10**metrics.digits + 1
    release = len(metrics.allowed) * math.log2(levels)
    releases = last // metrics.every if metrics.allowed else 0
    total = releases * release + math.log2(3 * last + 1)  # it stopped at i for one of three reasons
    if "accuracy" in outputs.allowed:
        often = last // outputs.every + (last % outputs.every != 0)
        times = {"train": 0, "validate": often, "test": 1}
        tests = sum(times[grant.role] for grant in job.datasets)
        total += tests * math.log2(10**metrics.digits + 1)
    if "digest" in outputs.allowed:
        total += _DIGEST_BITS
    predictions = ("predictions",) if "predictions" in outputs.allowed else ()
    unbounded = () if outputs.recipients else (*outputs.exports, *predictions)
    return Declassification(
        release, releases, total, total / last, len(job.recipe.seeds), unbounded
    )
