"""What the doctor says."""

import json
import re
import shutil
from pathlib import Path

import pytest

from cli.world import (
    World,
    call,
    memory_folder,
)


def test_the_doctor_claims_no_protection_that_is_not_there(trained: Path) -> None:
    """It says simulation, unattested and rollback plainly, in words and in JSON."""
    plain, json_of = call("doctor"), call("doctor", trained, "--json").json
    assert plain.code == 0
    said = " ".join((plain.stdout + plain.stderr).split())
    for words in ("simulation, not a TEE", "unattested", "an older copy"):
        assert words in said
    unprotected = {topic for topic, finding in json_of.items() if finding["protected"] is False}
    assert {"memory while training", "key release", "rollback"} <= unprotected
    for result in (said, json.dumps(json_of)):
        assert not re.search(r"(protected by|runs? in|inside) (an? )?(SGX|TDX|SEV)", result)
        assert not re.search(r"SGX[^.;]{0,20}(yes|protects|active)", result)


def test_the_doctor_names_the_region_whatever_it_is_called(trained: Path, tmp_path: Path) -> None:
    """A path is shown whole and as it is, brackets and all, though stderr is no terminal."""
    region = tmp_path / "a[" / "b]:key:.region"
    region.parent.mkdir()
    shutil.copy(trained, region)
    result = call("doctor", region)
    assert result.code == 0
    assert f"region {region}" in result.stdout + result.stderr


def test_the_doctor_never_calls_memory_durable(world: World, trained: Path) -> None:
    """A region in tmpfs is not protected against a power cut; one on disk is said to be."""
    with memory_folder() as folder:
        if folder is None:
            pytest.skip("there is no memory file system to write to")
        copy = folder / "run.region"
        shutil.copy(trained, copy)
        finding = call("doctor", copy, "--json").json[f"region {copy}"]
        assert finding["protected"] is False
        assert "PROCESS" in finding["found"]
        assert "power-off" in finding["found"]
        result = " ".join(call("doctor", copy).stdout.split()) + json.dumps(finding)
        assert "durable" not in result
        trained_there = call(*world.train(copy))
        assert "a process kill only" in trained_there.stderr
        assert "power cut" not in trained_there.stderr
