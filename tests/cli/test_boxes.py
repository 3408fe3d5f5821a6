"""Pictures with Darknet's label files: sealed, trained on, tested, and the boxes that are found."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli.world import World, call
from plinius.data.sealed_dataset import SealedDataset
from plinius.key_file import load_key

YOLO = """[net]
batch=4
height=32
width=32
channels=3
learning_rate=0.01
hue=.1
[convolutional]
filters=14
size=3
stride=4
pad=1
activation=linear
[yolo]
mask=0,1
anchors=8,8, 16,16
classes=2
num=2
max=5
"""


def pictures(folder: Path, count: int = 6) -> Path:
    """A folder of `images` and `labels`: a white square of 12 pixels in pictures of 48 x 24."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        pixels = np.zeros((24, 48, 3), np.uint8)
        left = 3 * number
        pixels[6:18, left : left + 12] = 255
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        line = f"{number % 2} {(left + 6) / 48} 0.5 0.25 0.5\n"
        (folder / "labels" / f"{number}.txt").write_text(line if number else "")
    (folder / "shapes.names").write_text("square\nbox\n")
    return folder


def test_boxes_go_all_the_way(world: World, tmp_path: Path) -> None:
    """Sealed by letterbox, trained, tested, found: sealed and opened again, in clear, drawn."""
    folder, sealed = pictures(tmp_path / "data"), tmp_path / "boxes.sealed"
    told = call(
        *("seal", "--key", world.key, "-o", sealed, "--boxes", folder, "--resize", "32x32"),
        *("--names", folder / "shapes.names", "--max-boxes", 8, "--json"),
    )
    assert (told.code, told.json["count"], told.json["classes"]) == (0, 6, 2), told.stderr
    dataset = SealedDataset.from_file(sealed, load_key(world.key))
    sample, label = dataset.open_record(3)
    np.testing.assert_allclose(label[0], [15 / 48, 0.5, 0.25, 0.25, 1])
    assert not label[1:].any() and not dataset.open_record(0)[1].any()
    bright = np.argwhere(sample[0] > 200)
    assert sample[:, 0, 0].tolist() == [127] * 3  # grey above and below
    np.testing.assert_allclose(bright.mean(0)[::-1] / 32 + 1 / 64, label[0, :2], atol=0.02)
    cfg, region = tmp_path / "net.cfg", tmp_path / "region"
    cfg.write_text(YOLO)
    using = ["--data", sealed, "--key", world.key, "--region", region]
    assert call("train", cfg, *using, "--iterations", 2).code == 0
    tested = call("test", cfg, *using, "--json")
    assert 0 <= tested.json["mean_average_precision"] <= 1
    ways = {}
    for suffix in ("sealed", "json", "csv"):
        out = ["-o", tmp_path / f"found.{suffix}", "--threshold", 0.001, "--json"]
        drawn = ["--draw", tmp_path / "drawn"] if suffix == "json" else []
        ways[suffix] = call("predict", cfg, *using, *out, *drawn)
        assert ways[suffix].code == 0, ways[suffix].stderr
    assert ways["csv"].json["task"] == "detection" and ways["csv"].json["boxes"] > 0
    assert "boxes" not in ways["sealed"].json  # with one threshold after another, all scores
    found = json.loads((tmp_path / "found.json").read_text())
    assert [one["id"] for one in found] == [f"images/{n}.png" for n in range(6)]
    rows = list(csv.DictReader((tmp_path / "found.csv").open()))
    assert sum(len(one["boxes"]) for one in found) == len(rows) == ways["csv"].json["boxes"]
    assert {row["class"] for row in rows} <= {"square", "box"}
    opened = tmp_path / "opened.csv"
    told = call("open", tmp_path / "found.sealed", "--key", world.key, "-o", opened)
    assert opened.read_text() == (tmp_path / "found.csv").read_text()
    names = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert names == [f"{n:06}.png" for n in range(6)]
    with Image.open(tmp_path / "drawn" / names[0]) as image:
        assert image.size == (384, 384) and len(image.getcolors(1 << 20) or []) > 2


