"""torch.distributed.checkpoint with a region as its storage, with the real library."""

import warnings
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from plinius.errors import MismatchError, SealError
from plinius.integrations.distributed_checkpoint import LoadPlanner, RegionStorage, SavePlanner
from plinius.keys import OwnerKey
from plinius.slots import newest_snapshot
from unit.mirroring import KEY, Loop

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def save(storage: RegionStorage, state: dict[str, Any], iteration: int | None = None) -> None:
    name = None if iteration is None else str(iteration)
    dcp.save(state, storage_writer=storage, planner=SavePlanner(), checkpoint_id=name)


def load(storage: RegionStorage, state: dict[str, Any]) -> dict[str, Any]:
    dcp.load(state, storage_reader=storage, planner=LoadPlanner())
    return state


def state_of(loop: Loop) -> dict[str, Any]:
    model, optimizer = get_state_dict(loop.model, loop.optimizer)
    return {"model": model, "optimizer": optimizer, "scheduler": loop.scheduler.state_dict()}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return bool(one == other) and type(one) is type(other)


def test_a_model_and_its_optimizer_are_restored(tmp_path: Path) -> None:
    """Saved, and loaded into other objects by another storage: equal."""
    loop, other = Loop(), Loop()
    for _ in range(3):
        loop.step()
    with RegionStorage(tmp_path / "r", KEY) as storage:
        save(storage, state_of(loop), 3)
    other.step()  # so that its optimizer has a state to load into
    with RegionStorage(tmp_path / "r", KEY) as storage:
        assert storage.iteration == 3
        state = load(storage, state_of(other))
    set_state_dict(
        other.model, other.optimizer,
        model_state_dict=state["model"], optim_state_dict=state["optimizer"],
    )  # fmt: skip
    other.scheduler.load_state_dict(state["scheduler"])
    assert same(state_of(other), state_of(loop))


@pytest.mark.parametrize(
    "value",
    [1, 2.5, "text", None, True, [1, "two", [3.0]], {"deep": {"er": (1, 2)}}, b"bytes", 1e300],
    ids=repr,
)
def test_a_value_that_is_no_tensor_is_restored_without_pickle(
    value: object, tmp_path: Path
) -> None:
    """As JSON, sealed with the tensors."""
    empty = {"value": {"deep": {"er": ()}} if isinstance(value, dict) else 0}
    with RegionStorage(tmp_path / "r", KEY) as storage:
        save(storage, {"value": value, "t": torch.ones(2)})
        assert load(storage, {**empty, "t": torch.zeros(2)})["value"] == value


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12.0).reshape(3, 4).t(),
        torch.arange(24.0).reshape(2, 3, 2, 2).to(memory_format=torch.channels_last),
        torch.arange(10)[::2],
        torch.empty(0, 3),
        torch.tensor(4.0),
        torch.ones(5, dtype=torch.bfloat16),
        torch.ones(5).to(torch.float8_e4m3fn),
    ],
    ids=lambda tensor: f"{tensor.dtype}{list(tensor.stride())}",
)
def test_a_tensor_with_any_strides_is_restored(tensor: torch.Tensor, tmp_path: Path) -> None:
    """Into one with the same strides, and into one that is contiguous."""
    with RegionStorage(tmp_path / "r", KEY) as storage:
        save(storage, {"t": tensor})
        for target in (torch.empty_like(tensor), torch.empty(tensor.shape, dtype=tensor.dtype)):
            load(storage, {"t": target})
            assert bytes(target.contiguous().reshape(-1).view(torch.uint8)) == bytes(
                tensor.contiguous().reshape(-1).view(torch.uint8)
            )


def test_an_asynchronous_save_is_committed(tmp_path: Path) -> None:
    """async_save copies first, so that the state may change while it saves."""
    state = {"t": torch.ones(1000)}
    with RegionStorage(tmp_path / "r", KEY) as storage:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not torch.distributed.is_initialized():
                torch.distributed.init_process_group(
                    "gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1
                )
            try:
                saving = dcp.async_save(
                    state, storage_writer=storage, planner=SavePlanner(), checkpoint_id="7"
                )
                state["t"].zero_()
                assert isinstance(saving, Future)
                saving.result()
            finally:
                torch.distributed.destroy_process_group()
        assert storage.iteration == 7
        assert load(storage, {"t": torch.zeros(1000)})["t"].sum() == 1000


def test_checkpoints_without_a_name_are_counted(tmp_path: Path) -> None:
    """From 1, or from the last number that was given."""
    with RegionStorage(tmp_path / "r", KEY) as storage:
        seen: list[int | None] = []
        for name in (None, None, 9, None):
            save(storage, {"n": len(seen)}, name)
            seen.append(storage.iteration)
        assert seen == [1, 2, 9, 10]
        assert load(storage, {"n": 0})["n"] == 3


def test_nothing_is_stored_in_clear(tmp_path: Path) -> None:
    """Neither the names nor the numbers."""
    with RegionStorage(tmp_path / "r", KEY) as storage:
        save(storage, {"secret_name": torch.full((64,), 3.25), "word": "secret_word"})
    raw = (tmp_path / "r").read_bytes()
    assert b"secret" not in raw
    assert bytes(torch.full((8,), 3.25).numpy().data) not in raw


def test_a_planner_that_pickles_is_refused(tmp_path: Path) -> None:
    """Torch's own, which is what dcp.save takes by default."""
    with RegionStorage(tmp_path / "r", KEY) as storage:
        with pytest.raises(CheckpointException, match="torch's own planner would pickle"):
            dcp.save({"n": 1}, storage_writer=storage)
        save(storage, {"n": 1})
        with pytest.raises(CheckpointException, match="torch's own planner would unpickle"):
            dcp.load({"n": 0}, storage_reader=storage)


def test_what_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    """With its name; the checkpoint before is still the newest."""
    with RegionStorage(tmp_path / "r", KEY) as storage:
        save(storage, {"n": 1})
        with pytest.raises(CheckpointException, match="n is a object"):
            save(storage, {"n": object()})
        assert load(storage, {"n": 0})["n"] == 1


def test_a_name_that_is_no_number_is_refused(tmp_path: Path) -> None:
    """A commit has the number of an iteration."""
    with RegionStorage(tmp_path / "r", KEY) as storage:
        with pytest.raises(MismatchError, match="best is not the number of an iteration"):
            dcp.save({"n": 1}, storage_writer=storage, planner=SavePlanner(), checkpoint_id="best")


def test_a_region_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    """An empty region."""
    with RegionStorage(tmp_path / "r", KEY) as storage:
        with pytest.raises(CheckpointException, match="holds no checkpoint"):
            load(storage, {"n": 0})


def test_an_altered_checkpoint_is_refused(tmp_path: Path) -> None:
    """A flipped bit in the sealed bytes; another key is refused as well."""
    state = {"t": torch.arange(100_000.0)}
    with RegionStorage(tmp_path / "r", KEY) as storage:
        save(storage, state)
        at = storage._slots._pinned.layout.chunks(1) + 1000  # type: ignore[union-attr]
    with (tmp_path / "r").open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    with RegionStorage(tmp_path / "r", KEY) as storage:
        with pytest.raises(CheckpointException, match="does not open with this key"):
            load(storage, {"t": torch.zeros(100_000)})
    with pytest.raises(SealError, match="does not open with this key"):
        newest_snapshot(tmp_path / "r", KEY)
    with pytest.raises(Exception, match="key"):
        RegionStorage(tmp_path / "r", OwnerKey(bytes(32)))
