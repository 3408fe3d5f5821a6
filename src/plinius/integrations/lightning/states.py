"""What Lightning and its callbacks keep in attributes, as states that a mirror takes."""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.connectors.logger_connector.result import (
    _Metadata,
    _ResultMetric,
    _Sync,
)
from torch import nn
from torchmetrics import Metric

from plinius.errors import StateError

_METRICS = ("_callback_metrics", "_logged_metrics", "_progress_bar_metrics")
_CONNECTOR = ("_first_loop_iter", "_current_fx")
_META = ("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph",
         "add_dataloader_idx", "dataloader_idx", "metric_attribute")  # fmt: skip
_REDUCTIONS: tuple[Any, ...] = (torch.mean, torch.sum, sum, torch.max, max, torch.min, min)
_SUMS = ("value", "cumulated_batch_size", "_forward_cache", "_update_count")
_BESIDE = ("_last_global_step_saved", "_last_checkpoint_saved", "_defer_save_until_validation",
           "_latest_update_epoch", "current_score", "lrs", "last_momentum_values",
           "last_weight_decay_values")  # fmt: skip
"""Attributes that Lightning's callbacks leave out of their state_dict, or do not load."""
_OF_CLASS = ("_defaults", "_persistent", "_reductions")
_FIXED = (FunctionType, MethodType, BuiltinFunctionType, ModuleType, type, torch.dtype,
          torch.device)  # fmt: skip
_PLAIN = (bool, int, float, complex, str, bytes, Path, torch.Tensor, np.ndarray, type(None))


class Progress:
    """What Lightning counts, decides and logs: loops, should_stop, metrics, sums of an epoch."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer: Any = trainer
        self.ended = False
        self.settings = _settings(trainer)
        self.began = dict(self.settings)

    def state_dict(self) -> dict[str, Any]:
        """All of it, as plain values and tensors."""
        trainer, connector = self._trainer, self._trainer._logger_connector
        loops = trainer.fit_loop.state_dict()
        loops["state_dict"].pop("combined_loader", None)  # the loader is in the state by itself
        return {
            "loops": loops,
            "should_stop": trainer.should_stop,
            "accumulate": trainer.accumulate_grad_batches,
            "metrics": {name: dict(getattr(connector, name)) for name in _METRICS},
            "connector": {name: getattr(connector, name) for name in _CONNECTOR},
            "sums": {key: _sums(it) for key, it in self._results().items() if not it.has_reset},
            "ended": self.ended,
            "began": self.began,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put it back; Lightning's loops are then restarting."""
        trainer, connector = self._trainer, self._trainer._logger_connector
        trainer.fit_loop.load_state_dict(state_dict["loops"])
        trainer.should_stop = state_dict["should_stop"]
        trainer.accumulate_grad_batches = state_dict["accumulate"]
        vars(connector).update(state_dict["metrics"], **state_dict["connector"])
        results = self._results()
        results.clear()
        for key, kept in state_dict["sums"].items():
            results[key] = self._metric(kept)
        self.ended, self.began = state_dict["ended"], state_dict["began"]

    def go_on(self) -> None:
        """A run that had ended goes on, within the limits that it has now."""
        self.ended, self.began = False, dict(self.settings)

    def _results(self) -> Any:
        return self._trainer.fit_loop.epoch_loop._results

    def _metric(self, kept: dict[str, Any]) -> _ResultMetric:
        meta = _Metadata(reduce_fx=_REDUCTIONS[kept["reduction"]], **kept["meta"])
        meta.sync = _Sync(fn=self._trainer.strategy.reduce, **kept["sync"])
        metric = _ResultMetric(meta, is_tensor=meta.metric_attribute is None)
        vars(metric).update(kept["sums"])
        if meta.metric_attribute is not None:
            vars(metric)["value"] = self._trainer.lightning_module.get_submodule(
                meta.metric_attribute
            )
        return metric


