"""The Lightning callback: whatever is configured, a killed run ends as one that was not."""

import random
import zlib
from pathlib import Path

import pytest

pytest.importorskip("lightning", reason="lightning is not installed")
from integrations.lightning_runs import CONFIGURATIONS, PLACES, KilledError, fit


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_killed_run_ends_as_one_that_was_not(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Model, optimizers, schedules, counts, callbacks, random numbers: equal."""
    trials, kills = (12, 3) if request.config.getoption("--soak") else (2, 2)
    chance = random.Random(zlib.crc32(name.encode()))
    wanted = fit(name, tmp_path / "whole.region")
    for trial in range(trials):
        region, plan = tmp_path / f"{trial}.region", []
        for _ in range(kills):
            plan.append((chance.choice(PLACES), chance.randint(1, 8)))
            try:
                fit(name, region, *plan[-1])
            except KilledError:
                continue
        assert fit(name, region) == wanted, plan
