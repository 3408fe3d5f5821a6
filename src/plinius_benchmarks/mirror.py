"""`plinius bench mirror`: saving and restoring, as in Fig. 7 and Table I of the paper.

All rivals save the same state and restore it, in turn, round after round, each round in another
order, so that other load on the machine affects all of them. A figure is the median over the
rounds, a ratio the median of the ratios within a round. torch has one thread. The mirror's
time is split by a medium that measures what passes through it: writing (and reading) is what the
medium took, sealing (and opening) the rest.
"""

import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import distributed, nn

from plinius.keys import OwnerKey
from plinius.mirror import Mirror
from plinius.pm.block_writer import Writer
from plinius.pm.medium import Granularity, Medium
from plinius.pm.region import Region
from plinius_benchmarks import networks, rivals
from plinius_benchmarks.machine import describe_with_torch
from plinius_benchmarks.report import Progress, Report, Row, Target, no_progress, ratio, spread
from plinius_benchmarks.rivals import Act, Limits, Rival

LAYERS = (5, 10, 15, 20, 25, 30, 35, 40, 45)  # big5.cfg ... big45.cfg
LARGE = (77, 434)  # 180 MB, 1 GB
SHORT = (5, 20, 45)
ROUNDS, SHORT_ROUNDS = 9, 5
_PLINIUS, _TWO = "plinius", "plinius, 2 threads"
_SEALED, _DIRECT, _PLAIN = "torch.save + AES-GCM", "O_DIRECT + fdatasync", "torch.save"
_WARM_UP = 2
_STEPS_BEFORE = 80


def run_mirror(
    places: Sequence[Path],
    layers: Sequence[int] = LAYERS + LARGE,
    rounds: int = ROUNDS,
    progress: Progress = no_progress,
) -> Report:
    """Measure in each folder, for networks of so many layers. Takes minutes.

    Raises StorageError, RegionFullError and what else a region raises.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    rows: list[Row] = []
    targets: list[Target] = []
    try:
        with _group():
            for number, (place, count) in enumerate((p, n) for p in places for n in layers):
                few = rounds if count < LARGE[-1] else min(rounds, 3)
                one = _compete(place, count, few)
                rows += one
                targets += _targets(one)
                progress(number + 1, len(places) * len(layers))
        machine = describe_with_torch()
    finally:
        torch.set_num_threads(before)
    return {
        "name": "mirror",
        "title": "Saving and restoring a model (the paper's Fig. 7 and Table I)",
        "machine": machine,
        "rows": rows,
        "targets": [target.row() for target in targets],
        "notes": [
            f"Medians of {rounds} interleaved rounds (3 at 1 GB), one thread but where it says 2.",
            "The paper (emlSGX-PM) saves 3.2x and restores 3.7x as fast as its own baseline.",
            "Restoring reads from the page cache, except for the mirror's on disk, which reads "
            "what it wrote past that cache from the disk.",
        ],
    }


def _compete(place: Path, layers: int, rounds: int) -> list[Row]:
    network = networks.big(layers)
    tensors = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    with ExitStack() as stack:
        made = tempfile.TemporaryDirectory(prefix="plinius-bench-", dir=place)
        folder = Path(stack.enter_context(made))
        clock = _Clock()
        mirrors = [
            stack.enter_context(_mirror(folder, network, threads, clock)) for threads in (1, 2)
        ]
        granularity = mirrors[0].granularity
        limits = [stack.enter_context(_closing(Limits(tensors, folder, n))) for n in (1, 2)]
        entered = [
            mirrors[0].rival(_PLINIUS),
            limits[0].aes(),
            mirrors[1].rival(_TWO),
            limits[1].aes(),
            limits[0].memcpy(),
            rivals.torch_save(tensors, folder),
            rivals.torch_save_sealed(tensors, folder),
            rivals.safetensors(tensors, folder),
            rivals.distributed_checkpoint(tensors, folder),
            *rivals.asynchronous_checkpoint(tensors, folder),
            rivals.buffer_by_buffer(tensors, folder),
        ]
        if granularity is Granularity.PAGE:
            direct = limits[0].direct()
            entered[1:1] = [direct] if direct else []
        saves, restores = _take_turns(entered, rounds, clock)
        parts = {"save": clock.shares("save"), "restore": clock.shares("restore")}
    rows = []
    for rival in entered:
        row: Row = {"place": granularity.name, "layers": layers, "bytes": size, "who": rival.name}
        for what, seconds in (("save", saves), ("restore", restores)):
            times = seconds.get(rival.name)
            if times:
                row[what] = spread(times)
                row[f"{what}s"] = times
        if rival.name == _PLINIUS:
            row["parts"] = parts
        rows.append(row)
    return rows


def _take_turns(
    entered: Sequence[Rival], rounds: int, clock: "_Clock"
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of each rival in each round, in an order of each round's own.

    Whoever comes behind a rival finds its tensors in the cache, and its disk busy.
    """
    order, shuffle = list(entered), random.Random(0).shuffle  # noqa: S311
    saves: dict[str, list[float]] = {}
    restores: dict[str, list[float]] = {}
    for turn in range(_WARM_UP + rounds):
        shuffle(order)
        for rival in order:
            counts = turn >= _WARM_UP
            if rival.before:
                rival.before()
            clock.begin("save", counts and rival.name == _PLINIUS)
            seconds = _timed(rival.save)
            clock.end(seconds)
            if rival.after:
                rival.after()
            if counts:
                saves.setdefault(rival.name, []).append(seconds)
            if rival.restore:
                clock.begin("restore", counts and rival.name == _PLINIUS)
                seconds = _timed(rival.restore)
                clock.end(seconds)
                if counts:
                    restores.setdefault(rival.name, []).append(seconds)
    return saves, restores


