"""SIGKILL in detection, sequence and augmented runs: all end with the uninterrupted digest."""

import importlib
import os
import secrets
from dataclasses import replace
from pathlib import Path

import pytest

from cli.darknet_runs import RUNS, sealed
from cli.world import World
from plinius.keys import load_key
from resume.test_kills import UNTIL, killer

KILLED_RUNS = 4
SHORT = 12  # the pictures of scenes.cfg get another size at 10
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("kind", RUNS)
def test_runs_of_every_kind_end_alike_whenever_they_are_killed(
    kind: str, world: World, tmp_path: Path
) -> None:
    """Four runs of 3 to 6 kills each, so more than 10: boxes, sequences with states, crops."""
    seed = os.environ.get("PLINIUS_TEST_SEED", secrets.token_hex(4))
    print(f"PLINIUS_TEST_SEED={seed}")
    cfg = tmp_path / "net.cfg"
    cfg.write_text(RUNS[kind])
    told = killer(
        replace(world, cfg=cfg, data=sealed(world, kind, tmp_path)), tmp_path, seed, KILLED_RUNS
    )
    assert len(set(told["digests"])) == UNTIL + 1
    for killed in told["killed"]:
        assert killed["wrong"] == []
        assert killed["digest"] == told["digests"][-1]
    assert sum(len(killed["kills"]) for killed in told["killed"]) >= 10


@pytest.mark.parametrize("example", ["digits", "scenes", "characters"])
def test_the_examples_end_alike_whenever_they_are_killed(
    example: str,
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """One run of 3 to 6 kills each, with --soak ten: changed pictures, boxes, a text."""
    if example != "characters":
        pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    module = importlib.import_module(f"darknet_{example}")
    key = load_key(world.key)
    if example == "scenes":
        data, _ = module.seal_scenes(tmp_path, key, (40, 2))
    else:
        data, _ = getattr(module, {"digits": "seal_digits", "characters": "seal_text"}[example])(
            tmp_path, key
        )
    seed = os.environ.get("PLINIUS_TEST_SEED", secrets.token_hex(4))
    print(f"PLINIUS_TEST_SEED={seed}")
    runs = 10 if request.config.getoption("--soak") else 1
    told = killer(replace(world, cfg=module.CFG, data=data), tmp_path, seed, runs, SHORT)
    assert len(set(told["digests"])) == SHORT + 1
    for killed in told["killed"]:
        assert (killed["wrong"], killed["digest"]) == ([], told["digests"][-1])
