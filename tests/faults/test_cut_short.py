"""A region's file that is cut short under a program that uses the library: a typed refusal."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cli.world import memory_folder
from plinius.errors import StorageError
from plinius.mirror import Mirror
from plinius.pm.mapped import MappedMedium
from plinius.pm.region import Region
from unit.mirroring import KEY

SENTENCE = "The region's file was cut short under this process. Restore a whole copy of it"


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Both kinds of mapping."""
    with memory_folder() as memory:
        found = tmp_path if request.param == "disk" else memory
        if found is None:
            pytest.skip("there is no memory file system to write to")
        yield found


def test_a_mirror_raises_an_error_and_the_process_survives(folder: Path) -> None:
    """Whether it was noticed before or by the fault."""
    path = folder / "run.region"
    state: dict[str, Any] = {"weights": torch.ones(200_000), "n": 1}
    mirror = Mirror.open(path, KEY, state)
    mirror.mirror_out(1)
    whole = path.read_bytes()
    os.truncate(path, 3 * 4096)
    mirror.mirror_out(2)
    assert SENTENCE in str(mirror.failure)
    with pytest.raises(StorageError, match=SENTENCE):
        mirror.mirror_in()
    with pytest.raises(StorageError, match=SENTENCE):
        mirror.close()
    path.unlink()
    path.write_bytes(whole)
    with Mirror.open(path, KEY, state) as again:
        assert again.mirror_in() == 1


def test_every_way_into_the_mapping_is_guarded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the file ended after it was looked at."""
    path = folder / "run.region"
    with Region.create(path, 64 * 4096) as region:
        medium, at = region.medium, 40 * 4096
        os.truncate(path, 4096)
        monkeypatch.setattr(MappedMedium, "_check_whole", lambda self, offset, length: None)
        for touch in (
            lambda: medium.read(at, 100),
            lambda: medium.store(at, b"x" * 100),
            lambda: medium.store_word(at, 1),
            lambda: medium.copy(at, 0, 4096),
        ):
            with pytest.raises(StorageError, match=SENTENCE):
                touch()


def test_a_fault_elsewhere_ends_the_process_as_before(tmp_path: Path) -> None:
    """The handler takes only the faults of a region's own mapping."""
    program = f"""
import mmap, os
from plinius.pm.region import Region
Region.create({str(tmp_path / "run.region")!r}, 0)
path = {str(tmp_path / "other")!r}
open(path, "wb").write(bytes(8192))
mapped = mmap.mmap(os.open(path, os.O_RDWR), 8192)
os.truncate(path, 0)
mapped[5000]
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert ended.returncode == -signal.SIGBUS
