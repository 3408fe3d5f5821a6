"""What Lightning and its callbacks hold in attributes, as objects with a state_dict."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import MethodType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.connectors.logger_connector import result
from torch import nn
from torchmetrics import Metric

from plinius.errors import StateError
from plinius.integrations.shared import CODE, is_plain, require_plain

LOGGED = ("_callback_metrics", "_logged_metrics", "_progress_bar_metrics")
"""Attributes of Lightning's logger connector that hold the logged metrics."""
LOGGING = ("_first_loop_iter", "_current_fx")
"""Attributes of Lightning's logger connector that decide how the next value is logged."""
METADATA = ("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph",
            "add_dataloader_idx", "dataloader_idx", "metric_attribute")  # fmt: skip
"""Fields that say how a value is logged."""
_REDUCTIONS: tuple[Any, ...] = (torch.mean, torch.sum, sum, torch.max, max, torch.min, min)
_SUMS = ("value", "cumulated_batch_size", "_forward_cache", "_update_count")
"""Attributes of a logged value that are summed over an epoch."""
_MISSING_IN_STATE_DICT = (
    "_last_global_step_saved", "_last_checkpoint_saved", "_defer_save_until_validation",
    "_latest_update_epoch", "current_score", "lrs", "last_momentum_values",
    "last_weight_decay_values",
)  # fmt: skip
"""Attributes that Lightning's callbacks leave out of their state_dict, or do not load."""
_CONFIGURED = ("_defaults", "_persistent", "_reductions")
"""Attributes of a metric that its constructor sets and that never change."""
_NO_STATE = (*CODE, MethodType, torch.dtype, torch.device)


class LoopState:
    """What Lightning counts, decides and logs: loops, should_stop, metrics, sums of an epoch."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer: Any = trainer
        self.ended = False
        self.limits = _limits(trainer)
        self.initial_limits = dict(self.limits)

    def state_dict(self) -> dict[str, Any]:
        """All of it, as plain values and tensors."""
        trainer, connector = self._trainer, self._trainer._logger_connector
        loops = trainer.fit_loop.state_dict()
        loops["state_dict"].pop("combined_loader", None)  # the loader is a part of its own
        return {
            "loops": loops,
            "should_stop": trainer.should_stop,
            "accumulate": trainer.accumulate_grad_batches,
            "logged": {name: dict(getattr(connector, name)) for name in LOGGED},
            "logging": {name: getattr(connector, name) for name in LOGGING},
            "sums": {
                key: _metric_state(it) for key, it in self._results().items() if not it.has_reset
            },
            "ended": self.ended,
            "initial_limits": self.initial_limits,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore all of it; Lightning's loops are then restarting."""
        trainer, connector = self._trainer, self._trainer._logger_connector
        trainer.fit_loop.load_state_dict(state_dict["loops"])
        trainer.should_stop = state_dict["should_stop"]
        trainer.accumulate_grad_batches = state_dict["accumulate"]
        vars(connector).update(state_dict["logged"], **state_dict["logging"])
        results = self._results()
        results.clear()
        for key, state in state_dict["sums"].items():
            results[key] = self._restored_metric(state)
        self.ended, self.initial_limits = state_dict["ended"], state_dict["initial_limits"]

    def extend(self) -> None:
        """Let a run that has ended continue, within the limits of now."""
        self.ended, self.initial_limits = False, dict(self.limits)

    def _results(self) -> Any:
        return self._trainer.fit_loop.epoch_loop._results

    def _restored_metric(self, state: dict[str, Any]) -> Any:
        meta = result._Metadata(reduce_fx=_REDUCTIONS[state["reduction"]], **state["meta"])
        meta.sync = result._Sync(fn=self._trainer.strategy.reduce, **state["sync"])
        metric = result._ResultMetric(meta, is_tensor=meta.metric_attribute is None)
        vars(metric).update(state["sums"])
        if meta.metric_attribute is not None:
            vars(metric)["value"] = self._trainer.lightning_module.get_submodule(
                meta.metric_attribute
            )
        return metric


