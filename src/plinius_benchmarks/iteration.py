"""`plinius bench iteration`: an iteration of the trainer against the same network by hand.

All contestants take turns, two iterations each a round, on one thread, so that other load on the
machine affects all of them. What counts is the median over the rounds of the ratio within a round.
The trainer has glibc keep freed memory, in the whole process: the loops by hand profit from it as
well.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from plinius.darknet.cfg import read_cfg
from plinius.darknet.network import Network
from plinius.darknet.optimizer import make_optimizer, set_rate
from plinius.darknet.schedule import rate
from plinius.data.sealed_dataset import SealedDataset
from plinius.errors import StorageError
from plinius.key_file import load_key
from plinius.keys import OwnerKey
from plinius.pm.medium import Granularity
from plinius.training.batches import Batches
from plinius.training.metrics import IterationMetrics
from plinius.training.trainer import Run, Settings
from plinius_benchmarks.machine import describe_with_torch
from plinius_benchmarks.networks import mnist_by_hand
from plinius_benchmarks.report import Progress, Report, Row, Target, no_progress, ratio, spread

ROUNDS, SHORT_ROUNDS = 15, 5
ITERATIONS = 2  # of each contestant in a round

TRAINER, BF16 = "plinius", "plinius, bf16"
PLAIN, TUNED = "by hand, plain", "by hand, channels_last + fused SGD"
DARKNET_NORM, TORCH_NORM = "network with Darknet's batch norm", "network with torch's batch norm"
_OPENED = 4096  # records of the plain copy that are opened at a time


@dataclass
class Contestant:
    """Something that iterates; for each round the time of one iteration, and its CPU time."""

    advance: Callable[[], None]
    deterministic: bool
    metrics: list[IterationMetrics] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    def take_turn(self) -> None:
        """Go on for ITERATIONS and time it."""
        # Only Plinius promises equal bits, and pays for it: the loops by hand do not.
        torch.use_deterministic_algorithms(self.deterministic)
        began, cpu_began = time.perf_counter(), time.process_time()
        self.advance()
        self.seconds.append((time.perf_counter() - began) / ITERATIONS)
        self.cpu_seconds.append((time.process_time() - cpu_began) / ITERATIONS)


@dataclass(frozen=True)
class Plain:
    """The dataset in clear, in memory: what the loops by hand train on."""

    images: torch.Tensor
    labels: torch.Tensor


def run_iteration(
    cfg: Path,
    data: Path,
    key_path: Path,
    places: Sequence[Path],
    rounds: int = ROUNDS,
    progress: Progress = no_progress,
) -> Report:
    """Measure on one thread, with a region in each of `places`. Takes minutes.

    The loops by hand are written for demo/mnist.cfg: StorageError for another network.
    """
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    try:
        with ExitStack() as stack:
            contestants = _enter(stack, cfg, data, load_key(key_path), places)
            _take_turns(contestants, rounds, progress)
        machine = describe_with_torch()
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
    parts = list(_parts(contestants))
    rows = [*_rows(contestants), *parts]
    return {
        "name": "iteration",
        "title": "An iteration, everything included, against the same network by hand",
        "machine": machine,
        "rows": rows,
        "targets": [target.row() for target in _targets(contestants, parts)],
        "notes": [f"{cfg.name}, medians of {rounds} interleaved rounds, one thread."],
    }


def _enter(
    stack: ExitStack, cfg: Path, data: Path, key: OwnerKey, places: Sequence[Path]
) -> dict[str, Contestant]:
    """The contestants by name; the trainer in the first place is the one that is compared."""
    contestants: dict[str, Contestant] = {}
    runs: list[tuple[Path, Literal["fp32", "bf16"]]] = [(place, "fp32") for place in places]
    if computes_bf16():
        runs.append((places[0], "bf16"))
    for place, precision in runs:
        made = tempfile.TemporaryDirectory(prefix="plinius-bench-", dir=place)
        region = Path(stack.enter_context(made)) / "run.region"
        settings = Settings(cfg, data, precision=precision, threads=1)
        run = stack.enter_context(Run(region, key, settings))
        name = BF16 if precision == "bf16" else TRAINER
        if name in contestants:
            name += f", {run.region.granularity.name}"
        metrics: list[IterationMetrics] = []
        contestants[name] = Contestant(_train(run, metrics.append), True, metrics)
    plain = _in_clear(cfg, SealedDataset.from_file(data, key))
    for name, tuned in ((PLAIN, False), (TUNED, True)):
        contestants[name] = Contestant(_by_hand(cfg, plain, tuned=tuned), deterministic=False)
    for name, norm in ((DARKNET_NORM, "darknet"), (TORCH_NORM, "torch")):
        contestants[name] = Contestant(_network_only(cfg, plain, norm), deterministic=True)
    return contestants


def _in_clear(cfg: Path, dataset: SealedDataset) -> Plain:
    network = Network(read_cfg(cfg))
    batches = Batches(dataset, network)
    count = dataset.header.count
    opened = [
        batches.open(np.arange(start, min(start + _OPENED, count)))
        for start in range(0, count, _OPENED)
    ]
    labels = torch.cat([truth.argmax(1) for _, truth in opened])
    return Plain(torch.cat([images for images, _ in opened]), labels)


def _train(run: Run, listener: Callable[[IterationMetrics], None]) -> Callable[[], None]:
    """The trainer, everything included: open the batch, step, mirror out."""

    def advance() -> None:
        run.train(run.iteration + ITERATIONS, 1, listener)

    return advance


def _by_hand(cfg: Path, plain: Plain, *, tuned: bool) -> Callable[[], None]:
    """The loop that one writes in an evening: the same network and recipe, data in clear."""
    net = read_cfg(cfg).net
    network = mnist_by_hand()
    if _count(network) != _count(Network(read_cfg(cfg))):
        raise StorageError(f"{cfg} is another network than demo/mnist.cfg", "Give that one")
    if tuned:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": net.decay},
        {"params": [p for p in network.parameters() if p.ndim == 1]},
    ]
    optimizer = torch.optim.SGD(
        groups, net.learning_rate, momentum=net.momentum, fused=tuned or None
    )
    iteration = 0

    def advance() -> None:
        nonlocal iteration
        for _ in range(ITERATIONS):
            iteration += 1
            for group in optimizer.param_groups:
                group["lr"] = rate(net, iteration)
            at = torch.randint(len(plain.images), (net.batch,))
            x = plain.images[at]
            if tuned:
                x = x.contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad()
            loss = functional.cross_entropy(network(x), plain.labels[at])
            torch.autograd.backward(loss)
            optimizer.step()
            loss.item()

    return advance


def _count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _network_only(path: Path, plain: Plain, norm: str) -> Callable[[], None]:
    """Plinius' network without sealing and mirror, with one batch norm or the other."""
    cfg = read_cfg(path)
    network = Network(cfg, batch_norm=norm).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(network, cfg.net)
    iteration = 0

    def advance() -> None:
        nonlocal iteration
        for _ in range(ITERATIONS):
            iteration += 1
            set_rate(optimizer, rate(cfg.net, iteration))
            at = torch.randint(len(plain.images), (cfg.net.batch,))
            x = plain.images[at].contiguous(memory_format=torch.channels_last)
            truth = functional.one_hot(plain.labels[at], network.truths).float()
            optimizer.zero_grad()
            objective, reported = network.loss(x, truth)
            torch.autograd.backward(objective / len(x))
            optimizer.step()
            reported.item()

    return advance


