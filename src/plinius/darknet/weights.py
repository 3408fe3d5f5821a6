"""Darknet .weights files: a header, then the arrays of each layer as little-endian float32.

Header: int32 major, minor, revision, then the records seen so far, as a 64-bit number from
version 0.2 on, before that (and where major or minor exceeds 1000) as a 32-bit one. Above 1000,
[connected] weights are stored transposed. (darknet: parser.c, load_weights_upto.)
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from plinius.darknet.layers import Connected, Convolutional, Layer
from plinius.darknet.network import Network
from plinius.errors import FormatError, StorageError
from plinius.files import publish, read_file

_VERSION = struct.Struct("<iii")
_HEADER = struct.Struct("<iiiQ")
_FLOAT = 4


def save_weights(network: Network, path: str | Path, seen: int) -> None:
    """Write the arrays and `seen`, the records trained on, as version 0.2.0.

    Layers with dontsave are left out. The file appears whole or not at all. Raises StorageError
    if it exists already or cannot be written.
    """
    with publish(Path(path)) as file:
        file.write(_HEADER.pack(0, 2, 0, seen))
        for layer in network.sequence:
            if not layer.section.integer("dontsave"):
                for array in layer.arrays().values():
                    file.write(array.detach().contiguous().numpy().astype("<f4").tobytes())


def load_weights(network: Network, path: str | Path) -> int:
    """Read the arrays into the network and return the number of records seen.

    Layers with dontload are not in the file and keep their values; dontloadscales leaves out the
    scales and rolling statistics likewise; flipped means filters are stored transposed. Raises
    FormatError where the file is shorter or longer than this network, which is then unchanged,
    and StorageError where it cannot be read.
    """
    return weights_from(network, read_parameters(network, path), str(path))


def read_parameters(network: Network, path: str | Path) -> bytes:
    """The bytes of a file of parameters for a network. Raises StorageError.

    It may be larger than the network by the header of any format.
    """
    most = 2 * _FLOAT * sum(p.numel() for p in network.parameters()) + (128 << 20)
    try:
        return read_file(path, most)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}", "Check the path") from None


def weights_from(network: Network, data: bytes, name: str) -> int:
    """As `load_weights`, from the bytes of a file that is called `name`."""
    seen, offset, transposed = _header(data[: _HEADER.size], name)
    targets = list(_targets(network, transposed))
    expected = offset + _FLOAT * sum(target.numel() for target in targets)
    if len(data) != expected:
        what = f"{name} has {len(data)} bytes where this network has {expected}"
        raise FormatError(what, "Give the .cfg the weights were trained with")
    floats = torch.from_numpy(np.frombuffer(data, "<f4", offset=offset).astype(np.float32))
    with torch.no_grad():
        for target in targets:
            target.copy_(floats[: target.numel()].view(target.shape))
            floats = floats[target.numel() :]
    return seen


def _header(start: bytes, path: str | Path) -> tuple[int, int, bool]:
    """(seen, bytes of the header, whether [connected] weights are transposed)."""
    try:
        major, minor, _ = _VERSION.unpack_from(start)
        if major < 0 or minor < 0:
            raise FormatError(f"{path} is no .weights file", "Give a Darknet .weights file")
        transposed = major > 1000 or minor > 1000
        wide = major * 10 + minor >= 2 and major < 1000 and minor < 1000
        seen = struct.unpack_from("<Q" if wide else "<I", start, _VERSION.size)[0]
    except struct.error:
        raise FormatError(f"{path} ends in its header", "Copy the file again") from None
    return seen, _VERSION.size + (8 if wide else 4), transposed


def _targets(network: Network, transposed: bool) -> Iterator[Tensor]:
    """The tensors to fill, in file order; transposed views where the file is transposed."""
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
