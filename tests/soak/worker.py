"""A process that kills its children: reads a job as JSON, writes one line for each round.

It never starts a thread, so forking is sound. One such process has imported torch, and one not.
"""

import importlib
import json
import os
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random

from soak.kinds import SHARES, WITH_TORCH, Kind


@dataclass
class Work:
    """What to do: kinds with torch or without, how many kills in all or for how long, and where."""

    torch: bool
    kills: int
    seconds: float | None
    seed: str
    places: dict[str, str]


def shares(with_torch: bool) -> dict[str, float]:
    """The kinds of a worker, and the part of all kills each one gets."""
    return {kind: part for kind, part in SHARES.items() if (kind in WITH_TORCH) is with_torch}


def soak(work: Work) -> None:
    """Round after round, of the kind that has had the fewest kills for its share."""
    told = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # children print what commands answer
    until = None if work.seconds is None else time.monotonic() + work.seconds
    kinds = _kinds(work)
    done = Counter[str](dict.fromkeys(kinds, 0))
    part = shares(work.torch)

    def goes_on() -> bool:
        if until is not None:
            return time.monotonic() < until
        return any(done[name] < part[name] * work.kills for name in kinds)

    while goes_on():
        name = min(kinds, key=lambda name: done[name] / part[name])
        kind = kinds[name].pop(0)  # place after place
        kinds[name].append(kind)
        fall = kind.round()
        done[name] += fall.kills
        print(json.dumps(fall.json()), file=told, flush=True)


def _kinds(work: Work) -> dict[str, list[Kind]]:
    if work.torch:
        import torch

        torch.set_num_threads(1)
    kinds_of = importlib.import_module("soak.trained" if work.torch else "soak.bare").kinds_of
    kinds: dict[str, list[Kind]] = {name: [] for name in shares(work.torch)}
    worlds = Path(work.places["disk"]) / "worlds"
    for place, folder in work.places.items():
        random = Random(f"{work.seed}/{place}")
        for kind in kinds_of(worlds, Path(folder), place, random):
            kinds[kind.name].append(kind)
    return kinds


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        soak(Work(**json.loads(sys.argv[1])))
    except KeyboardInterrupt:
        sys.exit(130)
