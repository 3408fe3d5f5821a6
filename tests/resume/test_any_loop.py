"""A user's own loop, killed at random: it ends as the uninterrupted loop."""

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from cli.world import memory_folder

KILLER = Path(__file__).with_name("any_loop.py")


@pytest.mark.parametrize(
    ("place", "mode"), [("disk", "plain"), ("disk", "overlap"), ("memory", "overlap")]
)
def test_a_loop_killed_at_random_ends_as_one_that_was_not(
    place: str, mode: str, tmp_path: Path
) -> None:
    """SIGKILL at a dozen random moments: no reported commit is lost, the last digest is equal."""
    seed = os.environ.get("PLINIUS_TEST_SEED", str(secrets.randbits(32)))
    print(f"PLINIUS_TEST_SEED={seed}")
    with memory_folder() as memory:
        if place == "memory" and memory is None:
            pytest.skip("there is no memory file system to write to")
        folder = memory if place == "memory" and memory is not None else tmp_path
        done = subprocess.run(
            [sys.executable, KILLER, folder, seed, mode],
            capture_output=True, text=True, timeout=300,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["killed"] == told["whole"]
    assert told["lost"] == 0
