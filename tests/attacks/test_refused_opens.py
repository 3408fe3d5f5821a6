"""A mirror that is refused, five times over, leaves nothing behind in the process."""

import gc
import itertools
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from plinius.errors import PliniusError
from plinius.integrations.distributed_checkpoint import RegionStorage
from plinius.keys import OwnerKey
from plinius.mirror import Mirror
from plinius.pm.region import Region
from plinius.slots import Slots
from unit.mirroring import KEY

State = dict[str, Any]


def state() -> State:
    """A model, and an optimizer that has its moments."""
    model = torch.nn.Linear(300, 300)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 300)).sum().backward()
    optimizer.step()
    return {"model": model, "optimizer": optimizer, "n": 1}


def flip(path: Path, where: str) -> None:
    """Flip a bit in a part of the newest slot."""
    with Region.open(path) as region:
        slots = Slots.open(region, KEY)
        assert slots is not None
        layout, newest = slots._pinned.layout, slots.commits
        slots.close()
    at = {
        "header": layout.offset,
        "word": layout.slot(newest) + 6,
        "manifest": layout.manifest(newest) + 9,
        "chunk": layout.chunks(newest) + 9,
    }[where]
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def opened(path: Path, objects: State, how: dict[str, Any], key: OwnerKey = KEY) -> None:
    with Mirror.open(path, key, objects, **how) as mirror:
        mirror.mirror_in()


Case = Callable[[Path, State, dict[str, Any]], None]
RAW: Any = bytes(32)
CASES: dict[str, tuple[str | None, Case]] = {
    "the bytes of a key": (None, lambda p, s, how: opened(p, s, how, RAW)),
    "another key": (None, lambda p, s, how: opened(p, s, how, OwnerKey(bytes(32)))),
    "another run id": (None, lambda p, s, how: opened(p, s, how | {"run_id": "00" * 16})),
    "another identity": (None, lambda p, s, how: opened(p, s, how | {"identity": {"a": 1}})),
    "no threads": (None, lambda p, s, how: opened(p, s, how | {"threads": 0})),
    "a state of functions": (None, lambda p, s, how: opened(p, s | {"f": print}, how)),
    "another state": (None, lambda p, s, how: opened(p, s | {"more": 1}, how)),
    "a state that is not loaded": (None, lambda p, s, how: opened(p, s | {"n": Stubborn()}, how)),
    "another header": ("header", opened),
    "another word": ("word", opened),
    "another manifest": ("manifest", opened),
    "another chunk": ("chunk", opened),
}
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "three threads": {"threads": 3},
    "overlap": {"overlap": True},
    "only steps write": {"overlap": True, "only_steps_write": True},
    "trusted versions": {"trust_versions": True, "threads": 2},
}


NUMBERS = itertools.count()


class Stubborn:
    """An object that does not take on its state."""

    def state_dict(self) -> State:
        """A number that is never the stored one."""
        return {"n": next(NUMBERS)}

    def load_state_dict(self, _: State) -> None:
        """Raises."""
        raise RuntimeError("no")


def left(path: Path, objects: State) -> tuple[object, ...]:
    """What an open mirror has in the process: hooks, threads, descriptors, mappings."""
    gc.collect()
    optimizer = objects["optimizer"]
    hooks = [
        len(getattr(optimizer, name))
        for name in vars(optimizer)
        if name.endswith("_hooks") and name.startswith("_optimizer")
    ]
    assert hooks
    parameters = [it for group in optimizer.param_groups for it in group["params"]]
    hooks += [len(it._post_accumulate_grad_hooks or ()) for it in parameters]
    handles = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
               if os.path.lexists(f"/proc/self/fd/{fd}")]  # fmt: skip
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").count(str(path))
    return hooks, threading.active_count(), sorted(handles), maps


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_five_refusals_leave_nothing(name: str, way: str, tmp_path: Path) -> None:
    """No hook, no thread, no descriptor, no mapping and no lock."""
    path, (where, case) = tmp_path / "run.region", CASES[name]
    first = state()
    with Mirror.open(path, KEY, first if name != "a state that is not loaded" else
                     first | {"n": Stubborn()}) as mirror:  # fmt: skip
        mirror.mirror_out(1)
        mirror.mirror_out(2)
    if where:
        flip(path, where)
    objects = state()
    before = left(path, objects)
    for _ in range(5):
        with pytest.raises(PliniusError):
            case(path, objects, WAYS[way])
    after = left(path, objects)
    assert after == before
    Region.open(path).close()  # it is not locked
    objects["optimizer"].step()


