"""Sources: every format gives its records as they are, and refuses what does not fit."""

import contextlib
import gzip
import io
import os
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plinius.data.records import ABSENT, MAX_COUNT, ArraySpec, Source
from plinius.errors import SourceError, StorageError
from plinius.sources.idx import idx_source
from plinius.sources.npz import npz_source
from unit.refusals import refusal

U8 = np.dtype("u1")
X = np.arange(5 * 2 * 3, dtype=np.uint8).reshape(5, 2, 3)
Y = np.array([0, 1, 2, 1, 0], np.uint8)


def idx(array: np.ndarray, code: int = 8) -> bytes:
    head = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.tobytes()


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def npz_of(path: Path, header: bytes, body: bytes = b"", magic: bytes = b"\x93NUMPY\1\0") -> Path:
    """An archive whose array x has a header of our making."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", magic + struct.pack("<H", len(header)) + header + body)
    return path


# IDX


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_pair_gives_its_records(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """Greyscale images become (1, h, w) and stay uint8, gzipped or not, as often as asked."""
    images, labels = put(tmp_path / "x", pack(idx(X))), put(tmp_path / "y", pack(idx(Y)))
    source = idx_source(images, labels, 3)
    assert (source.count, source.sample, source.label, source.classes) == (
        5,
        ArraySpec(U8, (1, 2, 3)),
        ArraySpec(U8, ()),
        3,
    )
    for _ in range(2):
        records = list(source)
        assert np.array_equal([x[0] for x, _ in records], X)
        assert [int(y) for _, y in records] == Y.tolist()


def test_idx_parts_may_be_missing(tmp_path: Path) -> None:
    """Images alone have labels of zero bytes, labels alone samples of zero bytes."""
    images, labels = put(tmp_path / "x", idx(X)), put(tmp_path / "y", idx(Y))
    assert (idx_source(images, None).label, idx_source(None, labels).sample) == (ABSENT, ABSENT)
    assert [y.shape for _, y in idx_source(images, None)] == [(0,)] * 5
    assert [x.shape for x, _ in idx_source(None, labels)] == [(0,)] * 5
    with pytest.raises(ValueError, match="^samples, labels or both"):
        idx_source(None, None)


@pytest.mark.parametrize(("code", "kind"), [(9, "i1"), (11, ">i2"), (12, ">i4"), (13, ">f4")])
def test_idx_numbers_become_little_endian(tmp_path: Path, code: int, kind: str) -> None:
    """Big-endian numbers keep their values; shapes of other than two dimensions are kept."""
    array = np.arange(24).reshape(2, 3, 2, 2).astype(kind)
    source = idx_source(put(tmp_path / "x", idx(array, code)), None)
    assert source.sample == ArraySpec(np.dtype(kind).newbyteorder("<"), (3, 2, 2))
    assert np.array_equal([x for x, _ in source], array)


def test_idx_counts_that_differ_are_refused(tmp_path: Path) -> None:
    """Labels of another count belong to other images."""
    images, labels = put(tmp_path / "x", idx(X)), put(tmp_path / "y", idx(Y[:4]))
    assert refusal(lambda: idx_source(images, labels)) == (
        f"{images} holds 5 samples, but {labels} 4 labels. Give files that belong together."
    )


def test_idx_cut_anywhere_is_refused(tmp_path: Path) -> None:
    """Every shorter file is refused, and a longer one too."""
    whole = idx(X)
    for length in range(len(whole)):
        file = put(tmp_path / "x", whole[:length])
        refusal(lambda: idx_source(file, None))  # noqa: B023
    file = put(tmp_path / "x", whole[:-1])
    assert refusal(lambda: idx_source(file, None)) == (
        f"{file} is truncated: its header declares 46 bytes, but the file has 45. Fetch it again."
    )
    file = put(tmp_path / "x", whole + b"\0")
    assert refusal(lambda: idx_source(file, None)) == (
        f"{file} continues after its last record. Check that it is the right file."
    )


def test_idx_gzip_cut_or_damaged_is_refused(tmp_path: Path) -> None:
    """A damaged or cut gzip stream is refused, and one that holds too little."""
    whole = gzip.compress(idx(X))
    for bad in [whole[:length] for length in range(len(whole))] + [
        whole[:i] + bytes([whole[i] ^ 255]) + whole[i + 1 :] for i in range(10, len(whole))
    ]:
        file = put(tmp_path / "x", bad)
        refusal(lambda: idx_source(file, None))  # noqa: B023
    file = put(tmp_path / "x", gzip.compress(idx(X)[:-1]))
    assert refusal(lambda: idx_source(file, None)) == (
        f"{file} is truncated: it ends before the end of record 4. Fetch it again."
    )


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_huge_declared_sizes_are_refused_at_once(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    """Sizes are held against the real file before anything is read or allocated."""
    for dims in [(2**32 - 1, 28, 28), (1, 2**32 - 1, 2**32 - 1)]:
        file = put(tmp_path / "x", pack(bytes([0, 0, 8, 3]) + struct.pack(">3I", *dims)))
        with pytest.raises(SourceError, match="is truncated: its header declares"):
            idx_source(file, None)


def test_idx_foreign_files_are_refused(tmp_path: Path) -> None:
    """Files of another kind, empty ones, folders, pipes and missing files."""
    for raw in (b"\x89PNG\r\n\x1a\n", b"\0\0\x07\1" + bytes(8), b"\0\0\x08\0", b"\0\0\x08\x0a"):
        file = put(tmp_path / "x", raw)
        assert refusal(lambda: idx_source(file, None)) == (  # noqa: B023
            f"{file} is not an IDX file. Check that it is the right file."
        )
    file = put(tmp_path / "x", b"")
    assert "ends before the end of its header" in refusal(lambda: idx_source(file, None))
    file = put(tmp_path / "x", idx(X[:0]))
    assert refusal(lambda: idx_source(file, None)).startswith(f"{file} holds 0 records.")
    os.mkfifo(tmp_path / "pipe")
    for path, found in (
        (tmp_path, "Is a directory"),
        (tmp_path / "pipe", "Not a regular file"),
        (tmp_path / "none", "No such file or directory"),
    ):
        with pytest.raises(StorageError) as caught:
            idx_source(path, None)
        assert str(caught.value) == (
            f"Cannot read {path}: {found}. Check the path and its permissions."
        )


def test_labels_out_of_range_are_refused(tmp_path: Path) -> None:
    """A label below 0, or not below the number of classes, is refused by its record."""
    labels = put(tmp_path / "y", idx(Y))
    assert refusal(lambda: idx_source(None, labels, 2)) == (
        f"The label of record 2 of {labels} is 2, but there are 2 classes. "
        "Number the classes from 0, or correct the number of classes."
    )
    labels = put(tmp_path / "y", idx(np.array([1, -1], np.int8), 9))
    assert refusal(lambda: idx_source(None, labels)) == (
        f"The label of record 1 of {labels} is -1. Number the classes from 0."
    )


# npz


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("kind", ["u1", "<i8", ">i4", "<f2", ">f8"])
def test_npz_gives_its_records(tmp_path: Path, save: Callable[..., None], kind: str) -> None:
    """Arrays x and y, packed or not, keep their shape and type (but for the byte order)."""
    x, y = np.arange(24).reshape(4, 3, 2).astype(kind), np.array([0, 1, 0, 2])
    save(tmp_path / "d.npz", x=x, y=y)
    source = npz_source(tmp_path / "d.npz", 3)
    assert source.sample == ArraySpec(np.dtype(kind).newbyteorder("<"), (3, 2))
    assert (source.label, source.classes) == (ArraySpec(np.dtype("<i8"), ()), 3)
    records = list(source)
    assert np.array_equal([a for a, _ in records], x)
    assert np.array_equal([b for _, b in records], y)


def test_npz_labels_may_be_vectors_or_missing(tmp_path: Path) -> None:
    """One-hot or soft labels give the number of classes; without y there are no labels."""
    soft = np.array([[0.25, 0.75], [1, 0]], np.float32)
    np.savez(tmp_path / "d.npz", x=np.zeros(2), y=soft)
    source = npz_source(tmp_path / "d.npz")
    assert (source.sample.shape, source.label.shape, source.classes) == ((), (2,), 2)
    assert np.array_equal([y for _, y in source], soft)
    np.savez(tmp_path / "e.npz", x=np.zeros((2, 7)))
    assert npz_source(tmp_path / "e.npz").label == ABSENT


def test_npz_never_runs_what_it_holds(tmp_path: Path) -> None:
    """Pickled objects, structures, text and complex numbers are refused."""
    made = {
        "object": np.array([{}, {}], object),
        "structure": np.zeros(2, [("a", "i4")]),
        "text": np.array(["a", "b"]),
        "time": np.zeros(2, "M8[s]"),
        "complex": np.zeros(2, complex),
        "flag": np.zeros(2, bool),
        "single": np.float32(1),
        "fortran": np.asfortranarray(np.zeros((2, 2))),
        "hollow": np.zeros((2, 0)),
        "none": np.zeros((0, 2)),
        "deep": np.zeros((1,) * 10),
    }
    for name, array in made.items():
        np.savez(tmp_path / f"{name}.npz", x=array)
        refusal(lambda: npz_source(tmp_path / f"{name}.npz"))  # noqa: B023
    assert refusal(lambda: npz_source(tmp_path / "fortran.npz")) == (
        f"Array x of {tmp_path / 'fortran.npz'} is in Fortran order. Save it in C order."
    )
    assert "dtype complex128 is not one of uint8" in refusal(
        lambda: npz_source(tmp_path / "complex.npz")
    )


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (999999999999999, 784), }\n",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 99999999999), }\n",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }\n",
        b"{'descr': '|O8', 'fortran_order': False, 'shape': (1,), }\n",
        b"{'descr': '|V9', 'fortran_order': False, 'shape': (1,), }\n",
        b"{'descr': '|z1', 'fortran_order': False, 'shape': (1,), }\n",
        b"{'descr': '<f3', 'fortran_order': False, 'shape': (1,), }\n",
        b"{'descr': __import__('os'), 'fortran_order': False, 'shape': (1,), }\n",
        b"{'descr': (), 'fortran_order': False, 'shape': (1,), }\n",
        b"{'descr': [('a', '<f4', (2**9, ))], 'fortran_order': False, 'shape': (1,), }\n",
        b"{'descr': '<f4', 'fortran_order': 0, 'shape': (1,), }\n",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (), }\n",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (9e9,), }\n",
        *(b * 1000 for b in (b"(", b"[", b"-", b"{", b"'", b"9")),
        b"(" * 5000,
        b"\xff" * 1000,
        b"",
    ],
)
def test_npz_hostile_headers_are_refused(tmp_path: Path, header: bytes) -> None:
    """A header is a literal, never evaluated, and its sizes are compared with the real file."""
    with pytest.raises(SourceError):
        npz_source(npz_of(tmp_path / "d.npz", header, bytes(64)))


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (3,), }\n",
        b"{'shape': (3,), 'fortran_order': False, 'descr': 'u1'}",
        b'{"descr":"<u1","fortran_order":False,"shape":(3,)}' + b" " * 900,
    ],
)
def test_npz_headers_of_other_programs_are_read(tmp_path: Path, header: bytes) -> None:
    """Any Python literal with the three keys, whatever its order, quotes and padding."""
    records = list(npz_source(npz_of(tmp_path / "d.npz", header, b"abc")))
    assert [int(x) for x, _ in records] == [*b"abc"]


def test_npz_of_another_version_is_refused(tmp_path: Path) -> None:
    """Version 2 has a header of up to 4 GiB: only structures need it."""
    good = b"{'descr': '|u1', 'fortran_order': False, 'shape': (3,), }\n"
    assert len(list(npz_source(npz_of(tmp_path / "d.npz", good, b"abc")))) == 3
    with pytest.raises(SourceError, match="is not an array of plain numbers"):
        npz_source(npz_of(tmp_path / "d.npz", good, b"abc", b"\x93NUMPY\2\0"))


def test_npz_damage_anywhere_never_gives_other_data(tmp_path: Path) -> None:
    """Cut at any length it is refused; a flipped byte is refused or changes no record."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=X, y=Y)
    whole = buffer.getvalue()
    for length in range(0, len(whole), 3):
        refusal(lambda: npz_source(put(tmp_path / "d", whole[:length])))  # noqa: B023
    for place in range(len(whole)):
        bad = whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :]
        try:
            records = list(npz_source(put(tmp_path / "d", bad)))
        except SourceError:
            continue
        assert np.array_equal([x for x, _ in records], X)


