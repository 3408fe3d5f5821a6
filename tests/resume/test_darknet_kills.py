"""SIGKILL in Darknet runs of every kind, and in those of the examples: all end alike."""

import importlib
import os
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cli.darknet_runs import RUNS, sealed
from cli.world import World
from plinius.key_file import load_key
from resume.test_kills import UNTIL, job_of, killer

KILLED_RUNS = 4
SHORT = 12  # the pictures of scenes.cfg get another size at 10
EXAMPLES = Path(__file__).parents[2] / "examples"
SEALED: dict[str, Callable[[Any], Callable[..., tuple[Path, Path]]]] = {
    "digits": lambda module: module.seal_digits,
    "scenes": lambda module: lambda folder, key: module.seal_scenes(folder, key, (40, 2)),
    "characters": lambda module: module.seal_text,
}


@pytest.fixture
def seed() -> str:
    """What decides where the kills fall."""
    found = os.environ.get("PLINIUS_TEST_SEED", secrets.token_hex(4))
    print(f"PLINIUS_TEST_SEED={found}")
    return found


def require_alike(told: Any, until: int) -> int:
    """Every run ended with the digest of the uninterrupted one; returns how many kills there were.

    Each iteration changed the state.
    """
    assert len(set(told["digests"])) == until + 1
    for killed in told["killed"]:
        assert (killed["wrong"], killed["digest"]) == ([], told["digests"][-1])
    return sum(len(killed["kills"]) for killed in told["killed"])


def test_runs_of_every_kind_end_alike_whenever_they_are_killed(
    world: World, tmp_path: Path, seed: str
) -> None:
    """Four runs of 3 to 6 kills each, so more than 10: boxes, sequences with states, crops."""
    jobs = []
    for kind in RUNS:
        folder = tmp_path / kind
        folder.mkdir()
        (folder / "net.cfg").write_text(RUNS[kind])
        own = replace(world, cfg=folder / "net.cfg", data=sealed(world, kind, folder))
        jobs.append(job_of(own, folder, seed, KILLED_RUNS))
    for told in killer(*jobs):
        assert require_alike(told, UNTIL) >= 10


def test_the_examples_end_alike_whenever_they_are_killed(
    world: World, tmp_path: Path, seed: str, request: pytest.FixtureRequest
) -> None:
    """One run of 3 to 6 kills each, with --soak four: changed pictures, boxes, a text."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    runs = KILLED_RUNS if request.config.getoption("--soak") else 1
    jobs, key = [], load_key(world.key)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        for example, function in SEALED.items():
            module = importlib.import_module(f"darknet_{example}")
            folder = tmp_path / example
            folder.mkdir()
            data, _ = function(module)(folder, key)
            own = replace(world, cfg=module.CFG, data=data)
            jobs.append(job_of(own, folder, seed, runs, SHORT))
    for told in killer(*jobs):
        assert require_alike(told, SHORT) >= 3 * runs
