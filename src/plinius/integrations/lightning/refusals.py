"""Which configurations of Lightning are resumed exactly; all others are refused by name."""

from collections.abc import Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer, callbacks
from lightning.pytorch.trainer.connectors.logger_connector import result
from torchmetrics import MetricCollection
from torchmetrics.wrappers.abstract import WrapperMetric

from plinius.errors import StateError
from plinius.integrations import shared
from plinius.integrations.lightning.trainer_state import (
    LOGGED,
    LOGGING,
    METADATA,
    LoopState,
    lightning_class,
)
from plinius.training.loader import ResumableLoader

_COVERED_CALLBACKS = {
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
}
"""Lightning's callbacks without a state or with a restored one; Callback is for the user's own."""
_USED = (
    "fit_loop.run", "fit_loop.on_run_start", "fit_loop.on_run_end", "fit_loop._restarting",
    "fit_loop._combined_loader", "fit_loop._data_fetcher", "fit_loop.load_state_dict",
    "fit_loop.epoch_loop.advance", "fit_loop.epoch_loop.restarting",
    "fit_loop.epoch_loop._results", "fit_loop.epoch_loop.batch_progress.current.ready",
    "fit_loop.epoch_loop.val_loop._combined_loader", "_val_check_time_interval",
    *(f"_logger_connector.{name}" for name in (*LOGGED, *LOGGING)),
)  # fmt: skip
"""Attributes of a Trainer that Lightning does not document, and that the callback uses."""
_USED_OF_CALLBACKS = {
    "ModelCheckpoint": ("_train_time_interval", "_last_global_step_saved", "_last_checkpoint_saved",
                        "_defer_save_until_validation", "current_score"),
    "WeightAveraging": ("_average_model", "_latest_update_epoch"),
    "EMAWeightAveraging": ("_average_model", "_latest_update_epoch"),
    "LearningRateMonitor": ("lrs", "last_momentum_values", "last_weight_decay_values"),
}  # fmt: skip
"""Those of Lightning's callbacks."""


def require_tested_version(trainer: Trainer) -> None:
    """Raise StateError if Lightning lacks something undocumented that the callback uses."""
    try:
        attrgetter(*_USED)(trainer)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            for name in _USED_OF_CALLBACKS.get(lightning_class(callback).__name__, ()):
                attrgetter(name)(callback)
        attrgetter("_ResultMetric", "_Sync")(result)
        tested = {field.name for field in fields(result._Metadata)} >= {*METADATA, "reduce_fx"}
    except AttributeError:
        tested = False
    if not tested:
        raise shared.other_version("Lightning", "2.6")


def require_covered(trainer: Trainer, module: LightningModule, own: Callback) -> None:
    """Raise StateError, with its name, for the first thing that cannot be resumed exactly."""
    _require_callbacks(trainer.callbacks, own)  # type: ignore[attr-defined]
    for name, submodule in module.named_modules():
        if isinstance(submodule, MetricCollection | WrapperMetric):
            raise not_covered(
                f"{name}, a {type(submodule).__name__}, whose metrics share their counts",
                "Keep the metrics as attributes of the module, each by itself",
            )
    for hook in ("on_save_checkpoint", "on_load_checkpoint"):
        if getattr(type(module), hook) is not getattr(LightningModule, hook):
            raise not_covered(
                f"{hook} of {type(module).__name__}",
                "Give what it saves in MirrorCallback(state=...)",
            )
    settings: Any = trainer
    for found, what, solution in (
        (getattr(settings.precision_plugin, "scaler", None) is not None,
         "a gradient scaler (fp16)", "Train in bf16-mixed or 32-true"),
        (settings.ckpt_path is not None,
         "fit(ckpt_path=...)", "Leave it out: the mirror resumes the run"),
        (settings.reload_dataloaders_every_n_epochs,
         "reload_dataloaders_every_n_epochs", "Leave it out"),
        (settings.overfit_batches, "overfit_batches", "Leave it out"),
        (settings.limit_train_batches not in (None, 1.0),
         "limit_train_batches", "Make the dataset smaller (torch Subset)"),
        (settings._val_check_time_interval is not None,
         "val_check_interval as a time", "Give it as a number of batches"),
    ):  # fmt: skip
        if found:
            raise not_covered(what, solution)


def require_loaders(trainer: Trainer, given: Sequence[object]) -> None:
    """Raise StateError unless training and validation loaders can be resumed exactly."""
    loop: Any = trainer.fit_loop
    solution = "Train from a plinius.ResumableLoader, and give it in state={'loader': loader}"
    loaders = loop._combined_loader.flattened
    if len(loaders) > 1:
        raise not_covered("several loaders of training batches", "Read both from one dataset")
    for loader in loaders:
        batches = f"batches from a {type(loader).__name__}"
        if not isinstance(loader, ResumableLoader):
            raise not_covered(batches, solution)
        if not any(loader is it for it in given):
            raise not_covered(f"{batches} that is not in the state", solution)
    if type(loop._data_fetcher).__name__ != "_PrefetchDataFetcher":
        raise not_covered("training_step(dataloader_iter)", "Let it take a batch")
    validation = loop.epoch_loop.val_loop._combined_loader
    for loader in validation.flattened if validation is not None else []:
        generator = getattr(loader, "generator", None)
        if generator is not None and not any(generator is it for it in given):
            raise not_covered(
                "a generator of a validation loader that is not in the state",
                "Give it in state={'generator': generator}",
            )


def require_extendable(trainer: Trainer, loops: LoopState) -> None:
    """Raise StateError if a run that has ended cannot continue as a longer run would have."""
    require_same_limits_or_whole_epoch(trainer, loops)
    if loops.initial_limits["schedules"] != loops.limits["schedules"]:
        raise _ended("a schedule was made for other limits")
    module = trainer.lightning_module
    for it in (module, *trainer.callbacks):  # type: ignore[attr-defined]
        base = LightningModule if it is module else lightning_class(it)
        averaging = isinstance(it, callbacks.WeightAveraging)
        if averaging or type(it).on_train_end is not base.on_train_end:  # type: ignore[attr-defined]
            raise _ended(f"on_train_end of {type(it).__name__} has run")


def require_same_limits_or_whole_epoch(trainer: Trainer, loops: LoopState) -> None:
    """Raise StateError if the limits changed, and the run ended within an epoch."""
    done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    whole = done == trainer.num_training_batches
    if loops.initial_limits["limits"] != loops.limits["limits"] and not whole:
        raise _ended("it ended within an epoch")


def not_covered(what: str, solution: str) -> StateError:
    """The error for what the Lightning callback cannot resume exactly."""
    return shared.not_covered("Lightning", what, solution)


def _require_callbacks(all_callbacks: Sequence[Callback], own: Callback) -> None:
    for callback in all_callbacks:
        name = type(callback).__name__
        if lightning_class(callback).__name__ not in _COVERED_CALLBACKS:
            raise not_covered(f"the callback {name}", "Train without it")
        if isinstance(callback, type(own)) and callback is not own:
            raise not_covered(f"a second {name}", "Mirror the run into one region")
        if getattr(callback, "_train_time_interval", None) is not None:
            raise not_covered(f"the {name} that saves by time", "Let it save by steps or epochs")


def _ended(reason: str) -> StateError:
    return StateError(
        f"The run in this region has ended, and cannot continue as a longer one: {reason}",
        "Give the limits (max_steps, max_epochs) that it began with, or another region",
    )
