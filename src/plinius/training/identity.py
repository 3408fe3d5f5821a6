"""The identity of a run: what a later process must give again to resume it.

It is what the cfg means, not how it is written: a comment, another max_batches or another name of
the file do not make another run, nor does any option of what is shown, measured or mirrored.
"""

from typing import Protocol

from plinius.darknet.cfg import Cfg
from plinius.darknet.recipe import differences, recipe, recipe_digest
from plinius.errors import MismatchError
from plinius.jsonvalue import Json, to_json
from plinius.mirror.run_identity import GIVE_THE_SAME
from plinius.training.beginning import Beginning
from plinius.training.permission import Permission

MAX_RECIPE_BYTES = 64 << 10
_SHOWN = 5


class _Settings(Protocol):
    @property
    def seed(self) -> int: ...

    @property
    def precision(self) -> str: ...


def run_identity(
    cfg: Cfg,
    settings: _Settings,
    dataset_id: str,
    start: Beginning,
    permission: Permission | None,
) -> dict[str, Json]:
    """The identity of a run. It holds the recipe itself too, unless that is long.

    `cfg` is the recipe digest, `recipe` only says later what differs.
    """
    identity: dict[str, Json] = {
        "cfg": recipe_digest(cfg),
        "dataset": dataset_id,
        "seed": settings.seed,
        "precision": settings.precision,
    }
    whole = recipe(cfg)
    if len(to_json(whole)) <= MAX_RECIPE_BYTES:
        identity["recipe"] = whole
    if permission:
        identity["job"] = permission.digest
    return identity | start.identity()


def require_same_recipe(cfg: Cfg, stored: dict[str, Json]) -> None:
    """Raise MismatchError, with the keys that differ, unless a cfg means what it meant in a run.

    `stored` is the identity of that run; one without a recipe digest is no Darknet run's.
    """
    if stored.get("cfg") == recipe_digest(cfg):
        return
    found = differences(recipe(cfg), stored.get("recipe"))
    shown = "; ".join(found[:_SHOWN]) or "its recipe is another one"
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    raise MismatchError(
        f"{cfg.name} is not the network of the run in the region: {shown}{more}", GIVE_THE_SAME
    )