@pytest.mark.parametrize("where", ["manifest", "chunk"])
def test_five_refusals_in_a_living_mirror_leave_nothing(where: str, tmp_path: Path) -> None:
    """mirror_in and mirror_out that are refused again and again, and then it is closed."""
    path, objects = tmp_path / "run.region", state()
    with Mirror.open(path, KEY, objects) as mirror:
        mirror.mirror_out(1)
        mirror.mirror_out(2)
    flip(path, where)
    before = left(path, objects)
    with Mirror.open(path, KEY, objects, threads=2, overlap=True, only_steps_write=True) as mirror:
        during = None
        for _ in range(5):
            with pytest.raises(PliniusError):
                mirror.mirror_in()
            with pytest.raises(PliniusError, match="Call mirror_in before mirror_out"):
                mirror.mirror_out(3)
            now = left(path, objects)
            assert during in (None, now)
            during = now
    assert left(path, objects) == before


@pytest.mark.parametrize("way", WAYS)
def test_five_mirrors_that_committed_and_were_refused_leave_nothing(
    way: str, tmp_path: Path
) -> None:
    """Their hooks, which they had from the first commit, are gone when they are closed."""
    objects = state()
    before = left(tmp_path, objects)
    for number in range(5):
        path = tmp_path / f"{number}.region"
        with Mirror.open(path, KEY, objects, **WAYS[way]) as mirror:
            mirror.mirror_out(1)
            mirror.wait()
            at = mirror._slots._pinned.layout.manifest(1)
            with path.open("r+b") as file:
                file.seek(at)
                file.write(bytes(64))
            with pytest.raises(PliniusError, match="Commit 1"):
                mirror.mirror_in()
    assert left(tmp_path, objects) == before


def test_five_refused_checkpoint_storages_leave_nothing(tmp_path: Path) -> None:
    """Nor do those of torch.distributed.checkpoint."""
    path, objects = tmp_path / "run.region", state()
    with Mirror.open(path, KEY, objects) as mirror:
        mirror.mirror_out(1)
    flip(path, "manifest")
    before = left(path, objects)
    for _ in range(5):
        with pytest.raises(PliniusError):
            RegionStorage(path, KEY)
    assert left(path, objects) == before


def test_a_second_process_waits_for_no_refused_mirror(tmp_path: Path) -> None:
    """The lock of a refused mirror is free even while its error is kept."""
    path = tmp_path / "run.region"
    with Mirror.open(path, KEY, state()) as mirror:
        mirror.mirror_out(1)
    kept = []
    for _ in range(5):
        try:
            Mirror.open(path, OwnerKey(bytes(32)), state(), threads=2)
        except PliniusError as error:
            kept.append(error)
    assert len(kept) == 5
    Region.open(path).close()


@pytest.mark.parametrize("threads", [0, -1, 1025, 2.0, "2", True], ids=repr)
def test_what_is_no_number_of_threads_is_refused(threads: Any, tmp_path: Path) -> None:
    """With the exact sentence, and no region is made."""
    with pytest.raises(PliniusError) as caught:
        Mirror.open(tmp_path / "run.region", KEY, {"n": 1}, threads=threads)
    assert str(caught.value) == (
        f"threads={threads!r} is not a number of threads. Give a whole number from 1 to 1024."
    )
    assert list(tmp_path.iterdir()) == []


def test_a_choice_for_overlap_only_is_refused_without_it(tmp_path: Path) -> None:
    """With the exact sentence, and no region is made."""
    with pytest.raises(PliniusError) as caught:
        Mirror.open(tmp_path / "run.region", KEY, {"n": 1}, only_steps_write=True)
    assert str(caught.value) == (
        "only_steps_write is a choice for overlap=True. Give both, or leave it out."
    )
    assert list(tmp_path.iterdir()) == []
