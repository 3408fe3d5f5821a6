"""The codec of random number generators: of torch, NumPy and Python."""

import random
from functools import partial
from typing import Any

import numpy as np
import torch

from plinius.errors import MismatchError
from plinius.jsonvalue import Json
from plinius.state.codec import CODECS, Codec, Decoder, Encoder, refused
from plinius.state.devices import SUPPORTED

Generator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


def generator_state(generator: Generator) -> object:
    """The state of a random number generator, as plain values, arrays and tensors: all new."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return {**generator.bit_generator.state, **_seed_of(generator.bit_generator)}
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)
    return generator.getstate()


def same_state(one: Any, other: Any) -> bool:
    """Whether two states that `generator_state` returned are equal."""
    if isinstance(one, dict):
        return all(same_state(one[key], other[key]) for key in one)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


def _seed_of(bits: np.random.BitGenerator) -> dict[str, Any]:
    seed: Any = bits.seed_seq
    return {"seed": seed.state} if type(seed) is np.random.SeedSequence else {}


def set_generator_state(generator: Generator, state: Any) -> None:
    """Give a generator a state that `generator_state` returned."""
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, np.random.Generator):
        state = dict(state)
        seed = state.pop("seed", None)
        generator.bit_generator.state = state
        if seed is not None:  # so that spawn gives the same children
            new = generator.bit_generator.state, np.random.SeedSequence(**seed)
            generator.bit_generator.__setstate__(new)  # type: ignore[attr-defined]
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        generator.setstate(state)


def _encode_generator(encoder: Encoder, value: Generator, path: str) -> Json:
    device = _device(value)
    if device and torch.device(device).type not in SUPPORTED:
        raise refused(path, f"is a generator on {device}")
    if type(value) not in (torch.Generator, *_GENERATORS):
        raise refused(path, f"is a generator of class {type(value).__qualname__}")
    now = generator_state(value)
    node = encoder.cached_values(
        path, partial(same_state, now), lambda: (now, encoder.node(_arrays(now), path))
    )
    return [type(value).__name__, node, *([device] if device else [])]


def _device(generator: object) -> str | None:
    """The device of torch's generators that are not on the CPU."""
    on = generator.device if isinstance(generator, torch.Generator) else None
    return str(on) if on and on.type != "cpu" else None


def _arrays(state: Any) -> Any:
    """The words of Python's generator as an array, for they are 625."""
    if not isinstance(state, tuple):
        return state
    version, words, gauss = state
    return {"version": version, "words": np.array(words, np.int64), "gauss": gauss}


def _decode_generator(decoder: Decoder, payload: Any, live: Any, path: str) -> Any:
    name, node, *device = payload
    state = decoder.value(node, path)
    other = type(live).__name__ != name or [_device(live) or "cpu"] != (device or ["cpu"])
    if other or _other_bits(live, state):
        live = _new_generator(name, state, path, *device)
    try:
        if name == "Random":
            state = state["version"], tuple(map(int, state["words"])), state["gauss"]
        set_generator_state(live, state)
    except (ValueError, TypeError, RuntimeError):
        raise MismatchError(
            f"{path} is another kind of generator than it was",
            "Put the same kind of generator into the state as at the start of the run",
        ) from None
    return live


def _other_bits(live: Any, state: Any) -> bool:
    """Whether a NumPy generator is on another bit generator than the one with this state."""
    if not (isinstance(live, np.random.Generator) and isinstance(state, dict)):
        return False
    return bool(live.bit_generator.state["bit_generator"] != state["bit_generator"])


def _new_generator(name: str, state: Any, path: str, device: str = "cpu") -> Generator:
    if name == "Generator" and isinstance(state, dict):
        bits = getattr(np.random, str(state["bit_generator"]), None)
        if not (isinstance(bits, type) and issubclass(bits, np.random.BitGenerator)):
            raise MismatchError(
                f"{path} was a NumPy generator on {state['bit_generator']}",
                "Put one into the state before mirror_in",
            )
        return np.random.Generator(bits())
    if name == "RandomState":
        return np.random.RandomState()
    if name != "Generator":
        return random.Random()  # noqa: S311
    try:
        return torch.Generator(device)
    except RuntimeError:
        raise MismatchError(
            f"{path} is a generator on {device}, and there is no such device here",
            "Go on where the run has its device, or put another generator into a new run",
        ) from None


_GENERATOR = Codec("generator", (), _encode_generator, _decode_generator, shared=True)
CODECS.add(_GENERATOR)
CODECS.protocols.append((lambda value: isinstance(value, _GENERATORS), _GENERATOR))
