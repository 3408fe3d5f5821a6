"""Loops whose state is written to in every way there is."""

import ctypes
import multiprocessing
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import dlpack

from resume.loops import Step, loop

LARGE = 400_000  # items: more than one chunk


def writes(write: Any, make: Any = lambda: torch.randn(LARGE)) -> tuple[dict[str, Any], Step]:
    """A tensor that is written to by `write(tensor, iteration)`."""
    state = {"tensor": make(), "resting": torch.randn(30_000)}
    return state, lambda iteration: write(state["tensor"], iteration)


@loop
def through_data() -> tuple[dict[str, Any], Step]:
    return writes(lambda t, i: t.data.add_(i))


@loop
def one_item_through_data() -> tuple[dict[str, Any], Step]:
    def write(tensor: torch.Tensor, iteration: int) -> None:
        tensor.data[iteration * 66_661 % LARGE] += 1

    return writes(write)


@loop
def through_numpy() -> tuple[dict[str, Any], Step]:
    def write(tensor: torch.Tensor, iteration: int) -> None:
        tensor.numpy()[iteration * 1000 :: 77_777] *= 1.5

    return writes(write)


@loop
def through_detach_numpy() -> tuple[dict[str, Any], Step]:
    def write(tensor: torch.Tensor, iteration: int) -> None:
        tensor.detach().numpy()[-iteration] = iteration

    return writes(write, lambda: nn.Parameter(torch.randn(LARGE)))


@loop
def through_from_numpy() -> tuple[dict[str, Any], Step]:
    array = np.zeros(50_000, np.float32)
    state = {"tensor": torch.from_numpy(array)}

    def step(iteration: int) -> None:
        array[iteration * 7] += np.random.rand()

    return state, step


@loop
def through_dlpack() -> tuple[dict[str, Any], Step]:
    return writes(lambda t, i: dlpack.from_dlpack(dlpack.to_dlpack(t))[i * 9 : i * 10].fill_(i))


@loop
def through_untyped_storage() -> tuple[dict[str, Any], Step]:
    def write(tensor: torch.Tensor, iteration: int) -> None:
        tensor.untyped_storage()[iteration * 4001] = iteration

    return writes(write)


@loop
def through_ctypes() -> tuple[dict[str, Any], Step]:
    def write(tensor: torch.Tensor, iteration: int) -> None:
        ctypes.memset(tensor.data_ptr() + 999_999 + iteration, iteration, 1)

    return writes(write)


@loop
def there_and_back_again() -> tuple[dict[str, Any], Step]:
    return writes(lambda t, i: t.data.mul_(-1.0))


def _fill(shared: torch.Tensor, iteration: int) -> None:
    shared[iteration::10_007] = iteration


@loop
def by_another_process() -> tuple[dict[str, Any], Step]:
    state = {"shared": torch.zeros(LARGE).share_memory_()}

    def step(iteration: int) -> None:
        process = multiprocessing.get_context("fork").Process(
            target=_fill, args=(state["shared"], iteration)
        )
        process.start()
        process.join()

    return state, step


@loop
def ema_through_data() -> tuple[dict[str, Any], Step]:
    model, average = nn.Linear(40, 40), nn.Linear(40, 40).requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(iteration: int) -> None:
        model(torch.randn(3, 40)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
            mine.data.mul_(0.9).add_(theirs.data, alpha=0.1)

    return {"model": model, "average": average, "optimizer": optimizer}, step


@loop
def replay_buffer_of_arrays() -> tuple[dict[str, Any], Step]:
    state: dict[str, Any] = {
        "observations": np.zeros((2000, 17), np.float32), "actions": np.zeros(2000, np.int64),
        "full": False, "at": 0,
    }  # fmt: skip

    def step(iteration: int) -> None:
        for _ in range(3):
            at = state["at"]
            state["observations"][at] = np.random.randn(17)
            state["actions"][at] = np.random.randint(5)
            state["at"], state["full"] = (at + 1) % 2000, at > 10

    return state, step


@loop
def count_table() -> tuple[dict[str, Any], Step]:
    state = {"counts": np.zeros((500, 40), np.int32)}

    def step(iteration: int) -> None:
        state["counts"][np.random.randint(500), np.random.randint(40)] += 1

    return state, step


@loop
def memory_mapped_array() -> tuple[dict[str, Any], Step]:
    import tempfile

    file = tempfile.NamedTemporaryFile()  # noqa: SIM115
    table = np.memmap(file, np.float64, "w+", shape=(1000,))
    state = {"table": table}

    def step(iteration: int) -> None:
        assert file
        table[iteration * 3] = np.random.rand()

    return state, step


@loop
def column_major_array() -> tuple[dict[str, Any], Step]:
    state: dict[str, Any] = {"array": np.zeros((30, 50), order="F"), "history": []}

    def step(iteration: int) -> None:
        state["array"][iteration] += np.random.rand(50)
        state["history"].append(np.asfortranarray(state["array"] * 2))

    return state, step


@loop
def read_only_array() -> tuple[dict[str, Any], Step]:
    array = np.arange(5.0)
    array.flags.writeable = False
    state: dict[str, Any] = {"array": array}

    def step(iteration: int) -> None:
        new = state["array"] + iteration
        new.flags.writeable = False
        state["array"] = new

    return state, step


@loop
def sparse_columns_of_batch_norm() -> tuple[dict[str, Any], Step]:
    layer = nn.Linear(4, 20_000, bias=False)
    model = nn.Sequential(layer, nn.BatchNorm1d(20_000))
    nn.init.zeros_(layer.weight)

    def step(iteration: int) -> None:
        with torch.no_grad():
            layer.weight[iteration * 37] = iteration
            model(torch.randn(4, 4))

    return {"model": model}, step


@loop
def channels_last() -> tuple[dict[str, Any], Step]:
    model = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    state: dict[str, Any] = {"model": model, "optimizer": optimizer, "image": None}

    def step(iteration: int) -> None:
        x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        state["image"] = x

    return state, step


@loop
def expanded_and_strided() -> tuple[dict[str, Any], Step]:
    state: dict[str, Any] = {"wide": torch.zeros(1, 5).expand(4, 5), "some": torch.zeros(20)[::2]}

    def step(iteration: int) -> None:
        state["wide"][0, iteration % 5] += iteration
        state["some"].add_(torch.randn(10))
        if iteration == 3:
            state["wide"] = torch.randn(1, 5).expand(4, 5)

    return state, step


@loop
def a_view_and_its_base() -> tuple[dict[str, Any], Step]:
    base = torch.zeros(100)
    state = {"base": base, "view": base[10:20]}

    def step(iteration: int) -> None:
        base[iteration * 3] = iteration
        state["view"].add_(1)

    return state, step


@loop
def tied_weights() -> tuple[dict[str, Any], Step]:
    one, other = nn.Linear(6, 6), nn.Linear(6, 6)
    other.weight = one.weight
    model = nn.ModuleList([one, other])
    optimizer = torch.optim.Adam(model.parameters())

    def step(iteration: int) -> None:
        other(one(torch.randn(2, 6))).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return {"model": model, "optimizer": optimizer}, step


@loop
def every_dtype_at_once() -> tuple[dict[str, Any], Step]:
    kinds = (torch.bool, torch.int8, torch.float16, torch.bfloat16, torch.float64, torch.complex64,
             torch.float8_e5m2, torch.uint16)  # fmt: skip
    state = {str(kind): torch.zeros(50).to(kind) for kind in kinds}

    def step(iteration: int) -> None:
        for name, tensor in state.items():
            state[name] = torch.randint(0, 5, (50,)).to(tensor.dtype)

    return state, step
