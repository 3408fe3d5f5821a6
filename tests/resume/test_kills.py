"""SIGKILL at random moments: every run ends with the digest of the uninterrupted run.

The moments follow from a printed seed: PLINIUS_TEST_SEED=... repeats them, as far as a machine
repeats its timing. `--soak` does many more runs.
"""

import json
import os
import random
import secrets
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cli.world import (
    CFG,
    CLASSES,
    PLINIUS,
    World,
    call,
    digest_of,
    memory_folder,
    run,
    textures,
    write_idx,
)
from plinius.data.sealed_dataset import seal_dataset
from plinius.key_file import load_key
from plinius.slots import newest_snapshot
from plinius.sources.idx import idx_source

KILLER = Path(__file__).with_name("killer.py")
UNTIL = 24
LARGE = 30_000
RUNS, SOAKED_RUNS = 20, 400


@pytest.fixture(scope="module")
def seed() -> str:
    """What the moments of the kills follow from; pytest shows it when a test fails."""
    return os.environ.get("PLINIUS_TEST_SEED", secrets.token_hex(4))


@pytest.fixture(scope="module")
def large(world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The small world with a dataset that takes a while to load, so that kills can fall there."""
    x, y = textures(LARGE, seed=6)
    folder = tmp_path_factory.mktemp("large")
    write_idx(folder / "images", x)
    write_idx(folder / "labels", y)
    source = idx_source(folder / "images", folder / "labels", CLASSES)
    seal_dataset(source, load_key(world.key), folder / "large.sealed")
    return replace(world, data=folder / "large.sealed")


@pytest.fixture(scope="module")
def uninterrupted(large: World, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest at the end of a real `plinius train` that is not interrupted."""
    region = tmp_path_factory.mktemp("uninterrupted") / "run.region"
    told = run(*large.train(region, "--iterations", UNTIL, "--json"))
    assert told.json["iteration"] == UNTIL
    return str(run("digest", "--region", region, "--key", large.key, "--json").json["digest"])


def test_runs_on_disk_end_the_same_whenever_they_are_killed(
    large: World, uninterrupted: str, seed: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """20 of 20 runs of several kills each, in a region on disk, end with the same digest."""
    _kill_and_compare(large, tmp_path, seed, uninterrupted, request)


def test_runs_in_memory_end_the_same_whenever_they_are_killed(
    large: World, uninterrupted: str, seed: str, request: pytest.FixtureRequest
) -> None:
    """20 of 20 runs of several kills each, in a region on tmpfs, end with the same digest."""
    with memory_folder() as folder:
        if folder is None:
            pytest.skip("there is no memory file system to write to")
        _kill_and_compare(large, folder, seed, uninterrupted, request)


def test_a_real_trainer_ends_the_same_whenever_it_is_killed(
    world: World, seed: str, tmp_path: Path
) -> None:
    """`plinius train`, which validates, killed as a whole process: the same digest too."""
    print(f"PLINIUS_TEST_SEED={seed}")
    moments = random.Random(seed)
    region, metrics, until = tmp_path / "run.region", tmp_path / "metrics.jsonl", 400
    cfg = tmp_path / "long.cfg"
    cfg.write_text(CFG.replace("max_batches=24", f"max_batches={until}"))
    whole = tmp_path / "whole.region"
    validating = ["--validate", world.held_out, "--validate-every", 7, "--patience", until]
    arguments = world.train(region, "--metrics", metrics, *validating)
    arguments[1] = cfg
    target, seen = 0, -1
    for _ in range(3):
        process = subprocess.Popen(
            [PLINIUS, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        target += moments.randint(5, 110)
        while _lines(metrics) < target and process.poll() is None:
            time.sleep(moments.uniform(0, 0.004))
        process.kill()
        _, said = process.communicate()
        assert process.returncode == -9, said
        left = newest_snapshot(region, load_key(world.key)).iteration
        assert target <= left < until
        assert left > seen
        target = seen = left
    told = run(*arguments, "--json")
    assert told.json["iteration"] == until
    assert told.json["resumed_at"] == seen
    assert f"Resumed at iteration {seen}, bit-identical." in told.stderr
    arguments[arguments.index(region)] = whole
    assert call(*arguments).code == 0
    assert digest_of(region, world.key) == digest_of(whole, world.key)


def test_a_kill_before_the_first_name_is_removed_leaves_one_name(
    world: World, trained: Path, tmp_path: Path
) -> None:
    """A region killed while it had both its names is opened under its own, and loses the other."""
    region = tmp_path / "run.region"
    shutil.copy(trained, region)
    (tmp_path / "run.region.creating").hardlink_to(region)
    assert call(*world.train(region)).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["run.region"]


def test_a_kill_while_the_region_is_made_does_no_harm(world: World, tmp_path: Path) -> None:
    """What a killed creation left, of whatever size, is taken over by the next start."""
    for size in (0, 1, 4096, 135168, 1 << 20):
        region = tmp_path / f"{size}.region"
        (tmp_path / f"{size}.region.creating").write_bytes(b"\xff" * size)
        assert call(*world.train(region, "--iterations", 1)).code == 0
        assert call("region", "verify", region, "--key", world.key).code == 0
        assert not (tmp_path / f"{size}.region.creating").exists()


def _kill_and_compare(
    world: World, folder: Path, seed: str, uninterrupted: str, request: pytest.FixtureRequest
) -> None:
    print(f"PLINIUS_TEST_SEED={seed}")
    runs = SOAKED_RUNS if request.config.getoption("--soak") else RUNS
    (told,) = killer(job_of(world, folder, seed, runs))
    fell: Counter[str] = Counter()
    for number, killed in enumerate(told["killed"]):
        assert killed["wrong"] == [], f"run {number}: {killed}"
        assert killed["iteration"] == UNTIL, f"run {number}: {killed}"
        assert killed["digest"] == uninterrupted, f"run {number}: {killed}"
        assert len(killed["kills"]) >= 3
        fell.update("iteration" if k.startswith("iteration") else k for k in killed["kills"])
    print("kills fell:", dict(fell))
    # A fork that trains differently from a fresh process would make all of this prove nothing.
    assert told["digests"][-1] == uninterrupted
    assert len(set(told["digests"])) == UNTIL + 1
    # Kills that all fell at one stage would prove little; each run has one that waits for an
    # iteration, and every other run one that waits for the region to appear.
    assert fell["iteration"] >= runs
    assert sum(fell.values()) > fell["iteration"]


def job_of(
    world: World,
    folder: Path,
    seed: str,
    runs: int,
    until: int = UNTIL,
    validate: Path | None = None,
) -> dict[str, Any]:
    """A job for `killer`."""
    return {
        "cfg": str(world.cfg),
        "data": str(world.data),
        "key": str(world.key),
        "folder": str(folder),
        "seed": seed,
        "runs": runs,
        "until": until,
        "validate": str(validate or ""),
    }


def killer(*jobs: dict[str, Any]) -> list[Any]:
    """The work of killer.py in a process of its own: what became of each job."""
    command = [sys.executable, str(KILLER), json.dumps(jobs)]
    alone = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    given = os.environ.get("PYTHONPATH")
    alone["PYTHONPATH"] = os.pathsep.join(filter(None, [str(KILLER.parents[1]), given]))
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, env=alone)
    assert done.returncode == 0, done.stderr
    told: list[Any] = json.loads(done.stdout)
    return told


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
