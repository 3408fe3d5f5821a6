"""What calls of a mirror are checked for, and their refusals."""

import operator
import sys
from types import CodeType
from typing import SupportsIndex

from plinius.errors import PliniusError, StateError, StorageError


def whole_iteration(iteration: SupportsIndex) -> int:
    """The number of an iteration. Raises StateError for what is none."""
    try:
        number = operator.index(iteration)
    except TypeError:
        number = -1
    if not 0 <= number < 2**63:
        raise StateError(
            f"An iteration is a whole number from 0, not {iteration!r}",
            "Give mirror_out the number of the iteration",
        )
    return number


def refuse_call_within(mirror: object, calls: set[CodeType]) -> None:
    """Raise StateError if the caller's caller is below one of these calls of the same mirror.

    It looks at the stack: a flag could stay set after an interrupt.
    """
    frame = sys._getframe(2).f_back
    while frame:
        if frame.f_code in calls and frame.f_locals["self"] is mirror:
            raise StateError(
                "The mirror was called from within a call of its own (a signal handler?)",
                "Set a flag there, and call the mirror from the loop",
            )
        frame = frame.f_back


def not_ready(name: str) -> PliniusError:
    """The refusal to commit over commits that were not restored."""
    return StateError(
        f"The mirror in {name} has commits that are not mirrored in",
        "Call mirror_in before mirror_out",
    )


def closed_already() -> PliniusError:
    """The refusal of a mirror that was closed."""
    return StateError(
        "This mirror is closed, or another one was opened on its region since",
        "Use the newest one, or open it again",
    )


def changed_meanwhile(names: list[str]) -> PliniusError:
    """The failure of a commit during which objects were written to that must not be."""
    return StorageError(
        f"{', '.join(names[:3])} changed while the mirror sealed it during training",
        "It is copied first from now on, and the next iteration is mirrored",
    )
