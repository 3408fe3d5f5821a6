"""Records from pictures with Darknet's label files: one line `class x y w h` for each object."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from plinius.data.records import ArraySpec, Record, Source
from plinius.errors import SourceError, StorageError
from plinius.files import read_file
from plinius.sources.folder import (
    SUFFIXES,
    ImageOptions,
    letterbox_of,
    listing,
    open_image,
    pixels,
    shape_of,
)
from plinius.sources.record_ids import ids_that_fit
from plinius.sources.refusals import each

_MAX_BYTES = 1 << 20
_MAX_LIST_BYTES = 1 << 28
_MAX_CLASSES = 100_000
_PICTURES = ("images", "JPEGImages")

Boxes = npt.NDArray[np.float32]


@dataclass(frozen=True)
class BoxOptions:
    """`most` is the largest number of objects in a picture: a label has this many rows.

    `class_names` are the classes in order; without them they have numbers only.
    """

    most: int = 90
    class_names: tuple[str, ...] = ()


def boxes_source(path: Path, images: ImageOptions, boxes: BoxOptions) -> Source:
    """Records of a folder, or of a list file with the path of a picture in each line.

    A folder holds PNG or JPEG pictures, or folders `images` and `labels`. The label file of a
    picture has its name with the suffix .txt, and lies in `labels` if it lies in `images` or
    `JPEGImages` (darknet: data.c, fill_truth_detection), else beside it; without objects it is
    empty.
    Its numbers are class, middle and sides of each box, in fractions of the picture.

    Samples are uint8, (1, h, w) or (3, h, w); with `images.size` pictures keep their proportions,
    in the middle of grey (letterbox). Labels are float32 (most, 5): x, y, w, h, class, then 0.
    Boxes are cut at the edges of their picture. Every file is read once before this returns. Raises
    SourceError, which names all files that do not fit, and StorageError.
    """
    images = replace(images, letterbox=True)
    files = _pictures(path)
    shape: list[tuple[int, int, int]] = []

    def checked(file: Path) -> tuple[Path, Boxes]:
        if not shape:
            shape.append(shape_of(file, images))
        found = _boxes(file, boxes)
        pixels(file, shape[0], images)
        return file, _letterboxed(file, found, images)

    good = each(files, checked, f"files of {path}", images.skipped)
    if not good:
        raise SourceError(f"{path} holds no picture that can be sealed", "Give other pictures")

    def records() -> Iterator[Record]:
        for file, found in good:
            label = np.zeros((boxes.most, 5), np.float32)
            label[: len(found)] = found
            yield pixels(file, shape[0], images), label

    largest = max((int(found[:, 4].max()) for _, found in good if len(found)), default=-1)
    about = ids_that_fit([_id(file, path) for file, _ in good])
    about["target"] = {"name": "boxes", "task": "detection"}
    return Source(
        str(path),
        len(good),
        ArraySpec(np.dtype("u1"), shape[0]),
        ArraySpec(np.dtype("<f4"), (boxes.most, 5)),
        records,
        len(boxes.class_names) or largest + 1,
        boxes.class_names,
        about,
    )


def read_names(path: Path) -> tuple[str, ...]:
    """The classes in a .names file, one a line. Raises SourceError, StorageError."""
    names = [line.strip() for line in _text(path, _MAX_BYTES).splitlines()]
    names = [name for name in names if name]
    if not 1 <= len(names) <= _MAX_CLASSES or len(set(names)) != len(names):
        raise SourceError(f"{path} is no list of class names", "Give each class its own line")
    return tuple(names)


def label_path(picture: Path) -> Path:
    """Where the boxes of a picture are: in `labels`, or if there are none, beside it."""
    beside, parts = picture.with_suffix(".txt"), list(picture.parent.parts)
    for at in range(len(parts) - 1, -1, -1):
        if parts[at] in _PICTURES:
            parts[at] = "labels"
            break
    found = Path(*parts) / beside.name
    return beside if beside.exists() and not found.exists() else found


def _pictures(path: Path) -> list[Path]:
    if path.is_dir():
        inner = path / "images"
        folder = inner if inner.is_dir() else path
        names = [name for name in listing(folder) if name.lower().endswith(SUFFIXES)]
        if not names:
            raise SourceError(f"{folder} holds no PNG or JPEG", "Name a folder of pictures")
        return [folder / name for name in names]
    lines = [line.strip() for line in _text(path, _MAX_LIST_BYTES).splitlines()]
    files = [path.parent / line for line in lines if line]
    if not files:
        raise SourceError(f"{path} names no pictures", "Give the path of a picture in each line")
    return files


def _text(path: Path, limit: int) -> str:
    try:
        return read_file(path, limit).decode()
    except UnicodeDecodeError:
        raise SourceError(f"{path} is not text", "Give a text file") from None


def _boxes(picture: Path, options: BoxOptions) -> Boxes:
    """Boxes (n, 5) of x, y, w, h, class, cut at the edges of the picture."""
    path = label_path(picture)
    try:
        lines = _text(path, _MAX_BYTES).splitlines()
    except StorageError as error:
        raise SourceError(
            error.what, f"Give {picture.name} its label file, an empty one if nothing is in it"
        ) from None
    found = [_box(line, f"{path}:{number}", options) for number, line in enumerate(lines, 1)]
    boxes = np.array([box for box in found if box], np.float64).reshape(-1, 5)
    if len(boxes) > options.most:
        raise SourceError(
            f"{path} has {len(boxes)} boxes, more than {options.most}",
            f"Raise --max-boxes, and max in the cfg, to {len(boxes)}",
        )
    low = (boxes[:, :2] - boxes[:, 2:4] / 2).clip(0, 1)
    high = (boxes[:, :2] + boxes[:, 2:4] / 2).clip(0, 1)
    boxes[:, :2], boxes[:, 2:4] = (low + high) / 2, high - low
    return boxes.astype(np.float32)


def _box(line: str, place: str, options: BoxOptions) -> list[float] | None:
    words = line.split()
    if not words:
        return None
    try:
        label, *numbers = (float(word) for word in words)
    except ValueError:
        label, numbers = math.nan, []
    x, y, w, h = numbers if len(numbers) == 4 else [math.nan] * 4
    classes = len(options.class_names) or _MAX_CLASSES
    if not (0 <= x < 1 and 0 <= y < 1 and 0 < w <= 1 and 0 < h <= 1):
        raise SourceError(
            f"{place} is no line `class x y w h` of a box in its picture",
            "Give the middle from 0 to below 1, and sides above 0 and at most 1, as fractions",
        )
    if not (0 <= label < classes and label == int(label)):
        raise SourceError(
            f"{place} has class {label:g}, and there are {classes}", "Number the classes from 0"
        )
    return [x, y, w, h, label]


def _letterboxed(picture: Path, boxes: Boxes, options: ImageOptions) -> Boxes:
    """Boxes in fractions of the sample, of those in fractions of the picture."""
    if options.size is None or not len(boxes):
        return boxes
    with open_image(picture) as image:
        sides, corner = letterbox_of(image.size, options.size)
    out = boxes.copy()
    for axis in (0, 1):
        out[:, axis] = (boxes[:, axis] * sides[axis] + corner[axis]) / options.size[axis]
        out[:, axis + 2] = boxes[:, axis + 2] * sides[axis] / options.size[axis]
    return out


def _id(file: Path, path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    return str(file.relative_to(folder)) if file.is_relative_to(folder) else str(file)
