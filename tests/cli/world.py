"""A small world to run commands in: learnable data, an owner's key, a network, a sealed dataset."""

import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from click.testing import CliRunner

from plinius.cli.main import main
from plinius.data.sealed_dataset import seal_dataset
from plinius.keys import OwnerKey
from plinius.slots import newest_snapshot
from plinius.sources.idx import idx_source

SIDE, CLASSES, RECORDS, HELD_OUT, ITERATIONS = 8, 4, 320, 80, 24
PLINIUS = Path(sys.executable).parent / "plinius"

CFG = """\
[net]
batch=8
subdivisions=1
height=8
width=8
channels=1
learning_rate=0.1
momentum=0.9
decay=0.0005
policy=poly
power=4
max_batches=24

[convolutional]
batch_normalize=1
filters=6
size=3
stride=1
pad=1
activation=leaky

[maxpool]
size=2
stride=2

[convolutional]
filters=8
size=3
stride=1
pad=1
activation=leaky

[dropout]
probability=.3

[convolutional]
filters=4
size=1
stride=1
activation=linear

[avgpool]

[softmax]
groups=1
"""


class Result(NamedTuple):
    """The exit code of a command, and what it wrote."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The one JSON object on stdout, of a command that succeeded."""
        assert self.code == 0, self.stderr
        assert self.stdout.count("\n") == 1, self.stdout
        result = json.loads(self.stdout)
        assert isinstance(result, dict)
        return result


@dataclass(frozen=True)
class World:
    """Files of the small world, made once and never changed."""

    folder: Path
    images: Path
    labels: Path
    key: Path
    other_key: Path
    cfg: Path
    data: Path
    held_out: Path

    def train(self, region: Path, *more: object) -> list[object]:
        """The arguments that train in `region`, on one thread."""
        what = ["--data", self.data, "--region", region, "--key", self.key, "--threads", 1]
        return ["train", self.cfg, *what, *more]


def make_world(folder: Path) -> World:
    """Write the small world into a folder."""
    world = World(
        folder,
        *(folder / name for name in ("images.idx", "labels.idx", "owner.key", "other.key")),
        *(folder / name for name in ("small.cfg", "train.sealed", "held-out.sealed")),
    )
    x, y = textures(RECORDS, seed=1)
    write_idx(world.images, x)
    write_idx(world.labels, y)
    held_x, held_y = textures(HELD_OUT, seed=2)
    write_idx(folder / "held-images.idx", held_x)
    write_idx(folder / "held-labels.idx", held_y)
    world.cfg.write_text(CFG)
    key = OwnerKey.generate()
    key.save(world.key)
    OwnerKey.generate().save(world.other_key)
    seal_dataset(idx_source(world.images, world.labels, CLASSES), key, world.data)
    held = idx_source(folder / "held-images.idx", folder / "held-labels.idx", CLASSES)
    seal_dataset(held, key, world.held_out)
    return world


def textures(count: int, seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Grey images of four textures under noise, and which of them each one is."""
    random = np.random.default_rng(seed)
    row, column = np.indices((SIDE, SIDE))
    kinds = np.stack([row % 2, column % 2, (row + column) % 2, np.zeros_like(row)])
    labels = random.integers(0, CLASSES, count).astype(np.uint8)
    noise = random.integers(0, 80, (count, SIDE, SIDE))
    return (kinds[labels] * 150 + noise).astype(np.uint8), labels


def write_idx(path: Path, array: npt.NDArray[np.uint8]) -> None:
    """Write an array of bytes as an IDX file."""
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(head + array.tobytes())


def run(*arguments: object, env: dict[str, str] | None = None) -> Result:
    """Run a command in a process of its own."""
    ended = subprocess.run(
        [PLINIUS, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | (env or {}),
    )
    return checked(Result(ended.returncode, ended.stdout, ended.stderr))


def call(*arguments: object) -> Result:
    """Run a command in this process, which is faster than in another one."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        ended = CliRunner().invoke(main, [str(argument) for argument in arguments])
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
        if threading.current_thread() is threading.main_thread():
            for number, handler in kept.items():
                signal.signal(number, handler)
    if ended.exception is not None and not isinstance(ended.exception, SystemExit):
        raise ended.exception
    return checked(Result(ended.exit_code, ended.stdout, ended.stderr))


def checked(result: Result) -> Result:
    """Check what is true of every command: no traceback, and no stdout from one that failed."""
    assert "Traceback" not in result.stdout + result.stderr, result.stderr
    assert result.code == 0 or result.stdout == "", result.stdout
    return result


def digest_of(region: Path, key: Path) -> str:
    """The digest of the state mirrored in a region."""
    from plinius.key_file import load_key

    return newest_snapshot(region, load_key(key)).digest()


def tree(*folders: Path) -> dict[str, str]:
    """Every path under some folders, with the hash of what is in it."""
    found = {}
    for path in sorted(path for folder in folders for path in folder.rglob("*")):
        found[str(path)] = (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        )
    return found


@contextmanager
def memory_folder() -> Iterator[Path | None]:
    """A folder in a memory file system, or None where there is none."""
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK):
        yield None
        return
    folder = Path(tempfile.mkdtemp(prefix="plinius-test-", dir=shm))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def mounted(folder: Path, *arguments: str) -> Iterator[bool]:
    """Mount on a folder for the `with` block; gives False if this process may not mount."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", *arguments, str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        done = False
    try:
        yield done
    finally:
        if done:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