def test_npz_foreign_archives_are_refused(tmp_path: Path) -> None:
    """Not an archive, an archive of other arrays, of other packing, or a missing file."""
    file = put(tmp_path / "d", b"not a zip")
    assert refusal(lambda: npz_source(file)) == (
        f"{file} is not an archive written by numpy.savez. Check that it is the right file."
    )
    np.savez(tmp_path / "e.npz", images=X)
    assert refusal(lambda: npz_source(tmp_path / "e.npz")) == (
        f"{tmp_path / 'e.npz'} has no array named x. Save it with numpy.savez(path, x=, y=)."
    )
    with zipfile.ZipFile(tmp_path / "f.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x.npy", b"")
    assert "is not an archive written by numpy.savez" in refusal(
        lambda: npz_source(tmp_path / "f.npz")
    )
    np.savez(tmp_path / "g.npz", x=X, y=Y[:3])
    assert "holds 5 samples, but Array y of" in refusal(lambda: npz_source(tmp_path / "g.npz"))


# Folders of images


@pytest.mark.parametrize("kind", ["idx", "idx.gz", "npz", "npz packed"])
def test_memory_does_not_grow_with_the_data(tmp_path: Path, kind: str) -> None:
    """Reading 8 MiB takes less than 1 MiB, records and buffers included."""
    file, array = tmp_path / "d.npz", np.zeros((8192, 1024), np.uint8)
    if kind.startswith("idx"):
        put(file, gzip.compress(idx(array)) if kind == "idx.gz" else idx(array))
    else:
        (np.savez_compressed if kind == "npz packed" else np.savez)(file, x=array)
    tracemalloc.start()
    try:
        source = idx_source(file, None) if kind.startswith("idx") else npz_source(file)
        assert sum(1 for _ in source) == 8192
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def source_of(records: list[tuple[np.ndarray, np.ndarray]], count: int) -> Source:
    return Source("s", count, ArraySpec(U8, (2,)), ArraySpec(U8, ()), lambda: iter(records))


