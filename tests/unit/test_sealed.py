"""Sealing a dataset and opening it again; how its file comes to be."""

import os
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from plinius.data.records import ABSENT, DTYPES, ArraySpec, Record, Source
from plinius.data.sealed_dataset import SealedDataset, file_reader, read_header, seal_dataset
from plinius.errors import FormatError, SourceError, StorageError
from plinius.keys import OwnerKey

KEY = OwnerKey(bytes(range(32)))
U8 = np.dtype("u1")


def source_of(
    samples: np.ndarray, labels: np.ndarray, classes: int = 0, names: tuple[str, ...] = ()
) -> Source:
    sample = ArraySpec(samples.dtype, samples.shape[1:])
    label = ArraySpec(labels.dtype, labels.shape[1:])

    def records() -> Iterator[Record]:
        return ((x[...], y[...]) for x, y in zip(arrays[0], arrays[1], strict=True))

    arrays = [list(map(np.asarray, part)) for part in (samples, labels)]
    return Source("made", len(samples), sample, label, records, classes, names)


def digits(count: int = 20) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.integers(0, 256, (count, 1, 4, 4), np.uint8), np.arange(count, dtype=np.uint8)


def sealed(path: Path, count: int = 20) -> SealedDataset:
    seal_dataset(source_of(*digits(count)), KEY, path)
    return SealedDataset.from_file(path, KEY)


SPECS = st.builds(
    ArraySpec,
    st.sampled_from(list(DTYPES.values())),
    hnp.array_shapes(min_dims=0, max_dims=8, max_side=3).filter(lambda s: np.prod(s) < 200),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data(), SPECS, st.one_of(SPECS, st.just(ABSENT)), st.integers(1, 5))
def test_what_is_sealed_opens_the_same(
    tmp_path: Path, data: st.DataObject, sample: ArraySpec, label: ArraySpec, count: int
) -> None:
    """Any types and shapes come back bit for bit, in any order."""
    raw = data.draw(st.binary(min_size=1))
    arrays = [
        np.frombuffer(np.resize(np.frombuffer(raw, U8), count * p.nbytes).tobytes(), p.dtype)
        for p in (sample, label)
    ]
    samples = arrays[0].reshape(count, *sample.shape)
    labels = arrays[1].reshape(count, *label.shape)
    if label.is_index:
        labels = np.maximum(labels, 0)
    path = tmp_path / "d.sealed"
    path.unlink(missing_ok=True)
    header = seal_dataset(source_of(samples, labels, 0, ("ä", "")), KEY, path)
    dataset = SealedDataset.from_file(path, KEY)
    assert dataset.header == header == read_header(*file_reader(path))
    assert (header.sample, header.label, header.size) == (sample, label, path.stat().st_size)
    assert dataset.class_names == ("ä", "")
    order = data.draw(st.lists(st.integers(0, count - 1)))
    got = dataset.open_batch(order)
    for have, want in zip(got, (samples[order], labels[order]), strict=True):
        assert (have.dtype, have.shape) == (want.dtype, want.shape)
        assert have.tobytes() == want.tobytes()


def test_one_record_is_opened_by_its_index(tmp_path: Path) -> None:
    """A record is a sample and a label of the declared shapes."""
    samples, labels = digits()
    sample, label = sealed(tmp_path / "d.sealed").open_record(17)
    assert np.array_equal(sample, samples[17])
    assert (label.shape, int(label)) == ((), labels[17])


def test_a_batch_is_written_where_asked(tmp_path: Path) -> None:
    """Arrays given are filled and returned, also as parts of larger ones."""
    samples, labels = digits()
    dataset = sealed(tmp_path / "d.sealed")
    room, labels_out = np.zeros((4, 1, 4, 8), np.uint8), np.zeros(4, np.uint8)
    got = dataset.open_batch(np.array([3, 1, 1, 19]), room[..., ::2], labels_out)
    assert np.array_equal(room[..., ::2], samples[[3, 1, 1, 19]])
    assert got[1] is labels_out
    assert labels_out.tolist() == labels[[3, 1, 1, 19]].tolist()


