"""What a Trainer and the user's objects in it hold in attributes, beside the model."""

import copy
import dataclasses
import dis
import functools
import itertools
import sys
import types
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any, cast

from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from plinius.errors import StateError
from plinius.integrations.shared import CODE, is_plain, require_plain

_ACCUMULATORS = (
    "_tr_loss", "_total_loss_scalar", "_globalstep_last_logged", "_initial_global_step",
    "_initial_num_input_tokens_seen", "current_flos",
)  # fmt: skip
"""Attributes of a Trainer that it sums up itself."""
_NO_STATE = (*CODE, functools.partial, Trainer)


class TrainerValues:
    """What a Trainer counts, logs and decides, and the attributes of the user's objects in it.

    These objects are the other callbacks, what a subclass adds to the Trainer, and what is given as
    compute_metrics, compute_loss_func or preprocess_logits_for_metrics. Datasets and collators may
    hold all the data: of these only the numbers and texts are taken. `given` are the objects that
    are parts of the state themselves.
    """

    def __init__(self, trainer: Trainer, own: TrainerCallback, given: Iterable[object]) -> None:
        self._trainer, self._own = trainer, own
        of_trainer = [trainer.model, trainer.args, trainer.processing_class, trainer.train_dataset,
                      trainer.eval_dataset, trainer.data_collator, trainer.accelerator]  # fmt: skip
        self._skipped = {id(it) for it in [own, *of_trainer, *given] if it is not None}

    def capture(self) -> dict[str, Any]:
        """The values now. Raises StateError, with its name, for what cannot be mirrored."""
        trainer = self._trainer
        fields = dataclasses.fields(cast(Any, trainer.state))
        return {
            "state": {it.name: getattr(trainer.state, it.name) for it in fields},
            "control": vars(trainer.control).copy(),
            "accumulators": {name: getattr(trainer, name) for name in _ACCUMULATORS},
            "attributes": {name: self._attributes(name, it) for name, it in self._holders()},
            "data": {name: _numbers_and_texts(it) for name, it in self._data()},
        }

    def restore(self, values: Mapping[str, Any]) -> None:
        """Set copies of captured values."""
        trainer, values = self._trainer, copy.deepcopy(dict(values))
        vars(trainer.state).update(values["state"])
        vars(trainer.control).update(values["control"])
        vars(trainer).update(values["accumulators"])
        for name, holder in self._holders():
            vars(holder).update(values["attributes"][name])
        for name, data in self._data():
            vars(data).update(values["data"][name])

    def _data(self) -> Iterator[tuple[str, Any]]:
        for name in ("train_dataset", "eval_dataset", "data_collator"):
            data = getattr(self._trainer, name)
            if hasattr(data, "__dict__") and not isinstance(data, _NO_STATE):
                yield name, data

    def _holders(self) -> Iterator[tuple[str, Any]]:
        """The user's objects that may hold values, each with a unique name."""
        trainer = self._trainer
        yield type(trainer).__name__, trainer
        for index, callback in enumerate(trainer.callback_handler.callbacks):
            if callback is not self._own:
                yield f"{type(callback).__name__} {index}", callback
        for name in ("compute_metrics", "compute_loss_func", "preprocess_logits_for_metrics"):
            value = getattr(trainer, name, None)
            value = getattr(value, "__self__", value)  # of a bound method
            stateless = value is None or isinstance(value, _NO_STATE)
            if not stateless and id(value) not in self._skipped:
                yield f"{name} {type(value).__name__}", value

    def _attributes(self, name: str, holder: Any) -> dict[str, Any]:
        """The attributes of an object that transformers itself did not give it."""
        assigned = _assigned_by_transformers(cast(Hashable, type(holder)))
        attributes = {
            key: it
            for key, it in getattr(holder, "__dict__", {}).items()
            if key not in assigned and id(it) not in self._skipped and not isinstance(it, _NO_STATE)
        }
        if isinstance(holder, ExportableState) and not is_plain(attributes):
            return dict(holder.state()["attributes"])
        require_plain(
            "Hugging Face",
            name,
            attributes,
            "Give the object in MirrorCallback(state=...), hold plain values, or make the callback "
            "an ExportableState",
        )
        return attributes


def find_trainer(callback: TrainerCallback) -> Trainer:
    """The Trainer that is calling a callback. Raises StateError if there is none."""
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
    """The names of the attributes that code of transformers assigns to objects of a class.

    They are no state: each process assigns them anew, or they are accumulators. An ExportableState
    is an exception.
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


def _numbers_and_texts(data: Any) -> dict[str, Any]:
    classes = bool | int | float | str | None
    return {name: it for name, it in vars(data).items() if isinstance(it, classes)}
