"""Records from a folder of images: in class folders, or without labels."""

import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from plinius.data.records import ABSENT, MAX_RECORD_BYTES, Array, ArraySpec, Record, Source
from plinius.errors import SourceError
from plinius.files import cannot_read, open_to_read, require_name
from plinius.sources.record_ids import ids_that_fit
from plinius.sources.refusals import each

SUFFIXES = (".png", ".jpg", ".jpeg")
_CHANNELS = {"L": 1, "RGB": 3}
_CONVERTED = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_LABEL = ArraySpec(np.dtype("<u2"), ())
_MAX_CLASSES = 2**16
_MAX_PIXELS = 2**27  # of an image that is made smaller; decoding takes up to 4 bytes for each

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class ImageOptions:
    """How images become samples.

    With `size` (width, height) they are resized (bilinear), with `letterbox` in their proportions
    and on grey; with `mode` converted; an alpha channel is dropped. Without them, all images must
    have the size and mode of the first. `unlabelled` is for a folder that holds images and no class
    folders. `class_names` are the classes in order, of which some may have no folder; without them,
    the sorted names of the folders. With `skipped`, a file that is refused is left out and the
    function called with the reason.
    """

    size: tuple[int, int] | None = None
    mode: Literal["L", "RGB"] | None = None
    unlabelled: bool = False
    class_names: Sequence[str] = ()
    skipped: Callable[[str], None] | None = None
    letterbox: bool = False


def folder_source(path: Path, options: ImageOptions | None = None) -> Source:
    """Records of a folder of PNG or JPEG images, in class folders unless unlabelled.

    Samples are uint8, (1, h, w) if greyscale or (3, h, w) if RGB. Labels are uint16: the index of
    the class folder among the class names. Names that start with a dot are skipped; orientation
    tags of cameras are not applied. Every image is decoded once before this returns. Raises
    SourceError, which names all files that do not fit, and StorageError.
    """
    options = options or ImageOptions()
    classes, files = _unlabelled(path) if options.unlabelled else _labelled(path, options)
    shape: list[Shape] = []

    def checked(entry: tuple[Path, int]) -> tuple[Path, int]:
        if not shape:
            shape.append(shape_of(entry[0], options))
        pixels(entry[0], shape[0], options)
        return entry

    good = each(files, checked, f"files of {path}", options.skipped)
    if not good:
        raise SourceError(f"{path} holds no image that can be sealed", "Give other images")
    present = {number for _, number in good}
    for _, number in files:
        if number not in present:
            raise SourceError(f"All images of class {classes[number]} were skipped", "Replace them")

    def records() -> Iterator[Record]:
        for file, number in good:
            label = np.zeros(0, np.uint8) if options.unlabelled else np.array(number, _LABEL.dtype)
            yield pixels(file, shape[0], options), label

    ids = ids_that_fit([str(file.relative_to(path)) for file, _ in good])
    sample, label = ArraySpec(np.dtype("u1"), shape[0]), ABSENT if options.unlabelled else _LABEL
    return Source(str(path), len(good), sample, label, records, len(classes), classes, ids)


def _labelled(path: Path, options: ImageOptions) -> tuple[tuple[str, ...], list[tuple[Path, int]]]:
    """The classes, and the files with the numbers of their classes."""
    names = listing(path)
    if not 1 <= len(names) <= _MAX_CLASSES or not all((path / name).is_dir() for name in names):
        raise SourceError(
            f"{path} is not a folder of class folders",
            "Put the images of each class into a folder named after it, and nothing else",
        )
    classes = tuple(options.class_names) or tuple(names)
    if new := [name for name in names if name not in classes]:
        raise SourceError(
            f"{path / new[0]} is no class of the dataset that it shall be like",
            f"Its classes are {', '.join(classes[:20])}",
        )
    files = []
    for name in names:
        found = listing(path / name)
        if not found:
            raise SourceError(f"{path / name} holds no images", "Fill or remove it")
        files += [(path / name / file, classes.index(name)) for file in found]
    return classes, files


