"""The dataset extent: the bytes of a sealed dataset, copied into a region once."""

from pathlib import Path

from plinius.data.records import Progress
from plinius.data.sealed_dataset import SealedDataset, file_reader, read_header
from plinius.errors import MismatchError
from plinius.keys import OwnerKey
from plinius.pm.medium import Medium
from plinius.pm.region import Region

EXTENT = "dataset"
_BLOCK_BYTES = 4 << 20


def load_dataset(
    region: Region,
    path: Path,
    key: OwnerKey,
    progress: Progress | None = None,
    *,
    wanted: str | None = None,
) -> SealedDataset:
    """The dataset of a region; if it holds none, the sealed file `path` is copied into it first.

    A kill while copying leaves free space in the region, and the next call copies again. Later the
    records of the file are not read any more, but if the file exists, it must have the same
    dataset id. `progress` counts bytes. `wanted` is the id that the dataset must have, in hex.
    Raises MismatchError if an id differs, FormatError, KeyFileError, SealError, StorageError,
    RegionFullError.
    """
    if region.extent(EXTENT) is None:
        _load(region, path, key, progress, wanted)
    dataset = open_dataset(region, key)
    require_dataset(dataset, wanted)
    if path.exists():
        read, size = file_reader(path)
        found = read_header(read, size, str(path))
        if found.id != dataset.header.id:
            raise MismatchError(
                f"{path} is dataset {found.id.hex()}, but {region.name} holds dataset "
                f"{dataset.header.id.hex()}",
                "Give the dataset this run began with (--data), or another region (--region)",
            )
    return dataset


def open_dataset(region: Region, key: OwnerKey) -> SealedDataset:
    """The dataset in a region. Raises MismatchError if there is none, and as SealedDataset does."""
    span = region.extent(EXTENT)
    if span is None:
        raise MismatchError(
            f"{region.name} holds no dataset", "Name a region made by plinius train"
        )

    def read(offset: int, length: int) -> memoryview:
        end = min(offset + length, span.length)
        return region.medium.read(span.offset + offset, max(0, end - offset))

    return SealedDataset(read, span.length, key, f"the dataset in {region.name}")


def require_dataset(dataset: SealedDataset, wanted: str | None) -> None:
    """Raise MismatchError if an id is wanted (in hex) and the dataset has another one."""
    found = dataset.header.id.hex()
    if wanted is not None and found != wanted:
        raise MismatchError(
            f"{dataset.name} is dataset {found}, not dataset {wanted}",
            "Give the data and the region of that dataset, or leave out --dataset-id",
        )


def _load(
    region: Region, path: Path, key: OwnerKey, progress: Progress | None, wanted: str | None
) -> None:
    read, size = file_reader(path)
    dataset = SealedDataset(read, size, key, str(path))  # refused before the region changes
    require_dataset(dataset, wanted)

    def write(medium: Medium, at: int) -> None:
        for start in range(0, size, _BLOCK_BYTES):
            block = read(start, min(_BLOCK_BYTES, size - start))
            medium.write(at + start, block)
            if progress:
                progress(start + len(block), size)

    region.add_extent(EXTENT, size, write)
