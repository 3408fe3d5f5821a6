"""Where the fuzz tests put what they change."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

MEMORY = Path("/dev/shm")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, if there is one."""
    if not os.access(MEMORY, os.W_OK):
        yield tmp_path
        return
    folder = MEMORY / f"plinius-fuzz-{os.getpid()}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)
