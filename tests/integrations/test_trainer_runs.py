"""The Hugging Face callback: whatever is configured, a killed run ends as one that was not."""

import random
import zlib
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")
from integrations.trainer_configurations import CONFIGURATIONS
from integrations.trainer_runs import Build, Killed, Killer, run

OPTIONS: list[dict[str, Any]] = [{}, {"overlap": True}, {"every": 3}, {"overlap": True, "every": 2}]

ALIKE = ("schedule ", "optimizer ")
"""Configurations that differ in one class of torch's: most are run with --soak only."""


def kill_and_compare(build: Build, folder: Path, seed: int, *, kills: int, trials: int) -> None:
    """Run without a mirror; then with one, killed at random places, and compare."""
    chance, watch = random.Random(seed), Killer()
    wanted = run(build, folder / "bare", before=Killer(), after=watch, options=None)
    counts = watch.counted()
    for trial in range(trials):
        options, plan = chance.choice(OPTIONS), []
        for _ in range(kills):
            event = chance.choice([*counts])
            at = event, chance.randint(1, counts[event])
            first, second = chance.choice([(at, None), (None, at)])
            plan.append((first, second))
            try:
                run(
                    build, folder / str(trial), before=Killer(first), after=Killer(second),
                    options=options,
                )  # fmt: skip
            except Killed:
                continue
        ended = run(build, folder / str(trial), before=Killer(), after=Killer(), options=options)
        assert {n: (it, ended[n]) for n, it in wanted.items() if ended[n] != it} == {}, (
            plan,
            options,
        )


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_killed_run_ends_as_one_that_was_not(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Model, optimizer, scheduler, the Trainer's state, callbacks, loss, random numbers: equal."""
    if name == "schedule-free":
        pytest.importorskip("schedulefree", reason="schedulefree is not installed")
    soak = request.config.getoption("--soak")
    if not soak and name.startswith(ALIKE) and not name.endswith(("cosine", "adafactor", "sgd")):
        pytest.skip("like the others, and run with --soak")
    kills, trials = (3, 8) if soak else (1, 1)
    seed = zlib.crc32(name.encode())
    kill_and_compare(CONFIGURATIONS[name], tmp_path, seed, kills=kills, trials=trials)