def test_arrays_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """Another type or shape is a mistake, not a conversion."""
    dataset = sealed(tmp_path / "d.sealed")
    for wrong in (np.zeros((2, 4, 4), U8), np.zeros((1, 1, 4, 4)), np.zeros(16, U8)):
        with pytest.raises(ValueError, match="^needs an array uint8"):
            dataset.open_batch([0], samples_out=wrong)
    with pytest.raises(ValueError, match="^needs an array uint8"):
        dataset.open_batch([0], labels_out=np.zeros(2, U8))


@pytest.mark.parametrize("index", [-1, 20, 2**62])
def test_indices_out_of_range_are_refused(tmp_path: Path, index: int) -> None:
    """Records are numbered from 0, and negative numbers do not count from the end."""
    dataset = sealed(tmp_path / "d.sealed")
    with pytest.raises(ValueError, match=r"^a record of d\.sealed is numbered 0 to 19$"):
        dataset.open_batch([0, index])
    with pytest.raises(ValueError, match="is numbered 0 to 19$"):
        dataset.open_record(index)


def test_an_empty_batch_is_empty(tmp_path: Path) -> None:
    """No indices, no records."""
    samples, labels = sealed(tmp_path / "d.sealed").open_batch([])
    assert (samples.shape, labels.shape) == ((0, 1, 4, 4), (0,))


def test_threads_share_a_dataset(tmp_path: Path) -> None:
    """Batches opened at the same time do not disturb each other."""
    samples, _ = digits(200)
    dataset = sealed(tmp_path / "d.sealed", 200)
    orders = [np.random.default_rng(i).permutation(200) for i in range(40)]
    with ThreadPoolExecutor(4) as pool:
        for order, (got, _) in zip(orders, pool.map(dataset.open_batch, orders), strict=True):
            assert np.array_equal(got, samples[order])


def test_bytes_that_change_after_they_were_read_do_no_harm(tmp_path: Path) -> None:
    """Each range is read once and copied: what was authenticated is what is used."""
    sealed(tmp_path / "d.sealed")
    raw = (tmp_path / "d.sealed").read_bytes()
    asked = []

    def read(offset: int, length: int) -> memoryview:
        asked.append((offset, length))
        return memoryview(raw)[offset : offset + length]

    dataset = SealedDataset(read, len(raw), KEY)
    dataset.open_batch([5, 6])
    header = dataset.header
    assert asked == [
        (0, 256),
        (256, header.meta_bytes),
        (header.records_offset + 5 * 33, 33),
        (header.records_offset + 6 * 33, 33),
    ]


def test_each_sealing_is_another(tmp_path: Path) -> None:
    """The same data sealed twice has another id, another salt and other ciphertext."""
    first, second = (sealed(tmp_path / f"{i}.sealed").header for i in range(2))
    assert first.id != second.id
    assert first.salt != second.salt
    tails = {(tmp_path / f"{i}.sealed").read_bytes()[first.records_offset :] for i in range(2)}
    assert len(tails) == 2


def test_nothing_of_the_data_is_in_the_file(tmp_path: Path) -> None:
    """Neither records nor class names are in clear."""
    samples = np.full((3, 64), 65, U8)
    seal_dataset(source_of(samples, np.zeros(3, U8), 1, ("diagnosis",)), KEY, tmp_path / "d.sealed")
    raw = (tmp_path / "d.sealed").read_bytes()
    assert b"AAAA" not in raw
    assert b"diagnosis" not in raw


def test_progress_is_reported(tmp_path: Path) -> None:
    """Progress rises, and ends at the count."""
    told: list[tuple[int, int]] = []
    data = source_of(np.zeros((3000, 1), U8), np.zeros(3000, U8))
    seal_dataset(data, KEY, tmp_path / "d.sealed", lambda done, all_: told.append((done, all_)))
    assert told == [(1024, 3000), (2048, 3000), (3000, 3000)]


