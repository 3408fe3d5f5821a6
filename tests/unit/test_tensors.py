"""Tensors as bytes: every dtype, every order in memory, nothing lost."""

from pathlib import Path
from typing import Any

import pytest
import torch

from plinius.mirror import Mirror
from plinius.slots import newest_snapshot
from plinius.state.tensor_memory import DTYPES, Memory, empty, order_of
from unit.mirroring import KEY


def random_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor of any bits (of booleans only the two that there are)."""
    if dtype is torch.bool:
        return torch.randint(0, 2, shape).bool()
    tensor = torch.empty(shape, dtype=dtype)
    raw = torch.randint(0, 256, (tensor.numel() * dtype.itemsize,), dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(Memory(tensor.contiguous()).data)


def there_and_back(tmp_path: Path, value: Any, fresh: Any) -> Any:
    with Mirror.open(tmp_path / "r", KEY, {"it": value}) as mirror:
        mirror.mirror_out(1)
        digest = mirror.digest()
    state = {"it": fresh}
    with Mirror.open(tmp_path / "r", KEY, state) as mirror:
        mirror.mirror_in()
        assert mirror.digest() == digest
    return state["it"]


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    """Not-a-numbers and all."""
    dtype = DTYPES[name]
    value = {"a": random_bytes((5, 3), dtype), "e": random_bytes((0, 4), dtype),
             "s": random_bytes((), dtype)}  # fmt: skip
    fresh = {key: torch.empty(tensor.shape, dtype=dtype) for key, tensor in value.items()}
    found = there_and_back(tmp_path, value, dict(fresh))
    for key, tensor in value.items():
        assert found[key] is fresh[key]
        assert (found[key].dtype, found[key].shape) == (dtype, tensor.shape)
        assert bits(found[key]) == bits(tensor)


def test_every_dtype_of_this_torch_that_can_be_copied_is_known() -> None:
    """So that a new one is noticed: those left out have no kernel to copy, or are quantized."""
    every = {str(d).removeprefix("torch.") for d in vars(torch).values() if type(d) is torch.dtype}
    left = {name for name in every - set(DTYPES) if name[0] != "q"}
    assert left == {f"{u}int{n}" for u in ("", "u") for n in range(1, 8)}


LAYOUTS: dict[str, Any] = {
    "channels_last": lambda t: t.to(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, 3),
    "every other": lambda t: t[:, ::2],
    "expanded": lambda t: t[:1].expand(3, -1, -1, -1),
    "a slice": lambda t: t[1:, 1:],
    "of one item a side": lambda t: t[:1, :1].permute(1, 0, 3, 2),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_tensors_in_any_order_are_mirrored_and_restored_in_place(name: str, tmp_path: Path) -> None:
    """What lies around and between their items is not touched."""
    value = LAYOUTS[name](torch.randn(2, 4, 3, 6))
    whole = torch.full((2, 4, 3, 6), 7.0)
    fresh = LAYOUTS[name](whole)
    found = there_and_back(tmp_path, value, fresh)
    assert found is fresh
    assert torch.equal(found, value)
    if name in ("every other", "a slice"):
        assert int((whole == 7.0).sum()) == whole.numel() - fresh.numel()


def test_a_state_in_rows_is_restored_into_channels_last(tmp_path: Path) -> None:
    """And the other way round: items are what counts."""
    rows = torch.randn(2, 3, 4, 5)
    last = torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert torch.equal(there_and_back(tmp_path, rows, last), rows)
    assert last.is_contiguous(memory_format=torch.channels_last)


def test_a_dense_tensor_is_sealed_from_its_own_memory() -> None:
    """No packing copy, whatever the order of its dimensions; one with gaps is copied."""
    tensor = torch.randn(2, 3, 4, 5)
    for dense in (tensor, tensor.permute(0, 2, 3, 1), tensor.to(memory_format=torch.channels_last)):
        memory = Memory(dense)
        assert memory.own
        assert memory.data.nbytes == 480
    assert not Memory(tensor[:, ::2]).own
    assert order_of(tensor.to(memory_format=torch.channels_last)) == (0, 2, 3, 1)
    spec = Memory(tensor.permute(3, 0, 1, 2))
    assert spec.order == (1, 2, 3, 0)


def test_a_conjugate_view_is_resolved(tmp_path: Path) -> None:
    """Its bits are not those of its memory."""
    value = torch.randn(4, dtype=torch.complex64).conj()
    found = there_and_back(tmp_path, value, torch.zeros(4, dtype=torch.complex64))
    assert torch.equal(found, value)


def test_an_empty_tensor_is_made_as_it_is_asked_for() -> None:
    """With the strides of its order."""
    memory = Memory(torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last))

    class Spec:
        dtype, shape, order = memory.dtype, memory.shape, memory.order

    made = empty(Spec)  # type: ignore[arg-type]
    assert made.is_contiguous(memory_format=torch.channels_last)


def test_a_tensor_and_its_conjugate_are_two(tmp_path: Path) -> None:
    """Though they lie at one place, and empty ones do not lie anywhere."""
    z = torch.tensor([1 + 2j, 3 - 4j])
    state = {"z": z, "conjugate": z.conj(), "none": [torch.empty(0), torch.empty(0)]}
    with Mirror.open(tmp_path / "r", KEY, state) as mirror:
        mirror.mirror_out(1)
    stored = {t.name: bytes(t.data) for t in newest_snapshot(tmp_path / "r", KEY).tensors}
    assert stored["z"] != stored["conjugate"]
    assert {"none/0", "none/1"} <= {*stored}
