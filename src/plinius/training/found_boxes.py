"""The boxes that a mirrored network finds in a sealed dataset: sealed, in clear, or drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from plinius.data.records import Array, Progress
from plinius.data.sealed_dataset import SealedDataset, seal_dataset
from plinius.errors import SourceError, StorageError
from plinius.files import publish
from plinius.keys import OwnerKey
from plinius.sources.box_files import boxes_source
from plinius.sources.clear_files import SUFFIXES, write_clear
from plinius.training.batches import Samples
from plinius.training.detection import Found, detect
from plinius.training.evaluation import Opened, Require

MOST = 100
_BATCH = 64
_LEAST_DRAWN = 400
_COLOURS = ("#ff3030", "#30c040", "#3070ff", "#ffb000", "#c040ff", "#00c8d0", "#ff60a0", "#909030")


@dataclass(frozen=True)
class FoundBoxes:
    """The boxes of each picture of a dataset, in order and best first; at most MOST are kept.

    `class_names` is empty if unknown; `ids` are the owner's names of the pictures.
    """

    pictures: Sequence[Found]
    class_names: tuple[str, ...]
    ids: list[str]
    iteration: int

    @property
    def count(self) -> int:
        """How many boxes were found."""
        return sum(len(found.scores) for found in self.pictures)

    def save(self, path: str | Path, key: OwnerKey | None = None) -> None:
        """Write the new file `path`: in clear if it ends in .csv, .json or .npz, else sealed.

        In clear is a declassification: whoever has the file reads the boxes. Raises StorageError,
        KeyFileError if it is to be sealed and `key` is no owner's key.
        """
        path = Path(path)
        rows = [
            np.column_stack([found.boxes, found.classes, found.scores]).astype(np.float32)
            for found in self.pictures
        ]
        source = boxes_source(rows, MOST, self.ids, self.class_names)
        if path.suffix in SUFFIXES:
            write_clear(source, path)
        else:
            seal_dataset(source, key, path)  # type: ignore[arg-type]

    def draw(self, dataset: SealedDataset, folder: str | Path) -> None:
        """Write the pictures with their boxes, in clear, as 000000.png ... into the new `folder`.

        Raises SourceError for samples that are no pictures, SealError, StorageError.
        """
        folder, shape = Path(folder), dataset.header.sample.shape
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise SourceError(f"The samples of {dataset.name} are no pictures", "Leave out --draw")
        try:
            folder.mkdir(mode=0o700)
        except OSError as error:
            raise StorageError(
                f"{folder} cannot be made: {error.strerror}", "Name a new folder (--draw)"
            ) from None
        for number, found in enumerate(self.pictures):
            sample, _ = dataset.open_record(number)
            with publish(folder / f"{number:06}.png") as file:
                _drawn(sample, found, self.class_names).save(file, "PNG")


def find_boxes(
    cfg: str | Path,
    data: str | Path,
    region: str | Path,
    key: OwnerKey,
    *,
    threshold: float = 0.5,
    run_key: OwnerKey | None = None,
    require: Require = lambda snapshot, header: None,
    progress: Progress | None = None,
    commit: str = "newest",
) -> tuple[FoundBoxes, SealedDataset]:
    """The boxes with a score above `threshold`, as `plinius.training.prediction.predict` does.

    Also returns the dataset, for `FoundBoxes.draw`. Raises as `predict` does, and CfgError if the
    network finds no boxes.
    """
    opened = Opened.of(cfg, data, region, key, run_key, require, commit)
    network, dataset = opened.network, opened.dataset
    head = network.box_head()
    samples, found = Samples(dataset, network), list[Found]()
    count = dataset.header.count
    at_once = network.rows_that_fit(_BATCH)
    with torch.inference_mode():
        for start in range(0, count, at_once):
            end = min(start + at_once, count)
            x = samples.open(np.arange(start, end))
            found += [_best(one) for one in detect(network, x, threshold)]
            if progress:
                progress(end, count)
    names = opened.class_names if len(opened.class_names) == head.classes else ()
    return FoundBoxes(found, names, opened.ids, opened.snapshot.iteration), dataset


def _best(found: Found) -> Found:
    return Found(found.boxes[:MOST], found.classes[:MOST], found.scores[:MOST])


def _drawn(sample: Array, found: Found, names: tuple[str, ...]) -> Image.Image:
    """A picture (channels, h, w) with its boxes, enlarged if it is small."""
    values = sample.astype(np.float32)
    if sample.dtype.kind == "u":
        values *= 255 / np.iinfo(sample.dtype).max
    else:
        values *= 255
    pixels = values.clip(0, 255).round().astype(np.uint8).transpose(1, 2, 0)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    factor = max(1, _LEAST_DRAWN // max(image.size))
    image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    pen, width = ImageDraw.Draw(image), max(2, min(image.size) // 200)
    for box, label, score in zip(found.boxes, found.classes, found.scores, strict=True):
        x, y, w, h = (float(value) for value in box)
        left, top = (x - w / 2) * image.width, (y - h / 2) * image.height
        right, bottom = (x + w / 2) * image.width, (y + h / 2) * image.height
        if not all(map(np.isfinite, (left, top, right, bottom))):
            continue
        corners = [max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height)]
        if corners[2] <= corners[0] or corners[3] <= corners[1]:
            continue
        colour = _COLOURS[int(label) % len(_COLOURS)]
        pen.rectangle(corners, outline=colour, width=width)
        name = names[int(label)] if names else str(label)
        at = (corners[0] + width + 1, corners[1] + width)
        pen.text(at, f"{name} {score:.2f}", fill=colour, font_size=max(12, min(image.size) // 20))
    return image
