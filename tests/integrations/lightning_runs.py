"""Lightning configurations, killed at chosen places and compared with a run that was not."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    WeightAveraging,
)

from integrations.lightning_modules import (
    Counting,
    CountingData,
    KilledError,
    Killer,
    LoggedMeans,
    Manual,
    Net,
    NoisyDataset,
    RandomHooks,
    SkipsBatches,
    WithMetrics,
    WithoutStateDict,
)
from plinius.integrations.lightning import MirrorCallback
from plinius.training.loader import ResumableLoader
from unit.mirroring import KEY

__all__ = ["CONFIGURATIONS", "PLACES", "KilledError", "fit"]

PLACES = (
    "on_train_start", "on_train_epoch_start", "on_train_batch_start", "on_before_backward",
    "on_before_optimizer_step", "on_before_zero_grad", "on_train_batch_end",
    "on_validation_start", "on_validation_batch_end", "on_validation_epoch_end",
    "on_validation_end", "on_train_epoch_end", "on_train_end", "on_fit_end",
)  # fmt: skip
schedules = torch.optim.lr_scheduler


def sgd(parameters: Any) -> Any:
    """The simplest optimizer that has a state."""
    return torch.optim.SGD(parameters, 0.1, momentum=0.9)


def scheduled(
    make: Callable[[Any], Any], interval: str, monitor: str | None = None
) -> Callable[[Any], Any]:
    """An optimizer with a schedule."""

    def configure(parameters: Any) -> Any:
        optimizer = sgd(parameters)
        schedule = {"scheduler": make(optimizer), "interval": interval, "strict": False}
        schedule |= {"monitor": monitor} if monitor else {}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    return configure


class ScheduledToEnd(Net):
    """A module whose schedule ends with the run."""

    def configure_optimizers(self) -> Any:
        """With the number of steps that the Trainer estimates."""
        optimizer = sgd(self.body.parameters())
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = schedules.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


Configuration = tuple[Callable[[], Net], dict[str, Any], dict[str, Any]]
"""The module, the settings of the Trainer, the options of the callback."""


def _net(make: Callable[[Any], Any], cls: type[Net] = Net) -> Callable[[], Net]:
    return lambda: cls(make)


def _plateau(interval: str, monitor: str, cls: type[Net] = Net) -> Callable[[], Net]:
    def make(optimizer: Any) -> Any:
        return schedules.ReduceLROnPlateau(optimizer, "max", factor=0.5, patience=0)

    return _net(scheduled(make, interval, monitor), cls)


def _stopping(**options: Any) -> Callable[[], Any]:
    return lambda: EarlyStopping(**options)


CONFIGURATIONS: dict[str, Configuration] = {
    "SGD": (_net(sgd), {}, {}),
    "AdamW": (_net(lambda p: torch.optim.AdamW(p)), {}, {}),
    "fused AdamW": (_net(lambda p: torch.optim.AdamW(p, fused=True)), {}, {}),
    "LBFGS": (_net(lambda p: torch.optim.LBFGS(p, max_iter=2)), {}, {}),
    "Adagrad": (_net(lambda p: torch.optim.Adagrad(p)), {}, {}),
    "RMSprop": (_net(lambda p: torch.optim.RMSprop(p, momentum=0.5)), {}, {}),
    "overlap": (_net(sgd), {}, {"overlap": True}),
    "every 2": (_net(sgd), {}, {"every": 2}),
    "every 3, overlap": (_net(sgd), {}, {"every": 3, "overlap": True}),
    "StepLR by epoch": (_net(scheduled(lambda o: schedules.StepLR(o, 1), "epoch")), {}, {}),
    "StepLR by step": (_net(scheduled(lambda o: schedules.StepLR(o, 2), "step")), {}, {}),
    "OneCycle": (
        _net(scheduled(lambda o: schedules.OneCycleLR(o, 0.1, total_steps=40), "step")), {}, {},
    ),
    "warm restarts": (
        _net(scheduled(lambda o: schedules.CosineAnnealingWarmRestarts(o, 3), "step")), {}, {},
    ),
    "cosine by epoch": (
        _net(scheduled(lambda o: schedules.CosineAnnealingLR(o, 5), "epoch")), {}, {},
    ),
    "lambda by epoch": (
        _net(scheduled(lambda o: schedules.LambdaLR(o, lambda n: 0.9**n), "epoch")), {}, {},
    ),
    "until the end": (_net(sgd, ScheduledToEnd), {}, {}),
    "accumulate 2": (_net(sgd), {"accumulate_grad_batches": 2}, {}),
    "accumulate 3": (_net(sgd), {"accumulate_grad_batches": 3}, {}),
    "accumulate, schedule": (
        _net(scheduled(lambda o: schedules.StepLR(o, 2), "step")),
        {"accumulate_grad_batches": 2}, {},
    ),
    "clip the norm": (_net(sgd), {"gradient_clip_val": 0.1}, {}),
    "clip the value": (
        _net(sgd), {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}, {},
    ),
    "by hand": (Manual, {}, {}),
    "bf16": (_net(sgd), {"precision": "bf16-mixed"}, {}),
    "double": (_net(sgd), {"precision": "64-true"}, {}),
    "epochs": (_net(sgd), {"max_epochs": 3, "max_steps": -1}, {}),
    "no validation": (_net(sgd), {"limit_val_batches": 0}, {}),
    "one validation batch": (_net(sgd), {"limit_val_batches": 1}, {}),
    "no sanity check": (_net(sgd), {"num_sanity_val_steps": 0}, {}),
    "a callback with a state": (_net(sgd), {"callbacks": Counting}, {}),
    "checkpoints of Lightning": (_net(sgd), {"enable_checkpointing": True}, {}),
    "anomalies": (_net(sgd), {"detect_anomaly": True}, {}),
    "inference mode off": (_net(sgd), {"inference_mode": False}, {}),
    "a callback without a state_dict": (_net(sgd), {"callbacks": WithoutStateDict}, {}),
    "hooks that draw": (_net(sgd, RandomHooks), {}, {}),
    "hooks that draw, every 3": (_net(sgd, RandomHooks), {}, {"every": 3, "overlap": True}),
    "no steps at times": (_net(sgd, SkipsBatches), {}, {}),
    "augmentation": (_net(sgd), {"data": NoisyDataset}, {}),
    "shuffled validation": (_net(sgd), {"shuffle": True}, {}),
    "early stopping": (
        _net(sgd), {"callbacks": _stopping(monitor="worth", patience=1, mode="max"),
                    "max_steps": 60}, {},
    ),
    "early stopping by a mean": (
        _net(sgd, LoggedMeans), {"callbacks": _stopping(monitor="loss", patience=1, min_delta=0.1,
                                                  check_on_train_epoch_end=True),
                           "max_epochs": 9, "max_steps": -1}, {},
    ),
    "early stopping, later": (
        _net(sgd), {"callbacks": _stopping(monitor="worth", patience=0, mode="max"),
                    "min_epochs": 4, "max_steps": 60}, {},
    ),
    "plateau": (_plateau("epoch", "worth"), {"max_steps": 23}, {}),
    "plateau, epochs": (_plateau("epoch", "worth"), {"max_epochs": 4, "max_steps": -1}, {}),
    "plateau of a mean": (_plateau("epoch", "loss_epoch", LoggedMeans), {}, {}),
    "plateau by step": (_plateau("step", "worth"), {}, {}),
    "means": (_net(sgd, LoggedMeans), {}, {}),
    "means, every 3": (_net(sgd, LoggedMeans), {"max_epochs": 3, "max_steps": -1}, {"every": 3}),
    "means, accumulate": (_net(sgd, LoggedMeans), {"accumulate_grad_batches": 2}, {}),
    "metrics": (_net(sgd, WithMetrics), {}, {}),
    "metrics, within an epoch": (_net(sgd, WithMetrics), {"val_check_interval": 2}, {"every": 2}),
    "a data module": (_net(sgd), {"module": True}, {}),
    "every other epoch": (_plateau("epoch", "worth"), {"check_val_every_n_epoch": 2}, {}),
    "within an epoch": (_plateau("step", "worth"), {"val_check_interval": 2}, {}),
    "a part of an epoch": (_net(sgd, RandomHooks), {"val_check_interval": 0.5}, {}),
    "across epochs": (
        _net(sgd), {"check_val_every_n_epoch": None, "val_check_interval": 7}, {},
    ),
    "means, within an epoch": (_net(sgd, LoggedMeans), {"val_check_interval": 2}, {}),
    "the best checkpoint": (
        _net(sgd), {"callbacks": lambda: ModelCheckpoint(monitor="worth", save_top_k=2),
                    "enable_checkpointing": True}, {},
    ),
    "checkpoints by step": (
        _net(sgd), {"callbacks": lambda: ModelCheckpoint(monitor="worth", mode="max",
                                                         every_n_train_steps=3, save_last=True),
                    "enable_checkpointing": True}, {},
    ),
    "accumulation that changes": (
        _net(sgd), {"callbacks": lambda: GradientAccumulationScheduler({1: 2, 2: 3})}, {},
    ),
    "averaged weights": (_net(sgd), {"callbacks": WeightAveraging}, {}),
    "moving average": (
        _net(sgd), {"callbacks": lambda: EMAWeightAveraging(decay=0.9, update_every_n_steps=2,
                                                            update_starting_at_epoch=1)}, {},
    ),
    "rates logged": (_net(sgd), {"callbacks": LearningRateMonitor, "logger": True}, {}),
}  # fmt: skip


def fit(name: str, region: Path, place: str = "", at: int = 0, **limits: Any) -> list[str]:
    """Train a configuration, killed at a place if one is given; returns the final state as text."""
    make, settings, options = CONFIGURATIONS[name]
    settings = {**settings, **limits}
    lightning.seed_everything(3, verbose=False)
    data: Any = torch.utils.data.TensorDataset(torch.randn(10, 4), torch.randint(0, 3, (10,)))
    if settings.get("precision") == "64-true":
        data = torch.utils.data.TensorDataset(data.tensors[0].double(), data.tensors[1])
    loader = ResumableLoader(settings.pop("data", lambda it: it)(data), 2, seed=1)
    mirror = MirrorCallback(region, KEY, state={"loader": loader}, **options)
    given = [settings.pop("callbacks")()] if "callbacks" in settings else []
    killer = Killer(place, at)
    before, after = ([killer, *given], []) if at % 2 else ([], [*given, killer])
    validation = torch.utils.data.DataLoader(data, 5, shuffle=settings.pop("shuffle", False))
    as_module = settings.pop("module", False)
    trainer = lightning.Trainer(
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=region.parent, callbacks=[*before, mirror, *after],
        **{"max_steps": 13, "enable_checkpointing": False, "logger": False, **settings},
    )  # fmt: skip
    module = make()
    if as_module:
        trainer.fit(module, datamodule=CountingData(loader, validation))
    else:
        trainer.fit(module, loader, validation)
    final: list[object] = [module.state_dict(), [it.state_dict() for it in trainer.optimizers]]
    final += [[it.scheduler.state_dict() for it in trainer.lr_scheduler_configs]]
    final += [trainer.global_step, trainer.current_epoch, loader.iteration, torch.rand(3)]
    final += [trainer.callback_metrics, [it.state_dict() or vars(it) for it in given]]
    torch.set_printoptions(profile="full", precision=17)
    return [re.sub(r"-v\d+(?=\.ckpt)", "", repr(it)) for it in final]