def test_records_that_differ_from_the_declaration_are_refused() -> None:
    """Fewer or more records, or another type or shape, end the stream."""
    good = (np.zeros(2, U8), np.array(0, U8))
    assert len(list(source_of([good] * 2, 2))) == 2
    assert refusal(lambda: source_of([good], 2)) == (
        "s changed while it was read: it now holds 1 records, not the 2 it had. "
        "Try again while nothing writes to it."
    )
    assert "more than the 1 records it had" in refusal(lambda: source_of([good] * 2, 1))
    assert refusal(lambda: source_of([(np.zeros(3, U8), good[1])], 1)) == (
        "The sample of record 0 of s is uint8 (3,), not uint8 (2,) as declared for all "
        "records. Give every record the same dtype and shape."
    )
    assert "The label of record 0" in refusal(
        lambda: source_of([(good[0], np.array(0, np.int8))], 1)
    )


@pytest.mark.parametrize(
    ("count", "sample", "label"),
    [
        (0, ArraySpec(U8, ()), ABSENT),
        (MAX_COUNT + 1, ArraySpec(U8, ()), ABSENT),
        (1, ABSENT, ABSENT),
        (1, ArraySpec(U8, (2**26,)), ArraySpec(U8, ())),
        (1, ArraySpec(U8, (2**62, 2**62)), ABSENT),
        (1, ArraySpec(U8, (1,) * 9), ABSENT),
        (1, ArraySpec(np.dtype(">f4"), ()), ABSENT),
        (1, ArraySpec(U8, (3, 0)), ABSENT),
    ],
)
def test_impossible_declarations_are_refused(
    count: int, sample: ArraySpec, label: ArraySpec
) -> None:
    """Nothing can be built that a sealed dataset cannot hold."""
    with pytest.raises(SourceError):
        Source("s", count, sample, label, lambda: iter(()))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=60), st.sampled_from([b"", b"\0\0\x08\1", b"\x1f\x8b\x08", b"PK\3\4"]))
def test_arbitrary_bytes_are_read_or_refused(tmp_path: Path, raw: bytes, start: bytes) -> None:
    """No input ends in anything but records or a SourceError."""
    file = put(tmp_path / "x", start + raw)
    for make in (lambda: idx_source(file, None), lambda: npz_source(file)):
        with contextlib.suppress(SourceError):
            list(make())
