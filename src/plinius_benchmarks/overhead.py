"""`plinius bench overhead`: what a mirror costs an iteration, for three models.

Three ways take turns, iteration by iteration, on the same model: without a mirror, with one that
mirrors every iteration, and with one that seals beside the next iteration. The cost is the time
that the loop is held by the mirror (its calls, and the wait that it puts before the optimizer's
step) as a share of the iteration without it; every 10th iteration costs a tenth of that. The whole
iteration is measured as well: it grows if sealing beside training takes a core from training.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from plinius.darknet.cfg import read_cfg
from plinius.darknet.network import Network
from plinius.darknet.optimizer import make_optimizer
from plinius.keys import OwnerKey
from plinius.mirror import Mirror
from plinius.pm.medium import Granularity
from plinius.pm.region import Region
from plinius_benchmarks import networks
from plinius_benchmarks.machine import describe_with_torch
from plinius_benchmarks.report import Progress, Report, Row, Target, no_progress, ratio, spread

ROUNDS, SHORT_ROUNDS = 5, 2
OFF, ON, BESIDE, TENTH = "no mirror", "every iteration", "beside training", "every 10th"
_CNN = "ResNet-18, batch 128"
_FROZEN = "frozen base, 1 % trainable"

Step = Callable[[], None]


class Workload:
    """A model, its optimizer, and what makes the gradients of an iteration."""

    def __init__(
        self, name: str, model: nn.Module, optimizer: torch.optim.Optimizer, backward: Step
    ) -> None:
        self.name, self.model, self.optimizer, self.backward = name, model, optimizer, backward

    def iterate(self) -> None:
        """One iteration, which leaves no gradients: they would be part of the state."""
        self.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def run_overhead(
    cfg: Path,
    places: Sequence[Path],
    rounds: int = ROUNDS,
    progress: Progress = no_progress,
) -> Report:
    """Measure in each folder; `cfg` is the Darknet network. Takes minutes, on one thread.

    Raises CfgError, StorageError, RegionFullError and what else a region raises.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    makers = [lambda: _darknet(cfg), _resnet, _transformer]
    rows: list[Row] = []
    try:
        for number, make in enumerate(makers):
            torch.manual_seed(0)
            work = make()
            for place_number, place in enumerate(places):
                rows += _measure(work, place, rounds)
                progress(number * len(places) + place_number + 1, len(makers) * len(places))
        frozen = _frozen(places[0])
        machine = describe_with_torch()
    finally:
        torch.set_num_threads(before)
    targets = [
        *_targets(rows),
        Target(f"{_FROZEN}: mirrored share of the state", frozen, 0.015, False),
    ]
    return {
        "name": "overhead",
        "title": "What a mirror costs an iteration",
        "machine": machine,
        "rows": rows,
        "targets": [target.row() for target in targets],
        "notes": [
            f"Medians of {rounds} interleaved rounds; torch has one thread, sealing beside "
            "training has another.",
            "The original mirrors every iteration; PCcheck (ASPLOS 2025) and CheckFreq (FAST "
            "2021) report about 3 % and 3.5 %, and protect nothing.",
        ],
    }


def _measure(work: Workload, place: Path, rounds: int) -> list[Row]:
    times: dict[str, list[float]] = {way: [] for way in (OFF, ON, BESIDE)}
    held: dict[str, list[float]] = {way: [] for way in (OFF, ON, BESIDE)}
    state = {"model": work.model, "optimizer": work.optimizer}
    work.iterate()  # so that the optimizer has its state
    with ExitStack() as stack:
        made = tempfile.TemporaryDirectory(prefix="plinius-bench-", dir=place)
        folder = Path(stack.enter_context(made))
        mirrors: dict[str, Mirror] = {}
        for way in (ON, BESIDE):
            region = stack.enter_context(Region.create(folder / way.replace(" ", "_"), 0))
            mirror = Mirror.open(region, _KEY, state, overlap=way == BESIDE, threads=1)
            mirrors[way] = stack.enter_context(mirror)
            for iteration in (1, 2):  # both slots, and what the first time costs more
                mirror.mirror_out(iteration)
            mirror.wait()
        granularity, size = region.granularity.name, mirrors[BESIDE].sealed_bytes
        for iteration in range(3, 3 + rounds):
            for way in (OFF, ON, BESIDE):
                seconds, waits = _iteration(work, mirrors.get(way), way, iteration)
                times[way].append(seconds)
                held[way].append(waits)
    times[TENTH] = [off + on / 10 for off, on in zip(times[OFF], held[ON], strict=True)]
    held[TENTH] = [on / 10 for on in held[ON]]
    return [
        {
            "model": work.name,
            "place": granularity,
            "way": way,
            "bytes": size,
            "iteration": spread(times[way]),
            "held": spread(held[way]),
            "share": ratio(held[way], times[OFF]),
            "whole": ratio(times[way], times[OFF]) - 1,
        }
        for way in times
    ]


