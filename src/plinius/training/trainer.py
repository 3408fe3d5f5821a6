"""The trainer: opens sealed batches, steps a Darknet network, mirrors out every iteration."""

import ctypes
import hashlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch

from plinius.darknet.cfg import Cfg, read_cfg
from plinius.darknet.network import Network
from plinius.darknet.optimizer import make_optimizer, set_rate
from plinius.darknet.schedule import rate
from plinius.darknet.weights import read_parameters, weights_from
from plinius.data.extent import Progress, load_dataset, require_dataset
from plinius.data.sampler import Sampler
from plinius.data.sealed import SealedDataset
from plinius.errors import CfgError, DivergedError, MismatchError
from plinius.jsonvalue import Json
from plinius.keys import OwnerKey
from plinius.mirror import Mirror
from plinius.pm.region import Region
from plinius.training.batches import Batches
from plinius.training.parameters import tensors_from
from plinius.training.telemetry import IterationMetrics, Listener

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc


@dataclass(frozen=True)
class Settings:
    """What decides a run.

    `precision` is what the passes compute in, parameters being float32 in both. `threads` None
    takes the mirrored run's, or all cores for a new one. `weights` is a .weights or .safetensors
    file that a new run begins with. `run_id` and `dataset_id`, in hex, are those that the region
    and the data must have.
    """

    cfg: Path
    data: Path
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    threads: int | None = None
    weights: Path | None = None
    run_id: str | None = None
    dataset_id: str | None = None