def test_long_class_names_are_refused(tmp_path: Path) -> None:
    """The class list has a bound."""
    names = ("x" * 2**20,)
    with pytest.raises(SourceError, match="^The class names, columns and record ids of made are "):
        seal_dataset(source_of(*digits(), 0, names), KEY, tmp_path / "d.sealed")
    assert os.listdir(tmp_path) == []


# The file


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """A file of that name, even a dangling link, is refused and kept."""
    path = tmp_path / "d.sealed"
    path.write_text("mine")
    with pytest.raises(StorageError) as caught:
        seal_dataset(source_of(*digits()), KEY, path)
    assert str(caught.value) == (f"{path} exists already. Choose another name, or remove it first.")
    assert path.read_text() == "mine"
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="exists already"):
        seal_dataset(source_of(*digits()), KEY, path)
    assert os.listdir(tmp_path) == ["d.sealed"]


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    """Publishing never replaces a file, even one made while sealing."""
    path = tmp_path / "d.sealed"
    data = source_of(np.zeros((1024, 1), U8), np.zeros(1024, U8))
    with pytest.raises(StorageError, match="exists already"):
        seal_dataset(data, KEY, path, lambda *_: path.write_text("mine") and None)
    assert path.read_text() == "mine"
    assert os.listdir(tmp_path) == ["d.sealed"]


def test_another_process_writing_the_same_part_is_noticed(tmp_path: Path) -> None:
    """If the part is no longer ours, it is neither published nor removed."""
    path, part = tmp_path / "d.sealed", tmp_path / "d.sealed.part"
    data = source_of(np.zeros((1024, 1), U8), np.zeros(1024, U8))

    def intrude(done: int, count: int) -> None:
        part.unlink()
        part.write_text("theirs")

    with pytest.raises(StorageError, match=f"^Another process writes {part} too. Let one of them"):
        seal_dataset(data, KEY, path, intrude)
    assert os.listdir(tmp_path) == [part.name]


def test_a_part_left_by_a_killed_run_is_replaced(tmp_path: Path) -> None:
    """Even one that is another name of a published file, which stays as it is."""
    sealed(tmp_path / "old.sealed")
    before = (tmp_path / "old.sealed").read_bytes()
    os.link(tmp_path / "old.sealed", tmp_path / "d.sealed.part")
    sealed(tmp_path / "d.sealed")
    assert (tmp_path / "old.sealed").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["d.sealed", "old.sealed"]


def test_a_source_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """The error of the source goes through, and the part is removed."""
    samples, labels = digits()
    with pytest.raises(SourceError, match="^The label of record 3 of made is 3"):
        seal_dataset(source_of(samples, labels, 3), KEY, tmp_path / "d.sealed")
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path: Path) -> None:
    """When the file system takes no more, the part is removed."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    data = source_of(np.zeros((1000, 1000), U8), np.zeros(1000, U8))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(StorageError) as caught:
            seal_dataset(data, KEY, tmp_path / "d.sealed")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert str(caught.value) == (
        f"Cannot write {tmp_path / 'd.sealed'}: File too large. "
        "Free some space or choose another folder."
    )
    assert os.listdir(tmp_path) == []


def test_missing_folders_and_files_are_refused(tmp_path: Path) -> None:
    """Writing into and reading from nowhere."""
    with pytest.raises(StorageError, match="^Cannot write .*: No such file or directory"):
        seal_dataset(source_of(*digits()), KEY, tmp_path / "none" / "d.sealed")
    with pytest.raises(StorageError, match="^Cannot read .*: No such file or directory"):
        SealedDataset.from_file(tmp_path / "none", KEY)
    with pytest.raises(StorageError, match="^Cannot read .*: Is a directory"):
        SealedDataset.from_file(tmp_path, KEY)
    (tmp_path / "empty").touch()
    with pytest.raises(FormatError, match="^empty is not a sealed dataset"):
        SealedDataset.from_file(tmp_path / "empty", KEY)
