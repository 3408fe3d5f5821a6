"""The recipe of a cfg: what it means, apart from how it is written.

Comments, blanks, the order of keys, unknown keys and values that are the default leave the recipe
as it is. So does `max_batches`, unless the policy is poly, which computes with it: otherwise it
only says when to stop, which a job says by itself. The format is in docs/formats/job.md.
"""

import hashlib
from dataclasses import asdict

from plinius.darknet.cfg import Cfg
from plinius.darknet.cfg_keys import COMMON_KEYS, LAYER_KEYS, NET_KEYS
from plinius.darknet.cfg_options import Value
from plinius.jsonvalue import Json, to_json

_TAG = b"plinius-recipe-1\n"


def recipe(cfg: Cfg) -> Json:
    """The recipe as JSON: [kind, {key: value}] for [net] and each layer, defaults left out."""
    defaults: dict[str, Value] = {key: rule.default for key, rule in NET_KEYS.items()}
    net = {key: value for key, value in asdict(cfg.net).items() if value != defaults[key]}
    if cfg.net.policy != "poly":
        net.pop("max_batches", None)
    layers: list[Json] = [["net", _json(net)]]
    for section in cfg.sections:
        keys = COMMON_KEYS | LAYER_KEYS[section.kind]
        given = {key: value for key, value in section.options.items() if value != keys[key].default}
        if isinstance(name := given.get("tree"), str):  # what the file says, not its name
            given["tree"] = cfg.trees[name].parents
        if isinstance(name := given.get("map"), str):
            given["map"] = cfg.maps[name]
        layers.append([section.kind, _json(given)])
    return layers


def recipe_digest(cfg: Cfg) -> str:
    """SHA-256 of the recipe, 64 hex digits."""
    return hashlib.sha256(_TAG + to_json(recipe(cfg))).hexdigest()


def differences(mine: Json, stored: Json) -> list[str]:
    """What differs between two recipes, a sentence part for each key; empty if `stored` is none.

    Layers are numbered from 0. After the first one of another kind, no more are compared.
    """
    if not isinstance(mine, list) or not isinstance(stored, list):
        return []
    found: list[str] = []
    for number, (here, there) in enumerate(zip(mine, stored, strict=False), start=-1):
        kind, options, before, theirs = *_section(here), *_section(there)
        where = "[net]" if number < 0 else f"layer {number} [{kind}]"
        if kind != before:
            return [*found, f"layer {number} is [{kind}] but was [{before}]"]
        found += [
            f"{where} {key} is {_shown(options.get(key))} but was {_shown(theirs.get(key))}"
            for key in sorted(options.keys() | theirs.keys())
            if options.get(key) != theirs.get(key)
        ]
    if len(mine) != len(stored):
        found.append(f"it has {len(mine) - 1} layers but had {len(stored) - 1}")
    return found


def _section(value: Json) -> tuple[str, dict[str, Json]]:
    """The kind and the options of a section; of something else, ones that equal nothing."""
    if isinstance(value, list) and len(value) == 2 and isinstance(value[1], dict):
        return str(value[0]), value[1]
    return "unknown", {}


def _shown(value: Json) -> str:
    """A value in at most 40 characters."""
    if value is None:
        return "its default"
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 40 else text[:39] + "…"


def _json(values: dict[str, Value]) -> dict[str, Json]:
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in values.items()
    }
