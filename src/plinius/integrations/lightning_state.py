"""What Lightning and its callbacks keep in attributes, as states that a mirror takes."""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.connectors.logger_connector.result import (
    _Metadata,
    _ResultMetric,
    _Sync,
)

from plinius.errors import StateError

_METRICS = ("_callback_metrics", "_logged_metrics", "_progress_bar_metrics")
_CONNECTOR = ("_first_loop_iter", "_current_fx")
_META = ("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph",
         "add_dataloader_idx", "dataloader_idx", "metric_attribute")  # fmt: skip
_REDUCTIONS: tuple[Any, ...] = (torch.mean, torch.sum, sum, torch.max, max, torch.min, min)
_SUMS = ("value", "cumulated_batch_size", "_forward_cache", "_update_count")
_BESIDE = ("_last_global_step_saved", "_last_checkpoint_saved", "_defer_save_until_validation",
           "_latest_update_epoch", "lrs")  # fmt: skip
"""Attributes that Lightning's callbacks leave out of their state_dict."""
_FIXED = (FunctionType, MethodType, BuiltinFunctionType, ModuleType, type, torch.dtype,
          torch.device)  # fmt: skip
_PLAIN = (bool, int, float, complex, str, bytes, Path, torch.Tensor, np.ndarray, type(None))


class Progress:
    """What Lightning counts, decides and logs: loops, should_stop, metrics, sums of an epoch."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer: Any = trainer
        self.ended = False
        self.accumulate = trainer.accumulate_grad_batches
        self.schedules = repr([it.scheduler.state_dict() for it in trainer.lr_scheduler_configs])
        self.began = self.schedules

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
            "schedules": self.began,
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
        self.ended, self.began = state_dict["ended"], state_dict["schedules"]

    def _results(self) -> Any:
        return self._trainer.fit_loop.epoch_loop._results

    def _metric(self, kept: dict[str, Any]) -> _ResultMetric:
        meta = _Metadata(reduce_fx=_REDUCTIONS[kept["reduction"]], **kept["meta"])
        meta.sync = _Sync(fn=self._trainer.strategy.reduce, **kept["sync"])
        metric = _ResultMetric(meta, is_tensor=True)
        vars(metric).update(kept["sums"])
        return metric


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


def is_lightning(callback: Callback) -> bool:
    """Whether a callback is one of Lightning's own, or a subclass of one."""
    return base_of(callback) is not Callback


def base_of(callback: Callback) -> type:
    """The class of Lightning that a callback is of."""
    classes = type(callback).__mro__
    return next(cls for cls in classes if cls.__module__.startswith("lightning."))


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
    if not metric.is_tensor:
        raise StateError(
            f"The Lightning mirror does not cover {meta.name}, which is logged as a metric object",
            "Log its value",
        )
    sums = {name: vars(metric)[name] for name in _SUMS if name in vars(metric)}
    return {
        "meta": {name: getattr(meta, name) for name in _META},
        "reduction": next(i for i, it in enumerate(_REDUCTIONS) if it is meta.reduce_fx),
        "sync": {"_should": meta.sync.should, "rank_zero_only": meta.sync.rank_zero_only},
        "sums": {k: it.detach() if torch.is_tensor(it) else it for k, it in sums.items()},
    }