def _unlabelled(path: Path) -> tuple[tuple[str, ...], list[tuple[Path, int]]]:
    names = listing(path)
    if not names or any((path / name).is_dir() for name in names):
        raise SourceError(
            f"{path} is not a folder of images alone",
            "Put the images into it without folders, or leave out --unlabelled",
        )
    return (), [(path / name, 0) for name in names]


def listing(folder: Path) -> list[str]:
    """The names in a folder, sorted, without those that start with a dot."""
    require_name(folder)
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise cannot_read(folder, error) from None


def shape_of(file: Path, options: ImageOptions) -> Shape:
    """The shape (channels, height, width) of all samples, by the first image."""
    with open_image(file) as image:
        shape = _shape(file, image, options)
    if math.prod(shape) > MAX_RECORD_BYTES:
        raise SourceError(
            f"{file} has {_words(shape)}, more than a record can hold", "Make it smaller"
        )
    return shape


def pixels(file: Path, wanted: Shape, options: ImageOptions) -> Array:
    """The pixels of an image (channels, height, width); its size is checked before decoding."""
    with open_image(file) as image:
        shape = _shape(file, image, options)
        if shape != wanted:
            raise SourceError(
                f"{file} has {_words(shape)}, but the first image {_words(wanted)}",
                "Bring all images to one size and mode",
            )
        try:
            if options.mode:
                image = image.convert(options.mode)
            if options.size and options.letterbox:
                image = _letterboxed(image, options.size)
            elif options.size:
                image = image.resize(options.size, Image.Resampling.BILINEAR)
            found = np.asarray(image)
        except Exception as error:  # decoders raise nearly anything on a damaged file
            raise _damaged(file, error) from None
    channels, height, width = wanted
    return np.ascontiguousarray(found.reshape(height, width, channels).transpose(2, 0, 1))


def letterbox_of(
    size: tuple[int, int], wanted: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(sides, left and top) of a picture of `size` on one of `wanted`, all (width, height).

    It keeps its proportions and lies in the middle (darknet: image.c, letterbox_image).
    """
    (wide, high), (width, height) = size, wanted
    if width * high < height * wide:
        sides = (width, max(high * width // wide, 1))
    else:
        sides = (max(wide * height // high, 1), height)
    return sides, ((width - sides[0]) // 2, (height - sides[1]) // 2)


def _letterboxed(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    sides, corner = letterbox_of(image.size, size)
    grey = 127 if image.mode == "L" else (127, 127, 127)
    canvas = Image.new(image.mode, size, grey)
    canvas.paste(image.resize(sides, Image.Resampling.BILINEAR), corner)
    return canvas


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """A PNG or JPEG, not decoded yet. Raises SourceError, StorageError."""
    if not path.name.lower().endswith(SUFFIXES):
        raise SourceError(f"{path} is neither PNG nor JPEG", "Convert it or move it away")
    with open_to_read(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's about the size: we refuse by our own bounds
        try:
            image = Image.open(file, formats=("PNG", "JPEG"))
        except UnidentifiedImageError:  # its text names the open file, not the path
            raise _damaged(path, "it is no PNG or JPEG") from None
        except Exception as error:
            raise _damaged(path, error) from None
        with image:
            yield image


def _shape(file: Path, image: Image.Image, options: ImageOptions) -> Shape:
    """The shape that the sample of an image will have."""
    if image.mode not in (_CONVERTED if options.mode else _CHANNELS):
        raise SourceError(f"{file} has mode {image.mode}", "Convert it to greyscale or RGB")
    if image.width * image.height > _MAX_PIXELS:
        what = f"{file} has {image.width} x {image.height} pixels"
        raise SourceError(what, f"Make it smaller than {_MAX_PIXELS} pixels")
    width, height = options.size or (image.width, image.height)
    return _CHANNELS[options.mode or image.mode], height, width


def _words(shape: Shape) -> str:
    return f"{shape[2]} x {shape[1]} pixels in {'greyscale' if shape[0] == 1 else 'RGB'}"


def _damaged(file: Path, error: Exception | str) -> SourceError:
    return SourceError(f"{file} cannot be read as an image: {error}", "Replace or remove it")
