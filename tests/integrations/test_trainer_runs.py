"""The Hugging Face callback: whatever is configured, a killed run ends as one that was not."""

import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")
from integrations.trainer_configurations import CONFIGURATIONS  # noqa: E402
from integrations.trainer_runs import Build, Killed, Killer, run  # noqa: E402

OPTIONS: list[dict[str, Any]] = [{}, {"overlap": True}, {"every": 3}, {"overlap": True, "every": 2}]


def kill_and_compare(
    build: Build, folder: Path, seed: int, *, kills: int, trials: int
) -> None:
    """Run whole, without a mirror and with one; then kill at random places, and compare."""
    chance = random.Random(seed)
    watch = Killer()
    wanted = run(build, folder / "bare", before=Killer(), after=watch, options=None)
    mirrored = run(build, folder / "whole", before=Killer(), after=Killer(), options={})
    assert differing(wanted, mirrored) == []
    for trial in range(trials):
        options = chance.choice(OPTIONS)
        counts = watch.counted()
        place = folder / str(trial)
        plan = []
        for _ in range(kills):
            event = chance.choice([*counts])
            at = event, chance.randint(1, counts[event])
            plan.append((at, chance.random() < 0.5))
            first, second = (at, None) if plan[-1][1] else (None, at)
            try:
                run(build, place, before=Killer(first), after=Killer(second), options=options)
            except Killed:
                continue
        ended = run(build, place, before=Killer(), after=Killer(), options=options)
        assert differing(wanted, ended) == [], (plan, options)


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[Any]:
    """What of two outcomes differs."""
    return [
        (name, [(it, other[name].get(key)) for key, it in one[name].items() if it != other[name].get(key)]
         if isinstance(one[name], dict) and name in ("state", "control") else "")
        for name in one if one[name] != other[name]
    ]


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_killed_run_ends_as_one_that_was_not(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Model, optimizer, scheduler, the Trainer's state, callbacks, loss, random numbers: equal."""
    soak = request.config.getoption("--soak")
    kills, trials = (2, 12) if soak else (1, 1)
    kill_and_compare(CONFIGURATIONS[name], tmp_path, len(name), kills=kills, trials=trials)
