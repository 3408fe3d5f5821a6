"""The codec of torch modules.

Besides its state_dict are stored: tensors that state_dict leaves out (buffers that are not
persistent), gradients that are not None, which parameters require a gradient, and which modules
are in evaluation mode.
"""

from typing import Any, NamedTuple, cast

import torch
from torch import nn

from plinius.jsonvalue import Json, to_json
from plinius.state.codec import (
    ABSENT,
    CODECS,
    UNKNOWN,
    Blueprint,
    Codec,
    Decoder,
    Encoder,
    pointer,
    tensor_names,
)
from plinius.state.codecs.stateful_objects import STATEFUL_PROTOCOL, load, not_built, state_of
from plinius.state.codecs.tensors import set_grad
from plinius.state.codecs.user_classes import DATACLASS_PROTOCOL
from plinius.state.encoding_cache import Description
from plinius.state.structure import structure_of_module
from plinius.state.tensor_memory import (
    NAMES,
    copy_items,
    order_of,
    place_of,
    show_type,
    tensor_type,
)

_UNINITIALIZED = (nn.UninitializedParameter, nn.UninitializedBuffer)


class ModuleTensor(NamedTuple):
    """A parameter or buffer: the module that holds it, its name there, and the tensor."""

    owner: nn.Module
    name: str
    tensor: torch.Tensor | None
    is_parameter: bool


def module_tensors(module: nn.Module) -> dict[str, ModuleTensor]:
    """All parameters and buffers of a module by their full names; a buffer may be None."""
    found: dict[str, ModuleTensor] = {}
    for prefix, owner in module.named_modules():
        start = prefix + "." if prefix else ""
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                found[start + name] = ModuleTensor(owner, name, parameter, True)
        for name, buffer in owner._buffers.items():
            found[start + name] = ModuleTensor(owner, name, buffer, False)
    return found


def _encode_module(encoder: Encoder, value: nn.Module, path: str) -> Json:
    def encode() -> tuple[Json, Description]:
        raw, state = module_tensors(value), state_of(value, path)
        entries: list[Json] = [
            [key, _entry(encoder, item, pointer(path, key))] for key, item in state.items()
        ]
        extra, flags = _extra_tensors(encoder, raw, state, path), _flags(value, raw)
        return {"state": entries, **extra, **flags}, _shapes(raw)

    payload, shape = encoder.separately(
        lambda: encoder.cached(path, lambda: structure_of_module(value), encode)
    )
    encoder.blueprint(path, Blueprint("module", shape, payload, value))
    return payload


def _shapes(raw: dict[str, ModuleTensor]) -> Description:
    first: dict[int, str] = {}
    return tuple(
        (name, _shape(it) + _tied(it, name, first))
        for name, it in raw.items()
        if not _is_temporary(it)
    )


def _shape(raw: ModuleTensor) -> str:
    """Dtype and shape of a parameter; a buffer has none, since its shape may change."""
    if not raw.is_parameter or raw.tensor is None:
        return "a buffer"
    if type(raw.tensor) in _UNINITIALIZED or raw.tensor.dtype not in NAMES:
        return UNKNOWN
    return show_type(tensor_type(raw.tensor))


def _tied(raw: ModuleTensor, name: str, first: dict[int, str]) -> str:
    known = first.setdefault(id(raw.tensor), name) if raw.is_parameter else name
    return "" if known == name else f", {known} itself"


def _is_temporary(raw: ModuleTensor) -> bool:
    return not raw.is_parameter and raw.name in raw.owner._non_persistent_buffers_set


def _entry(encoder: Encoder, item: Any, path: str) -> Json:
    if type(item) in _UNINITIALIZED:
        return None
    if isinstance(item, torch.Tensor):
        return {"tensor": encoder.tensor(item, path)}
    return encoder.node(item, path)


def _extra_tensors(
    encoder: Encoder, raw: dict[str, ModuleTensor], state: Any, path: str
) -> dict[str, Json]:
    """The tensors that state_dict leaves out (`hidden`), and the gradients (`grads`)."""
    shown = {place_of(item) for item in state.values() if _has_items(item)}
    hidden: list[Json] = []
    grads: list[Json] = []
    for name, it in raw.items():
        tensor = it.tensor
        if tensor is None or type(tensor) in _UNINITIALIZED:
            continue
        hides = place_of(tensor) not in shown if tensor.numel() else name not in state
        if hides:  # a state_dict can show a copy, rounded perhaps
            where = pointer(path + "/~hidden", name)
            hidden.append([name, {"tensor": encoder.tensor(tensor.detach(), where)}])
        if tensor.grad is not None:
            where = pointer(path + "/~grad", name)
            grads.append([name, encoder.node(tensor.grad.detach(), where)])
    found: dict[str, Json] = {"hidden": hidden, "grads": grads}
    return {key: value for key, value in found.items() if value}


