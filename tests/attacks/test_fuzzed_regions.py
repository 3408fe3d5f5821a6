"""Regions with other bytes in them, through everything that reads one: only typed refusals."""

import contextlib
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from attacks.mutations import first_seed, flipping, mutated_region, peak_memory
from plinius.cli.inspect_files import describe_mirror
from plinius.errors import PliniusError
from plinius.integrations.distributed_checkpoint import LoadPlanner, RegionStorage, SavePlanner
from plinius.mirror import Mirror
from plinius.pm.region import Region
from plinius.slots import newest_snapshot
from plinius.structures.persistent_array import PersistentArray
from plinius.structures.stack_and_queue import PersistentQueue, PersistentStack
from unit.mirroring import KEY


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


def checkpointed() -> dict[str, Any]:
    """What the checkpoint holds."""
    return {"a": torch.arange(5000.0), "b": torch.ones(3, 4).t(), "n": 7}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A region with two checkpoints."""
    path = tmp_path_factory.mktemp("checkpoint") / "run.region"
    with RegionStorage(path, KEY) as storage, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in ("1", "2"):
            dcp.save(
                checkpointed(), storage_writer=storage, planner=SavePlanner(), checkpoint_id=number
            )
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


def load_a_checkpoint(path: Path) -> None:
    values = checkpointed()
    with RegionStorage(path, KEY) as storage:
        storage.read_metadata()  # torch raises an error of its own in place of this one's
        try:
            dcp.load(values, storage_reader=storage, planner=LoadPlanner())
        except CheckpointException as error:  # torch wraps what a storage raises
            for raised, _ in error.failures.values():
                if not isinstance(raised, PliniusError):
                    raise raised from None
            raise next(iter(error.failures.values()))[0] from None
    assert all(torch.equal(values[name], it) for name, it in checkpointed().items() if name != "n")


WAYS: list[Callable[[Path], None]] = [
    as_a_reader, through_a_checkpoint, through_the_structures, through_the_mirror,
]  # fmt: skip


@pytest.mark.parametrize("way", [as_a_reader, through_the_structures, through_the_mirror])
def test_the_whole_region_goes_through(way: Any, whole: bytes, place: Path) -> None:
    """So that what is refused below is refused for its bytes."""
    path = place / "run.region"
    path.write_bytes(whole)
    way(path)


def test_a_mutated_region_is_opened_or_refused(
    whole: bytes, place: Path, request: pytest.FixtureRequest
) -> None:
    """In 1,500 ways, or 60,000: no other exception, no endless chain, no huge memory."""
    rng = random.Random(first_seed())
    rounds = 60_000 if request.config.getoption("--soak") else 1_500
    refusals, before = 0, peak_memory()
    for number in range(rounds):
        path = place / "run.region"
        path.unlink(missing_ok=True)
        path.write_bytes(mutated_region(whole, rng))
        for way in WAYS:
            try:
                way(path)
            except PliniusError:
                refusals += 1
            except Exception as error:
                raise AssertionError(f"mutation {number}, {way.__name__}") from error
    assert refusals > rounds
    assert peak_memory() - before < 256 << 20
    print(f"{rounds:,} regions, each read in {len(WAYS)} ways: {refusals:,} refusals")


@pytest.mark.filterwarnings("ignore")
def test_a_mutated_checkpoint_is_loaded_or_refused(
    checkpoint: bytes, place: Path, request: pytest.FixtureRequest
) -> None:
    """And what is loaded is what was saved."""
    path, rng = place / "run.region", random.Random(first_seed())
    rounds, refusals = 10_000 if request.config.getoption("--soak") else 200, 0
    path.write_bytes(checkpoint)
    load_a_checkpoint(path)
    for number in range(rounds):
        path.unlink()
        path.write_bytes(mutated_region(checkpoint, rng))
        try:
            load_a_checkpoint(path)
        except PliniusError:
            refusals += 1
        except Exception as error:
            raise AssertionError(f"mutation {number}") from error
    assert refusals > rounds // 4
    print(f"{rounds:,} checkpoints: {refusals:,} refusals")


def test_bytes_that_flip_while_a_region_is_used(
    whole: bytes, place: Path, request: pytest.FixtureRequest
) -> None:
    """The host writes to the mapped file all the time."""
    path = place / "run.region"
    for number in range(4_000 if request.config.getoption("--soak") else 60):
        path.unlink(missing_ok=True)
        path.write_bytes(whole)
        with flipping(path, first_seed() + number):
            for way in WAYS:
                with contextlib.suppress(PliniusError):
                    way(path)


def test_a_checkpoint_is_no_mirrored_state(tmp_path: Path) -> None:
    """Nor the other way round: each says so."""
    path = tmp_path / "run.region"
    with RegionStorage(path, KEY) as storage, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"a": torch.ones(3)}, storage_writer=storage, planner=SavePlanner())
    with Mirror.open(path, KEY, {"a": torch.ones(3)}) as mirror:
        with pytest.raises(PliniusError, match="it is not the state of a mirror but a checkpoint"):
            mirror.mirror_in()
