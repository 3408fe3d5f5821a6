"""What a host can do to a sealed dataset: all of it is refused, and nothing opens to other data."""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plinius.data.dataset_header import HEADER_BYTES
from plinius.data.records import ArraySpec, Source
from plinius.data.sealed_dataset import SealedDataset, read_header, seal_dataset
from plinius.errors import FormatError, KeyFileError, PliniusError, SealError
from plinius.keys import OwnerKey

KEY = OwnerKey(bytes(range(32)))
COUNT = 4
U8, U16 = np.dtype("u1"), np.dtype("<u2")
FETCH = "Fetch it again from its owner."
ALTERED = (
    "does not open with this key. It was altered, is in the wrong place, or was sealed with "
    "another key; fetch it again from its owner."
)


def small(path: Path, key: OwnerKey = KEY, shade: int = 0) -> bytes:
    """Four records of 6 + 2 bytes, in three named classes."""

    def records() -> Iterator[Any]:
        for i in range(COUNT):
            yield np.full((2, 3), shade + i, U8), np.array(i % 3, U16)

    names = ("ash", "birch", "cedar")
    seal_dataset(
        Source("small", COUNT, ArraySpec(U8, (2, 3)), ArraySpec(U16, ()), records, 3, names),
        key,
        path,
    )
    return path.read_bytes()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A good dataset, as its owner made it."""
    return small(tmp_path_factory.mktemp("good") / "d.sealed")


def reader(raw: bytes) -> Callable[[int, int], memoryview]:
    return lambda offset, length: memoryview(raw)[offset : offset + length]


def open_all(raw: bytes, key: OwnerKey = KEY) -> tuple[np.ndarray, np.ndarray]:
    return SealedDataset(reader(raw), len(raw), key, "d.sealed").open_batch(range(COUNT))


def refusal(raw: bytes, kind: type[PliniusError], key: OwnerKey = KEY) -> str:
    with pytest.raises(kind) as caught:
        open_all(raw, key)
    assert type(caught.value) is kind
    return str(caught.value)


def put(raw: bytes, offset: int, new: bytes) -> bytes:
    return raw[:offset] + new + raw[offset + len(new) :]


def span(raw: bytes, index: int) -> slice:
    first = HEADER_BYTES + struct.unpack_from("<I", raw, 12)[0]
    stride = (len(raw) - first) // COUNT
    return slice(first + index * stride, first + (index + 1) * stride)


def test_the_good_one_opens(good: bytes) -> None:
    """What the attacks below start from is whole."""
    samples, labels = open_all(good)
    assert samples[:, 0, 0].tolist() == [0, 1, 2, 3]
    assert labels.tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_every_flipped_byte_is_refused(good: bytes, mask: int) -> None:
    """Any byte flipped is refused: by structure, by key id, or by the tag of what it belongs to."""
    for place in range(len(good)):
        raw = put(good, place, bytes([good[place] ^ mask]))
        with pytest.raises((FormatError, KeyFileError, SealError)) as caught:
            open_all(raw)
        if 64 <= place < 72:
            assert type(caught.value) is KeyFileError
        elif 16 <= place < 64 or 240 <= place < HEADER_BYTES:
            assert str(caught.value) == f"The header of d.sealed {ALTERED}"
        elif HEADER_BYTES <= place < span(good, 0).start:
            assert str(caught.value) == f"The class list of d.sealed {ALTERED}"
        elif place >= span(good, 0).start:
            index = (place - span(good, 0).start) // 24
            assert str(caught.value) == f"Record {index} of d.sealed {ALTERED}"


def test_an_altered_record_does_not_harm_the_others(good: bytes) -> None:
    """The others open; the batch with the altered one is refused and leaves its arrays alone."""
    raw = put(good, span(good, 2).start, bytes([good[span(good, 2).start] ^ 1]))
    dataset = SealedDataset(reader(raw), len(raw), KEY, "d.sealed")
    assert dataset.open_batch([0, 1, 3])[0][:, 0, 0].tolist() == [0, 1, 3]
    samples, labels = np.full((2, 2, 3), 9, U8), np.full(2, 9, U16)
    with pytest.raises(SealError) as caught:
        dataset.open_batch([3, 2], samples, labels)
    assert str(caught.value) == f"Record 2 of d.sealed {ALTERED}"
    assert (samples == 9).all()
    assert (labels == 9).all()


def test_swapped_records_are_refused(good: bytes) -> None:
    """A record opens at its own index only."""
    for i in range(COUNT):
        for j in range(i):
            raw = put(good, span(good, i).start, good[span(good, j)])
            assert refusal(raw, SealError) == f"Record {i} of d.sealed {ALTERED}"
            raw = put(raw, span(good, j).start, good[span(good, i)])
            assert refusal(raw, SealError) == f"Record {j} of d.sealed {ALTERED}"


def test_parts_of_another_dataset_are_refused(good: bytes, tmp_path: Path) -> None:
    """The same owner's other dataset, of the same shape: no record, class list or header fits."""
    other = small(tmp_path / "other.sealed", shade=100)
    for i in range(COUNT):
        raw = put(good, span(good, i).start, other[span(other, i)])
        assert refusal(raw, SealError) == f"Record {i} of d.sealed {ALTERED}"
    meta = slice(HEADER_BYTES, span(good, 0).start)
    raw = put(good, meta.start, other[meta])
    assert refusal(raw, SealError) == f"The class list of d.sealed {ALTERED}"
    raw = put(good, 0, other[:HEADER_BYTES])
    assert refusal(raw, SealError) == f"The class list of d.sealed {ALTERED}"
    raw = put(good, 0, other[: meta.stop])
    assert refusal(raw, SealError) == f"Record 0 of d.sealed {ALTERED}"


