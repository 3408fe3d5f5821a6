"""Speed, as ratios within one run: Plinius against the same network written by hand in PyTorch.

All contestants take turns, two iterations each a round, on one thread, so that whatever else the
machine does falls on all of them. What counts is the median over the rounds of the ratio within
a round. The trainer tells glibc to keep freed memory, which holds for the whole process: the
loops by hand profit from it as well. Prints tables, writes bench/work/bench.json, and judges
nothing: it always exits with 0.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from torch.nn import functional

from plinius.darknet.cfg import read_cfg
from plinius.darknet.network import Network
from plinius.darknet.optimizer import make_optimizer, set_rate
from plinius.darknet.schedule import rate
from plinius.data.sealed import seal_dataset
from plinius.keys import OwnerKey
from plinius.pm.medium import Granularity
from plinius.sources.idx import idx_source
from plinius.training.telemetry import IterationMetrics
from plinius.training.trainer import Run, Settings
from plinius_benchmarks.figures import Bar, ratio
from plinius_benchmarks.machine import describe_with_torch

ROOT = Path(__file__).resolve().parent.parent
CFG = ROOT / "demo" / "mnist.cfg"
WORK = ROOT / "bench" / "work"
TMPFS = Path("/dev/shm")  # noqa: S108 - a fresh folder is made in it

ROUNDS, QUICK_ROUNDS = 15, 3
ITERATIONS = 2  # of each contestant in a round

TRAINER, TRAINER_DISK, BF16 = "plinius", "plinius, region on disk", "plinius, bf16"
PLAIN, TUNED = "by hand, plain", "by hand, channels_last + fused SGD"
DARKNET_NORM, TORCH_NORM = "network with Darknet's batch norm", "network with torch's batch norm"

console = Console(highlight=False)


@dataclass
class Contestant:
    """Something that iterates; for each round the time of one iteration, and its CPU time."""

    advance: Callable[[], None]
    deterministic: bool
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
    """MNIST in clear, in memory: what the loops by hand train on."""

    images: torch.Tensor
    labels: torch.Tensor


def main() -> None:
    """Measure, print, write bench.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds only")
    rounds = QUICK_ROUNDS if parser.parse_args().quick else ROUNDS
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    torch.set_num_threads(1)
    machine = describe_with_torch()
    console.print("  ".join(f"{name}: {value}" for name, value in machine.items()))
    with ExitStack() as stack:
        tmpfs = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=TMPFS)))
        contestants, told = build(stack, tmpfs)
        compete(contestants, rounds)
    result = judge(contestants, told)
    show(contestants, result)
    result = {"machine": machine, "rounds": rounds, **result}
    (WORK / "bench.json").write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"All figures: {WORK.relative_to(ROOT) / 'bench.json'}")


def build(
    stack: ExitStack, tmpfs: Path
) -> tuple[dict[str, Contestant], dict[str, list[IterationMetrics]]]:
    """The contestants by name, and what the runs among them tell of their iterations."""
    mnist = WORK / "mnist"
    subprocess.run(
        [sys.executable, ROOT / "demo" / "mnist.py", mnist], check=True, stdout=subprocess.DEVNULL
    )
    images, labels = mnist / "train-images-idx3-ubyte", mnist / "train-labels-idx1-ubyte"
    sealed, key = WORK / "mnist.sealed", OwnerKey.generate()
    key.save(WORK / "owner.key")
    seal_dataset(idx_source(images, labels), key, sealed)

    contestants, told = {}, {}
    runs: list[tuple[str, Path, Literal["fp32", "bf16"]]] = [
        (TRAINER, tmpfs / "fp32.region", "fp32"),
        (TRAINER_DISK, WORK / "disk.region", "fp32"),
    ]
    if computes_bf16():
        runs.append((BF16, tmpfs / "bf16.region", "bf16"))
    else:
        console.print("bf16 is left out: PyTorch has no fast way for it on this CPU.")
    for name, region, precision in runs:
        settings = Settings(CFG, sealed, precision=precision, threads=1)
        run = stack.enter_context(Run(region, key, settings))
        tmpfs_wanted = name != TRAINER_DISK
        if (run.region.granularity is Granularity.PROCESS) != tmpfs_wanted:
            console.print(f"[yellow]{region} is {run.region.granularity.name}[/]")
        told[name] = metrics = list[IterationMetrics]()
        contestants[name] = Contestant(train(run, metrics.append), deterministic=True)
    plain = Plain(read_images(images), read_labels(labels))
    for name, tuned in ((PLAIN, False), (TUNED, True)):
        contestants[name] = Contestant(by_hand(plain, tuned=tuned), deterministic=False)
    for name, norm in ((DARKNET_NORM, "darknet"), (TORCH_NORM, "torch")):
        contestants[name] = Contestant(network_only(plain, norm), deterministic=True)
    return contestants, told


def train(run: Run, listener: Callable[[IterationMetrics], None]) -> Callable[[], None]:
    """The trainer, everything included: open the batch, step, mirror out."""

    def advance() -> None:
        run.train(run.iteration + ITERATIONS, 1, listener)

    return advance


