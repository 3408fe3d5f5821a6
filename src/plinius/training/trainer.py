"""The trainer: opens sealed batches, trains a Darknet network, mirrors the run after iterations."""

import math
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch

from plinius.darknet.augmentation.augmentation import Augmentation
from plinius.darknet.cfg import Cfg, read_cfg
from plinius.darknet.network import Network
from plinius.darknet.optimizer import make_optimizer, set_rate
from plinius.darknet.schedule import rate
from plinius.data.dataset_extent import load_dataset, require_dataset
from plinius.data.records import Progress
from plinius.data.sealed_dataset import SealedDataset
from plinius.errors import CfgError, DivergedError, MismatchError
from plinius.keys import OwnerKey
from plinius.mirror import InexactResumeWarning, Mirror
from plinius.mirror.anchoring import Anchor
from plinius.pm.region import Region
from plinius.training.batches import Batches, balance_classes, by_time
from plinius.training.beginning import Beginning, begin, stored_identity
from plinius.training.identity import require_same_recipe, run_identity
from plinius.training.losses import Losses
from plinius.training.metrics import IterationMetrics, Listener, ValidationMetrics
from plinius.training.permission import Permission
from plinius.training.process import seed_process, set_up_process
from plinius.training.recalibration import SETTLED, settled
from plinius.training.sampler import Sampler, Streams
from plinius.training.validation import BEST, Best, Validation, ValidationPlan, no_history


@dataclass(frozen=True)
class Settings:
    """What decides the course of a run.

    `cfg` is the network description, `data` the sealed dataset. `precision` is what the forward
    and backward pass compute in; parameters are float32 in any case. If `threads` is None, a
    resumed run has the threads it had, a new one all cores. A new run starts with the parameters in
    `weights` (.weights or .safetensors) if given, else with random ones; a resumed run need not be
    given them again. `upto` and `clear` are those of `begin`. If `run_id` or `dataset_id` (hex) is
    given, the region and the data must have that id.

    `keep` and `keep_every` are those of `Mirror.open`. With `from_iteration`, the run goes back to
    the kept commit of that iteration, unless that is the last thing it did: so the same settings
    resume it. `learning_rate` then takes the place of the cfg's from there on: it is kept in the
    run state, so that a later process has it without being told.
    """

    cfg: Path
    data: Path
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    threads: int | None = None
    weights: Path | None = None
    run_id: str | None = None
    dataset_id: str | None = None
    upto: int | None = None
    clear: bool = False
    keep: int = 0
    keep_every: int = 1
    from_iteration: int | None = None
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        if self.learning_rate is not None and self.from_iteration is None:
            raise ValueError("learning_rate is for from_iteration")