def _timed(act: Act) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def _targets(rows: Sequence[Row]) -> Iterator[Target]:
    at = {row["who"]: row for row in rows}
    mine = at[_PLINIUS]
    size = mine["bytes"] / 1e6
    where = f"{mine['place']}, {size:.0f} MB"

    def faster(other: str, what: str, who: str = _PLINIUS) -> float:
        return ratio(at[other][what], at[who][what])

    if mine["place"] == Granularity.PROCESS.name:
        for who, limit in ((_PLINIUS, "AES-GCM"), (_TWO, "AES-GCM, 2 threads")):
            for what, name in (("saves", "mirror_out"), ("restores", "mirror_in")):
                rate = faster(limit, what, who)
                yield Target(f"{where}: {name} of {who}, share of raw AES-GCM's rate", rate, 0.8)
        if size < 200:
            yield Target(f"{where}: saving, against {_SEALED}", faster(_SEALED, "saves"), 12)
            yield Target(f"{where}: restoring, against {_SEALED}", faster(_SEALED, "restores"), 10)
    elif _DIRECT in at:
        rate = faster(_DIRECT, "saves")
        yield Target(f"{where}: saving, share of the rate of {_DIRECT}", rate, 0.85)
        if size > 45:
            yield Target(f"{where}: saving, against {_PLAIN} + fsync", faster(_PLAIN, "saves"), 3)


class _Clock:
    """How long the medium took of each save and restore."""

    def __init__(self) -> None:
        self.medium = 0.0
        self._what: str | None = None
        self._found: dict[str, list[tuple[float, float]]] = {"save": [], "restore": []}

    def begin(self, what: str, counts: bool) -> None:
        self.medium, self._what = 0.0, what if counts else None

    def end(self, seconds: float) -> None:
        if self._what:
            self._found[self._what].append((self.medium, seconds))

    def shares(self, what: str) -> Row:
        """Seconds that the medium took and that sealing took, medians, and the medium's share."""
        found = self._found[what]
        medium = spread([one for one, _ in found])[1]
        rest = spread([whole - one for one, whole in found])[1]
        return {"medium": medium, "sealing": rest, "share": medium / (medium + rest)}


class _TimedMedium:
    """Passes everything on, and measures how long that takes."""

    def __init__(self, medium: Medium, clock: _Clock) -> None:
        self._medium, self._clock = medium, clock

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._medium, name)
        measured = ("read_into", "drain", "fence", "write")
        return self._measured(found) if name in measured else found

    def writer(self) -> Writer:
        return cast(Writer, _TimedWriter(self._medium.writer(), self))

    def _measured(self, act: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return act(*arguments)
            finally:
                self._clock.medium += time.perf_counter() - began

        return measured


class _TimedWriter:
    def __init__(self, writer: Writer, medium: _TimedMedium) -> None:
        self.room = medium._measured(writer.room)
        self.put = medium._measured(writer.put)


class _Mirrored:
    """Two mirrors of a network: one is saved to, the other restored from.

    The one that is saved to does not restore in between, as in training: it knows which chunks keep
    changing, and seals these without a fingerprint.
    """

    def __init__(self, saved: Region, restored: Region, network: nn.Module, threads: int) -> None:
        key = OwnerKey.generate()
        self.granularity = saved.granularity
        self._tensors = [tensor.detach() for tensor in network.state_dict().values()]
        self._saves = Mirror.open(saved, key, {"model": network}, threads=threads)
        self._restores = Mirror.open(restored, key, {"model": network}, threads=threads)
        self._restores.mirror_out(0)
        self._iteration = 0
        for _ in range(_STEPS_BEFORE):
            self._change()
            self._save()

    def rival(self, name: str) -> Rival:
        """Saving when a part of each chunk has changed, and restoring."""
        return Rival(name, self._save, self._restores.mirror_in, before=self._change)

    def close(self) -> None:
        """Close both mirrors."""
        self._saves.close()
        self._restores.close()

    def _change(self) -> None:
        for tensor in self._tensors:
            tensor.view(-1)[::4096] = self._iteration + 1

    def _save(self) -> None:
        self._iteration += 1
        self._saves.mirror_out(self._iteration)
        assert self._saves.sealed_bytes > sum(it.nbytes for it in self._tensors)


@contextmanager
def _mirror(folder: Path, network: nn.Module, threads: int, clock: _Clock) -> Iterator[_Mirrored]:
    with ExitStack() as stack:
        regions = []
        for name in ("saved", "restored"):
            region = stack.enter_context(Region.create(folder / f"{name}-{threads}", 0))
            region.medium = cast(Medium, _TimedMedium(region.medium, clock))
            regions.append(region)
        made = _Mirrored(regions[0], regions[1], network, threads)
        stack.callback(made.close)
        yield made


@contextmanager
def _closing(limits: Limits) -> Iterator[Limits]:
    try:
        yield limits
    finally:
        limits.close()


@contextmanager
def _group() -> Iterator[None]:
    """The process group that an asynchronous checkpoint needs, of this process alone."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = f"file://{folder}/group"
        distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
        try:
            yield
        finally:
            distributed.destroy_process_group()
