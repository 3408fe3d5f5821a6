"""What of Lightning a resumed run goes on with exactly; the rest is refused by name."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torchmetrics import MetricCollection
from torchmetrics.wrappers.abstract import WrapperMetric

from plinius.errors import StateError
from plinius.integrations.lightning.states import Progress, base_of, is_lightning
from plinius.training.loader import ResumableLoader

_EXACT = {
    "Callback",
    "Checkpoint",
    "DeviceStatsMonitor",
    "EMAWeightAveraging",
    "EarlyStopping",
    "GradientAccumulationScheduler",
    "LambdaCallback",
    "LearningRateMonitor",
    "ModelCheckpoint",
    "ModelSummary",
    "ProgressBar",
    "RichModelSummary",
    "RichProgressBar",
    "ThroughputMonitor",
    "TQDMProgressBar",
    "WeightAveraging",
}  # fmt: skip
"""The callbacks of Lightning whose state is empty, or comes back."""


def require_covered(trainer: Trainer, module: LightningModule, own: Callback) -> None:
    """Raise StateError, naming it, for the first thing that a resumed run would lose."""
    _require_callbacks(trainer.callbacks, own)  # type: ignore[attr-defined]
    for name, part in module.named_modules():
        if isinstance(part, MetricCollection | WrapperMetric):
            raise refused(
                f"{name}, a {type(part).__name__}, whose metrics share their counts",
                "Keep the metrics as attributes of the module, each by itself",
            )
    for hook in ("on_save_checkpoint", "on_load_checkpoint"):
        if getattr(type(module), hook) is not getattr(LightningModule, hook):
            raise refused(f"{hook} of {type(module).__name__}", "Give what it keeps in state")
    settings: Any = trainer
    if getattr(settings.precision_plugin, "scaler", None) is not None:
        raise refused("a gradient scaler (fp16)", "Train in bf16-mixed or 32-true")
    if settings.ckpt_path is not None:
        raise refused("fit(ckpt_path=...)", "Leave it out: the mirror resumes the run")
    if settings.reload_dataloaders_every_n_epochs:
        raise refused("reload_dataloaders_every_n_epochs", "Leave it out")
    if settings.overfit_batches:
        raise refused("overfit_batches", "Leave it out")
    if trainer.limit_train_batches not in (None, 1.0):
        raise refused("limit_train_batches", "Make the dataset smaller (torch Subset)")
    if settings._val_check_time_interval is not None:
        raise refused("val_check_interval as a time", "Give it as a number of batches")


def require_loaders(trainer: Trainer, state: Sequence[object]) -> None:
    """Raise StateError unless every loader of training batches is one that can go on exactly."""
    loop: Any = trainer.fit_loop
    todo = "Train from a plinius.ResumableLoader, and give it in state={'loader': loader}"
    loaders = loop._combined_loader.flattened
    if len(loaders) > 1:
        raise refused("several loaders of training batches", "Read both from one dataset")
    for loader in loaders:
        batches = f"batches from a {type(loader).__name__}"
        if not isinstance(loader, ResumableLoader):
            raise refused(batches, todo)
        if not any(loader is part for part in state):
            raise refused(f"{batches} that is not in the state", todo)
    if type(loop._data_fetcher).__name__ != "_PrefetchDataFetcher":
        raise refused("training_step(dataloader_iter)", "Let it take a batch")
    validated = loop.epoch_loop.val_loop._combined_loader
    for loader in validated.flattened if validated is not None else []:
        generator = getattr(loader, "generator", None)
        if generator is not None and not any(generator is part for part in state):
            raise refused(
                "a generator of a validation loader that is not in the state",
                "Give it in state={'generator': generator}",
            )


def require_can_go_on(trainer: Trainer, progress: Progress) -> None:
    """Raise StateError if a run that has ended cannot go on as a longer one would have."""
    require_ended_as_a_longer_one(trainer, progress)
    if progress.began["schedules"] != progress.settings["schedules"]:
        raise _ended("a schedule was made for other limits")
    module = trainer.lightning_module
    for part in (module, *trainer.callbacks):  # type: ignore[attr-defined]
        theirs = LightningModule if part is module else base_of(part)
        averaging = isinstance(part, WeightAveraging)
        if averaging or type(part).on_train_end is not theirs.on_train_end:  # type: ignore[attr-defined]
            raise _ended(f"on_train_end of {type(part).__name__} has run")


def require_ended_as_a_longer_one(trainer: Trainer, progress: Progress) -> None:
    """Raise StateError if the limits are others now, and the old ones cut an epoch short."""
    done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    whole = done == trainer.num_training_batches
    if progress.began["limits"] != progress.settings["limits"] and not whole:
        raise _ended("it ended within an epoch")


def _require_callbacks(callbacks: Sequence[Callback], own: Callback) -> None:
    for callback in callbacks:
        name = type(callback).__name__
        if is_lightning(callback) and base_of(callback).__name__ not in _EXACT:
            raise refused(f"the callback {name}", "Train without it")
        if isinstance(callback, type(own)) and callback is not own:
            raise refused(f"a second {name}", "Mirror the run into one region")
        if getattr(callback, "_train_time_interval", None) is not None:
            raise refused(f"the {name} that saves by time", "Let it save by steps or epochs")


def _ended(why: str) -> StateError:
    return StateError(
        f"The run in this region has ended, and cannot go on as a longer one: {why}",
        "Give the limits (max_steps, max_epochs) that it began with, or another region",
    )


def refused(what: str, todo: str) -> StateError:
    """The error that names what is not covered, and the way out."""
    return StateError(f"The Lightning mirror does not cover {what}", todo)
