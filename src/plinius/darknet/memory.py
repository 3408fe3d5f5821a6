"""How much memory a network needs at least, against how much the machine has."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

from plinius.darknet.layers.base import Layer

_FLOAT = 4
_CGROUP = Path("/sys/fs/cgroup/memory.max")


def machine_memory() -> int:
    """The bytes of memory of this machine, or of this container if it has fewer."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = _CGROUP.read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def parameter_bytes(layers: Sequence[Layer]) -> int:
    """The bytes of all arrays."""
    return _FLOAT * sum(array.numel() for layer in layers for array in layer.arrays().values())


def training_bytes(layers: Sequence[Layer], rows: int) -> int:
    """What a pass of `rows` rows takes at least: parameters, gradients, momentum, outputs."""
    outputs = sum(math.prod(layer.out_shape) for layer in layers)
    return 3 * parameter_bytes(layers) + _FLOAT * rows * outputs


def row_bytes(layers: Sequence[Layer]) -> int:
    """What one row of a pass without gradients takes at most: inputs and outputs that are alive.

    A convolution may also copy its input once for each weight of a filter.
    """
    largest = max(math.prod(layer.in_shape) + math.prod(layer.out_shape) for layer in layers)
    kept = sum(
        math.prod(layers[at].out_shape)
        for at in {at for layer in layers for at in layer.sources if at < layer.section.index - 1}
        if at >= 0
    )
    return _FLOAT * (9 * largest + kept)


def shown(size: float) -> str:
    """A size for a person, such as 1.5 GiB."""
    unit = 0
    while size >= 1024 and unit < 4:
        size, unit = size / 1024, unit + 1
    return f"{size:.1f} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[unit]}"
