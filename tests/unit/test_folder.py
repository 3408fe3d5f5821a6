"""Class folders of images as a source of records."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plinius.data.records import ABSENT, ArraySpec
from plinius.errors import StorageError
from plinius.sources.folder import ImageOptions, folder_source
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


def images(path: Path, **files: tuple[str, tuple[int, int]]) -> Path:
    for name, (mode, size) in files.items():
        file = path / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, 7).save(file.with_suffix(".png"))
    return path


def test_images_of_any_size_and_mode_are_brought_to_one(tmp_path: Path) -> None:
    """By size and mode; what is black or white stays so, and pixels are those that PIL gives."""
    path = images(
        tmp_path / "d",
        a__0=("RGB", (9, 5)),
        a__1=("L", (2, 2)),
        a__2=("RGBA", (3, 3)),
        a__3=("P", (4, 4)),
    )
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(path / "a" / "4.png")
    source = folder_source(path, ImageOptions(size=(6, 4), mode="RGB"))
    records = list(source)
    assert (source.count, source.sample.shape) == (5, (3, 4, 6))
    assert (records[1][0] == 7).all()
    wanted = np.asarray(Image.fromarray(pixels).resize((6, 4), Image.Resampling.BILINEAR))
    assert np.array_equal(records[4][0], wanted.transpose(2, 0, 1))
    assert folder_source(path, ImageOptions(size=(6, 4), mode="L")).sample.shape == (1, 4, 6)
    assert source.about["ids"] == [f"a/{n}.png" for n in range(5)]


def test_all_bad_files_are_named_at_once_or_left_out(tmp_path: Path) -> None:
    """Before anything is sealed; what is left out is told with the reason."""
    path = images(
        tmp_path / "d",
        a__0=("L", (4, 3)),
        a__1=("L", (5, 3)),
        b__0=("L", (4, 3)),
        b__1=("LA", (4, 3)),
    )
    (path / "b" / "notes.txt").touch()
    (path / "b" / "2.png").write_bytes((path / "b" / "0.png").read_bytes()[:-30])
    said = refusal(lambda: folder_source(path))
    assert said.startswith(f"4 files of {path} are refused: {path}/a/1.png has 5 x 3 pixels")
    assert all(
        name in said
        for name in ("b/1.png has mode LA", "b/2.png cannot be", "notes.txt is neither")
    )
    skipped: list[str] = []
    source = folder_source(path, ImageOptions(skipped=skipped.append))
    assert source.about["ids"] == ["a/0.png", "b/0.png"]
    assert [int(y) for _, y in source] == [0, 1]
    assert len(skipped) == 4
    for file in (path / "a").iterdir():
        file.write_bytes(b"")
    assert refusal(lambda: folder_source(path, ImageOptions(skipped=skipped.append))) == (
        "All images of class a were skipped. Replace them."
    )


def test_images_without_classes_have_no_labels(tmp_path: Path) -> None:
    """Only where that was asked for."""
    path = images(tmp_path / "d", one=("L", (4, 3)), two=("L", (4, 3)))
    source = folder_source(path, ImageOptions(unlabelled=True))
    assert (source.label, source.classes, source.about["ids"]) == (
        ABSENT,
        0,
        ["one.png", "two.png"],
    )
    assert len(list(source)) == 2
    (path / "c").mkdir()
    assert "is not a folder of images alone." in refusal(
        lambda: folder_source(path, ImageOptions(unlabelled=True))
    )


def test_class_folders_like_those_of_a_sealed_dataset_keep_its_numbers(tmp_path: Path) -> None:
    """A class without a folder does not shift the others; an unknown one is refused."""
    path = images(tmp_path / "d", cat__0=("L", (4, 3)), eel__0=("L", (4, 3)))
    like = ImageOptions(class_names=("cat", "dog", "eel"))
    source = folder_source(path, like)
    assert ([int(y) for _, y in source], source.class_names) == ([0, 2], ("cat", "dog", "eel"))
    images(path, yak__0=("L", (4, 3)))
    assert "yak is no class of the dataset" in refusal(lambda: folder_source(path, like))