def by_hand(plain: Plain, *, tuned: bool) -> Callable[[], None]:
    """The loop that one writes in an evening: the same network and recipe, data in clear."""
    net = read_cfg(CFG).net
    network = written_by_hand()
    assert count(network) == count(Network(read_cfg(CFG))), "not the same network"
    if tuned:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": net.decay},
        {"params": [p for p in network.parameters() if p.ndim == 1]},
    ]
    optimizer = torch.optim.SGD(
        groups,
        net.learning_rate,
        momentum=net.momentum,
        fused=tuned or None,
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


def written_by_hand() -> nn.Sequential:
    """mnist.cfg in PyTorch's own layers."""

    def convolution(channels: int, filters: int) -> list[nn.Module]:
        layer = nn.Conv2d(channels, filters, 3, padding=1, bias=False)
        return [layer, nn.BatchNorm2d(filters), nn.LeakyReLU(0.1)]

    layers = [*convolution(1, 32), nn.MaxPool2d(2)]
    for channels in (32, *[64] * 8):
        layers += convolution(channels, 64)
    layers += [nn.MaxPool2d(2), *convolution(64, 128), nn.Dropout(0.5)]
    layers += [nn.Conv2d(128, 10, 1), nn.LeakyReLU(0.1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers)


def count(network: nn.Module) -> int:
    """Parameters of a network."""
    return sum(p.numel() for p in network.parameters())


def network_only(plain: Plain, norm: str) -> Callable[[], None]:
    """Plinius' network without sealing and mirror, with one batch norm or the other."""
    cfg = read_cfg(CFG)
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


def read_images(path: Path) -> torch.Tensor:
    """All images of an IDX file as (n, 1, 28, 28) float32 from 0 to 1."""
    pixels = np.fromfile(path, np.uint8, offset=16).reshape(-1, 1, 28, 28)
    return torch.from_numpy(pixels).float().div_(255)


def read_labels(path: Path) -> torch.Tensor:
    """All labels of an IDX file as int64."""
    return torch.from_numpy(np.fromfile(path, np.uint8, offset=8)).long()


def compete(contestants: dict[str, Contestant], rounds: int) -> None:
    """Take turns; the first round warms up and does not count."""
    for number in track(range(rounds + 1), "measuring", console=console, transient=True):
        for contestant in contestants.values():
            contestant.take_turn()
            if number == 0:
                contestant.seconds.clear()
                contestant.cpu_seconds.clear()


def judge(
    contestants: dict[str, Contestant], told: dict[str, list[IterationMetrics]]
) -> dict[str, Any]:
    """Ratios, shares of an iteration, and whether the bars are met."""
    c = contestants
    ratios = {
        f"{one} / {other}": {
            "time": ratio(c[one].seconds, c[other].seconds),
            "cpu_time": ratio(c[one].cpu_seconds, c[other].cpu_seconds),
        }
        for one, other in (
            (TRAINER, PLAIN),
            (TRAINER, TUNED),
            (DARKNET_NORM, TORCH_NORM),
            (BF16, TRAINER),
        )
        if one in c
    }
    measured = {name: metrics[ITERATIONS:] for name, metrics in told.items()}
    parts = {
        "mirror_out on tmpfs": part(measured[TRAINER], "mirror_seconds"),
        "mirror_out on disk": part(measured[TRAINER_DISK], "mirror_seconds"),
        "opening a batch": part(measured[TRAINER], "open_seconds"),
    }
    by_hand_ratio = ratios[f"{TRAINER} / {PLAIN}"]["time"]
    norm_ratio = ratios[f"{DARKNET_NORM} / {TORCH_NORM}"]["time"]
    bars = [
        Bar("an iteration, against the same by hand", by_hand_ratio, 1.05, False),
        Bar("mirror_out on tmpfs", parts["mirror_out on tmpfs"]["share"], 0.01, False),
        Bar("mirror_out on disk", parts["mirror_out on disk"]["share"], 0.03, False),
        Bar("opening a batch", parts["opening a batch"]["share"], 0.005, False),
        Bar("Darknet's batch norm, to be the default", norm_ratio, 1.05, False),
    ]
    return {
        "ratios": ratios,
        "parts": parts,
        "bars": [bar.row() for bar in bars],
        "mirror_bytes": measured[TRAINER][-1].mirror_bytes,
        "seconds": {name: one.seconds for name, one in c.items()},
        "cpu_seconds": {name: one.cpu_seconds for name, one in c.items()},
    }


def part(metrics: list[IterationMetrics], name: str) -> dict[str, float]:
    """A part of the iteration: median milliseconds and median share."""
    seconds = [float(getattr(line, name)) for line in metrics]
    shares = [one / line.seconds for one, line in zip(seconds, metrics, strict=True)]
    return {"ms": 1000 * statistics.median(seconds), "share": statistics.median(shares)}


def show(contestants: dict[str, Contestant], result: dict[str, Any]) -> None:
    """Print the figures, then the bars in words."""
    table = Table("contestant", "s/iteration", "fastest", title="mnist.cfg, batch 128, one thread")
    for name, contestant in contestants.items():
        middle, least = statistics.median(contestant.seconds), min(contestant.seconds)
        table.add_row(name, f"{middle:.3f}", f"{least:.3f}")
    console.print(table)
    table = Table("ratio, or part of an iteration", "measured", title="medians")
    for name, value in result["ratios"].items():
        table.add_row(name, f"{value['time']:.3f}  (of CPU time {value['cpu_time']:.3f})")
    for name, figures in result["parts"].items():
        table.add_row(name, f"{figures['ms']:.2f} ms, {figures['share']:.2%}")
    console.print(table)
    for bar in result["bars"]:
        met = "[green]met[/]" if bar["met"] else "[bold red]NOT met[/]"
        console.print(f"{met}: {bar['what']}, {bar['value']:.4f}, may be {bar['bound']}")


def computes_bf16() -> bool:
    """Whether convolutions in bf16 are fast here; without oneDNN they take 20 times as long."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


if __name__ == "__main__":
    main()
