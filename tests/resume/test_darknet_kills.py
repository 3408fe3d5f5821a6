"""SIGKILL in detection, sequence and augmented runs: all end with the uninterrupted digest."""

import os
import secrets
from dataclasses import replace
from pathlib import Path

import pytest

from cli.darknet_runs import RUNS, sealed
from cli.world import World
from resume.test_kills import UNTIL, killer

KILLED_RUNS = 4


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
