"""Sealing each kind of data from the command line."""

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from PIL import Image

from cli.world import (
    RECORDS,
    World,
    call,
    textures,
)
from plinius.data.sealed_dataset import SealedDataset
from plinius.key_file import load_key


def test_idx_files_may_be_gzipped(world: World, tmp_path: Path) -> None:
    """A gzipped pair seals to the records of the plain pair."""
    images, labels = tmp_path / "i.gz", tmp_path / "l.gz"
    images.write_bytes(gzip.compress(world.images.read_bytes()))
    labels.write_bytes(gzip.compress(world.labels.read_bytes()))
    x, y = _sealed(world, tmp_path, "--images", images, "--labels", labels)
    _assert_textures(x, y)


def test_npz_arrays_seal_as_they_are(world: World, tmp_path: Path) -> None:
    """Arrays x and y of an .npz keep their types and shapes, compressed or not."""
    x, y = textures(50, seed=3)
    floats = (x / 255).astype(np.float32)
    np.savez_compressed(tmp_path / "d.npz", x=floats, y=y.astype(np.int64))
    sealed_x, sealed_y = _sealed(world, tmp_path, "--npz", tmp_path / "d.npz")
    assert sealed_x.dtype == np.float32
    assert sealed_y.dtype == np.int64
    assert np.array_equal(sealed_x, floats)
    assert np.array_equal(sealed_y, y)


def test_a_folder_of_class_folders_seals_in_order_of_names(world: World, tmp_path: Path) -> None:
    """Labels are the places of the class folders' sorted names; greyscale pixels stay the same."""
    x, _ = textures(6, seed=4)
    for number, name in enumerate(["cats", "apes", "bees"]):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for which in (0, 1):
            pixels = Image.fromarray(x[2 * number + which])
            pixels.save(tmp_path / "pictures" / name / f"{which}.png")
    sealed_x, sealed_y = _sealed(world, tmp_path, "--folder", tmp_path / "pictures")
    assert sealed_y.tolist() == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(sealed_x[:, 0], x[[2, 3, 4, 5, 0, 1]])
    opened = SealedDataset.from_file(tmp_path / "out.sealed", load_key(world.key))
    assert opened.class_names == ("apes", "bees", "cats")


