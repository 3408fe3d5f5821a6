"""What a sealed dataset or a region shows without a key, as values for JSON."""

from pathlib import Path

from plinius.data import dataset_header
from plinius.data.sealed_dataset import file_reader, read_header
from plinius.errors import FormatError
from plinius.files import open_to_read
from plinius.history.live_region import read_region
from plinius.jsonvalue import Json
from plinius.pm import region as pm_region
from plinius.pm.region import Region
from plinius.slots import layout as mirror_layout


def inspect_file(path: Path) -> dict[str, Json]:
    """Kind, version, counts, shapes and sizes of a sealed dataset or a region.

    None of it is authenticated, since that needs the key. Raises FormatError for other files,
    StorageError if the file cannot be read, and for regions what Region.open raises.
    """
    with open_to_read(path) as file:
        magic = file.read(8)
    if magic == dataset_header.MAGIC:
        return _dataset(path)
    if magic == pm_region.MAGIC:
        return read_region(path, describe_region)
    raise FormatError(
        f"{path} is neither a sealed dataset nor a region",
        "Name a file made by plinius seal or plinius train",
    )


def describe_region(region: Region) -> dict[str, Json]:
    """The structure of an open region."""
    extents = region.heap.extents()
    mirror = describe_mirror(region)
    return {
        "kind": "region",
        "version": pm_region.VERSION,
        "id": region.id.hex(),
        "bytes": region.medium.size,
        "granularity": region.granularity.name,
        "survives": region.granularity.survives,
        "state": region.twins.state().name,
        "twins_equal": region.twins.equal(),
        "twin_bytes": region.twins.length,
        "roots": {name: span.length for name, span in region.heap.roots().items()},
        "extents": {name: [span.offset, span.length] for name, span in extents.items()},
        **({"mirror": mirror} if mirror else {}),
    }


def _dataset(path: Path) -> dict[str, Json]:
    read, size = file_reader(path)
    header = read_header(read, size, str(path))
    return {
        "kind": "sealed dataset",
        "version": dataset_header.VERSION,
        "id": header.id.hex(),
        "key_id": header.key_id.hex(),
        "salt": header.salt.hex(),
        "bytes": size,
        "count": header.count,
        "sample": [str(header.sample.dtype), list(header.sample.shape)],
        "label": [str(header.label.dtype), list(header.label.shape)],
        "classes": header.classes,
        "record_bytes": header.record_bytes,
    }


def describe_mirror(region: Region) -> dict[str, Json] | None:
    """What can be read of a region's mirror without a key; None if there is no mirror.

    Raises FormatError, RegionError.
    """
    span = region.extent(mirror_layout.EXTENT)
    if span is None:
        return None
    run_id, key_id, layout = mirror_layout.read_header(region, span)
    return {
        "version": mirror_layout.VERSION,
        "run_id": run_id.hex(),
        "key_id": key_id.hex(),
        "slot_bytes": layout.slot_bytes,
        "manifest_room": layout.manifest_room,
        "commits": max(mirror_layout.read_counters(region, run_id, layout)),
    }
