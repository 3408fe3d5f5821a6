"""Realistic loops, each stopped and resumed in freshly built objects, and compared bit for bit."""

import random
import struct
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plinius.keys import OwnerKey
from plinius.mirror import Mirror

KEY = OwnerKey(bytes(range(32)))
LAST = 6
Step = Callable[[int], None]
Build = Callable[[], tuple[dict[str, Any], Step]]
LOOPS: dict[str, Build] = {}
REFUSED: dict[str, tuple[Build, str]] = {}
"""Loops that a new process could not resume, and the refusal that comes at once."""


def loop(build: Build) -> Build:
    """Enter a loop into the table, under its name."""
    LOOPS[build.__name__] = build
    return build


def refused(sentence: str) -> Callable[[Build], Build]:
    """Enter a loop that mirror_out refuses."""

    def enter(build: Build) -> Build:
        REFUSED[build.__name__] = build, sentence
        return build

    return enter


def seed() -> None:
    """The same random numbers from here on."""
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)


def run(build: Build, region: Path, stops: tuple[int, ...], **how: Any) -> tuple[str, Any]:
    """The digest of a loop that was built anew at each stop, and its values at the end."""
    for until in (*stops, LAST):
        seed()
        state, step = build()
        with Mirror.open(region, KEY, state, **how) as mirror:
            start = mirror.mirror_in()
            assert mirror.not_bit_exact is None
            for iteration in range(start + 1, until + 1):
                step(iteration)
                mirror.mirror_out(iteration)
            mirror.wait()
            assert mirror.failure is None
            assert mirror.committed == until
            digest = mirror.digest(until)
    return digest, state


def require_alike(build: Build, folder: Path, stops: list[tuple[int, ...]], **how: Any) -> None:
    """The loop ends alike, wherever it was stopped."""
    whole, state = run(build, folder / "whole", ())
    for number, stop in enumerate(stops):
        found, values = run(build, folder / f"stopped{number}", stop, **how)
        assert alike(values, state), f"stopped after {stop}"
        assert found == whole, f"stopped after {stop}"


def alike(one: Any, other: Any) -> bool:
    """Whether two values have the same class and the same bits."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        if one.layout is not torch.strided:
            return alike(one.to_dense(), other.to_dense())
        if (one.dtype, one.shape, one.stride()) != (other.dtype, other.shape, other.stride()):
            return False
        return alike(bits(one), bits(other)) and alike(one.grad, other.grad) if one.is_leaf else (
            alike(bits(one), bits(other))
        )  # fmt: skip
    if isinstance(one, np.ma.MaskedArray):
        return alike(one.data, other.data) and bool(np.array_equal(one.mask, other.mask))
    if isinstance(one, np.ndarray | np.generic):
        return (one.dtype, one.shape) == (other.dtype, other.shape) and (
            one.tobytes() == other.tobytes()
        )
    if isinstance(one, complex):
        return alike(one.real, other.real) and alike(one.imag, other.imag)
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other)
    if isinstance(one, dict):
        return [*one] == [*other] and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple | deque):
        return len(one) == len(other) and all(map(alike, one, other))
    if hasattr(one, "state_dict"):
        return alike(one.state_dict(), other.state_dict())
    if isinstance(one, torch.Generator | np.random.Generator | np.random.RandomState):
        return True  # the digest holds their states
    compared: object = type(one).__eq__
    return bool(one == other) if compared is not object.__eq__ else True


def bits(tensor: torch.Tensor) -> bytes:
    """The items of a tensor as bytes, in row-major order."""
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b""
