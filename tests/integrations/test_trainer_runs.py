"""The Hugging Face callback: a killed run ends like one that was not, however it is configured."""

import random
import zlib
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")
from integrations.trainer_configurations import CONFIGURATIONS
from integrations.trainer_runs import Build, Killed, Killer, run

OPTIONS: list[dict[str, Any]] = [{}, {"overlap": True}, {"every": 3}, {"overlap": True, "every": 2}]

SIMILAR = ("schedule ", "optimizer ")
"""Configurations that differ only in a class of torch: most are run with --soak only."""


def kill_and_compare(build: Build, folder: Path, seed: int, *, kills: int, trials: int) -> None:
    """Run without a mirror; then run with one, kill that at random places, and compare."""
    drawn, counter = random.Random(seed), Killer()
    wanted = run(build, folder / "bare", before=Killer(), after=counter, options=None)
    counts = counter.counted()
    for trial in range(trials):
        options, plan = drawn.choice(OPTIONS), []
        for _ in range(kills):
            event = drawn.choice([*counts])
            at = event, drawn.randint(1, counts[event])
            first, second = drawn.choice([(at, None), (None, at)])
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
def test_a_killed_run_ends_like_one_that_was_not_killed(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Model, optimizer, scheduler, the Trainer's state, callbacks, loss, random numbers: equal."""
    if name == "schedule-free":
        pytest.importorskip("schedulefree", reason="schedulefree is not installed")
    soak = request.config.getoption("--soak")
    if not soak and name.startswith(SIMILAR) and not name.endswith(("cosine", "adafactor", "sgd")):
        pytest.skip("like the others, and run with --soak")
    kills, trials = (3, 8) if soak else (1, 1)
    seed = zlib.crc32(name.encode())
    kill_and_compare(CONFIGURATIONS[name], tmp_path, seed, kills=kills, trials=trials)
