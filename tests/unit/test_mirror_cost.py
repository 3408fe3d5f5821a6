"""Cost that follows change, and sealing beside training."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from plinius.mirror import Mirror
from plinius.slots import Slots, newest_snapshot
from unit.mirroring import KEY, Loop, ended

BASE = 200_000  # bytes of a frozen tensor


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.region"


def frozen_base(fused: bool = False) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A large frozen layer under a small one that is trained."""
    model = nn.Sequential(nn.Linear(224, 224).requires_grad_(False), nn.Linear(224, 2))
    trained = [p for p in model.parameters() if p.requires_grad]
    return model, torch.optim.AdamW(trained, lr=0.1, fused=fused)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(4, 224)).square().sum().backward()
    optimizer.step()


MODES: list[dict[str, Any]] = [
    {},
    {"overlap": True},
    {"overlap": True, "only_steps_write": True},
    {"trust_versions": True},
]


@pytest.mark.parametrize("how", MODES, ids=str)
@pytest.mark.parametrize("fused", [False, True])
def test_a_frozen_base_is_sealed_twice_and_then_not_again(
    fused: bool, how: dict[str, Any], path: Path
) -> None:
    """Once into each slot; what moves is mirrored all the same, also where torch does not count."""
    model, optimizer = frozen_base(fused)
    with Mirror.open(path, KEY, {"model": model, "optimizer": optimizer}, **how) as mirror:
        sizes = []
        for iteration in range(1, 7):
            step(model, optimizer)
            mirror.mirror_out(iteration)
            mirror.wait()
            sizes.append(mirror.sealed_bytes)
            assert newest_copy(path) == mirror.digest(iteration)
        assert mirror.failure is None
    assert min(sizes[:2]) > BASE > 4 * max(sizes[2:])


def newest_copy(path: Path) -> str:
    """The digest of what another process would open now."""
    copy = path.with_suffix(".copy")
    copy.write_bytes(path.read_bytes())
    return newest_snapshot(copy, KEY).digest()


def behind_torch(tensor: torch.Tensor) -> None:
    """Move every item without torch counting it."""
    before = tensor._version
    tensor.data.add_(1.0)
    assert tensor._version == before


def through_numpy(tensor: torch.Tensor) -> None:
    """Through an array of the same memory."""
    np.asarray(tensor.detach())[:] += 1


@pytest.mark.parametrize("write", [behind_torch, through_numpy])
def test_a_tensor_written_to_behind_torch_is_mirrored_too(write: Any, path: Path) -> None:
    """Every item moved, and torch counted none of it."""
    weights = torch.randn(5000)
    with Mirror.open(path, KEY, {"weights": weights}) as mirror:
        for iteration in range(1, 6):
            write(weights)
            mirror.mirror_out(iteration)
            assert newest_copy(path) == mirror.digest(iteration)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_single_item_written_behind_torch_is_mirrored(overlap: bool, path: Path) -> None:
    """By a fingerprint of all bytes, and not by torch's count of writes."""
    weights = torch.randn(50_000)
    with Mirror.open(path, KEY, {"weights": weights}, overlap=overlap) as mirror:
        for iteration in range(1, 12):
            weights.data[17 * iteration] += 1.0
            mirror.mirror_out(iteration)
            mirror.wait()
            assert newest_copy(path) == mirror.digest(iteration)


def test_arrays_are_fingerprinted_even_if_versions_are_trusted(tmp_path: Path) -> None:
    """torch counts no writes to them, so nothing could be trusted."""
    array, tensor = np.zeros(100_000), torch.zeros(100_000)
    path, state = tmp_path / "r", {"array": array, "tensor": tensor}
    with Mirror.open(path, KEY, state, trust_versions=True) as mirror:
        for iteration in range(1, 7):
            array[5] = iteration
            mirror.mirror_out(iteration)
            assert mirror.sealed_bytes > 800_000 or iteration < 3
        assert mirror.sealed_bytes < 810_000, "the tensor is trusted"
    array[5] = 0
    with Mirror.open(path, KEY, state) as mirror:
        mirror.mirror_in()
    assert array[5] == 6


def test_trusted_versions_miss_what_torch_does_not_count(path: Path) -> None:
    """As the option's documentation says."""
    weights = torch.randn(50_000)
    with Mirror.open(path, KEY, {"weights": weights}, trust_versions=True) as mirror:
        mirror.mirror_out(1)
        mirror.mirror_out(2)
        behind_torch(weights)
        mirror.mirror_out(3)
        assert newest_copy(path) != mirror.digest(3)
        weights.add_(1.0)
        mirror.mirror_out(4)
        assert newest_copy(path) == mirror.digest(4)


