"""Darknet .weights files: a header, then the arrays of each layer as little-endian float32.

Header: int32 major, minor, revision, then `seen`, the number of rows trained on: 64 bits if
major * 10 + minor >= 2 and both are below 1000, else 32 bits. If major or minor is above 1000,
connected weights are stored transposed (darknet: parser.c, load_weights_upto).
"""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from plinius.darknet.layers.base import Layer
from plinius.darknet.network import Network
from plinius.errors import FormatError
from plinius.files import publish, read_file

_VERSION = struct.Struct("<iii")
_HEADER = struct.Struct("<iiiQ")
_FLOAT_BYTES = 4


def save_weights(network: Network, path: str | Path, seen: int, upto: int | None = None) -> None:
    """Write the arrays and `seen`, the number of rows trained on, as version 0.2.0.

    Layers with dontsave=1 are left out, as are those from number `upto` on. The file appears
    complete or not at all. Raises StorageError if it exists or cannot be written.
    """
    with publish(Path(path)) as file:
        _write(network, file, seen, upto)


def weights_file(network: Network, seen: int) -> bytes:
    """The bytes of the file that `save_weights` writes."""
    file = io.BytesIO()
    _write(network, file, seen, None)
    return file.getvalue()


def _write(network: Network, file: BinaryIO, seen: int, upto: int | None) -> None:
    file.write(_HEADER.pack(0, 2, 0, seen))
    for layer in network.sequence[:upto]:
        if not layer.section.integer("dontsave"):
            for array in layer.arrays().values():
                file.write(array.detach().contiguous().numpy().astype("<f4").tobytes())


def load_weights(network: Network, path: str | Path, upto: int | None = None) -> int:
    """Read the arrays into the network; returns `seen`, the number of rows trained on.

    With `upto`, the file is that of the layers before this number, and the others keep their
    values. Layers with dontload=1 are not in the file and keep theirs, as do scales and rolling
    statistics with dontloadscales=1, and the filters from number `numload` on. With flipped=1,
    filters are stored transposed. Raises StorageError, and FormatError, with the layer and the
    numbers, if the file does not hold what this network needs, or holds a number that is not
    finite; the network is then unchanged.
    """
    return load_weights_bytes(network, read_parameters(network, path), str(path), upto)


def read_parameters(network: Network, path: str | Path) -> bytes:
    """The bytes of a file of parameters, in any format, for a network.

    Raises StorageError if it cannot be read or is much larger than the network.
    """
    limit = 2 * _FLOAT_BYTES * sum(p.numel() for p in network.parameters()) + (128 << 20)
    return read_file(path, limit)


def load_weights_bytes(network: Network, data: bytes, name: str, upto: int | None = None) -> int:
    """As `load_weights`, from the bytes of a file; `name` is used in messages."""
    if upto is not None and not 0 < upto <= len(network.sequence):
        what = f"The network has {len(network.sequence)} layers, not {upto}"
        raise FormatError(what, "Give the number of layers that the file holds (--upto)")
    seen, offset, transposed = _header(data[: _HEADER.size], name)
    targets = list(_targets(network, transposed, upto))
    expected = offset + _FLOAT_BYTES * sum(target.view.numel() for target in targets)
    if len(data) != expected:
        raise _wrong_size(network, data, name, offset, targets, expected)
    floats = np.frombuffer(data, "<f4", offset=offset)
    _require_finite(floats, targets, name)
    values = torch.from_numpy(floats.astype(np.float32))
    with torch.no_grad():
        for target in targets:
            target.view.copy_(values[: target.view.numel()].view(target.view.shape))
            values = values[target.view.numel() :]
    return seen


@dataclass(frozen=True)
class _Target:
    """A view of an array, with the shape that it has in the file."""

    layer: Layer
    name: str
    view: Tensor

    def __str__(self) -> str:
        section = self.layer.section
        return f"{self.name} of layer {section.index} [{section.kind}]"


def _header(start: bytes, path: str | Path) -> tuple[int, int, bool]:
    """(seen, length of the header in bytes, whether connected weights are transposed)."""
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


def _targets(network: Network, transposed: bool, upto: int | None) -> Iterator[_Target]:
    """The arrays to fill, in the order of the file."""
    for layer in network.sequence[:upto]:
        if layer.section.integer("dontload"):
            continue
        count = layer.section.integer("numload") or None
        for prefix, part in layer.parts():
            for name in part.stored():
                if name not in ("weights", "biases") and layer.section.integer("dontloadscales"):
                    continue
                view = part.as_stored(name, transposed)
                # The filters are the last axis of flipped weights, and the first of all others.
                flipped = name == "weights" and layer.section.options.get("flipped")
                view = view[..., :count] if flipped else view[:count]
                yield _Target(layer, f"{prefix}.{name}" if prefix else name, view)


def _wrong_size(
    network: Network,
    data: bytes,
    name: str,
    offset: int,
    targets: list[_Target],
    expected: int,
) -> FormatError:
    what = f"{name} has {len(data)} bytes, but this network needs {expected}"
    if len(data) > expected:
        surplus = len(data) - expected
        todo = "Give the .cfg the weights were trained with"
        return FormatError(f"{what}: {surplus} more", todo)
    left, layers = len(data) - offset, 0
    for target in targets:
        size = _FLOAT_BYTES * target.view.numel()
        if left < size:
            what += f": it ends after {left} of {size} bytes of {target}"
            layers = target.layer.section.index
            break
        left -= size
    first = next((t.name for t in targets if t.layer.section.index == layers), "")
    whole = left == 0 and layers and str(target.name) == first
    hint = f", or say that it holds {layers} layers (--upto {layers})" if whole else ""
    return FormatError(what, f"Give the .cfg the weights were trained with{hint}")


def _require_finite(
    floats: np.ndarray[tuple[int], np.dtype[np.float32]], targets: list[_Target], name: str
) -> None:
    if np.isfinite(floats).all():
        return
    at = int(np.flatnonzero(~np.isfinite(floats))[0])
    for target in targets:
        if at < target.view.numel():
            raise FormatError(
                f"{name} holds a number that is not finite: value {at} of {target}",
                "Give a file of a training that did not diverge",
            )
        at -= target.view.numel()
