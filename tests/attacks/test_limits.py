"""What is given from outside and goes too far is refused before anything is written."""

import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plinius.errors import KeyFileError, MismatchError, PliniusError, StateError, StorageError
from plinius.integrations.distributed_checkpoint import RegionStorage
from plinius.mirror import Mirror
from plinius.pm.region import Region
from plinius.slots import newest_snapshot
from plinius.state.codec import MAX_DEPTH
from plinius.structures.persistent_array import PersistentArray
from unit.mirroring import KEY


def chain(levels: int, wrap: Callable[[Any], Any]) -> Any:
    """A value within so many containers."""
    value: Any = 1
    for _ in range(levels):
        value = wrap(value)
    return value


def in_default(value: Any) -> Any:
    holder: Any = defaultdict(lambda: None)
    holder["a"] = value
    return holder


WRAPS: list[Callable[[Any], Any]] = [
    lambda v: [v], lambda v: {"a": v}, lambda v: (v,), lambda v: frozenset([v]), in_default,
    lambda v: {(v,): 1} if isinstance(v, int) else {(next(iter(v)),): 1},
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(WRAPS)))
def test_what_is_nested_too_deeply_is_refused_before_it_is_written(
    number: int, tmp_path: Path
) -> None:
    """At the bound it comes back; beyond it a sentence says so, however deep it is."""
    path, wrap = tmp_path / "run.region", WRAPS[number]
    with Mirror.open(path, KEY, {"n": chain(MAX_DEPTH - 2, wrap)}) as mirror:
        mirror.mirror_out(1)
        assert mirror.mirror_in() == 1
    assert newest_snapshot(path, KEY).iteration == 1
    for levels in (MAX_DEPTH + 2, 150):
        with pytest.raises(StateError, match=r"n.* is nested too deeply"):
            Mirror.open(tmp_path / "deep.region", KEY, {"n": chain(levels, wrap)})


@pytest.mark.parametrize(
    "identity",
    [{"a": float("nan")}, {"a": (1, 2)}, {1: 2}, {"a": object()}, [1], chain(2000, lambda v: [v])],
    ids=["nan", "tuple", "key", "object", "list", "deep"],
)
def test_an_identity_that_would_not_come_back_is_refused(identity: Any, tmp_path: Path) -> None:
    """Otherwise the run could not be resumed."""
    with pytest.raises(StateError, match="The identity of the run would not be read back equal"):
        Mirror.open(tmp_path / "run.region", KEY, {"n": 1}, identity=identity)


@pytest.mark.parametrize("state", [None, [1], 5, "abc", (1,)], ids=str)
def test_a_state_that_is_no_mapping_is_refused(state: Any, tmp_path: Path) -> None:
    """With what to give instead."""
    with pytest.raises(StateError, match="not a dict of objects by name. Give Mirror.open"):
        Mirror.open(tmp_path / "run.region", KEY, state)


def test_the_bytes_of_a_key_are_no_key(tmp_path: Path) -> None:
    """For checkpoints as for the mirror, and nothing is made."""
    with pytest.raises(KeyFileError, match="The key is a bytes, not an owner's key"):
        RegionStorage(tmp_path / "run.region", bytes(32))  # type: ignore[arg-type]
    assert not (tmp_path / "run.region").exists()


@pytest.mark.parametrize("name", ["9" * 5000, str(2**63), "-1", "x"])
def test_a_checkpoints_number_is_that_of_an_iteration(name: str, tmp_path: Path) -> None:
    """Below 2**63, as what is read back is."""
    with RegionStorage(tmp_path / "run.region", KEY) as storage:
        storage.reset(str(2**63 - 1))
        with pytest.raises(MismatchError, match="is not the number of an iteration"):
            storage.reset(name)


def test_a_name_that_is_too_long_for_a_file_is_refused(tmp_path: Path) -> None:
    """As a region of a mirror and of checkpoints."""
    for make in (lambda path: Mirror.open(path, KEY, {"n": 1}), lambda p: RegionStorage(p, KEY)):
        with pytest.raises(StorageError, match="File name too long"):
            make(tmp_path / ("n" * 300))


def test_twins_on_a_disk_that_is_cut_short_are_refused(tmp_path: Path) -> None:
    """Also where an array's words are rolled back: no SIGBUS ends the process."""
    path, many = tmp_path / "run.region", np.arange(0, 50_000, 100)
    region = Region.create(path, 0, 1 << 20)
    array = PersistentArray.create(region, "array", 50_000)
    with pytest.raises(StorageError, match="was cut short"), region.twins.transaction():
        array[many] = 2
        os.truncate(path, 40_960)
    with pytest.raises(PliniusError):
        array[0] = 1


def test_a_forked_child_does_not_wait_for_the_thread_of_its_parent(tmp_path: Path) -> None:
    """Every call is refused there during a commit of the parent, which trains on."""
    weights = torch.nn.Parameter(torch.zeros(3_000_000))
    state = {"w": weights, "o": torch.optim.SGD([weights], lr=0.1)}
    path = tmp_path / "run.region"
    with Mirror.open(path, KEY, state, overlap=True, only_steps_write=True) as mirror:
        mirror.mirror_out(1)
        pid = os.fork()
        if pid == 0:
            try:
                mirror._wait_for_commit()
                mirror.mirror_out(2)
            except PliniusError as error:
                os._exit(7 if "forked" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