def test_the_original_format_seals(world: World, tmp_path: Path) -> None:
    """A pair in the original's format opens under its key; so do labels, or a file's last part."""
    legacy, random = bytes(range(16)), np.random.default_rng(5)
    x = random.random((5, 28 * 28), np.float32)
    y = np.eye(10, dtype=np.float32)[[3, 1, 4, 1, 5]]
    images, labels = tmp_path / "images", tmp_path / "labels"
    pieces = b"".join(_legacy(legacy, row) for row in x)
    images.write_bytes(np.array([28, 28, 5], "<u4").tobytes() + pieces)
    labels.write_bytes(np.array([5], "<u4").tobytes() + b"".join(_legacy(legacy, r) for r in y))
    how = ["--format", "plinius", "--legacy-key", legacy.hex()]
    sealed_x, sealed_y = _sealed(world, tmp_path, *how, "--images", images, "--labels", labels)
    assert np.array_equal(sealed_x, x)
    assert np.array_equal(sealed_y, y)
    _, alone = _sealed(world, tmp_path / "alone", *how, "--labels", labels)
    assert np.array_equal(alone, y)
    tail = tmp_path / "tail"
    tail.write_bytes(b"\7" * 1588 + pieces[len(pieces) // 5 :])
    piece = ["--images", tail, "--skip-bytes", 1588]
    assert np.array_equal(_sealed(world, tmp_path / "tail-out", *how, *piece)[0], x[1:])


def _sealed(world: World, folder: Path, *source: object) -> tuple[Any, Any]:
    """All samples and labels of a source, sealed by the command and opened again."""
    folder.mkdir(exist_ok=True)
    out = folder / "out.sealed"
    result = call("seal", "--key", world.key, "-o", out, *source, "--json")
    opened = SealedDataset.from_file(out, load_key(world.key))
    assert result.json["count"] == opened.header.count
    assert result.json["id"] == opened.header.id.hex()
    return opened.open_batch(np.arange(opened.header.count))


def _assert_textures(x: Any, y: Any) -> None:
    wanted_x, wanted_y = textures(RECORDS, seed=1)
    assert np.array_equal(x[:, 0], wanted_x)
    assert np.array_equal(y, wanted_y)


def _legacy(key: bytes, numbers: Any) -> bytes:
    """One record as the original wrote it: MAC, IV, ciphertext."""
    nonce = os.urandom(12)
    sealed = AESGCM(key).encrypt(nonce, numbers.astype("<f4").tobytes(), None)
    return sealed[-16:] + nonce + sealed[:-16]


def table(path: Path, rows: int = 60) -> Path:
    """A table of patients: a number, a town, and whether they are ill, which the number decides."""
    lines = [
        f"p{n},{n},{'ulm' if n % 3 else 'bonn'},{'yes' if n > 30 else 'no'}" for n in range(rows)
    ]
    path.write_text("\n".join(["id,age,town,ill", *lines]) + "\n")
    return path


def test_a_table_seals_in_parts(world: World, tmp_path: Path) -> None:
    """One file a part, with counts, classes and columns told; then a new table like it."""
    csv = table(tmp_path / "t.csv")
    what = ["--csv", csv, "--target", "ill", "--id", "id", "--categorical", "town"]
    how = ["--split", "0.8,0.1,0.1", "--seed", 3, "--stratify", "--standardize"]
    seal = ["seal", "--key", world.key, "-o"]
    parts = call(*seal, tmp_path / "t.sealed", *what, *how, "--json").json["parts"]
    assert [parts[name]["count"] for name in ("train", "validation", "test")] == [48, 6, 6]
    assert sum(part["labels"]["yes"] for part in parts.values()) == 29
    assert list(parts["train"]["columns"]) == ["age", "town=bonn", "town=ulm"]
    assert abs(parts["train"]["columns"]["age"]["mean"]) < 1e-6
    names = [tmp_path / f"t.{part}.sealed" for part in ("train", "validation", "test")]
    key = load_key(world.key)
    ids = [id for name in names for id in SealedDataset.from_file(name, key).about["ids"]]
    assert sorted(ids) == sorted(f"p{n}" for n in range(60))
    new = call(
        *seal, tmp_path / "n.sealed", "--csv", csv, "--id", "id", "--like", names[0], "--json"
    )
    assert new.json["columns"]["age"]["max"] > 1
    assert "There are no labels" in new.stderr
    shown = call(*seal, tmp_path / "u.sealed", *what)
    assert "column age" in shown.stdout


def test_a_text_and_a_folder_seal_with_their_options(world: World, tmp_path: Path) -> None:
    """Bytes as tokens; images of several sizes, of which a bad one is left out and told."""
    (tmp_path / "t.txt").write_bytes(b"abcdefghij")
    x, y = _sealed(world, tmp_path / "text", "--text", tmp_path / "t.txt", "--sequence", 4)
    assert (bytes(x[1]), bytes(y[1])) == (b"efgh", b"fghi")
    (tmp_path / "p" / "a").mkdir(parents=True)
    Image.new("L", (9, 9)).save(tmp_path / "p" / "a" / "0.png")
    Image.new("RGB", (5, 8)).save(tmp_path / "p" / "a" / "1.png")
    (tmp_path / "p" / "a" / "2.png").write_bytes(b"none")
    folder = ["--folder", tmp_path / "p", "--resize", "6x4", "--mode", "L"]
    out = ["seal", "--key", world.key, "-o", tmp_path / "p.sealed", *folder]
    assert call(*out).code == 1
    told = call(*out, "--skip-bad", "--json")
    assert told.json["sample"] == ["uint8", [1, 4, 6]]
    assert told.json["count"] == 2
    assert "left out: " in told.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--csv", "t", "--resize", "2x2"], "--resize goes with --format folder or boxes"),
        (["--npz", "t", "--target", "y"], "--target goes with --format csv or parquet"),
        (["--text", "t", "--classes", "2"], "--classes goes with --format idx or npz"),
        (["--csv", "t", "--sequence", "2"], "--sequence goes with --format text"),
        (
            ["--npz", "t", "--like", "s"],
            "--like goes with --format folder or csv or parquet or boxes",
        ),
        (["--npz", "t", "--seed", "0"], "--seed and --stratify go with --split"),
        (["--npz", "t", "--split", "a,b"], "a,b is no list like 0.8,0.1,0.1"),
        (["--folder", "t", "--resize", "0x3"], "0x3 is no size like 28x28"),
        (["--csv", "t", "--parquet", "u"], "name one source"),
    ],
)
def test_options_that_do_not_belong_are_refused(
    world: World, tmp_path: Path, options: list[str], sentence: str
) -> None:
    """Wrong usage is never ignored; nothing is made."""
    result = call("seal", "--key", world.key, "-o", tmp_path / "o", *options)
    assert result.code == 2
    assert sentence in result.stderr
    assert list(tmp_path.iterdir()) == []
