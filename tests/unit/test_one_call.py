"""One mirror on a region, one call at a time, and the user's program left as it is."""

import gc
import os
import random
import signal
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from plinius.errors import (
    KeyFileError,
    MismatchError,
    RegionBusyError,
    SealError,
    StateError,
)
from plinius.mirror import Mirror
from plinius.slots import Slots, newest_snapshot
from unit.mirroring import KEY, Loop


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.region"


def test_threads_take_turns(path: Path) -> None:
    """Three of them in mirror_out at once leave commits that open."""
    state = {"it": torch.zeros(100_000), "n": 0}
    with Mirror.open(path, KEY, state) as mirror:

        def work(start: int) -> None:
            for iteration in range(start, start + 20):
                mirror.mirror_out(iteration)

        threads = [threading.Thread(target=work, args=(n * 100,)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert mirror.commits == 60
    assert newest_snapshot(path, KEY).iteration % 100 == 19


def test_a_signal_handler_within_a_call_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a sentence, and the call that was under way commits."""
    loop, refusals = Loop(), []
    write = Slots.write

    def interrupting(slots: Slots, *rest: Any) -> int:
        os.kill(os.getpid(), signal.SIGUSR1)
        return write(slots, *rest)

    def handler(*_: object) -> None:
        with pytest.raises(StateError, match="from within a call of its own") as refused:
            mirror.mirror_out(7)
        refusals.append(refused)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with Mirror.open(path, KEY, loop.state) as mirror:
            monkeypatch.setattr(Slots, "write", interrupting)
            for iteration in (1, 2, 3):
                loop.step()
                mirror.mirror_out(iteration)
                assert mirror.committed == iteration
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(refusals) == 3


def test_a_cell_that_is_run_twice_has_the_newer_mirror(path: Path) -> None:
    """The earlier one is closed, with what it had committed, and says so."""
    loop = Loop()
    first = Mirror.open(path, KEY, loop.state, overlap=True)
    loop.train(first, 3)
    again = Loop()
    with Mirror.open(path, KEY, again.state) as second:
        assert second.mirror_in() == 3
        with pytest.raises(StateError, match="This mirror is closed, or another one was opened"):
            first.mirror_out(4)
        first.close()
        again.step()
        second.mirror_out(4)


def test_a_mirror_without_references_releases_its_region(path: Path) -> None:
    """Without close."""
    mirror = Mirror.open(path, KEY, Loop().state)
    mirror.mirror_out(1)
    del mirror
    gc.collect()
    with Mirror.open(path, KEY, Loop().state) as again:
        assert again.mirror_in() == 1


def test_two_regions_objects_are_still_refused(path: Path) -> None:
    """Only a mirror on a path takes the place of another one."""
    from plinius.pm.region import Region

    with Region.create(path, 0), pytest.raises(RegionBusyError):
        Mirror.open(path, KEY, {"n": 1})


def test_a_key_in_bytes_is_refused(path: Path) -> None:
    """And no region is left behind."""
    with pytest.raises(KeyFileError, match="The key is a bytes, not an owner's key. Load it"):
        Mirror.open(path, bytes(32), {"n": 1})  # type: ignore[arg-type]
    Mirror.open(path, KEY, {"n": 1}).close()


@pytest.mark.parametrize("iteration", [-1, 1.0, "1", None, 2**63])
def test_an_iteration_is_a_whole_number(iteration: Any, path: Path) -> None:
    """Of Python or of NumPy."""
    with Mirror.open(path, KEY, {"n": 1}) as mirror:
        with pytest.raises(StateError, match="An iteration is a whole number from 0, not"):
            mirror.mirror_out(iteration)
        mirror.mirror_out(np.int64(5))
        assert mirror.committed == 5


def test_the_users_program_is_left_as_it_was(path: Path) -> None:
    """Storages can be resized, nothing is drawn, no setting or hook is changed."""
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tensor, array = torch.zeros(10), np.zeros(3)
    state = {"model": model, "optimizer": optimizer, "tensor": tensor, "array": array}
    before = (
        random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(),
        list(warnings.filters), torch.is_grad_enabled(), torch.get_default_dtype(),
        torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip
    with warnings.catch_warnings(), Mirror.open(path, KEY, state) as mirror:
        warnings.simplefilter("error")
        for iteration in range(1, 4):
            mirror.mirror_out(iteration)
        assert not optimizer._optimizer_step_post_hooks
        assert not optimizer._optimizer_step_pre_hooks
        tensor.resize_(20)
        tensor.untyped_storage().resize_(0)
        tensor.untyped_storage().resize_(80)
        mirror.mirror_in()
    after = (
        random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(),
        list(warnings.filters), torch.is_grad_enabled(), torch.get_default_dtype(),
        torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip
    assert after == before


def test_refused_opens_leave_no_hook(path: Path) -> None:
    """However often."""
    loop = Loop()
    for _ in range(5):
        with pytest.raises(MismatchError, match="holds no run, not run 00"):
            Mirror.open(
                path, KEY, loop.state, overlap=True, only_steps_write=True, run_id="00" * 16
            )
    assert not loop.optimizer._optimizer_step_post_hooks
    assert not loop.optimizer._optimizer_step_pre_hooks


def test_a_run_can_be_named(path: Path) -> None:
    """Its region is taken, and no other."""
    with Mirror.open(path, KEY, Loop().state) as mirror:
        name = mirror.run_id  # drawn when it is opened, stored by the first commit
        mirror.mirror_out(1)
    Mirror.open(path, KEY, Loop().state, run_id=name).close()
    other = path.with_suffix(".other")
    with pytest.raises(MismatchError, match=f"holds no run, not run {name}"):
        Mirror.open(other, KEY, Loop().state, run_id=name)
    with Mirror.open(other, KEY, Loop().state) as mirror:
        mirror.mirror_out(1)
    with pytest.raises(MismatchError, match=f"holds run [0-9a-f]{{32}}, not run {name}"):
        Mirror.open(other, KEY, Loop().state, run_id=name)


class Picky:
    """An object that takes a state back, but not this one."""

    def __init__(self, picky: bool = True) -> None:
        self.picky, self.weights = picky, torch.ones(2)

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.picky:
            raise KeyError("anything")


def test_a_state_that_an_object_does_not_load_is_refused_by_its_name(path: Path) -> None:
    """What was restored before it is cleared, and is not mirrored out."""
    with Mirror.open(path, KEY, {"first": torch.ones(3), "it": Picky()}) as mirror:
        mirror.mirror_out(1)
    first = torch.full((3,), 5.0)
    fresh = Picky()
    fresh.weights += 1
    with Mirror.open(path, KEY, {"first": first, "it": fresh}) as mirror:
        with pytest.raises(MismatchError, match="it, a Picky, did not load its state"):
            mirror.mirror_in()
        assert first.tolist() == [0, 0, 0]
        with pytest.raises(StateError, match="Call mirror_in before mirror_out"):
            mirror.mirror_out(2)


def test_a_refused_commit_leaves_zeros(path: Path) -> None:
    """Never bytes that the host influenced."""
    with Mirror.open(path, KEY, {"a": torch.ones(100_000), "b": torch.ones(200_000)}) as mirror:
        mirror.mirror_out(1)
        at = mirror._slots._pinned.layout.chunks(1) + 500_000
        byte = mirror._region.medium.read(at, 1)[0]
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    assert raw[at] == byte ^ 1
    path.write_bytes(raw)
    state = {"a": torch.full((100_000,), 2.0), "b": torch.full((200_000,), 2.0)}
    with Mirror.open(path, KEY, state) as mirror:
        with pytest.raises(SealError, match="Commit 1 in the mirror of"):
            mirror.mirror_in()
    assert float(state["a"].abs().sum() + state["b"].abs().sum()) == 0
