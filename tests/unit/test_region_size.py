"""A region takes at most 2.1 times the state, on disk also after the state has grown."""

from pathlib import Path

import pytest
import torch
from torch import nn

from plinius.mirror import Mirror
from unit.mirroring import KEY

FACTOR = 2.1


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.region"


def sizes(path: Path) -> tuple[int, int]:
    """Bytes of the file, and bytes that it takes on the disk."""
    status = path.stat()
    return status.st_size, 512 * status.st_blocks


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.randn(1, 1000)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def state_bytes(*tensors: torch.Tensor) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def test_the_first_commit_makes_slots_for_the_moments_as_well(path: Path) -> None:
    """AdamW has its moments after the first step: 30 MB of parameters are 90 MB of state."""
    model = nn.Sequential(*(nn.Linear(1000, 1000) for _ in range(7)), nn.Linear(1000, 500))
    optimizer = torch.optim.AdamW(model.parameters())
    with Mirror.open(path, KEY, {"model": model, "optimizer": optimizer}) as mirror:
        assert len(mirror.run_id) == 32
        assert sizes(path)[0] < 200_000  # nothing is made before it is known how large
        for iteration in (1, 2, 3):
            step(model, optimizer)
            mirror.mirror_out(iteration)
        run_id = mirror.run_id
    moments = [it for one in optimizer.state.values() for it in one.values()]
    whole = state_bytes(*model.parameters(), *moments)
    assert whole > 90e6
    for size in sizes(path):
        assert size <= FACTOR * whole, f"{size / whole:.2f} times the state"
        print(f"{size / whole:.3f} times the state")
    with Mirror.open(path, KEY, {"model": model, "optimizer": optimizer}) as mirror:
        assert mirror.run_id == run_id


def test_the_storage_of_outgrown_slots_is_given_back(path: Path) -> None:
    """The file has a hole where they were, which the next slots that fit are made in."""
    state = {"log": torch.zeros(5_000_000)}
    with Mirror.open(path, KEY, state) as mirror:
        for iteration in range(1, 5):
            state["log"] = torch.randn(5_000_000 + 400_000 * iteration)
            mirror.mirror_out(iteration)
            whole = state["log"].nbytes
            size, used = sizes(path)
            print(f"file {size / whole:.3f}, disk {used / whole:.3f} times the state")
            assert used <= FACTOR * whole, f"{used / whole:.2f} times the state"
            assert size <= 3 * FACTOR * whole
        digest = mirror.digest()
        state["log"].zero_()
        assert mirror.mirror_in() == 4
        assert mirror.digest() == digest
