"""Darknet .weights files: a header, then the arrays of each layer as little-endian float32.

Header: int32 major, minor, revision, then `seen`, the number of records trained on: 64 bits if
major * 10 + minor >= 2 and both are below 1000, else 32 bits. If major or minor is above 1000,
[connected] weights are stored transposed (darknet: parser.c, load_weights_upto).
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from plinius.darknet.layers import Connected, Convolutional, Layer
from plinius.darknet.network import Network
from plinius.errors import FormatError
from plinius.files import publish, read_file

_VERSION = struct.Struct("<iii")
_HEADER = struct.Struct("<iiiQ")
_FLOAT_BYTES = 4


def save_weights(network: Network, path: str | Path, seen: int) -> None:
    """Write the arrays and `seen`, the number of records trained on, as version 0.2.0.

    Layers with dontsave=1 are left out. The file appears complete or not at all. Raises
    StorageError if it exists or cannot be written.
    """
    with publish(Path(path)) as file:
        file.write(_HEADER.pack(0, 2, 0, seen))
        for layer in network.sequence:
            if not layer.section.integer("dontsave"):
                for array in layer.arrays().values():
                    file.write(array.detach().contiguous().numpy().astype("<f4").tobytes())


def load_weights(network: Network, path: str | Path) -> int:
    """Read the arrays into the network; returns `seen`, the number of records trained on.

    Layers with dontload=1 are not in the file and keep their values, as do scales and rolling
    statistics with dontloadscales=1. With flipped=1, filters are stored transposed. Raises
    StorageError, and FormatError if the file does not have the size that this network needs; the
    network is then unchanged.
    """
    return load_weights_bytes(network, read_parameters(network, path), str(path))


def read_parameters(network: Network, path: str | Path) -> bytes:
    """The bytes of a file of parameters, in any format, for a network.

    Raises StorageError if it cannot be read or is much larger than the network.
    """
    limit = 2 * _FLOAT_BYTES * sum(p.numel() for p in network.parameters()) + (128 << 20)
    return read_file(path, limit)


def load_weights_bytes(network: Network, data: bytes, name: str) -> int:
    """As `load_weights`, from the bytes of a file; `name` is used in messages."""
    seen, offset, transposed = _header(data[: _HEADER.size], name)
    targets = list(_targets(network, transposed))
    expected = offset + _FLOAT_BYTES * sum(target.numel() for target in targets)
    if len(data) != expected:
        what = f"{name} has {len(data)} bytes, but this network needs {expected}"
        raise FormatError(what, "Give the .cfg the weights were trained with")
    floats = torch.from_numpy(np.frombuffer(data, "<f4", offset=offset).astype(np.float32))
    with torch.no_grad():
        for target in targets:
            target.copy_(floats[: target.numel()].view(target.shape))
            floats = floats[target.numel() :]
    return seen


def _header(start: bytes, path: str | Path) -> tuple[int, int, bool]:
    """(seen, length of the header in bytes, whether [connected] weights are transposed)."""
    try:
        major, minor, _ = _VERSION.unpack_from(start)
        if major < 0 or minor < 0:
            raise FormatError(f"{path} is not a .weights file", "Give a Darknet .weights file")
        transposed = major > 1000 or minor > 1000
        wide = major * 10 + minor >= 2 and major < 1000 and minor < 1000
        seen = struct.unpack_from("<Q" if wide else "<I", start, _VERSION.size)[0]
    except struct.error:
        raise FormatError(f"{path} ends in its header", "Copy the file again") from None
    return seen, _VERSION.size + (8 if wide else 4), transposed


def _targets(network: Network, transposed: bool) -> Iterator[Tensor]:
    """The tensors to fill, in the order of the file; views with the shape stored there."""
    for layer in network.sequence:
        if layer.section.integer("dontload"):
            continue
        for name, array in layer.arrays().items():
            if name not in ("weights", "biases") and layer.section.integer("dontloadscales"):
                continue
            yield _view(layer, array.detach(), transposed) if name == "weights" else array.detach()


def _view(layer: Layer, weights: Tensor, transposed: bool) -> Tensor:
    if isinstance(layer, Connected) and transposed:
        return weights.T
    if isinstance(layer, Convolutional) and layer.section.integer("flipped"):
        return weights.permute(1, 2, 3, 0)
    return weights
