"""Class folders of images as a source of records."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plinius.data.records import ArraySpec
from plinius.errors import StorageError
from plinius.sources.folder import folder_source
from unit.refusals import refusal

U8 = np.dtype("u1")


def folder(path: Path, mode: str = "RGB", suffix: str = ".png") -> Path:
    for name, shade in (("dog", 200), ("cat", 100)):
        (path / name).mkdir(parents=True)
        for i in range(2):
            colour = shade + i if mode == "L" else (shade + i, 2, 3)
            Image.new(mode, (4, 3), colour).save(path / name / f"{i}{suffix}")
    return path


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_folder_gives_its_records(tmp_path: Path, mode: str, channels: int) -> None:
    """Images are (channels, h, w); classes are the sorted folder names; dot files are skipped."""
    path = folder(tmp_path / "d", mode)
    (path / ".DS_Store").touch()
    (path / "cat" / ".hidden").touch()
    source = folder_source(path)
    assert (source.sample, source.label) == (
        ArraySpec(U8, (channels, 3, 4)),
        ArraySpec(np.dtype("<u2"), ()),
    )
    assert (source.classes, source.class_names) == (2, ("cat", "dog"))
    records = list(source)
    assert [int(x[0, 0, 0]) for x, _ in records] == [100, 101, 200, 201]
    assert [int(y) for _, y in records] == [0, 0, 1, 1]
    assert all(int(x[-1, -1, -1]) == 3 for x, _ in records) or mode == "L"


def test_folder_keeps_rows_and_columns(tmp_path: Path) -> None:
    """The pixel at row r and column c is found at [:, r, c]."""
    pixels = np.random.default_rng(1).integers(0, 256, (3, 4, 3), np.uint8)
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "x.png")
    ((sample, _),) = folder_source(tmp_path)
    assert np.array_equal(sample, pixels.transpose(2, 0, 1))


def test_folder_reads_jpeg(tmp_path: Path) -> None:
    """JPEG images, by either name."""
    assert len(list(folder_source(folder(tmp_path / "d", suffix=".JPG")))) == 4
    assert len(list(folder_source(folder(tmp_path / "e", suffix=".jpeg")))) == 4


def test_folder_refuses_images_that_differ(tmp_path: Path) -> None:
    """An image of another size or mode is named."""
    path = folder(tmp_path / "d")
    odd = path / "dog" / "0.png"
    Image.new("RGB", (5, 3)).save(odd)
    assert refusal(lambda: folder_source(path)) == (
        f"{odd} has 5 x 3 pixels in RGB, but the first image 4 x 3 pixels in RGB. "
        "Bring all images to one size and mode."
    )
    Image.new("L", (4, 3)).save(odd)
    assert f"{odd} has 4 x 3 pixels in greyscale" in refusal(lambda: folder_source(path))
    Image.new("RGBA", (4, 3)).save(odd)
    assert refusal(lambda: folder_source(path)) == (
        f"{odd} has mode RGBA. Convert it to greyscale or RGB."
    )


def test_folder_refuses_what_is_not_an_image(tmp_path: Path) -> None:
    """Cut or foreign images, other files, empty classes, files beside the classes."""
    path = folder(tmp_path / "d")
    odd = path / "dog" / "0.png"
    whole = odd.read_bytes()
    for bad in (whole[:-30], whole[:20], b"", b"GIF89a" + bytes(20)):
        odd.write_bytes(bad)
        assert f"{odd} cannot be read as an image" in refusal(lambda: folder_source(path))
    odd.unlink()
    os.mkfifo(odd)
    with pytest.raises(StorageError, match=f"^Cannot read {odd}: Not a regular file"):
        list(folder_source(path))
    odd.rename(path / "dog" / "notes.txt")
    assert "notes.txt is neither PNG nor JPEG." in refusal(lambda: folder_source(path))
    (path / "dog" / "notes.txt").rename(path / "notes.txt")
    assert f"{path} is not a folder of class folders." in refusal(lambda: folder_source(path))
    (path / "notes.txt").unlink()
    (path / "eel").mkdir()
    assert f"{path / 'eel'} holds no images." in refusal(lambda: folder_source(path))
    with pytest.raises(StorageError, match="^Cannot read .*none: No such file or directory"):
        folder_source(tmp_path / "none")


def test_folder_refuses_decompression_bombs(tmp_path: Path) -> None:
    """An image larger than a record is refused by its header, before it is decoded."""
    (tmp_path / "a").mkdir()
    bomb = tmp_path / "a" / "0.png"
    Image.new("L", (9000, 8000)).save(bomb)
    assert refusal(lambda: folder_source(tmp_path)) == (
        f"{bomb} has 9000 x 8000 pixels in greyscale, more than a record can hold. Make it smaller."
    )


# What every source is held to