class MetricStates:
    """The plain attributes of the metrics within a module: what they counted is among them."""

    def __init__(self, module: LightningModule) -> None:
        self._metrics = {
            name: part for name, part in module.named_modules() if isinstance(part, Metric)
        }

    def state_dict(self) -> dict[str, Any]:
        """The attributes by the names of the metrics."""
        return {
            name: {key: _detached(it) for key, it in vars(metric).items() if _is_counted(key, it)}
            for name, metric in self._metrics.items()
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put them back."""
        for name, kept in state_dict.items():
            vars(self._metrics[name]).update(kept)


class CallbackStates:
    """The states of the other callbacks: their state_dict, or else their attributes."""

    def __init__(
        self, callbacks: Sequence[Callback], trainer: Trainer, module: LightningModule
    ) -> None:
        self._callbacks, self._known = callbacks, (trainer, module)

    def state_dict(self) -> dict[str, Any]:
        """The states by names that tell the callbacks apart."""
        kept = {name: self._kept(it) for name, it in self._named()}
        return {name: it for name, it in kept.items() if any(it.values())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put them back. Raises StateError if the run had other callbacks."""
        live = dict(self._named())
        for name, kept in state_dict.items():
            if name not in live:
                raise StateError(
                    f"The run was begun with the callback {name}, which is not there now",
                    "Give the Trainer the callbacks that the run began with",
                )
            callback = live[name]
            if isinstance(callback, ModelCheckpoint):
                _require_same_folder(callback, kept["state"])
            if kept["state"]:
                callback.load_state_dict(kept["state"])
            vars(callback).update(kept["attributes"])

    def _named(self) -> Iterator[tuple[str, Callback]]:
        seen: Counter[str] = Counter()
        for callback in self._callbacks:
            name = callback.state_key
            seen[name] += 1
            yield (name if seen[name] == 1 else f"{name} {seen[name]}"), callback

    def _kept(self, callback: Callback) -> dict[str, Any]:
        state, attributes = callback.state_dict(), vars(callback)
        names: Sequence[str] = [name for name in _BESIDE if name in attributes]
        if type(callback).state_dict is Callback.state_dict and not is_lightning(callback):
            names = [name for name in attributes if self._is_kept(callback, name)]
        return {"state": state, "attributes": {name: attributes[name] for name in names}}

    def _is_kept(self, callback: Callback, name: str) -> bool:
        value = vars(callback)[name]
        if _is_plain(value):
            return True
        if isinstance(value, _FIXED) or any(value is it for it in self._known):
            return False
        raise StateError(
            f"The Lightning mirror does not cover the callback {type(callback).__name__}, which "
            f"holds a {type(value).__name__} in its attribute {name}",
            "Give it a state_dict and a load_state_dict",
        )


def stateful_data(trainer: Any) -> dict[str, Any]:
    """The data module, as a part of the state, if it has a state of its own."""
    data = trainer.datamodule
    kept = data and type(data).state_dict is not LightningDataModule.state_dict
    return {"data": data} if kept else {}


def is_lightning(callback: Callback) -> bool:
    """Whether a callback is one of Lightning's own, or a subclass of one."""
    return base_of(callback) is not Callback


def base_of(callback: Callback) -> type:
    """The class of Lightning that a callback is of."""
    classes = type(callback).__mro__
    return next(cls for cls in classes if cls.__module__.startswith("lightning."))


def _detached(value: Any) -> Any:
    if isinstance(value, list):
        return [_detached(it) for it in value]
    return value.detach() if torch.is_tensor(value) else value


def _is_counted(name: str, value: Any) -> bool:
    return _is_plain(value) and name not in _OF_CLASS and name not in vars(nn.Module())


def _settings(trainer: Any) -> dict[str, str]:
    """What a run that has ended must have begun with to go on as a longer one."""
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


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(it) for pair in value.items() for it in pair)
    if isinstance(value, list | tuple | set | frozenset | deque):
        return all(_is_plain(it) for it in value)
    return isinstance(value, _PLAIN)


def _sums(metric: Any) -> dict[str, Any]:
    """A logged value and what was summed of it since the epoch began."""
    meta = metric.meta
    sums = {name: vars(metric)[name] for name in _SUMS if name in vars(metric)}
    if not metric.is_tensor:
        del sums["value"]  # the metric of the module: see MetricStates
    return {
        "meta": {name: getattr(meta, name) for name in _META},
        "reduction": next(i for i, it in enumerate(_REDUCTIONS) if it is meta.reduce_fx),
        "sync": {"_should": meta.sync.should, "rank_zero_only": meta.sync.rank_zero_only},
        "sums": {name: _detached(it) for name, it in sums.items()},
    }
