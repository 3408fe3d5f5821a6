"""What the callbacks of Lightning and of transformers share."""

import datetime
import decimal
import enum
import logging
import warnings
from collections import deque
from collections.abc import Callable, Mapping, MutableMapping
from functools import partial
from pathlib import Path, PurePath
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from plinius.errors import StateError
from plinius.keys import OwnerKey
from plinius.mirror import InexactResumeWarning, Mirror

CODE = (FunctionType, BuiltinFunctionType, ModuleType, type)
"""Classes of values that are code, and no state."""
_PLAIN = (
    bool, int, float, complex, str, bytes, bytearray, type(None), np.generic, np.ndarray,
    enum.Enum, PurePath, decimal.Decimal, datetime.date, datetime.time, datetime.timedelta, range,
)  # fmt: skip

_log = logging.getLogger("plinius")


class RunOptions:
    """What both callbacks are made with. See MirrorCallback."""

    def __init__(
        self,
        region: str | Path,
        key: OwnerKey,
        *,
        every: int = 1,
        state: MutableMapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """`region`, `key` and `options` are those of `Mirror.open`, `every` counts steps.

        Raises ValueError if `every` is less than 1.
        """
        super().__init__()
        if every < 1:
            raise ValueError("every must be at least 1")
        self._region, self._key, self._every = region, key, every
        self._given: MutableMapping[str, Any] = {} if state is None else state
        self._options = options


class RunMirror:
    """The mirror of one run: the parts that a callback collects, and those that the user gives."""

    def __init__(
        self,
        region: str | Path,
        key: OwnerKey,
        parts: Mapping[str, Any],
        given: MutableMapping[str, Any],
        options: Mapping[str, Any],
    ) -> None:
        """Raises StateError if both have a part of one name, and what `Mirror.open` raises."""
        for name in given:
            if name in parts:
                raise StateError(
                    f"The part {name} of MirrorCallback(state=...) has a name that the callback "
                    "uses itself",
                    "Give it another name",
                )
        self._given, self._parts = given, {**parts, **given}
        self.mirror = Mirror.open(region, key, self._parts, **options)
        self.resumed = self.mirror.commits > 0

    def start(self) -> int:
        """Restore the newest commit, if there is one, and warn if the run is not bit-identical."""
        iteration = self.restore()
        if self.mirror.not_bit_exact:
            _log.warning("The resumed run is not bit-identical: %s", self.mirror.not_bit_exact)
        return iteration

    def restore(self) -> int:
        """Restore the newest commit, also into the user's mapping; returns its iteration."""
        with warnings.catch_warnings():
            # `start` logs what is not exact, and the callbacks look after the loaders.
            warnings.simplefilter("ignore", InexactResumeWarning)
            iteration = self.mirror.mirror_in()
        self._given.update({name: self._parts[name] for name in self._given})
        return iteration

    def __getitem__(self, name: str) -> Any:
        """A part as it is now, after `restore` the restored one."""
        return self._parts[name]

    def commit(self, iteration: int, **parts: Any) -> None:
        """Commit the state now; `parts` replace those that the callback gave before."""
        self._parts.update(self._given, **parts)
        self.mirror.mirror_out(iteration)

    def close(self, error: BaseException | None = None) -> None:
        """Close the mirror; an error that came first hides one of the mirror.

        Raises StorageError if the last step is not mirrored.
        """
        self.mirror.__exit__(type(error) if error else None, error, None)


def replace_method(owner: Any, name: str, replacement: Callable[..., Any]) -> Callable[[], None]:
    """Replace a method of one object; the replacement is called with the original method first.

    Returns a function that undoes it.
    """
    setattr(owner, name, partial(replacement, getattr(owner, name)))

    def undo() -> None:
        vars(owner).pop(name, None)

    return undo


def is_plain(value: Any) -> bool:
    """Whether a value is numbers, text, tensors or arrays, or containers of these.

    A tensor that needs gradients is not: a parameter, or a tensor of an autograd graph.
    """
    if isinstance(value, torch.Tensor):
        return not isinstance(value, nn.Parameter) and not value.requires_grad
    if isinstance(value, Mapping):
        return all(is_plain(it) for pair in value.items() for it in pair)
    if isinstance(value, list | tuple | set | frozenset | deque):
        return all(map(is_plain, value))
    return isinstance(value, _PLAIN)


def require_plain(
    library: str, holder: str, attributes: Mapping[str, Any], solution: str
) -> Mapping[str, Any]:
    """The attributes of an object. Raises StateError if one of them holds another object."""
    for name, value in attributes.items():
        if not is_plain(value):
            raise not_covered(
                library,
                f"{holder}, which holds a {type(value).__name__} in its attribute {name}",
                solution,
            )
    return attributes


def require_one_process(count: int, solution: str) -> None:
    """Raise StateError for a group of processes or devices."""
    if count > 1:
        raise StateError(f"A region is written by one process, not by a group of {count}", solution)


def not_covered(library: str, what: str, solution: str) -> StateError:
    """The error for what cannot be resumed exactly."""
    return StateError(f"The {library} mirror does not cover {what}", solution)


def other_version(library: str, tested: str) -> StateError:
    """The error for a version of a library whose training loop is not the tested one."""
    return StateError(
        f"This version of {library} has another training loop",
        f"Install {library.lower()} {tested}",
    )