def test_a_tensor_that_took_anothers_place_is_sealed(path: Path) -> None:
    """A new tensor of the same name, shape and count of writes is not taken for the old one."""
    state = {"weights": torch.full((5000,), 0.0)}
    with Mirror.open(path, KEY, state) as mirror:
        for iteration in range(1, 8):
            state["weights"] = torch.full((5000,), float(iteration % 2))
            mirror.mirror_out(iteration)
            assert newest_copy(path) == mirror.digest(iteration)


def test_sealing_beside_training_ends_before_the_next_step(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The optimizer waits; the forward and backward passes do not."""
    model, optimizer = frozen_base()
    write, may_go_on, order = Slots.write, threading.Event(), list[str]()

    def slow(slots: Slots, *rest: Any) -> int:
        may_go_on.wait(10)
        written = write(slots, *rest)
        order.append("committed")
        return written

    monkeypatch.setattr(Slots, "write", slow)
    state = {"m": model, "o": optimizer}
    with Mirror.open(path, KEY, state, overlap=True, only_steps_write=True) as mirror:
        step(model, optimizer)
        assert mirror.mirror_out(1) == 0
        optimizer.zero_grad()
        model(torch.randn(4, 224)).square().sum().backward()
        order.append("passes")
        may_go_on.set()
        optimizer.step()
        order.append("stepped")
        assert mirror.committed == 1
    assert order == ["passes", "committed", "stepped"]


def test_buffers_that_a_forward_pass_changes_are_mirrored_as_they_were(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Running statistics move while the mirror is still sealing."""
    loop = Loop()
    write, may_go_on = Slots.write, threading.Event()

    def slow(slots: Slots, *rest: Any) -> int:
        may_go_on.wait(10)
        return write(slots, *rest)

    monkeypatch.setattr(Slots, "write", slow)
    with Mirror.open(path, KEY, loop.state, overlap=True) as mirror:
        loop.step()
        wanted = mirror.digest(1)
        mirror.mirror_out(1)
        loop.model(torch.randint(0, 11, (16,)))
        may_go_on.set()
        mirror.wait()
        assert mirror.failure is None
    assert newest_snapshot(path, KEY).digest() == wanted


def test_a_parameter_written_to_meanwhile_is_never_committed_torn(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That commit is discarded, `failure` says so, and later ones copy the tensor first."""
    model, optimizer = frozen_base()
    write = Slots.write

    def meddled(slots: Slots, snapshot: Any, must_discard: Any) -> int:
        with torch.no_grad():
            model[1].weight.clamp_(-0.1, 0.1)
        return write(slots, snapshot, must_discard)

    state = {"m": model, "o": optimizer}
    with Mirror.open(path, KEY, state, overlap=True, only_steps_write=True) as mirror:
        step(model, optimizer)
        mirror.mirror_out(1)
        mirror.wait()
        monkeypatch.setattr(Slots, "write", meddled)
        step(model, optimizer)
        mirror.mirror_out(2)
        mirror.wait()
        assert "m/1.weight changed while the mirror sealed it" in str(mirror.failure)
        assert mirror.committed == 1
        step(model, optimizer)
        wanted = mirror.digest(3)
        mirror.mirror_out(3)
        mirror.wait()
        assert mirror.failure is None
    assert newest_snapshot(path, KEY).digest() == wanted


def test_a_closed_mirror_leaves_no_hook(path: Path) -> None:
    """Once closed, no hook of it is left."""
    loop = Loop()
    with Mirror.open(path, KEY, loop.state, overlap=True, only_steps_write=True) as mirror:
        mirror.mirror_out(1)
        assert loop.optimizer._optimizer_step_pre_hooks
    assert not loop.optimizer._optimizer_step_pre_hooks
    assert not loop.optimizer._optimizer_step_post_hooks


def test_threads_share_a_large_state(path: Path) -> None:
    """Two threads leave what one leaves."""
    tensors = [torch.randn(700_000 + 999 * i) for i in range(5)]
    with Mirror.open(path, KEY, {"it": tensors}, threads=2) as mirror:
        mirror.mirror_out(1)
        digest = mirror.digest()
        for tensor in tensors:
            tensor.zero_()
        mirror.mirror_in()
        assert mirror.digest() == digest
    assert ended(path.with_suffix(".b"), 2, threads=2)
