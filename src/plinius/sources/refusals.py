"""Refuses everything that is wrong at once, so that nobody corrects one thing at a time."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from plinius.errors import PliniusError, SourceError, StorageError

_SHOWN, _SHOWN_STEPS = 20, 3
T = TypeVar("T")
U = TypeVar("U")


def each(
    things: Iterable[T],
    make: Callable[[T], U],
    what: str,
    skipped: Callable[[str], None] | None = None,
) -> list[U]:
    """What `make` gives for each thing; one refusal names all that it refused.

    `what` they are, in the plural, is for the message. With `skipped`, what is refused is left out,
    and `skipped` called with the reason. Raises SourceError, StorageError.
    """
    made, refused = [], list[PliniusError]()
    for thing in things:
        try:
            made.append(make(thing))
        except (SourceError, StorageError) as error:
            refused.append(error)
    if skipped:
        for refusal in refused:
            skipped(refusal.what)
    elif len(refused) == 1:
        raise refused[0]
    elif refused:
        reasons = "; ".join(error.what.rstrip(".") for error in refused[:_SHOWN])
        more = f"; and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
        todos = [*dict.fromkeys(error.todo.rstrip(".") for error in refused)][:_SHOWN_STEPS]
        raise SourceError(f"{len(refused)} {what} are refused: {reasons}{more}", ". ".join(todos))
    return made
