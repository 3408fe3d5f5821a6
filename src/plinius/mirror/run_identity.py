"""Which run this is: a region that holds another run is refused."""

import json
from collections.abc import MutableMapping

from plinius.errors import MismatchError, StateError
from plinius.jsonvalue import Json, to_json
from plinius.slots import Slots
from plinius.state.exactness import show

GIVE_THE_SAME = "Use the settings that run began with, or name another region (--region)"


def require_run_id(wanted: str, slots: Slots | None, name: str) -> None:
    """Raise MismatchError unless the slots are those of the run with this id, in hex."""
    if slots is None or slots.run_id.hex() != wanted:
        found = "no run" if slots is None else f"run {slots.run_id.hex()}"
        raise MismatchError(
            f"{name} holds {found}, not run {wanted}",
            "Name the region of that run, or leave out its id",
        )


def require_names(state: object) -> None:
    """Raise StateError unless a state holds its objects by name."""
    if not isinstance(state, MutableMapping):
        raise StateError(
            f"The state is a {type(state).__name__}, not a dict of objects by name",
            'Give Mirror.open(..., state={"model": model, "optimizer": optimizer})',
        )


def plain_identity(identity: dict[str, Json] | None) -> dict[str, Json]:
    """The identity of a run, as it is read back. Raises StateError for what JSON cannot hold."""
    given = identity or {}
    try:
        plain: dict[str, Json] = json.loads(to_json(given))
    except (TypeError, ValueError, RecursionError):
        plain = {}
    if plain != given or not isinstance(given, dict):
        raise StateError(
            "The identity of the run would not be read back equal",
            "Give a dict of texts, finite numbers, lists and dicts with texts as keys",
        )
    return plain


def require_same_run(mine: dict[str, Json], stored: dict[str, Json]) -> None:
    """Raise MismatchError, with what differs, unless both describe the same run."""
    differences = [
        f"{name} is {show(mine.get(name))} but was {show(stored.get(name))}"
        for name in sorted(mine.keys() | stored.keys())
        if mine.get(name) != stored.get(name)
    ]
    if differences:
        raise MismatchError(
            f"This is not the run in the region: {'; '.join(differences)}",
            GIVE_THE_SAME,
        )