def test_fewer_records_with_a_fitting_header_are_refused(good: bytes) -> None:
    """Leaving out the last record and saying so in the header breaks the header's tag."""
    raw = put(good[: span(good, COUNT - 1).start], 72, struct.pack("<Q", COUNT - 1))
    assert refusal(raw, SealError) == f"The header of d.sealed {ALTERED}"


def test_another_shape_of_the_same_size_is_refused(good: bytes) -> None:
    """A shape of the same size passes for a header without the key, and breaks the header's tag."""
    raw = put(good, 88, struct.pack("<2I", 3, 2))
    assert read_header(reader(raw), len(raw)).sample.shape == (3, 2)
    assert refusal(raw, SealError) == f"The header of d.sealed {ALTERED}"


def test_cut_anywhere_is_refused(good: bytes) -> None:
    """At every length there is a sentence."""
    for length in range(len(good)):
        said = refusal(good[:length], FormatError)
        if length < 8:
            assert said == "d.sealed is not a sealed dataset. Make one with plinius seal."
        elif length < HEADER_BYTES:
            assert said == f"d.sealed is truncated: it ends within the header. {FETCH}"
        else:
            assert said == (
                f"d.sealed has {length} bytes, but its header declares {len(good)}: "
                f"it was truncated. {FETCH}"
            )


@pytest.mark.parametrize("more", [1, 24, 10**6])
def test_extended_is_refused(good: bytes, more: int) -> None:
    """A byte, a record's length or much more at the end."""
    assert refusal(good + bytes(more), FormatError) == (
        f"d.sealed has {len(good) + more} bytes, but its header declares {len(good)}: "
        f"it was extended. {FETCH}"
    )


@pytest.mark.parametrize(
    ("offset", "new"),
    [
        (72, struct.pack("<Q", 0)),
        (72, struct.pack("<Q", 2**40 + 1)),
        (72, struct.pack("<Q", 2**64 - 1)),
        (12, struct.pack("<I", 16)),
        (12, struct.pack("<I", 2**20 + 1)),
        (12, struct.pack("<I", 2**32 - 1)),
        (88, struct.pack("<2I", 2**32 - 1, 2**32 - 1)),
    ],
)
def test_impossible_sizes_are_refused(good: bytes, offset: int, new: bytes) -> None:
    """Counts and lengths out of bounds are refused before they are used."""
    assert refusal(put(good, offset, new), FormatError) == (
        f"The header of d.sealed declares impossible sizes. {FETCH}"
    )


def test_a_huge_count_within_bounds_is_refused(good: bytes) -> None:
    """2^40 records do not fit the file."""
    said = refusal(put(good, 72, struct.pack("<Q", 2**40)), FormatError)
    assert said.startswith(f"d.sealed has {len(good)} bytes, but its header declares 26388")


@pytest.mark.parametrize(
    ("offset", "new"),
    [
        (84, b"\0"),
        (84, b"\x0c"),
        (86, b"\xff"),
        (85, b"\x09"),
        (87, b"\xff"),
        (85, b"\1"),  # the second dimension is set, but not used
        (88, bytes(4)),  # a used dimension of 0
        (151, b"\1"),
        (152, b"\1"),
        (239, b"\x80"),
    ],
)
def test_senseless_headers_are_refused(good: bytes, offset: int, new: bytes) -> None:
    """Unknown types, too many dimensions, unused ones that are set, reserved bytes."""
    assert refusal(put(good, offset, new), FormatError) == (
        f"The header of d.sealed is not valid. {FETCH}"
    )


@pytest.mark.parametrize("version", [0, 2, 2**32 - 1])
def test_other_versions_are_refused(good: bytes, version: int) -> None:
    """The error names the version of the file and the one that is read."""
    assert refusal(put(good, 8, struct.pack("<I", version)), FormatError) == (
        f"d.sealed is a sealed dataset of version {version}, and this program reads "
        "version 1. Use the release of plinius that made it."
    )


def test_another_key_is_refused(good: bytes) -> None:
    """The sentence names both keys by their public ids."""
    other = OwnerKey(bytes(32))
    assert refusal(good, KeyFileError, other) == (
        f"d.sealed was sealed with key {KEY.id.hex()}, but this is key {other.id.hex()}. "
        "Give the key file it was sealed with (--key)."
    )


def test_another_key_under_this_key_id_is_refused(good: bytes) -> None:
    """The id in the clear header only helps people: a forged one opens nothing."""
    other = OwnerKey(bytes(32))
    assert refusal(put(good, 64, other.id), SealError, other) == (
        f"The header of d.sealed {ALTERED}"
    )


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_foreign_bytes_are_refused(raw: bytes) -> None:
    """Files of any other content are refused as no sealed dataset."""
    if not raw.startswith(b"PLINDATA"):
        assert refusal(raw, FormatError) == (
            "d.sealed is not a sealed dataset. Make one with plinius seal."
        )


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_header_is_parsed_or_refused(good: bytes, data: st.DataObject) -> None:
    """Whatever the header holds, the answer is a refusal, never a crash or a large buffer."""
    raw = good
    for _ in range(data.draw(st.integers(1, 4))):
        offset = data.draw(st.integers(8, HEADER_BYTES - 1))
        raw = put(raw, offset, data.draw(st.binary(min_size=1, max_size=8)))
    if raw != good:
        with pytest.raises((FormatError, KeyFileError, SealError)):
            open_all(raw)
