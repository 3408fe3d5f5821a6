"""`plinius bench crash`: a run killed with a mirror and without, as in Fig. 9 of the paper.

The same network is trained on the same sealed data three times by `plinius train`: not killed;
killed (SIGKILL) at random iterations and started again; and killed after as many iterations, but
without what was mirrored, as a trainer that keeps its state in memory has to. Then a program with
1 GB of state is killed and started again.
"""

import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plinius.errors import StorageError
from plinius.key_file import load_key
from plinius.keys import OwnerKey
from plinius.pm.region import Region
from plinius.slots import newest_snapshot
from plinius_benchmarks.machine import describe_with_torch
from plinius_benchmarks.report import Progress, Report, Row, Target, no_progress

ITERATIONS, KILLS = 100, 9
SHORT_ITERATIONS, SHORT_KILLS = 40, 3
RESTARTS = 3
UNINTERRUPTED, MIRRORED, FORGETFUL = "not killed", "killed, mirrored", "killed, not mirrored"


def run_crash(
    cfg: Path,
    data: Path,
    key_path: Path,
    iterations: int = ITERATIONS,
    kills: int = KILLS,
    places: Sequence[Path] = (),
    progress: Progress = no_progress,
) -> Report:
    """Train and kill; then measure the restart in each of `places`. Takes minutes.

    Raises StorageError with the trainer's error message if it fails.
    """
    rows: list[Row] = []
    digests: dict[str, str] = {}
    chosen = sorted(random.Random(kills).sample(range(2, iterations - 1), kills))  # noqa: S311
    with tempfile.TemporaryDirectory(prefix="plinius-bench-") as made:
        folder = Path(made)
        for number, (way, kept) in enumerate(
            ((UNINTERRUPTED, True), (MIRRORED, True), (FORGETFUL, False))
        ):
            after = [] if way == UNINTERRUPTED else chosen
            given = [str(cfg), "--data", str(data), "--key", str(key_path)]
            train = _Trainer(given, folder / str(number))
            for last, goal in zip([0, *after], [*after, None], strict=True):
                train.run(iterations, None if goal is None else goal - last)
                if goal is not None and not kept:
                    train.forget()
            rows.append(
                {
                    "way": way,
                    "iterations": len(train.losses),
                    "losses": train.losses,
                    "kills": train.kills,
                    "lost": train.lost,
                }
            )
            digests[way] = newest_snapshot(train.region, load_key(key_path)).digest()
            progress(number + 1, 3 + len(places))
        restarts = []
        for number, place in enumerate(places):
            restarts.append(_restart(place))
            progress(4 + number, 3 + len(places))
    same = digests[MIRRORED] == digests[UNINTERRUPTED]
    targets = [Target("digest after all kills, equal to that without kills", float(same), 1.0)]
    for restart in restarts:
        what = f"{restart['place']}: kill to first new iteration, 1 GB, s beyond importing torch"
        targets.append(Target(what, restart["beyond"], 3.0, False))
    return {
        "name": "crash",
        "title": "A run that is killed (the paper's Fig. 9)",
        "machine": describe_with_torch(),
        "rows": rows + restarts,
        "targets": [target.row() for target in targets],
        "notes": [
            f"{cfg.name}, {iterations} iterations, {kills} SIGKILLs at random iterations.",
            "In the paper, 500 iterations killed 9 times follow the curve of a run that is not "
            "killed; without a mirror it needs more than 1000.",
        ],
    }


class _Trainer:
    """`plinius train` in a process of its own, started again and again."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        folder.mkdir()
        self._arguments, self._folder = arguments, folder
        self.region, self._metrics = folder / "run.region", folder / "metrics.jsonl"
        self.losses: list[float] = []
        self.kills: list[int] = []
        self.lost: list[float] = []
        self._killed_at: float | None = None

    def run(self, until: int, for_iterations: int | None) -> None:
        """Train on; kill it after so many more iterations, or let it go to its end."""
        before = self._metrics_lines()
        command = [sys.executable, "-m", "plinius", "train", *self._arguments, "--threads", "1"]
        command += ["--region", str(self.region), "--metrics", str(self._metrics)]
        with (self._folder / "said").open("w+") as said:
            process = subprocess.Popen(  # noqa: S603
                [*command, "--iterations", str(until)], stdout=subprocess.DEVNULL, stderr=said
            )
            while process.poll() is None:
                time.sleep(0.002)
                new = self._metrics_lines()[len(before) :]
                if new and self._killed_at is not None:
                    self.lost.append(time.monotonic() - self._killed_at)
                    self._killed_at = None
                if for_iterations is not None and len(new) >= for_iterations:
                    process.kill()
                    process.wait()
                    self._killed_at = time.monotonic()
            if for_iterations is None and process.returncode:
                said.seek(0)
                raise StorageError(
                    f"The trainer failed: {said.read().strip()}", "Correct what it names"
                )
        self.losses = [line["loss"] for line in self._metrics_lines()]
        if for_iterations is not None:
            self.kills.append(len(self.losses))

    def forget(self) -> None:
        """Lose what was mirrored."""
        self.region.unlink()

    def _metrics_lines(self) -> list[dict[str, Any]]:
        if not self._metrics.exists():
            return []
        lines = self._metrics.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]


def _restart(place: Path) -> Row:
    """Seconds from starting a program that was killed to its first new iteration, 1 GB of state."""
    with tempfile.TemporaryDirectory(prefix="plinius-bench-", dir=place) as made:
        region, key = Path(made) / "large.region", Path(made) / "owner.key"
        OwnerKey.generate().save(key)
        command = [sys.executable, "-m", "plinius_benchmarks.restart", str(region), str(key)]
        _until_first_line(command)
        imports, starts = [], []
        for _ in range(RESTARTS):
            began = time.monotonic()
            subprocess.run([sys.executable, "-c", "import torch"], check=True)
            imports.append(time.monotonic() - began)
            starts.append(_until_first_line(command))
        with Region.open(region, writable=False) as opened:
            kind = opened.granularity.name
    beyond = statistics.median(one - other for one, other in zip(starts, imports, strict=True))
    return {"way": "restart", "place": kind, "import": imports, "start": starts, "beyond": beyond}


def _until_first_line(command: list[str]) -> float:
    """Start a program, wait for its first line, kill it; seconds until the line."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)  # noqa: S603
    assert process.stdout is not None
    line = process.stdout.readline()
    seconds = time.monotonic() - began
    process.kill()
    process.wait()
    if not line:
        raise StorageError("The program with 1 GB of state failed", "See its error message above")
    return seconds