class MetricStates:
    """The plain attributes of the metrics in a module, which hold their counts."""

    def __init__(self, module: LightningModule) -> None:
        self._metrics = {name: it for name, it in module.named_modules() if isinstance(it, Metric)}

    def state_dict(self) -> dict[str, Any]:
        """The attributes of each metric, by its name."""
        return {name: _counted(metric) for name, metric in self._metrics.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the attributes."""
        for name, attributes in state_dict.items():
            vars(self._metrics[name]).update(attributes)


class CallbackStates:
    """The states of the other callbacks: their state_dict, or else their attributes."""

    def __init__(
        self, callbacks: Sequence[Callback], trainer: Trainer, module: LightningModule
    ) -> None:
        self._callbacks, self._mirrored_elsewhere = callbacks, (trainer, module)

    def state_dict(self) -> dict[str, Any]:
        """The state of each callback that has one, by a unique name."""
        states = {name: self._state(it) for name, it in self._named()}
        return {name: it for name, it in states.items() if any(it.values())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the states. Raises StateError if the run had other callbacks."""
        callbacks = dict(self._named())
        for name, state in state_dict.items():
            if name not in callbacks:
                raise StateError(
                    f"The run began with the callback {name}, which is missing now",
                    "Give the Trainer the callbacks that the run began with",
                )
            callback = callbacks[name]
            if isinstance(callback, ModelCheckpoint):
                _require_same_folder(callback, state["state"])
            if state["state"]:
                callback.load_state_dict(state["state"])
            vars(callback).update(state["attributes"])

    def _named(self) -> Iterator[tuple[str, Callback]]:
        seen: Counter[str] = Counter()
        for callback in self._callbacks:
            name = callback.state_key
            seen[name] += 1
            yield (name if seen[name] == 1 else f"{name} {seen[name]}"), callback

    def _state(self, callback: Callback) -> dict[str, Any]:
        attributes = vars(callback)
        if type(callback).state_dict is Callback.state_dict and not is_of_lightning(callback):
            chosen = self._attributes(callback)
        else:
            chosen = {it: attributes[it] for it in _MISSING_IN_STATE_DICT if it in attributes}
        return {"state": callback.state_dict(), "attributes": chosen}

    def _attributes(self, callback: Callback) -> Mapping[str, Any]:
        attributes = {
            name: it
            for name, it in vars(callback).items()
            if not isinstance(it, _NO_STATE)
            and not any(it is other for other in self._mirrored_elsewhere)
        }
        return require_plain(
            "Lightning",
            f"the callback {type(callback).__name__}",
            attributes,
            "Give it a state_dict and a load_state_dict",
        )


def data_module_part(trainer: Any) -> dict[str, Any]:
    """The data module as the part "data", if it has a state of its own."""
    data = trainer.datamodule
    has_state = data and type(data).state_dict is not LightningDataModule.state_dict
    return {"data": data} if has_state else {}


def is_of_lightning(callback: Callback) -> bool:
    """Whether a callback is one of Lightning's own, or of a subclass of one."""
    return lightning_class(callback) is not Callback


def lightning_class(callback: Callback) -> type:
    """The nearest base class that is Lightning's own."""
    classes = type(callback).__mro__
    return next(cls for cls in classes if cls.__module__.startswith("lightning."))


def _counted(metric: Metric) -> dict[str, Any]:
    not_counted = {*_CONFIGURED, *vars(nn.Module())}
    attributes = {
        name: _detached(it) for name, it in vars(metric).items() if name not in not_counted
    }
    return {name: it for name, it in attributes.items() if is_plain(it)}


def _detached(value: Any) -> Any:
    """The value with every tensor taken out of its autograd graph."""
    if type(value) is dict:
        return {name: _detached(it) for name, it in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_detached, value))
    return value.detach() if torch.is_tensor(value) else value


def _limits(trainer: Any) -> dict[str, str]:
    """What must be equal when a run that has ended continues as a longer one."""
    loop = trainer.fit_loop
    limits = loop.max_epochs, loop.max_steps, loop.min_epochs, loop.min_steps
    schedules = [it.scheduler.state_dict() for it in trainer.lr_scheduler_configs]
    return {"limits": repr(limits), "schedules": repr(schedules)}


def _require_same_folder(callback: ModelCheckpoint, state: dict[str, Any]) -> None:
    if callback.dirpath != state["dirpath"]:
        raise StateError(
            f"The run's checkpoints are in {state['dirpath']}, and now go to {callback.dirpath}: "
            "Lightning would forget which is the best",
            "Give ModelCheckpoint(dirpath=...) a folder of its own",
        )


def _metric_state(metric: Any) -> dict[str, Any]:
    """A logged value, with its sums since the epoch began."""
    meta = metric.meta
    sums = {name: vars(metric)[name] for name in _SUMS if name in vars(metric)}
    if not metric.is_tensor:
        del sums["value"]  # a metric of the module: see MetricStates
    return {
        "meta": {name: getattr(meta, name) for name in METADATA},
        "reduction": next(i for i, it in enumerate(_REDUCTIONS) if it is meta.reduce_fx),
        "sync": {"_should": meta.sync.should, "rank_zero_only": meta.sync.rank_zero_only},
        "sums": {name: _detached(it) for name, it in sums.items()},
    }
