"""Runs that are killed: one process imports torch once and forks a trainer for every start.

Read as JSON from the command line: a list of the fields of `Job`. Written as JSON to stdout, for
each: the digest after every iteration of the uninterrupted run, and of every killed run where its
kills fell, its end and its digest.

Forking is sound here: no thread is started before a fork (one torch thread, nothing computed in
the parent), so each child is as a fresh process that has imported torch. A test compares its
digests with those of real processes.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

import torch
import torch._dynamo  # else every child would import it: the first optimizer does

from plinius.data.dataset_extent import open_dataset
from plinius.errors import PliniusError
from plinius.key_file import load_key
from plinius.keys import OwnerKey
from plinius.pm.region import Region
from plinius.slots import newest_snapshot, read_snapshot
from plinius.training.trainer import Run, Settings
from plinius.training.validation import ValidationPlan
from resume.forks import Shared, creating, forked, wait_until

LEAST_KILLS, MOST_KILLS = 3, 6


@dataclass
class Job:
    """What all runs have in common. `until` is the iteration of the end.

    `validate` is the dataset to validate on after every iteration, "" for none.
    """

    cfg: str
    data: str
    key: str
    folder: str
    seed: str
    runs: int
    until: int
    validate: str = ""

    @property
    def owner(self) -> OwnerKey:
        """The owner's key."""
        return load_key(self.key)


@dataclass
class Killed:
    """What became of one run: where each kill fell, and what it found wrong, if anything.

    `states` are those of the twins after each kill; "" where there was no region yet.
    """

    kills: list[str] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    digest: str = ""
    iteration: int = -1


def train(job: Job, region: Path, tell: Callable[[Run], None]) -> None:
    """A start of the trainer, as by `plinius train`; calls `tell` then and after each commit."""
    settings = Settings(Path(job.cfg), Path(job.data), threads=1)
    plan = ValidationPlan(Path(job.validate), 1, job.until) if job.validate else None
    with Run(region, job.owner, settings, validation=plan) as run:
        tell(run)
        run.train(job.until, 1, lambda _: tell(run))


def uninterrupted(job: Job, region: Path) -> tuple[list[str], float, float]:
    """An uninterrupted run: the digests after iterations 0, 1, ..., and its seconds.

    The seconds are those until it began to train, and those until it ended.
    """
    log = Path(job.folder) / "log.json"

    def work() -> None:
        began = time.perf_counter()
        digests, times = [], []

        def tell(run: Run) -> None:
            times.append(time.perf_counter() - began)
            digests.append(run.mirror.digest(run.iteration))

        train(job, region, tell)
        log.write_text(json.dumps([digests, times[0], times[-1]]))

    _, status = os.waitpid(forked(work), 0)
    assert status == 0, "the uninterrupted run failed"
    digests, started, ended = json.loads(log.read_text())
    return digests, started, ended


def killed_run(job: Job, number: int, started: float, ended: float, digests: list[str]) -> Killed:
    """One run, started anew after each kill until it ends by itself.

    Every kill must leave a state of the uninterrupted run, and none older than the last one told.
    """
    random = Random(f"{job.seed}/{number}")
    told = Shared()  # the last iteration told, plus 1
    wanted, result, attempt = random.randint(LEAST_KILLS, MOST_KILLS), Killed(), 0
    region = Path(job.folder) / f"run-{number}.region"

    def tell(run: Run) -> None:
        committed = run.mirror.committed  # None before the first iteration of a new run
        told[0] = 0 if committed is None else committed + 1

    while True:
        pid = forked(lambda: train(job, region, tell))
        kill = len(result.kills)
        if kill >= wanted:
            pass  # to its end
        elif kill % 2:  # at a random moment of a random iteration not far ahead
            goal = told[0] + random.randint(1, 1 + job.until // wanted)
            wait_until(pid, lambda: told[0] >= goal)  # noqa: B023
            time.sleep(random.uniform(0, (ended - started) / job.until))
        elif kill == 0 and number % 2:  # while the region is made, or filled
            wait_until(pid, [region.exists, creating(region).exists][number % 4 == 1])
            time.sleep(random.uniform(0, 0.002))
        else:
            time.sleep(random.uniform(0, started + (ended - started) / wanted) / 2**attempt)
        if kill < wanted:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            result.kills.append(_look(job, region, told[0] - 1, digests, result))
            continue
        if status:
            result.wrong.append(f"start {len(result.kills) + 1} ended with status {status}")
            return result
        if len(result.kills) >= LEAST_KILLS:
            break
        # It was faster than its killer: once more in a new region, with shorter delays.
        region.unlink()
        told[0] = 0
        result, attempt = Killed(), attempt + 1
    snapshot = newest_snapshot(region, job.owner)
    result.digest, result.iteration = snapshot.digest(), snapshot.iteration
    region.unlink()
    return result


def _look(job: Job, region: Path, told: int, digests: list[str], result: Killed) -> str:
    """Where a kill fell, read from what it left; the state it left is held to the truth."""
    result.states.append("")
    if not region.exists():
        if creating(region).exists():
            return "creating the region"
        return "before the region"
    try:
        with Region.open(region, writable=False) as opened:
            opened.consistency_check()
            result.states[-1] = opened.twins.state().name
            state, extents = opened.twins.state().name, opened.heap.extents()
            snapshot = read_snapshot(opened, job.owner)
            if "dataset" in extents:  # it has its name, so it must be whole
                dataset = open_dataset(opened, job.owner)
                dataset.open_batch([*range(0, dataset.header.count, 50), dataset.header.count - 1])
    except PliniusError as refusal:
        result.wrong.append(f"kill {len(result.kills) + 1}: {refusal}")
        return "damaged"
    if snapshot is None:
        if told >= 0:
            result.wrong.append(f"kill {len(result.kills) + 1}: iteration {told} was lost")
        where = "loading the dataset" if "dataset" not in extents else "before the first commit"
        return where if state == "IDLE" else f"{where}, {state}"
    if snapshot.digest() != digests[snapshot.iteration]:
        result.wrong.append(f"kill {len(result.kills) + 1}: another state than uninterrupted")
    if snapshot.iteration < told:
        result.wrong.append(f"kill {len(result.kills) + 1}: {told} told, {snapshot.iteration} left")
    return f"iteration {snapshot.iteration}"


def main() -> None:
    """Read the jobs, do them, and write what became of each."""
    torch.set_num_threads(1)
    print(json.dumps([_done(Job(**job)) for job in json.loads(sys.argv[1])]))


def _done(job: Job) -> dict[str, object]:
    uninterrupted(job, Path(job.folder) / "warm.region")
    digests, started, ended = uninterrupted(job, Path(job.folder) / "uninterrupted.region")
    killed = [killed_run(job, number, started, ended, digests) for number in range(job.runs)]
    return {"digests": digests, "killed": [asdict(run) for run in killed]}


if __name__ == "__main__":
    main()
