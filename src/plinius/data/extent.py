"""The dataset extent: a sealed dataset's ciphertext, loaded into a region once."""

from collections.abc import Callable
from pathlib import Path

from plinius.data.sealed import SealedDataset, map_file, read_header
from plinius.errors import MismatchError
from plinius.keys import OwnerKey
from plinius.pm.medium import Medium
from plinius.pm.region import Region

EXTENT = "dataset"
_BLOCK_BYTES = 4 << 20

Progress = Callable[[int, int], None]


def load_dataset(
    region: Region,
    path: Path,
    key: OwnerKey,
    progress: Progress | None = None,
    *,
    wanted: str | None = None,
) -> SealedDataset:
    """The dataset of a region, loaded from the sealed file if it is not there yet.

    A kill while loading leaves free space in the region; the next call loads again. Once loaded
    the file's records are never read again: if the file is still there, its header must be that
    of the loaded dataset. `wanted` is the id that the dataset must have, in hex. Raises
    MismatchError if it is not, FormatError, SealError, StorageError, RegionFullError.
    """
    if region.extent(EXTENT) is None:
        _load(region, path, key, progress, wanted)
    dataset = open_dataset(region, key)
    require_dataset(dataset, wanted)
    if path.exists():
        read, size = map_file(path)
        found = read_header(read, size, str(path))
        if found.id != dataset.header.id:
            raise MismatchError(
                f"{path} is dataset {found.id.hex()}, but {region.name} holds dataset "
                f"{dataset.header.id.hex()}",
                "Give the dataset this run began with (--data), or another region (--region)",
            )
    return dataset


def open_dataset(region: Region, key: OwnerKey) -> SealedDataset:
    """The dataset that a region holds. Raises MismatchError if it holds none."""
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
    """Raise MismatchError unless a dataset has the id that is wanted, in hex, if one is."""
    found = dataset.header.id.hex()
    if wanted is not None and found != wanted:
        raise MismatchError(
            f"{dataset.name} is dataset {found}, not dataset {wanted}",
            "Give the data and the region of that dataset, or leave out --dataset-id",
        )


def _load(
    region: Region, path: Path, key: OwnerKey, progress: Progress | None, wanted: str | None
) -> None:
    read, size = map_file(path)
    dataset = SealedDataset(read, size, key, str(path))  # refused here, before the region changes
    require_dataset(dataset, wanted)

    def write(medium: Medium, at: int) -> None:
        for start in range(0, size, _BLOCK_BYTES):
            piece = read(start, min(_BLOCK_BYTES, size - start))
            medium.write(at + start, piece)
            if progress:
                progress(start + len(piece), size)

    region.add_extent(EXTENT, size, write)