def _has_items(item: Any) -> bool:
    return isinstance(item, torch.Tensor) and type(item) not in _UNINITIALIZED


def _flags(module: nn.Module, raw: dict[str, ModuleTensor]) -> dict[str, Json]:
    evaluating: list[Json] = [name for name, m in module.named_modules() if not m.training]
    frozen: list[Json] = [
        name for name, it in raw.items() if it.is_parameter and not _requires_grad(it)
    ]
    found: dict[str, Json] = {"evaluating": evaluating, "frozen": frozen}
    return {key: value for key, value in found.items() if value}


def _requires_grad(raw: ModuleTensor) -> bool:
    return raw.tensor is not None and raw.tensor.requires_grad


def _decode_module(decoder: Decoder, payload: Any, live: Any, path: str) -> nn.Module:
    if live is ABSENT and path in decoder.blueprints:
        live = decoder.blueprints[path].live
    if not isinstance(live, nn.Module):
        raise not_built(path, "module")
    return decoder.separately(lambda: _restore_module(decoder, payload, live, path))  # type: ignore[no-any-return]


def _restore_module(decoder: Decoder, payload: Any, live: nn.Module, path: str) -> nn.Module:
    raw = module_tensors(live)
    mine = dict(cast(Any, decoder.blueprints[path].payload)["state"])
    hidden = {
        name: decoder.value(node, pointer(path + "/~hidden", name))
        for name, node in payload.get("hidden", [])
    }
    whole, custom = {}, False
    for key, node in payload["state"]:
        value = whole[key] = decoder.value(node, pointer(path, key))
        if isinstance(value, torch.Tensor) and key in raw and key not in hidden:
            _put(raw[key], value)
        elif value is not None or mine.get(key) is not None:
            alike = to_json(mine.get(key)) == to_json(node) and tensor_names(node) <= decoder.own
            custom = custom or not alike
    if custom or mine.keys() != whole.keys():
        hidden = {name: value.clone() for name, value in hidden.items()}  # were read into it
        load(live, whole, path)
        raw = module_tensors(live)
    for name, value in hidden.items():
        _put_hidden(live, raw, name, value, path)
    _put_flags(live, payload)
    grads = dict(payload.get("grads", []))
    for name, it in module_tensors(live).items():
        if it.tensor is not None and type(it.tensor) not in _UNINITIALIZED:
            set_grad(decoder, it.tensor, grads.get(name), pointer(path + "/~grad", name))
    return live


def _put(raw: ModuleTensor, value: torch.Tensor) -> None:
    """Give a parameter or buffer these items, and their shape if it changed in the run."""
    tensor = raw.tensor
    if tensor is None:
        setattr(raw.owner, raw.name, value)
    elif type(tensor) in _UNINITIALIZED:
        cast(Any, tensor).materialize(tuple(value.shape), dtype=value.dtype)
        copy_items(tensor, value)
    elif tensor_type(tensor) != tensor_type(value) or order_of(tensor) != order_of(value):
        tensor.data = value
    elif place_of(tensor) != place_of(value):
        copy_items(tensor, value)


def _put_hidden(
    module: nn.Module, raw: dict[str, ModuleTensor], name: str, value: torch.Tensor, path: str
) -> None:
    if name in raw:
        _put(raw[name], value)
        return
    owner, _, local = name.rpartition(".")
    try:
        module.get_submodule(owner).register_buffer(local, value, persistent=False)
    except (AttributeError, KeyError):
        raise not_built(pointer(path, name), "buffer") from None


def _put_flags(module: nn.Module, payload: Any) -> None:
    evaluating, frozen = set(payload.get("evaluating", [])), set(payload.get("frozen", []))
    for name, it in module.named_modules():
        it.training = name not in evaluating
    for name, raw in module_tensors(module).items():
        if raw.is_parameter and raw.tensor is not None:
            raw.tensor.requires_grad_(name not in frozen)


_MODULE = Codec("module", (), _encode_module, _decode_module, shared=True)
CODECS.add(_MODULE)
CODECS.protocols += [  # in this order: a module has a state_dict too, and so may a dataclass
    (lambda value: isinstance(value, nn.Module), _MODULE),
    STATEFUL_PROTOCOL,
    DATACLASS_PROTOCOL,
]