def _iteration(work: Workload, mirror: Mirror | None, way: str, number: int) -> tuple[float, float]:
    """Seconds of an iteration, and those of them that the loop was held by the mirror."""
    held = 0.0
    began = time.perf_counter()
    if mirror and way == BESIDE:
        mirror.mirror_out(number)  # of the iteration before; it is sealed beside this one
        held += time.perf_counter() - began
    work.iterate()
    if mirror and way == ON:
        out = time.perf_counter()
        mirror.mirror_out(number)
        held += time.perf_counter() - out
    return time.perf_counter() - began, held


_KEY = OwnerKey.generate()


def _darknet(cfg: Path) -> Workload:
    read = read_cfg(cfg)
    network = Network(read).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.rand(read.net.batch, *network.input_shape).contiguous(
        memory_format=torch.channels_last
    )
    truth = functional.one_hot(torch.arange(read.net.batch) % network.truths, network.truths)

    def backward() -> None:
        objective, _ = network.loss(x, truth.float())
        torch.autograd.backward(objective / len(x))

    name = f"{cfg.name}, batch {read.net.batch}"
    return Workload(name, network, make_optimizer(network, read.net), backward)


def _resnet() -> Workload:
    model = networks.ResNet18()
    x, y = torch.rand(128, 3, 32, 32), torch.randint(10, (128,))
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    def backward() -> None:
        torch.autograd.backward(functional.cross_entropy(model(x), y))

    return Workload(_CNN, model, optimizer, backward)


def _transformer(batch: int = 32, length: int = 128) -> Workload:
    model = networks.Transformer()
    ids = torch.randint(4096, (batch, length + 1))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def backward() -> None:
        logits = model(ids[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        torch.autograd.backward(loss)

    return Workload(f"transformer, {batch} x {length} words", model, optimizer, backward)


def _frozen(place: Path) -> float:
    """The share of the state that is mirrored where about 1 % of it is trained (LoRA)."""
    model = networks.Transformer().requires_grad_(False)
    trained = nn.ParameterList(
        torch.zeros(p.shape[0], 4) for p in model.parameters() if p.ndim == 2
    )
    trained += [torch.zeros(4, p.shape[1]) for p in model.parameters() if p.ndim == 2]
    optimizer = torch.optim.SGD(trained, 0.1)
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    with tempfile.TemporaryDirectory(prefix="plinius-bench-", dir=place) as folder:
        state = {"model": model, "trained": trained, "optimizer": optimizer}
        with Mirror.open(Path(folder) / "frozen.region", _KEY, state) as mirror:
            whole = mirror.mirror_out(1)
            for iteration in range(2, 5):
                optimizer.step()
                mirrored = mirror.mirror_out(iteration)
    return mirrored / whole


def _targets(rows: Sequence[Row]) -> Iterator[Target]:
    for row in rows:
        where = f"{row['model']}, {row['place']}: held, {row['way']}"
        share: Any = row["share"]
        if row["place"] == Granularity.PROCESS.name and row["way"] == ON:
            yield Target(where, share, 0.01, False)
        small = not row["model"].startswith("transformer")
        if small and row["place"] == Granularity.PAGE.name and row["way"] == BESIDE:
            yield Target(where, share, 0.02, False)