def test_a_list_file_names_the_pictures(world: World, tmp_path: Path) -> None:
    """In its order, from its folder; without names the classes have numbers."""
    folder = pictures(tmp_path / "data")
    (folder / "train.txt").write_text("images/4.png\nimages/1.png\n")
    out = tmp_path / "listed.sealed"
    source = ["--boxes", folder / "train.txt"]
    told = call("seal", "--key", world.key, "-o", out, *source, "--json")
    assert (told.json["count"], told.json["sample"]) == (2, ["uint8", [3, 24, 48]])
    dataset = SealedDataset.from_file(out, load_key(world.key))
    assert dataset.open_record(0)[1][0].tolist() == [0.375, 0.5, 0.25, 0.5, 0]
    assert dataset.about["ids"] == ["images/4.png", "images/1.png"]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("0 0.5 0.5 0.2", "1.txt:1 is no line `class x y w h` of a box in its picture"),
        ("0 0.5 0.5 nan 0.2", "1.txt:1 is no line `class x y w h`"),
        ("0 1.5 0.5 0.2 0.2", "1.txt:1 is no line `class x y w h`"),
        ("2 0.5 0.5 0.2 0.2", "1.txt:1 has class 2, and there are 2"),
        ("inf 0.5 0.5 0.2 0.2", "1.txt:1 has class inf, and there are 2"),
        ("0 .5 .5 .2 .2\n" * 3, "1.txt has 3 boxes, more than 2"),
        (None, "Give 1.png its label file, an empty one if nothing is in it"),
    ],
)
def test_wrong_label_files_are_refused(
    line: str | None, what: str, world: World, tmp_path: Path
) -> None:
    """With the file and the line; nothing is sealed."""
    folder = pictures(tmp_path / "data", 2)
    path = folder / "labels" / "1.txt"
    path.unlink() if line is None else path.write_text(line)
    out = tmp_path / "x.sealed"
    more = ["--names", folder / "shapes.names", "--max-boxes", 2]
    refused = call("seal", "--key", world.key, "-o", out, "--boxes", folder, *more)
    assert refused.code == 1 and what in refused.stderr
    assert not out.exists()


def test_more_boxes_than_the_network_takes_are_refused(world: World, tmp_path: Path) -> None:
    """In a picture that has them; room for more is no reason."""
    folder, sealed, cfg = pictures(tmp_path / "d"), tmp_path / "b.sealed", tmp_path / "net.cfg"
    (folder / "labels" / "0.txt").write_text("0 .5 .5 .2 .2\n" * 6)
    call("seal", "--key", world.key, "-o", sealed, "--boxes", folder, "--resize", "32x32")
    cfg.write_text(YOLO)
    using = ["--data", sealed, "--key", world.key, "--region", tmp_path / "region"]
    refused = call("train", cfg, *using, "--iterations", 2)
    assert "more boxes than the network takes: 5. Give max=90 in the [yolo]" in refused.stderr
    for options in (["--draw", "d"], ["--threshold", "0.1"]):
        wrong = call("predict", world.cfg, *using, "-o", tmp_path / "p.csv", *options)
        assert (wrong.code, "are for networks that find boxes" in wrong.stderr) == (2, True)


@pytest.mark.parametrize("box", [[-0.4, 0.5, 0.2, 0.2, 0], [0.5, 0.5, 0.2, 0.2, 7]])
def test_a_box_that_lies_in_no_cell_is_refused(
    box: list[float], world: World, tmp_path: Path
) -> None:
    """Sealed from arrays, whose labels nobody has read as boxes."""
    x, y = np.zeros((4, 3, 32, 32), np.uint8), np.zeros((4, 2, 5), np.float32)
    y[:, 0] = box
    np.savez(tmp_path / "a.npz", x=x, y=y)
    sealed, cfg = tmp_path / "a.sealed", tmp_path / "net.cfg"
    call("seal", "--key", world.key, "-o", sealed, "--npz", tmp_path / "a.npz")
    grid = "[connected]\noutput=28\n[detection]\nclasses=2\ncoords=4\nside=2\nnum=1\n"
    cfg.write_text(YOLO[: YOLO.index("hue")] + grid)
    using = ["--data", sealed, "--key", world.key, "--region", tmp_path / "region"]
    refused = call("train", cfg, *using, "--iterations", 1)
    assert refused.code == 1 and "A box of the truth" in refused.stderr


def test_cells_of_a_grid_are_trained_on_boxes(world: World, tmp_path: Path) -> None:
    """[detection] takes the same sealed boxes, jittered; [region] too."""
    folder, sealed, cfg = pictures(tmp_path / "d"), tmp_path / "b.sealed", tmp_path / "net.cfg"
    call("seal", "--key", world.key, "-o", sealed, "--boxes", folder, "--resize", "32x32")
    net = YOLO[: YOLO.index("[yolo]")]
    grid = "[connected]\noutput=28\nactivation=linear\n[detection]\nclasses=2\ncoords=4\nside=2\n"
    region = "[region]\nclasses=2\nnum=2\nanchors=1,1, 2,2\nmax=5\nsoftmax=1\n"
    for number, head in enumerate((grid + "num=1\njitter=.2\n", region + "jitter=.2\n")):
        cfg.write_text(net + head)
        using = ["--data", sealed, "--key", world.key, "--region", tmp_path / f"region{number}"]
        told = call("train", cfg, *using, "--iterations", 3, "--json")
        assert (told.code, told.json["iteration"]) == (0, 3), told.stderr
        tested = call("test", cfg, *using, "--json")
        assert 0 <= tested.json["mean_average_precision"] <= 1