class Run:
    """A training run in a region: built, resumed if it was mirrored before, ready to go on.

    The region is made if it is not there, once everything that can be refused without it was.
    """

    def __init__(
        self,
        region: Path,
        key: OwnerKey,
        settings: Settings,
        *,
        progress: Progress | None = None,
        accept_previous: bool = False,
    ) -> None:
        self.cfg = read_cfg(settings.cfg)
        self.network = Network(self.cfg, seed=settings.seed)
        weights = read_parameters(self.network, settings.weights) if settings.weights else None
        if settings.weights and weights is not None:
            _load(self.network, settings.weights, weights)
        self._weights_hash = None if weights is None else hashlib.sha256(weights).hexdigest()
        if not region.exists():
            if settings.run_id:
                raise MismatchError(
                    f"There is no region {region}, so it does not hold run {settings.run_id}",
                    "Name the region of that run, or leave out --run-id",
                )
            dataset = SealedDataset.from_file(settings.data, key)
            require_dataset(dataset, settings.dataset_id)
            self._batches_of(dataset)
        self.region = Region.open_or_create(region)
        try:
            self._build(key, settings, progress, accept_previous)
        except BaseException:
            self.region.close()
            raise

    def _build(
        self, key: OwnerKey, settings: Settings, progress: Progress | None, accept_previous: bool
    ) -> None:
        _keep_freed_memory()
        torch.use_deterministic_algorithms(True)
        # In that mode torch also clears every new tensor, 4 % of an iteration; none is read unset.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        dataset = load_dataset(
            self.region, settings.data, key, progress, wanted=settings.dataset_id
        )
        self.dataset_id = dataset.header.id.hex()
        self._batches = self._batches_of(dataset)
        self._sampler = Sampler(dataset.header.count, self.cfg.net.batch, settings.seed)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimizer = make_optimizer(self.network, self.cfg.net)
        self._seed, self._bf16 = settings.seed, settings.precision == "bf16"
        self._state: dict[str, Any] = {
            "model": self.network,
            "optimizer": self._optimizer,
            "dropout": self.network.generator,
            "average_loss": None,
        }
        _seed_all(settings.seed)
        identity = _identity(self.cfg, settings, dataset.header.id, self._weights_hash)
        self.mirror = Mirror.open(
            self.region,
            key,
            self._state,
            threads=settings.threads,
            identity=identity,
            run_id=settings.run_id,
        )
        self.resumed = self.mirror.commits > 0
        threads = settings.threads or self.mirror.threads()
        if threads:
            torch.set_num_threads(threads)
        self.iteration = self.mirror.mirror_in(accept_previous=accept_previous)
        if not self.resumed:
            self.mirror.mirror_out(0)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *raised: object) -> None:
        try:
            self.mirror.__exit__(*raised)
        finally:
            self.region.close()

    @property
    def slow_precision(self) -> bool:
        """Whether bf16 was asked for on a CPU that has no instructions for it."""
        return self._bf16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported()

    @property
    def average_loss(self) -> float | None:
        """Darknet's running loss: 0.9 of the average before and 0.1 of each new one."""
        return cast(float | None, self._state["average_loss"])

    def train(
        self,
        until: int,
        mirror_every: int,
        listener: Listener,
        stop: Callable[[], bool] = lambda: False,
    ) -> IterationMetrics | None:
        """Go on to iteration `until`, or until `stop()`; the last iteration is always mirrored.

        Tells the listener of each iteration and returns what it told last.

        Raises MismatchError if the run is beyond `until`, DivergedError if the loss is no number
        (that iteration is not mirrored), SealError, and StorageError if the last iteration could
        not be mirrored.
        """
        if until < self.iteration:
            raise MismatchError(
                f"The run is at iteration {self.iteration} already, beyond iteration {until}",
                "Ask for at least as many, or name another region (--region)",
            )
        self.network.train()
        mirrored_at, told = self.iteration, None
        while self.iteration < until and not stop():
            began = time.perf_counter()
            x, truth = self._batches.open(self._sampler.indices(self.iteration))
            opened = time.perf_counter()
            learning_rate = rate(self.cfg.net, self.iteration + 1, seed=self._seed)
            loss = self._step(x, truth, learning_rate)
            self.iteration += 1
            average = loss if self.average_loss is None else self.average_loss
            self._state["average_loss"] = average = 0.9 * average + 0.1 * loss
            stepped = time.perf_counter()
            mirrored = 0
            if self.iteration % mirror_every == 0:
                mirrored = self.mirror.mirror_out(self.iteration)
                mirrored_at = self.iteration
            ended = time.perf_counter()
            told = IterationMetrics(
                iteration=self.iteration,
                loss=loss,
                average_loss=average,
                rate=learning_rate,
                seconds=ended - began,
                open_seconds=opened - began,
                mirror_seconds=ended - stepped,
                mirror_bytes=mirrored,
            )
            listener(told)
        if mirrored_at != self.iteration or self.mirror.failure:
            self.mirror.mirror_out(self.iteration)
        if self.mirror.failure:
            raise self.mirror.failure
        return told

    def _batches_of(self, dataset: SealedDataset) -> Batches:
        return Batches(dataset, self.network.input_shape, self.network.truths)

    def _step(self, x: torch.Tensor, truth: torch.Tensor, learning_rate: float) -> float:
        """One update from a whole batch, in cfg.net.subdivisions parts; returns the mean loss."""
        set_rate(self._optimizer, learning_rate)
        total = 0.0
        parts = self.cfg.net.subdivisions
        for part, wanted in zip(x.chunk(parts), truth.chunk(parts), strict=True):
            with torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
                objective, reported = self.network.loss(_packed(part), wanted)
            torch.autograd.backward(objective / len(x))
            total += float(reported.detach())
        loss = total / len(x)
        if loss != loss or loss in (float("inf"), float("-inf")):
            raise DivergedError(
                f"The loss is {loss} at iteration {self.iteration + 1}",
                "Lower learning_rate in the cfg and train in a new region",
            )
        self._optimizer.step()
        self._optimizer.zero_grad()  # or they would be mirrored as well
        return loss


def iterations(cfg: Cfg, wanted: int | None) -> int:
    """How far to train: what was asked for, or the cfg's max_batches."""
    if wanted is None and cfg.net.max_batches == 0:
        raise CfgError(
            f"{cfg.name} has no max_batches, so training would never end",
            "Say how far to train with --iterations",
        )
    return cfg.net.max_batches if wanted is None else wanted


def _keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next iteration.

    By default it hands large buffers back to the kernel at every step: some 35,000 page faults
    an iteration of mnist.cfg, a tenth of its time.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _seed_all(seed: int) -> None:
    """Have every generator of the process begin alike: their states are part of the run's."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _load(network: Network, path: Path, data: bytes) -> None:
    if path.suffix == ".safetensors":
        tensors_from(network, data, str(path))
    else:
        weights_from(network, data, str(path))


def _identity(
    cfg: Cfg, settings: Settings, dataset_id: bytes, weights_hash: str | None
) -> dict[str, Json]:
    identity: dict[str, Json] = {
        "cfg": cfg.sha256,
        "dataset": dataset_id.hex(),
        "seed": settings.seed,
        "precision": settings.precision,
    }
    if weights_hash is not None:
        identity["weights"] = weights_hash
    return identity


def _packed(x: torch.Tensor) -> torch.Tensor:
    """Images in channels_last, which the CPU's convolutions are faster in; the rest as it is."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
