"""`plinius bench batch`: iterations on sealed and on plain data, as in Fig. 8 of the paper.

The same network of five convolutional layers, on records that are opened from a sealed dataset or
taken from arrays in memory, in turn, for each batch size; one thread.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from plinius.darknet.network import Network
from plinius.darknet.optimizer import make_optimizer
from plinius.data.sealed_dataset import SealedDataset, seal_dataset
from plinius.keys import OwnerKey
from plinius.sources.npz import npz_source
from plinius.training.batches import Batches
from plinius_benchmarks import networks
from plinius_benchmarks.machine import describe_with_torch
from plinius_benchmarks.report import Progress, Report, Row, Target, no_progress, ratio, spread

SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)
SHORT = (8, 32, 128, 512)
ROUNDS, SHORT_ROUNDS = 9, 5
_RECORDS = 4096

Opener = Callable[[np.ndarray[tuple[int], np.dtype[np.int64]]], tuple[torch.Tensor, torch.Tensor]]


def run_batch(
    sizes: Sequence[int] = SIZES,
    rounds: int = ROUNDS,
    progress: Progress = no_progress,
) -> Report:
    """Measure each batch size. Takes a minute or two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (_RECORDS, 1, 28, 28), np.uint8)
    y = random.integers(0, 10, _RECORDS).astype(np.int64)
    rows: list[Row] = []
    try:
        with tempfile.TemporaryDirectory(prefix="plinius-bench-") as folder:
            plain, sealed, key = Path(folder) / "p.npz", Path(folder) / "s", OwnerKey.generate()
            np.savez(plain, x=x, y=y)
            seal_dataset(npz_source(plain, 10), key, sealed)
            dataset = SealedDataset.from_file(sealed, key)
            for number, size in enumerate(sizes):
                rows.append(_measure(size, rounds, dataset, x, y))
                progress(number + 1, len(sizes))
        machine = describe_with_torch()
    finally:
        torch.set_num_threads(before)
    targets = [
        Target("sealed data, batch 128: share of an iteration", row["share"], 0.01, False)
        for row in rows
        if row["batch"] == 128
    ]
    return {
        "name": "batch",
        "title": "Sealed training data (the paper's Fig. 8)",
        "machine": machine,
        "rows": rows,
        "targets": [target.row() for target in targets],
        "notes": [
            f"Medians of {rounds} interleaved rounds, one thread.",
            "In the paper an iteration on sealed data takes 1.2 times as long.",
        ],
    }


def _measure(
    size: int,
    rounds: int,
    dataset: SealedDataset,
    x: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
    y: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
) -> Row:
    cfg = networks.five_convolutions(size)
    network = Network(cfg)
    optimizer = make_optimizer(network, cfg.net)
    batches = Batches(dataset, network)

    def of_memory(
        at: np.ndarray[tuple[int], np.dtype[np.int64]],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.from_numpy(x[at]).float().mul_(1 / 255)
        return images, torch.nn.functional.one_hot(torch.from_numpy(y[at]), 10).float()

    openers: dict[str, Opener] = {"sealed": batches.open, "plain": of_memory}
    whole: dict[str, list[float]] = {name: [] for name in openers}
    opening: dict[str, list[float]] = {name: [] for name in openers}
    random = np.random.default_rng(size)
    for turn in range(rounds + 1):
        for name, opener in openers.items():
            at = random.integers(0, _RECORDS, size)
            began = time.perf_counter()
            images, truth = opener(at)
            opened = time.perf_counter()
            optimizer.zero_grad()
            objective, _ = network.loss(images, truth)
            torch.autograd.backward(objective / size)
            optimizer.step()
            if turn:
                whole[name].append(time.perf_counter() - began)
                opening[name].append(opened - began)
    more = [a - b for a, b in zip(opening["sealed"], opening["plain"], strict=True)]
    return {
        "batch": size,
        **{name: spread(seconds) for name, seconds in whole.items()},
        "opening": {name: spread(seconds) for name, seconds in opening.items()},
        "share": ratio(more, whole["plain"]),
        "times": ratio(whole["sealed"], whole["plain"]),
    }
