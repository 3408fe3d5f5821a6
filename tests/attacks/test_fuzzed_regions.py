"""Regions with other bytes in them, through everything that reads one: only typed refusals."""

import contextlib
import hashlib
import os
import random
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cli.world import call
from plinius.errors import PliniusError
from plinius.integrations.distributed_checkpoint import RegionStorage
from plinius.keys import OwnerKey
from plinius.mirror import Mirror
from plinius.pm.region import Region
from plinius.slots import describe_mirror, newest_snapshot
from plinius.slots.layout import commit_word
from plinius.structures.persistent_array import PersistentArray
from plinius.structures.stack_and_queue import PersistentQueue, PersistentStack
from unit.mirroring import KEY

MEMORY = Path("/dev/shm")


def state() -> dict[str, Any]:
    """A small run's objects."""
    model = torch.nn.Linear(50, 50)
    return {"m": model, "o": torch.optim.SGD(model.parameters(), lr=0.1), "n": 1, "l": [1, 2]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A region with a mirror of some commits, and one of each structure."""
    path = tmp_path_factory.mktemp("whole") / "run.region"
    with Mirror.open(path, KEY, state()) as mirror:
        for iteration in range(1, 5):
            mirror.mirror_out(iteration)
    with Region.open(path) as region:
        array = PersistentArray.create(region, "array", 100)
        stack = PersistentStack.create(region, "stack")
        queue = PersistentQueue.create(region, "queue", "int64")
        with region.twins.transaction():
            array[3:9] = 7
            for item in range(9):
                stack.push(b"item" * item)
                queue.push(item)
    return path.read_bytes()


def through_the_mirror(path: Path) -> None:
    with Mirror.open(path, KEY, state()) as mirror:
        try:
            mirror.mirror_in()
        except PliniusError:
            mirror.mirror_in(accept_previous=True)
        for iteration in (9, 10):
            mirror.mirror_out(iteration)
        assert mirror.mirror_in() == 10 or mirror.failure


def through_the_structures(path: Path) -> None:
    with Region.open(path) as region:
        region.consistency_check()
        array = PersistentArray.open(region, "array")
        stack = PersistentStack.open(region, "stack")
        queue = PersistentQueue.open(region, "queue")
        with region.twins.transaction():
            array[0:50].sum()
            for chain in (stack, queue):
                chain.push(b"more" if chain is stack else 5)
                while len(chain):
                    chain.pop()


def through_a_checkpoint(path: Path) -> None:
    with RegionStorage(path, KEY) as storage:
        storage.read_metadata()


def as_a_reader(path: Path) -> None:
    with Region.open(path, writable=False) as region:
        describe_mirror(region)
    newest_snapshot(path, KEY)


WAYS: list[Callable[[Path], None]] = [
    as_a_reader, through_a_checkpoint, through_the_structures, through_the_mirror,
]  # fmt: skip


def mutated(whole: bytes, rng: random.Random) -> bytes:
    """The region with bits, words or pages changed, cut short or made longer."""
    raw, kind = bytearray(whole), rng.randrange(8)
    mirror = whole.index(b"PLNSMIRR")
    zones = [(0, 4096), (4096, 8192), (4096, 4096 + 65536), (mirror, mirror + 4096),
             (mirror + 4096, mirror + 8192), (mirror, len(whole)), (0, len(whole))]  # fmt: skip
    words = [0, 1, 2**63, 2**64 - 1, len(whole), 4096, 2**32, 2**40, mirror, 65536]
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(*rng.choice(zones))
        if kind < 3:
            raw[at] ^= 1 << rng.randrange(8)
        elif kind < 5:
            word = rng.choice([*words, rng.getrandbits(64)])
            raw[at // 8 * 8 : at // 8 * 8 + 8] = word.to_bytes(8, "little")
        else:
            one, other = (rng.randrange(len(whole) // 4096) * 4096 for _ in range(2))
            page = raw[one : one + 4096]
            raw[one : one + 4096], raw[other : other + 4096] = raw[other : other + 4096], page
    if rng.random() < 0.5:
        recheck(raw, mirror, rng)
    if kind == 6:
        del raw[rng.randrange(len(raw)) :]
    return bytes(raw) + (bytes(rng.randrange(1, 9000)) if kind == 7 else b"")


def recheck(raw: bytearray, mirror: int, rng: random.Random) -> None:
    """Make every public check hold again, as a host can, so that what follows is read."""
    raw[40:64] = hashlib.sha256(raw[:40]).digest()[:24]
    run_id = bytes(raw[mirror + 16 : mirror + 32])
    size = int.from_bytes(raw[mirror + 40 : mirror + 48], "little")
    newest = rng.choice([2, 3, 4, 5, 6, 2**39])
    for counter in (newest, newest - 1):
        at = mirror + 4096 + counter % 2 * size
        if at + 8 <= len(raw):
            raw[at : at + 8] = commit_word(run_id, counter).to_bytes(8, "little")
    if rng.random() < 0.5:  # the twins as a transaction left them, or alike
        raw[64:72] = rng.choice([b"IDLE\0\0\0\0", b"MUTATING", b"COPYING\0"])
        raw[4096 + 65536 : 4096 + 2 * 65536] = raw[4096 : 4096 + 65536]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, if there is one."""
    folder = MEMORY / f"plinius-fuzz-{os.getpid()}" if os.access(MEMORY, os.W_OK) else tmp_path
    folder.mkdir(exist_ok=True)
    yield folder
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize("way", [as_a_reader, through_the_structures, through_the_mirror])
def test_the_whole_region_goes_through(way: Any, whole: bytes, place: Path) -> None:
    """So that what is refused below is refused for its bytes."""
    path = place / "run.region"
    path.write_bytes(whole)
    way(path)


def test_a_mutated_region_is_opened_or_refused(
    whole: bytes, place: Path, request: pytest.FixtureRequest
) -> None:
    """In 1,500 ways, or 100,000: no other exception, no endless chain, no huge memory."""
    rng = random.Random(int(os.environ.get("PLINIUS_TEST_SEED", "1")))
    rounds = 100_000 if request.config.getoption("--soak") else 1_500
    refusals = 0
    for number in range(rounds):
        path = place / "run.region"
        path.unlink(missing_ok=True)
        path.write_bytes(mutated(whole, rng))
        for way in WAYS:
            try:
                way(path)
            except PliniusError:
                refusals += 1
            except Exception as error:
                raise AssertionError(f"mutation {number}, {way.__name__}") from error
    assert refusals > rounds


@pytest.mark.filterwarnings("ignore")
def test_commands_say_a_sentence_about_a_mutated_region(whole: bytes, place: Path) -> None:
    """inspect, region info, region verify, digest: exit 0 or 1, never a traceback."""
    rng = random.Random(2)
    key = place / "owner.key"
    OwnerKey(bytes(range(32))).save(key)
    for _ in range(60):
        path = place / "run.region"
        path.write_bytes(mutated(whole, rng))
        for command in (
            ("inspect", path),
            ("region", "info", path),
            ("region", "verify", path, "--key", key),
            ("digest", "--region", path, "--key", key),
        ):
            told = call(*command)
            assert told.code in (0, 1), told.stderr
            assert "Traceback" not in told.stderr


def test_bytes_that_flip_while_a_region_is_used(whole: bytes, place: Path) -> None:
    """The host writes to the mapped file all the time."""
    path = place / "run.region"
    stop, rng = threading.Event(), random.Random(3)

    def flip() -> None:
        with path.open("r+b", buffering=0) as file:
            while not stop.is_set():
                file.seek(rng.randrange(len(whole)))
                file.write(bytes([rng.randrange(256)]))
                time.sleep(0)

    until = time.monotonic() + 4
    while time.monotonic() < until:
        path.unlink(missing_ok=True)
        path.write_bytes(whole)
        stop.clear()
        host = threading.Thread(target=flip)
        host.start()
        try:
            for way in WAYS:
                with contextlib.suppress(PliniusError):
                    way(path)
        finally:
            stop.set()
            host.join()


def test_a_checkpoint_is_no_mirrored_state(tmp_path: Path) -> None:
    """Nor the other way round: each says so."""
    import torch.distributed.checkpoint as dcp

    from plinius.integrations.distributed_checkpoint import SavePlanner

    path = tmp_path / "run.region"
    with RegionStorage(path, KEY) as storage, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"a": torch.ones(3)}, storage_writer=storage, planner=SavePlanner())
    with Mirror.open(path, KEY, {"a": torch.ones(3)}) as mirror:
        with pytest.raises(PliniusError, match="it is not the state of a mirror but a checkpoint"):
            mirror.mirror_in()
