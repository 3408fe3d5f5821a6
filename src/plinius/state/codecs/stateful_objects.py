"""The codec of objects with state_dict and load_state_dict: optimizers, schedulers, loaders."""

from typing import Any

import torch
from torch import nn

from plinius.errors import MismatchError, PliniusError
from plinius.jsonvalue import Json, to_json
from plinius.state.codec import (
    ABSENT,
    CODECS,
    Blueprint,
    Codec,
    Decoder,
    Encoder,
    refused,
    tensor_names,
)

_TORCH_STATE_DICT = torch.optim.Optimizer.state_dict


def is_stateful(value: Any) -> bool:
    """Whether it has state_dict and load_state_dict."""
    return (
        not isinstance(value, type)
        and callable(getattr(value, "state_dict", None))
        and callable(getattr(value, "load_state_dict", None))
    )


def loads_later(value: object) -> bool:
    """Whether an object takes its state on when it is next iterated over: a loader does."""
    loads = is_stateful(value) and not isinstance(value, nn.Module)
    return loads and hasattr(type(value), "__iter__")


def _encode_object(encoder: Encoder, value: Any, path: str) -> Json:
    def encode() -> Json:
        return [type(value).__qualname__, encoder.node(state_of(value, path), path)]

    payload = encoder.separately(encode)
    encoder.blueprint(path, Blueprint(type(value).__qualname__, _groups(value), payload, value))
    return payload


def state_of(value: Any, path: str) -> Any:
    """What its state_dict returns. Raises StateError, with the path, if that fails."""
    try:
        return value.state_dict()
    except Exception as error:
        raise refused(
            path,
            f"is a {type(value).__qualname__} whose state_dict failed: {error!r}",
            "Have it give its state whenever mirror_out is called",
        ) from error


def _groups(value: Any) -> tuple[tuple[str, str], ...]:
    """The number of parameters in each group of an optimizer; empty for other objects."""
    groups = getattr(value, "param_groups", None)
    if not isinstance(groups, list):
        return ()
    return tuple(
        (f"param_groups/{number}", f"of {len(group['params'])} parameters")
        for number, group in enumerate(groups)
        if "params" in group
    )


def _decode_object(decoder: Decoder, payload: Any, live: Any, path: str) -> Any:
    blueprint = decoder.blueprints.get(path)
    if blueprint is None:
        raise not_built(path, payload[0])
    live = blueprint.live if live is ABSENT else live  # of an object that is to load its state
    unchanged = to_json(blueprint.payload) == to_json(payload)
    if not unchanged or not tensor_names(payload) <= decoder.own:
        state = decoder.separately(lambda: decoder.value(payload[1], path))
        load(live, state, path)
        if isinstance(live, torch.optim.Optimizer):
            inner = getattr(live, "optimizer", live)  # of a wrapper (Accelerate's)
            _undo_casts(inner, decoder.separately(lambda: decoder.value(payload[1], path)))
    return live


def load(value: Any, state: Any, path: str) -> None:
    """Have an object load its state. Raises MismatchError, with the path, if it refuses."""
    try:
        value.load_state_dict(state)
    except (PliniusError, KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:
        raise MismatchError(
            f"{path}, a {type(value).__qualname__}, did not load its state: {error}",
            "Build it as in the run that was mirrored",
        ) from error


def _undo_casts(optimizer: Any, stored: Any) -> None:
    """torch casts loaded optimizer state to the parameters' dtype: put in what was stored."""
    values = stored.get("state") if isinstance(stored, dict) else None
    if not values or getattr(type(optimizer), "state_dict", None) is not _TORCH_STATE_DICT:
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, parameter in enumerate(parameters):
        if index in values:
            optimizer.state[parameter] = values[index]


def not_built(path: str, cls: str) -> MismatchError:
    """The error for an object that the program has not built."""
    return MismatchError(
        f"{path} was a {cls}, and is not one here",
        "Build it, and put it into the state, before mirror_in",
    )


_OBJECT = Codec("object", (), _encode_object, _decode_object, shared=True)
STATEFUL_PROTOCOL = (is_stateful, _OBJECT)
CODECS.add(_OBJECT)