class Run:
    """A training run in a region.

    Its life cycle: the constructor opens the region (or creates it) and resumes the run in it (or
    starts one, mirrored as iteration 0). `train` continues the run and can be called again. The
    end of its `with` block waits for the mirror and closes the region. If the constructor fails,
    everything it opened is closed. What can be refused without a region is refused before one is
    created.

    The constructor raises CfgError, StorageError, FormatError, KeyFileError, SealError,
    SourceError, MismatchError (the region holds another run), RegionError, RegionBusyError and
    RegionFullError. With `accept_previous`, a newest commit that does not open is not refused, but
    the one before is used. `progress` counts the bytes of the dataset as they are copied.
    `data_key` opens the dataset if `key`, which seals the run, is another one. `anchor` remembers
    the newest commit outside the region; then AnchorError is raised for another one.

    A `permission` is asked before the region is opened (it raises what it does not allow), belongs
    to the identity of the run, and says which metrics leave. `validation` does not belong to the
    identity: it says what is measured and when to stop, and changes nothing that is computed.
    """

    def __init__(
        self,
        region: Path,
        key: OwnerKey,
        settings: Settings,
        *,
        progress: Progress | None = None,
        accept_previous: bool = False,
        permission: Permission | None = None,
        data_key: OwnerKey | None = None,
        anchor: Anchor | None = None,
        validation: ValidationPlan | None = None,
    ) -> None:
        self.cfg = read_cfg(settings.cfg)
        self.network = Network(self.cfg, seed=settings.seed)
        self.network.require_trainable()
        self.network.require_batch()
        self._seed, self._bf16 = settings.seed, settings.precision == "bf16"
        self._augmentation = Augmentation.of(self.cfg)
        if self._augmentation:
            self.network.require_sizes(self._augmentation.largest)
        given = None
        if settings.weights:
            given = begin(self.network, settings.weights, settings.upto, settings.clear)
        if permission:
            permission.require_training(self.cfg, given.sha256 if given else None, settings)
        self._coarseness = permission.coarseness if permission else None
        self._plan = validation
        if not region.exists():
            self._check_before_create(region, data_key or key, settings, permission)
        with ExitStack() as opened:
            self.region = opened.enter_context(Region.open_or_create(region))
            dataset = load_dataset(
                self.region, settings.data, data_key or key, progress, wanted=settings.dataset_id
            )
            stored = stored_identity(self.region, key, accept_previous)
            if stored:
                require_same_recipe(self.cfg, stored)
            self.start = given or Beginning.of(stored)
            self.validation = self._validation(dataset, data_key or key, permission)
            self._build(dataset, settings)
            self.mirror = opened.enter_context(
                Mirror.open(
                    self.region,
                    key,
                    self._state,
                    threads=settings.threads,
                    identity=run_identity(
                        self.cfg, settings, self.dataset_id, self.start, permission
                    ),
                    run_id=settings.run_id,
                    anchor=anchor,
                    keep=settings.keep,
                    keep_every=settings.keep_every,
                )
            )
            self._resume_or_start(settings.threads, accept_previous)
            self._go_back(settings.from_iteration, settings.learning_rate)
            self._opened = opened.pop_all()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *raised: Any) -> None:
        self._opened.__exit__(*raised)

    def _check_before_create(
        self, region: Path, key: OwnerKey, settings: Settings, permission: Permission | None
    ) -> None:
        """Refuse what would make a new region useless."""
        if settings.from_iteration is not None:
            raise MismatchError(
                f"There is no region {region} to go back in",
                "Name the region of the run, or leave out --from-iteration",
            )
        if settings.run_id:
            raise MismatchError(
                f"There is no region {region}, so it does not hold run {settings.run_id}",
                "Name the region of that run, or leave out --run-id",
            )
        dataset = SealedDataset.from_file(settings.data, key)
        require_dataset(dataset, settings.dataset_id)
        self._batches_of(dataset)
        self._validation(dataset, key, permission)

    def _validation(
        self, dataset: SealedDataset, key: OwnerKey, permission: Permission | None
    ) -> Validation | None:
        if self._plan is None:
            return None
        return Validation(self._plan, self.cfg, dataset, key, permission)

    def _build(self, dataset: SealedDataset, settings: Settings) -> None:
        """Set up the process, and create everything that is part of the run state."""
        set_up_process()
        self.dataset_id = dataset.header.id.hex()
        self._batches = self._batches_of(dataset)
        count, net = dataset.header.count, self.cfg.net
        self._sampler: Sampler | Streams = Sampler(count, net.batch, settings.seed)
        if self._batches.are_tokens:
            self._sampler = Streams(count, net.batch // net.subdivisions, net.subdivisions)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimizer = make_optimizer(self.network, self.cfg.net)
        self._state: dict[str, Any] = {
            "model": self.network,
            "optimizer": self._optimizer,
            "dropout": self.network.generator,
            "validation": no_history(),
            "learning_rate": None,
        }
        self._losses = Losses(self._state, self._coarseness)
        seed_process(settings.seed)

    def _resume_or_start(self, threads: int | None, accept_previous: bool) -> None:
        """Read the run state from the mirror, or mirror that of a new run."""
        self.resumed = self.mirror.commits > 0
        if not self.resumed:
            balance_classes(self.network, self._batches, self._sampler.count)
        threads = threads or self.mirror.threads()
        if threads:
            torch.set_num_threads(threads)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InexactResumeWarning)  # the caller is told by `mirror`
            self.iteration = self.mirror.mirror_in(accept_previous=accept_previous)

    def _go_back(self, iteration: int | None, learning_rate: float | None) -> None:
        """Go back to a kept commit, and mirror that at once: a later process resumes from there."""
        last = self.mirror.returns[-1] if self.mirror.returns else None
        same_rate = learning_rate in (None, self.other_learning_rate)
        if iteration is None or (last and last.to_iteration == iteration and same_rate):
            return
        self.iteration = self.mirror.mirror_in(back_to=iteration)
        if learning_rate is not None:
            self._state["learning_rate"] = learning_rate
        self.mirror.mirror_out(self.iteration)
        self.mirror.wait()
        if self.mirror.failure:
            raise self.mirror.failure

    @property
    def other_learning_rate(self) -> float | None:
        """The learning_rate that the run went back with, None if it is the cfg's."""
        return cast(float | None, self._state["learning_rate"])

    @property
    def start_update(self) -> int:
        """How many updates the schedule is ahead of `iteration`: those that the weights saw."""
        return self.start.seen // self.cfg.net.rows

    @property
    def slow_precision(self) -> bool:
        """Whether bf16 was asked for on a CPU that has no instructions for it."""
        return self._bf16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported()

    @property
    def average_loss(self) -> float | None:
        """The running average of the loss, None before the first iteration.

        None as well, or coarse, where a permission says so. Each loss changes it to
        0.9 * average + 0.1 * loss (darknet: examples/classifier.c, train_classifier).
        """
        return self._losses.leaving_average(self.iteration)

    @property
    def best(self) -> Best | None:
        """The best validation so far, None before the first."""
        return Best.of(self._state["validation"])

    @property
    def stopped_early(self) -> bool:
        """Whether the last validations were no better, so that `train` goes no further."""
        return self.validation is not None and self.validation.is_over(self._state["validation"])

    @property
    def early_scores_lag(self) -> bool:
        """Whether patience may end before the rolling statistics are near those of the data."""
        plan = self.validation
        if plan is None or plan.patience is None:
            return False
        over = self.iteration + plan.patience * plan.every
        return settled(self.cfg, self.network, self.start.identity(), over) < SETTLED

    def train(
        self,
        until: int,
        mirror_every: int,
        listener: Listener,
        stop: Callable[[], bool] = lambda: False,
    ) -> IterationMetrics | None:
        """Train to iteration `until`; before each iteration, stop if `stop()` is true, or early.

        Mirrors after every `mirror_every` iterations and after the last one. Calls `listener` with
        the metrics of each iteration; returns those of the last one, or None if there was none.

        Raises MismatchError if the run is beyond `until`, DivergedError if the loss is not finite
        (that iteration is not mirrored), SealError, SourceError, and StorageError or
        RegionFullError if the last iteration could not be mirrored.
        """
        if until < self.iteration:
            raise MismatchError(
                f"The run is at iteration {self.iteration} already, beyond iteration {until}",
                "Ask for at least as many, or name another region (--region)",
            )
        self.network.train()
        if self.resumed:
            self._keep_best()  # it may have been killed before it did
        net, last = self.cfg.net, None
        if self.other_learning_rate is not None:
            net = replace(net, learning_rate=self.other_learning_rate)
        while self.iteration < until and not stop() and not self.stopped_early:
            started = time.perf_counter()
            x, truth = self._batches.open(self._sampler.indices(self.iteration), self.iteration)
            self.network.take_size(x.shape)
            opened = time.perf_counter()
            update = self.start_update + self.iteration + 1
            learning_rate = rate(net, update, seed=self._seed)
            self.network.seen = self.start.seen + self.iteration * self.cfg.net.rows
            loss = self._step(x, truth, learning_rate)
            self.iteration += 1
            leaving_loss = self._losses.add(loss, self.iteration)
            validated = self._validate()
            stepped = time.perf_counter()
            mirror_bytes = 0
            is_best = validated is not None and validated.best_iteration == self.iteration
            if self.iteration % mirror_every == 0 or is_best:
                mirror_bytes = self.mirror.mirror_out(self.iteration)
                self._keep_best()
            ended = time.perf_counter()
            last = IterationMetrics(
                iteration=self.iteration,
                loss=leaving_loss,
                average_loss=self.average_loss,
                rate=learning_rate,
                seconds=ended - started,
                open_seconds=opened - started,
                mirror_seconds=ended - stepped,
                mirror_bytes=mirror_bytes,
                validation=validated,
            )
            listener(last)
        if self.mirror.committed != self.iteration:
            self.mirror.mirror_out(self.iteration)
        if self.mirror.failure:
            raise self.mirror.failure
        return last

    def _validate(self) -> ValidationMetrics | None:
        """Validate if it is due; the score is mirrored with this iteration."""
        if self.validation is None or not self.validation.due(self.iteration):
            return None
        return self.validation.measure(self.network, self.iteration, self._state["validation"])

    def _keep_best(self) -> None:
        """Keep the newest commit as "best" if it is that of the best validation."""
        best = self.best
        if best and self.validation and best.iteration == self.mirror.committed:
            self.mirror.keep(BEST)

    def _batches_of(self, dataset: SealedDataset) -> Batches:
        return Batches(dataset, self.network, self._augmentation, self._seed)

    def _step(self, x: torch.Tensor, truth: torch.Tensor, learning_rate: float) -> float:
        """One update from a whole batch, in cfg.net.subdivisions passes; returns the mean loss."""
        set_rate(self._optimizer, learning_rate)
        total = 0.0
        passes, steps = self.cfg.net.subdivisions, self.cfg.net.time_steps
        for inputs, targets in zip(x.chunk(passes), truth.chunk(passes), strict=True):
            inputs, targets = by_time(inputs, steps), by_time(targets, steps)
            self.network.seen += len(inputs)
            with torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
                objective, reported = self.network.loss(_channels_last(inputs), targets)
            torch.autograd.backward(objective / self.cfg.net.rows)
            total += float(reported.detach())
        loss = total / self.cfg.net.rows
        if not math.isfinite(loss):
            raise DivergedError(
                f"The loss is {'not finite' if self._coarseness else loss} "
                f"at iteration {self.iteration + 1}",
                "Lower learning_rate in the cfg and train in a new region",
            )
        self._optimizer.step()
        self._optimizer.zero_grad()  # else the gradients would be mirrored too
        return loss


def last_iteration(cfg: Cfg, wanted: int | None, start_update: int = 0) -> int:
    """The iteration to train to: `wanted`, else what is left of max_batches after `start_update`.

    Raises CfgError if neither is set.
    """
    if wanted is None and cfg.net.max_batches == 0:
        raise CfgError(
            f"{cfg.name} has no max_batches, so training would never end",
            "Say how far to train with --iterations",
        )
    return max(cfg.net.max_batches - start_update, 0) if wanted is None else wanted


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    """Images in channels_last format, where CPU convolutions are faster; others unchanged."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
