"""What of Lightning a resumed run goes on with exactly; the rest is refused by name."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from plinius.errors import StateError

_EXACT = {
    "DeviceStatsMonitor",
    "LambdaCallback",
    "LearningRateMonitor",
    "ModelCheckpoint",
    "ModelSummary",
    "RichModelSummary",
    "RichProgressBar",
    "ThroughputMonitor",
    "TQDMProgressBar",
}  # fmt: skip
"""The callbacks of Lightning whose state is empty, or comes back."""


def require_covered(trainer: Trainer, module: LightningModule) -> None:
    """Raise StateError, naming it, for the first thing that a resumed run would lose."""
    callbacks: Sequence[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        name = type(callback).__name__
        if type(callback).__module__.startswith("lightning.") and name not in _EXACT:
            raise _refused(f"the callback {name}", "Train without it")
        monitored = getattr(callback, "monitor", None)
        if monitored is not None:
            raise _refused(f"the {name} that monitors {monitored}", "Let it save without a monitor")
    for config in trainer.lr_scheduler_configs:
        if isinstance(config.scheduler, ReduceLROnPlateau):
            raise _refused(
                "ReduceLROnPlateau, whose first step after a resume Lightning leaves out",
                "Take another schedule, or step it yourself in a loop with plinius.Mirror",
            )
    for name, part in module.named_modules():
        if _is_metric(part):
            raise _refused(
                f"the metric {name}, whose counts since the epoch began are not kept",
                "Compute it after training, or in a loop with plinius.Mirror",
            )
    for hook in ("on_save_checkpoint", "on_load_checkpoint"):
        if getattr(type(module), hook) is not getattr(LightningModule, hook):
            raise _refused(f"{hook} of {type(module).__name__}", "Give what it keeps in state")
    settings: Any = trainer
    if settings.reload_dataloaders_every_n_epochs:
        raise _refused("reload_dataloaders_every_n_epochs", "Leave it out")
    if trainer.limit_train_batches not in (None, 1.0):
        raise _refused("limit_train_batches", "Make the dataset smaller (torch Subset)")
    if settings.overfit_batches:
        raise _refused("overfit_batches", "Leave it out")
    if trainer.enable_validation and trainer.check_val_every_n_epoch != 1:
        raise _refused("check_val_every_n_epoch other than 1", "Validate after every epoch")
    if trainer.enable_validation and trainer.val_check_interval not in (None, 1.0):
        raise _refused("val_check_interval other than 1.0", "Validate after every epoch")


def require_loaders(trainer: Trainer, state: Sequence[object]) -> None:
    """Raise StateError unless every loader of training batches is in the state."""
    combined = trainer.fit_loop._combined_loader
    for loader in combined.flattened if combined else []:
        if not any(loader is part for part in state):
            raise _refused(
                f"batches from a {type(loader).__name__} that is not in the state",
                "Train from a plinius.ResumableLoader, and give it in state={'loader': loader}",
            )


def require_no_means(trainer: Trainer) -> None:
    """Raise StateError if something is logged as a mean over the epoch's training steps."""
    results: Any = trainer.fit_loop._results
    for metric in (results or {}).values():
        if metric.meta.on_epoch:
            raise _refused(
                f"the mean of {metric.meta.name} over an epoch (self.log with on_epoch)",
                "Log it with on_step=True, on_epoch=False",
            )


def _is_metric(part: nn.Module) -> bool:
    return any(cls.__module__.startswith("torchmetrics") for cls in type(part).__mro__)


def _refused(what: str, todo: str) -> StateError:
    return StateError(f"The Lightning mirror does not cover {what}", todo)
