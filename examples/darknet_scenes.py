"""A small YOLO network that finds digits in scenes, with Darknet's label files (scenes.cfg)."""

from pathlib import Path

import numpy as np
from darknet_run import finish
from PIL import Image
from place import place
from sklearn.datasets import load_digits

import plinius
from plinius.sources.folder import ImageOptions
from plinius.sources.labelled_boxes import BoxOptions, boxes_source
from plinius.training.found_boxes import find_boxes

CFG = Path(__file__).with_name("scenes.cfg")
NAMES = tuple(str(number) for number in range(10))
SIDE = 48


def write_scenes(folder: Path, count: int, seed: int) -> None:
    """`images` and `labels`: one to three coloured digits in each scene, none over another."""
    draws = np.random.default_rng(seed)
    pixels, classes = load_digits(return_X_y=True)
    half = len(classes) // 2  # no digit is in both kinds of scenes
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        scene = draws.uniform(0, 60, (SIDE, SIDE, 3)) + draws.uniform(0, 60, 3)
        lines, corners = [], draws.permutation([(0, 0), (0, 24), (24, 0), (24, 24)])
        for corner in corners[: draws.integers(1, 4)]:
            which = int(draws.integers(half)) + seed % 2 * half
            side = int(draws.integers(12, 22))
            left, top = corner + draws.integers(0, 24 - side, 2)
            digit = Image.fromarray((pixels[which].reshape(8, 8) * 15).astype(np.uint8))
            ink = np.asarray(digit.resize((side, side), Image.Resampling.BILINEAR))[..., None] / 255
            place_ = scene[top : top + side, left : left + side]
            place_ += ink * (draws.uniform(120, 255, 3) - place_)
            middle = ((left + side / 2) / SIDE, (top + side / 2) / SIDE)
            lines.append(f"{classes[which]} {middle[0]} {middle[1]} {side / SIDE} {side / SIDE}")
        Image.fromarray(scene.astype(np.uint8)).save(folder / "images" / f"{number:04}.png")
        (folder / "labels" / f"{number:04}.txt").write_text("\n".join(lines))


def seal_scenes(
    folder: Path, key: plinius.OwnerKey, counts: tuple[int, int] = (1500, 200)
) -> tuple[Path, Path]:
    """The owner: scenes to train on, and scenes to test with."""
    train, test = (folder / f"scenes.{part}.sealed" for part in ("train", "test"))
    for seed, (path, count) in enumerate(zip((train, test), counts, strict=True)):
        if not path.exists():
            write_scenes(folder / path.stem, count, seed)
            source = boxes_source(folder / path.stem, ImageOptions(), BoxOptions(4, NAMES))
            plinius.seal(source, key, path)
    return train, test


if __name__ == "__main__":
    here = place("darknet_scenes", iterations=900)
    data = seal_scenes(here.region.parent, here.key)
    finish(here, CFG, *data)
    found, scenes = find_boxes(CFG, data[1], here.region, here.key)
    pictures = here.region.with_name("found")
    if not pictures.exists():
        found.draw(scenes, pictures)
    print(f"{found.count} boxes in {len(found.ids)} scenes, drawn in {pictures}")
