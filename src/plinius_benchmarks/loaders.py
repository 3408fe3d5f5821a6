"""`python -m plinius_benchmarks.loaders`: batches for a loop of one's own, sealed and in memory.

The same records, uint8 pictures of 3 x 32 x 32, from `plinius.SealedDataset` and from a
TensorDataset, by PyTorch's DataLoader and by `plinius.ResumableLoader`: how long the loop waits for
a batch of 128, as a share of an iteration of ResNet-18 on it. One thread; all four take turns.
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import plinius
from plinius_benchmarks import networks
from plinius_benchmarks.machine import describe_with_torch
from plinius_benchmarks.report import Report, Row, Target, ratio, spread

ROUNDS = 7
_BATCH, _RECORDS = 128, 2048


def run_loaders(
    rounds: int = ROUNDS, make_model: Callable[[], nn.Module] = networks.ResNet18
) -> Report:
    """Measure both loaders on sealed and on plain records; rounds of ResNet-18 take seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        with tempfile.TemporaryDirectory(prefix="plinius-bench-") as folder:
            x = torch.randint(256, (_RECORDS, 3, 32, 32), dtype=torch.uint8)
            plain = TensorDataset(x, torch.randint(10, (_RECORDS,)))
            key, path = plinius.OwnerKey.generate(), Path(folder) / "s"
            plinius.seal(plain, key, path, classes=10)
            sealed = plinius.SealedDataset.open(path, key)
            rows = _measure(rounds, make_model(), {"sealed": sealed, "plain": plain})
        machine = describe_with_torch()
    finally:
        torch.set_num_threads(before)
    targets = [
        Target(f"{row['loader']}: share of an iteration", row["share"], 0.01, False) for row in rows
    ]
    return {
        "name": "loaders",
        "title": "Sealed records in a loop of one's own, batch 128",
        "machine": machine,
        "rows": rows,
        "targets": [target.row() for target in targets],
        "notes": [f"Medians of {rounds} interleaved rounds, one thread."],
    }


def _measure(
    rounds: int, model: nn.Module, datasets: dict[str, plinius.SealedDataset | TensorDataset]
) -> list[Row]:
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    loaders = {
        (loader, name): made(data)
        for name, data in datasets.items()
        for loader, made in (
            ("DataLoader", lambda data: DataLoader(data, _BATCH, shuffle=True, drop_last=True)),
            ("ResumableLoader", lambda data: plinius.ResumableLoader(data, _BATCH)),
        )
    }
    waited: dict[tuple[str, str], list[float]] = {one: [] for one in loaders}
    whole: dict[tuple[str, str], list[float]] = {one: [] for one in loaders}
    batches = {one: iter(loader) for one, loader in loaders.items()}
    for turn in range(rounds + 1):
        for one in [*loaders][:: 1 if turn % 2 else -1]:
            began = time.perf_counter()
            batch = next(batches[one], None)
            if batch is None:  # the epoch is over
                batches[one] = iter(loaders[one])
                began = time.perf_counter()
                batch = next(batches[one])
            x, y = batch
            got = time.perf_counter()
            torch.autograd.backward(functional.cross_entropy(model(x.float() / 255), y))
            optimizer.step()
            optimizer.zero_grad()
            if turn:
                waited[one].append(got - began)
                whole[one].append(time.perf_counter() - began)
    rows: list[Row] = []
    for loader in ("DataLoader", "ResumableLoader"):
        sealed, plain = (loader, "sealed"), (loader, "plain")
        more = [a - b for a, b in zip(waited[sealed], waited[plain], strict=True)]
        rows.append(
            {
                "loader": loader,
                "iteration": spread(whole[plain]),
                "waiting": {"sealed": spread(waited[sealed]), "plain": spread(waited[plain])},
                "share": ratio(more, whole[plain]),
                "times": ratio(whole[sealed], whole[plain]),
            }
        )
    return rows


if __name__ == "__main__":
    print(json.dumps(run_loaders(), indent=1))
