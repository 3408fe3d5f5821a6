"""Records from a folder of class folders of images."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from plinius.data.records import MAX_RECORD_BYTES, Array, ArraySpec, Record, Source
from plinius.errors import SourceError
from plinius.files import cannot_read, open_to_read, require_name

_SUFFIXES = (".png", ".jpg", ".jpeg")
_CHANNELS = {"L": 1, "RGB": 3}
_LABEL = ArraySpec(np.dtype("<u2"), ())
_MAX_CLASSES = 2**16


def folder_source(path: Path) -> Source:
    """Records of a folder of class folders of PNG or JPEG images, all of one size and mode.

    Samples are uint8, (1, h, w) if greyscale or (3, h, w) if RGB. Labels are uint16: the index of
    the class folder among the sorted folder names. Names that start with a dot are skipped;
    orientation tags of cameras are not applied. Raises SourceError, which names the file that does
    not fit, and StorageError.
    """
    names = _listing(path)
    if not 1 <= len(names) <= _MAX_CLASSES or not all((path / name).is_dir() for name in names):
        raise SourceError(
            f"{path} is not a folder of class folders",
            "Put the images of each class into a folder named after it, and nothing else",
        )
    counts = [len(_images(path / name)) for name in names]
    for name, count in zip(names, counts, strict=True):
        if count == 0:
            raise SourceError(f"{path / name} holds no images", "Fill or remove it")
    shape = _first_shape(_images(path / names[0])[0])

    def records() -> Iterator[Record]:
        for number, name in enumerate(names):
            label = np.array(number, _LABEL.dtype)
            for file in _images(path / name):
                yield _pixels(file, shape), label

    sample = ArraySpec(np.dtype("u1"), shape)
    return Source(str(path), sum(counts), sample, _LABEL, records, len(names), tuple(names))


def _listing(folder: Path) -> list[str]:
    require_name(folder)
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise cannot_read(folder, error) from None


def _images(folder: Path) -> list[Path]:
    files = [folder / name for name in _listing(folder)]
    for file in files:
        if not file.name.lower().endswith(_SUFFIXES):
            raise SourceError(f"{file} is neither PNG nor JPEG", "Convert it or move it away")
    return files


def _first_shape(file: Path) -> tuple[int, int, int]:
    """The shape (channels, height, width) of the first image. Raises SourceError if too large."""
    with _open(file) as image:
        shape = _shape(file, image)
    if math.prod(shape) > MAX_RECORD_BYTES:
        raise SourceError(
            f"{file} has {_words(shape)}, more than a record can hold", "Make it smaller"
        )
    return shape


def _pixels(file: Path, wanted: tuple[int, int, int]) -> Array:
    """The pixels of an image (channels, height, width); its size is checked before decoding."""
    with _open(file) as image:
        shape = _shape(file, image)
        if shape != wanted:
            raise SourceError(
                f"{file} has {_words(shape)}, but the first image {_words(wanted)}",
                "Bring all images to one size and mode",
            )
        try:
            pixels = np.asarray(image)
        except Exception as error:  # decoders raise nearly anything on a damaged file
            raise _damaged(file, error) from None
    channels, height, width = wanted
    return np.ascontiguousarray(pixels.reshape(height, width, channels).transpose(2, 0, 1))


@contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    with open_to_read(path) as file:
        try:
            image = Image.open(file, formats=("PNG", "JPEG"))
        except Exception as error:
            raise _damaged(path, error) from None
        with image:
            yield image


def _shape(file: Path, image: Image.Image) -> tuple[int, int, int]:
    if image.mode not in _CHANNELS:
        raise SourceError(f"{file} has mode {image.mode}", "Convert it to greyscale or RGB")
    return _CHANNELS[image.mode], image.height, image.width


def _words(shape: tuple[int, int, int]) -> str:
    return f"{shape[2]} x {shape[1]} pixels in {'greyscale' if shape[0] == 1 else 'RGB'}"


def _damaged(file: Path, error: Exception) -> SourceError:
    return SourceError(f"{file} cannot be read as an image: {error}", "Replace or remove it")
