"""The demo's MNIST: the published files, byte for byte, from a package that is not trusted."""

import hashlib
import importlib.metadata
import importlib.util
import io
import os
import pickle
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

DEMO = Path(__file__).resolve().parents[2] / "demo"


def _load(name: str) -> ModuleType:
    """A module of demo/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"demo_{name}", DEMO / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mnist = _load("mnist")


@pytest.fixture
def package_file() -> Path:
    """The data file of the installed package."""
    try:
        importlib.metadata.distribution(mnist.PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{mnist.PACKAGE} is not installed: run make setup")
    path: Path = mnist.find_package_file()
    return path


def test_the_rebuilt_files_are_the_published_ones(package_file: Path, tmp_path: Path) -> None:
    """Each of the four files has the md5 that MNIST was published with."""
    paths = mnist.write_idx(tmp_path)
    assert {p.name: hashlib.md5(p.read_bytes()).hexdigest() for p in paths} == {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    }


@pytest.mark.parametrize("at", [0, 1_000_000, -1])
def test_a_tampered_package_file_is_refused(package_file: Path, tmp_path: Path, at: int) -> None:
    """One flipped bit anywhere in the package's file, and nothing of it is unpacked."""
    altered = bytearray(package_file.read_bytes())
    altered[at] ^= 1
    copy = tmp_path / "mnist.pkl.gz"
    copy.write_bytes(altered)
    with pytest.raises(mnist.MnistError, match="SHA-256 differs"):
        mnist.read_checked(copy)


def test_a_missing_package_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package the message names it and the way to get it."""
    monkeypatch.setattr(mnist, "PACKAGE", "no-such-package-of-plinius")
    with pytest.raises(mnist.MnistError, match=r"no-such-package-of-plinius.*make setup"):
        mnist.find_package_file()


def test_arrays_are_unpickled() -> None:
    """A pickle of plain arrays, as the NumPy of today writes it, reads back."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    data = pickle.dumps((array, array), protocol=4)
    loaded = mnist.ArrayUnpickler(io.BytesIO(data)).load()
    np.testing.assert_array_equal(loaded[0], array)


class _Calls:
    """Pickles to a call of `function` with one text."""

    def __init__(self, function: object) -> None:
        self.function = function

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return self.function, ("touched",)


@pytest.mark.parametrize("function", [os.system, eval, np.load, getattr, bytearray])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_names_anything_else_is_refused(function: object, protocol: int) -> None:
    """Nothing but what arrays are made with can be named, not even from numpy."""
    data = pickle.dumps(_Calls(function), protocol=protocol)
    with pytest.raises(pickle.UnpicklingError, match="is not allowed in an array"):
        mnist.ArrayUnpickler(io.BytesIO(data)).load()
