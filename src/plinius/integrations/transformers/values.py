"""The values of a Trainer beside its model: its state, and that of what the user hung onto it."""

import copy
import dataclasses
import datetime
import decimal
import dis
import enum
import functools
import itertools
import sys
import types
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from plinius.errors import StateError

_ACCUMULATORS = (
    "_tr_loss", "_total_loss_scalar", "_globalstep_last_logged", "_initial_global_step",
    "_initial_num_input_tokens_seen", "current_flos",
)  # fmt: skip
_FIXED = (
    types.FunctionType, types.BuiltinFunctionType, types.ModuleType, functools.partial, type,
    Trainer,
)  # fmt: skip
_PLAIN = (
    bool, int, float, complex, str, bytes, bytearray, type(None), np.generic, np.ndarray,
    enum.Enum, PurePath, decimal.Decimal, datetime.date, datetime.time, datetime.timedelta, range,
)  # fmt: skip


class TrainerValues:
    """What a Trainer counts, logs and decides, and the attributes of the user's own parts of it.

    These are the other callbacks, what a subclass adds to the Trainer, and the objects given as
    compute_metrics and compute_loss_func; of data sets and collators, which may hold all the data,
    the numbers and texts. `covered` are the objects that are mirrored by name.
    """

    def __init__(self, trainer: Trainer, own: TrainerCallback, covered: Iterable[object]) -> None:
        self._trainer, self._own = trainer, own
        known = [trainer.model, trainer.args, trainer.processing_class, trainer.train_dataset,
                 trainer.eval_dataset, trainer.data_collator, trainer.accelerator]  # fmt: skip
        self._covered = {id(it) for it in [own, *known, *covered] if it is not None}

    def take(self) -> dict[str, Any]:
        """The values now. Raises StateError, naming it, for what cannot be mirrored."""
        trainer = self._trainer
        return {
            "state": {it.name: getattr(trainer.state, it.name) for it in _fields(trainer.state)},
            "control": vars(trainer.control).copy(),
            "accumulators": {name: getattr(trainer, name) for name in _ACCUMULATORS},
            "attributes": {name: self._attributes(name, it) for name, it in self._holders()},
            "data": {name: _numbers(it) for name, it in self._data()},
        }

    def put(self, kept: Mapping[str, Any]) -> None:
        """Put values back that were taken; the copies are the run's own."""
        trainer, kept = self._trainer, copy.deepcopy(dict(kept))
        vars(trainer.state).update(kept["state"])
        vars(trainer.control).update(kept["control"])
        vars(trainer).update(kept["accumulators"])
        for name, holder in self._holders():
            vars(holder).update(kept["attributes"][name])
        for name, data in self._data():
            vars(data).update(kept["data"][name])

    def _data(self) -> Iterator[tuple[str, Any]]:
        for name in ("train_dataset", "eval_dataset", "data_collator"):
            data = getattr(self._trainer, name)
            if hasattr(data, "__dict__") and not isinstance(data, _FIXED):
                yield name, data

    def _holders(self) -> Iterator[tuple[str, Any]]:
        """The user's own objects that may hold values, by a name that tells them apart."""
        trainer = self._trainer
        yield type(trainer).__name__, trainer
        for index, callback in enumerate(trainer.callback_handler.callbacks):
            if callback is not self._own:
                yield f"{type(callback).__name__} {index}", callback
        for name in ("compute_metrics", "compute_loss_func", "preprocess_logits_for_metrics"):
            given = getattr(trainer, name, None)
            given = getattr(given, "__self__", given)  # of a bound method
            fixed = given is None or isinstance(given, _FIXED)
            if not fixed and id(given) not in self._covered:
                yield f"{name} {type(given).__name__}", given

    def _attributes(self, name: str, holder: Any) -> dict[str, Any]:
        """The attributes of an object that transformers itself did not give it."""
        ours = _assigned_by_transformers(cast(Hashable, type(holder)))
        found = {
            key: it
            for key, it in getattr(holder, "__dict__", {}).items()
            if key not in ours and id(it) not in self._covered and not isinstance(it, _FIXED)
        }
        bad = next((key for key, it in found.items() if not _is_plain(it)), None)
        if bad is None:
            return found
        if isinstance(holder, ExportableState):
            return dict(holder.state()["attributes"])
        raise StateError(
            f"{name} holds a {type(found[bad]).__name__} in its attribute {bad}, which is not "
            "mirrored: what a resumed run would do is not known",
            "Give the object in MirrorCallback(state=...), keep plain values, or make the callback "
            "an ExportableState",
        )


def find_trainer(callback: TrainerCallback) -> Trainer:
    """The Trainer that calls a callback. Raises StateError if there is none."""
    frame = sys._getframe(1)
    while frame := frame.f_back:  # type: ignore[assignment]
        found = frame.f_locals.get("self")
        if isinstance(found, Trainer) and callback in found.callback_handler.callbacks:
            return found
    raise StateError(
        "The callback was not called by a transformers.Trainer",
        "Give it to a Trainer: Trainer(..., callbacks=[MirrorCallback(path, key)])",
    )


@functools.cache
def _assigned_by_transformers(cls: type) -> frozenset[str]:
    """Names of attributes that a class has from transformers, where these are no state.

    What the Trainer's own code assigns is set up anew by each process, or an accumulator.
    """
    if issubclass(cls, ExportableState):
        return frozenset()
    bases = [it for it in cls.__mro__ if it.__module__.startswith("transformers.")]
    codes = [_code_of(it) for base in bases for it in vars(base).values()]
    return frozenset(name for code in codes if code for name in _assigned_to_self(code))


def _assigned_to_self(code: types.CodeType) -> Iterator[str]:
    for before, it in itertools.pairwise(dis.get_instructions(code)):
        if it.opname == "STORE_ATTR" and before.argval == "self":
            yield it.argval


def _code_of(member: Any) -> types.CodeType | None:
    member = member.fget if isinstance(member, property) else member
    member = getattr(member, "__func__", member)
    while hasattr(member, "__wrapped__"):
        member = member.__wrapped__
    return getattr(member, "__code__", None)


def _fields(state: Any) -> Iterator[dataclasses.Field[Any]]:
    return iter(dataclasses.fields(state))


def _numbers(data: Any) -> dict[str, Any]:
    kinds = bool | int | float | str | None
    return {name: it for name, it in vars(data).items() if isinstance(it, kinds)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return not isinstance(value, nn.Parameter) and not value.requires_grad
    if isinstance(value, Mapping):
        return all(_is_plain(it) for pair in value.items() for it in pair)
    if isinstance(value, list | tuple | set | frozenset) or type(value).__name__ == "deque":
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)