def _take_turns(contestants: dict[str, Contestant], rounds: int, progress: Progress) -> None:
    """The first round warms up and does not count."""
    for number in range(rounds + 1):
        for contestant in contestants.values():
            contestant.take_turn()
            if number == 0:
                contestant.seconds.clear()
                contestant.cpu_seconds.clear()
        progress(number + 1, rounds + 1)


def _rows(contestants: dict[str, Contestant]) -> list[Row]:
    """A row for each contestant, with the ratios that mean something."""
    compared = {TRAINER: (PLAIN, TUNED), DARKNET_NORM: (TORCH_NORM,), BF16: (TRAINER,)}
    return [
        {
            "who": name,
            "iteration": spread(one.seconds),
            "seconds": one.seconds,
            "cpu_seconds": one.cpu_seconds,
            "ratios": {
                other: {
                    "time": ratio(one.seconds, contestants[other].seconds),
                    "cpu_time": ratio(one.cpu_seconds, contestants[other].cpu_seconds),
                }
                for other in compared.get(name, ())
            },
        }
        for name, one in contestants.items()
    ]


def _parts(contestants: dict[str, Contestant]) -> list[Row]:
    """Parts of an iteration of the trainer: median milliseconds and median share."""
    rows: list[Row] = []
    for name, one in contestants.items():
        if not one.metrics or name == BF16:
            continue
        metrics = one.metrics[ITERATIONS:]
        measured = [("mirror_out", "mirror_seconds"), ("opening a batch", "open_seconds")]
        for what, attribute in measured if name == TRAINER else measured[:1]:
            seconds = [float(getattr(line, attribute)) for line in metrics]
            shares = [part / line.seconds for part, line in zip(seconds, metrics, strict=True)]
            rows.append(
                {
                    "who": f"{name}: {what}",
                    "ms": 1000 * statistics.median(seconds),
                    "share": statistics.median(shares),
                    "mirror_bytes": metrics[-1].mirror_bytes,
                }
            )
    return rows


def _targets(contestants: dict[str, Contestant], parts: list[Row]) -> list[Target]:
    def times(one: str, other: str) -> float:
        return ratio(contestants[one].seconds, contestants[other].seconds)

    bounds = {"opening a batch": 0.005, Granularity.PAGE.name: 0.03}
    targets = [Target("an iteration, against the same by hand", times(TRAINER, PLAIN), 1.05, False)]
    for part in parts:
        bound = next((limit for word, limit in bounds.items() if word in part["who"]), 0.01)
        targets.append(Target(part["who"], part["share"], bound, False))
    norms = times(DARKNET_NORM, TORCH_NORM)
    return [*targets, Target("Darknet's batch norm, to be the default", norms, 1.05, False)]


def computes_bf16() -> bool:
    """Whether convolutions in bf16 are fast here; without oneDNN they take 20 times as long."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
