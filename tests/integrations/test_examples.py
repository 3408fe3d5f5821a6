"""Every example, killed and started again, ends like one that was not killed."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from plinius.cli.inspect_files import describe_mirror
from plinius.errors import PliniusError
from plinius.key_file import load_key
from plinius.pm.region import Region
from plinius.slots import newest_snapshot

EXAMPLES = Path(__file__).parents[2] / "examples"
NEEDS = {
    "cnn": "sklearn",
    "sealed_resnet": "sklearn",
    "tabular": "pyarrow",
    "language_model": "torch",
    "lora": "torch",
    "checkpoint": "torch",
    "lightning_fit": "lightning",
    "hugging_face": "transformers",
    "accelerate_loop": "accelerate",
}
REGIONS = {"lightning_fit": "lightning", "accelerate_loop": "accelerate"}
SEALED = ("sealed_resnet", "tabular")
SLOW = {"lora", "sealed_resnet", "lightning_fit", "hugging_face"}
"""Examples whose loader remembers its dataset: both runs have the same sealed files."""
ITERATIONS, KILLED_AFTER = 40, 12


def start(example: str, work: Path) -> subprocess.Popen[str]:
    script, end = EXAMPLES / f"{example}.py", str(ITERATIONS)
    return subprocess.Popen(
        [sys.executable, script, "--work", work, "--iterations", end],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip


def commits(region: Path) -> int:
    """How many commits the mirror has; a running process holds the region, so a copy is read."""
    copied = region.with_suffix(".copy")
    try:
        shutil.copy(region, copied)
        with Region.open(copied, writable=False) as opened:
            mirror = describe_mirror(opened)
    except (PliniusError, FileNotFoundError):
        return 0
    return int(str(mirror["commits"])) if mirror else 0


def finished(process: subprocess.Popen[str]) -> str:
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return out


def digest(example: str, work: Path) -> str:
    """The digest without the generators that are not seeded: they differ between processes."""
    region = work / f"{REGIONS.get(example, example)}.region"
    snapshot = newest_snapshot(region, load_key(work / "owner.key"))
    assert snapshot.iteration == ITERATIONS
    tensors = [t for t in snapshot.tensors if not t.name.startswith(("~rng/python", "~rng/numpy"))]
    values = {name: value for name, value in snapshot.values.items() if name != "~rng"}
    return replace(snapshot, tensors=tuple(tensors), values=values).digest()


def test_every_example_is_tested() -> None:
    """A script in the folder is an example, or a module that the examples share.

    Those of Darknet networks are killed in tests/resume/test_darknet_kills.py.
    """
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    darknet = {f"darknet_{name}" for name in ("digits", "scenes", "characters")}
    assert scripts - set(NEEDS) - darknet == {"place", "model", "text", "darknet_run"}


@pytest.mark.parametrize("example", NEEDS)
def test_an_example_that_is_killed_ends_like_one_that_is_not(
    example: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """SIGKILL after some commits; started again it resumes, and the digests are equal.

    The slowest examples are only run to their end without --soak.
    """
    pytest.importorskip(NEEDS[example], reason=f"{NEEDS[example]} is not installed")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    if example in SLOW and not request.config.getoption("--soak"):
        finished(start(example, whole))
        assert digest(example, whole)
        return
    if example in SEALED:
        finished(start(example, whole))
        (whole / f"{example}.region").unlink()
        shutil.copytree(whole, killed)
    running = start(example, whole)
    victim = start(example, killed)
    region = killed / f"{REGIONS.get(example, example)}.region"
    enough = 1 if example == "checkpoint" else KILLED_AFTER
    deadline = time.monotonic() + 120
    while commits(region) < enough:
        assert victim.poll() is None, victim.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    victim.kill()
    victim.communicate()
    before = newest_snapshot(region, load_key(killed / "owner.key")).iteration
    assert 0 < before < ITERATIONS
    finished(start(example, killed))
    finished(running)
    assert digest(example, killed) == digest(example, whole)
