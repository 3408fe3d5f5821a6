"""The Lightning callback: with every configuration, a killed run ends like one that was not."""

import contextlib
import random
import zlib
from pathlib import Path
from typing import Any

import pytest

from plinius.errors import StateError

pytest.importorskip("lightning", reason="lightning is not installed")
from integrations.lightning_runs import CONFIGURATIONS, PLACES, KilledError, fit

LONGER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "SGD": ({"max_steps": 10}, {"max_steps": 20}),
    "plateau, epochs": ({"max_epochs": 2}, {"max_epochs": 4}),
    "accumulation that changes": ({"max_epochs": 2, "max_steps": -1}, {"max_epochs": 4}),
    "means": ({"max_steps": 5}, {"max_epochs": 3, "max_steps": -1}),
    "early stopping": ({"max_epochs": 1}, {"max_epochs": 9}),
    "the best checkpoint": ({"max_steps": 10}, {"max_steps": 20}),
    "by hand": ({"max_steps": 10}, {"max_steps": 20}),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_killed_run_ends_like_one_that_was_not_killed(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Model, optimizers, schedules, counts, metrics, callbacks, random numbers: equal."""
    trials, kills = (20, 3) if request.config.getoption("--soak") else (1, 3)
    drawn = random.Random(zlib.crc32(name.encode()))
    wanted = fit(name, tmp_path / "whole.region")
    for trial in range(trials):
        region = tmp_path / f"{trial}.region"
        plan = [(drawn.choice(PLACES), drawn.randint(1, 8)) for _ in range(kills)]
        for place, at in plan:
            with contextlib.suppress(KilledError):
                assert fit(name, region, place, at) == wanted, plan
        assert fit(name, region) == wanted, plan


@pytest.mark.parametrize("name", LONGER)
def test_a_run_that_has_ended_continues_as_a_longer_one(name: str, tmp_path: Path) -> None:
    """It ended with an epoch; then the limits are raised, and it is killed once."""
    short, long = LONGER[name]
    wanted = fit(name, tmp_path / "whole.region", **long)
    region = tmp_path / "run.region"
    fit(name, region, **short)
    with pytest.raises(KilledError):
        fit(name, region, "on_train_batch_start", 2, **long)
    assert fit(name, region, **long) == wanted


@pytest.mark.parametrize(
    ("name", "short", "long", "reason"),
    [
        ("SGD", {"max_steps": 12}, {"max_steps": 20}, "it ended within an epoch"),
        ("epochs", {"max_steps": 12}, {"max_steps": 20}, "it ended within an epoch"),
        (
            "hooks that draw",
            {"max_steps": 10},
            {"max_steps": 20},
            "on_train_end of RandomHooks has run",
        ),
        ("averaged weights", {"max_steps": 10}, {"max_steps": 20}, "on_train_end of Weight"),
        ("until the end", {"max_steps": 10}, {"max_steps": 20}, "a schedule was made for other"),
    ],
)
def test_a_run_that_cannot_continue_as_a_longer_one_is_refused(
    name: str, short: dict[str, Any], long: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    """The error names the reason; with the first limits the final state is restored."""
    region = tmp_path / "run.region"
    wanted = fit(name, region, **short)
    with pytest.raises(StateError, match=f"cannot continue as a longer one: {reason}"):
        fit(name, region, **long)
    assert fit(name, region, **short) == wanted
