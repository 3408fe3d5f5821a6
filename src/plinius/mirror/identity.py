"""Which run this is: a region that holds another run is refused."""

from plinius.errors import MismatchError
from plinius.jsonvalue import Json
from plinius.slots import Slots
from plinius.state.environment import show


def require_run_id(wanted: str, slots: Slots | None, name: str) -> None:
    """Raise MismatchError unless the slots are those of the run with this id, in hex."""
    if slots is None or slots.run_id.hex() != wanted:
        found = "no run" if slots is None else f"run {slots.run_id.hex()}"
        raise MismatchError(
            f"{name} holds {found}, not run {wanted}",
            "Name the region of that run, or leave out its id",
        )


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
            "Use the settings that run began with, or name another region (--region)",
        )
