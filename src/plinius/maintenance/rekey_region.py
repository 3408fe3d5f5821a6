"""Another owner's key for a region: its dataset, its newest commit and its kept commits.

Run id, dataset id, iterations and the numbers of commits stay. Every commit is sealed anew, so its
digest is another one, and the newest commit names the new ones.
"""

import dataclasses
import os
from pathlib import Path

from plinius.data.dataset_extent import EXTENT as DATASET
from plinius.data.dataset_extent import load_dataset, open_dataset
from plinius.data.dataset_header import MAGIC as DATASET_MAGIC
from plinius.data.records import Progress
from plinius.data.sealed_dataset import read_header as dataset_header
from plinius.errors import MismatchError, SealError
from plinius.history.kept_commits import (
    ENVIRONMENT,
    PREFIX,
    digest_of,
    does_not_open,
    fill_of,
    genuine,
    open_kept,
    read_head,
)
from plinius.jsonvalue import Json
from plinius.keys import OwnerKey
from plinius.maintenance.rekey import (
    one_at_a_time,
    replace,
    require_another,
    resolved,
    seal_again,
    work_file,
)
from plinius.pm.medium import PAGE
from plinius.pm.region import MAGIC, Region
from plinius.slots import Manifest, Slots
from plinius.slots.layout import EXTENT, Layout, read_header
from plinius.slots.protocol import Pinned
from plinius.snapshot import Snapshot

Keys = tuple[OwnerKey, OwnerKey]
"""The old and the new one."""


def rekey_region(path: Path, old: OwnerKey, new: OwnerKey, progress: Progress) -> bool:
    """Seal a region under another key, in place of the old file. False if that is done already.

    It must not be in use. The state is in memory, and the disk must have room for the region once
    more. `progress` counts records of the dataset. Raises RegionBusyError, MismatchError (it holds
    what this does not know), KeyFileError, SealError, StorageError; the file is then as it was.
    """
    require_another(old, new)
    path = resolved(path)
    with Region.open(path, writable=False) as region:
        found = _key_ids(region)
        if found == {new.id}:
            return False
        _require_known(region)
        with one_at_a_time(path), work_file(path, MAGIC) as work:
            with Region.create(work) as made:
                if region.extent(DATASET):
                    _dataset(region, made, work, (old, new), progress)
                if region.extent(EXTENT):
                    _mirror(region, made, (old, new))
                made.consistency_check()
            _sync(work)
            replace(work, path)
    return True


def _key_ids(region: Region) -> set[bytes]:
    """The ids of the keys of the mirror and of the dataset."""
    found = set()
    if span := region.extent(EXTENT):
        found.add(read_header(region, span)[1])
    if span := region.extent(DATASET):

        def read(offset: int, length: int) -> memoryview:
            return region.medium.read(span.offset + offset, length)

        found.add(dataset_header(read, span.length, region.name).key_id)
    return found


def _require_known(region: Region) -> None:
    extents = {name for name in region.heap.extents() if not name.startswith(PREFIX)}
    others = sorted((extents - {EXTENT, DATASET}) | region.heap.roots().keys())
    if others:
        raise MismatchError(
            f"{region.name} also holds {', '.join(others[:3])}, which rekey does not know",
            "Seal what that is anew with the program that made it, in a new region",
        )


def _dataset(region: Region, made: Region, work: Path, keys: Keys, progress: Progress) -> None:
    dataset = open_dataset(region, keys[0])
    with work_file(work, DATASET_MAGIC) as file:
        seal_again(dataset, keys[1], file, progress)
        load_dataset(made, file, keys[1])


def _mirror(region: Region, made: Region, keys: Keys) -> None:
    slots = Slots.open(region, keys[0])
    newest = slots.newest() if slots else None
    if slots is None or newest is None:
        return
    kept: dict[str, Json] = {}
    for name, (head, digest) in sorted(genuine(region, newest).items()):
        reader, manifest = open_kept(region, keys[0], head, digest)
        try:
            snapshot = reader.snapshot(manifest)
        except SealError:
            raise does_not_open(region, head) from None
        _write(made, keys[1], slots.run_id, snapshot, manifest)
        span = made.extent(EXTENT)
        assert span is not None
        run_id, key_id, layout = read_header(made, span)
        fill = fill_of((run_id, key_id), layout, head.commit, head.iteration, head.time)
        copy = made.add_extent(PREFIX + name, PAGE + layout.slot_bytes, fill)
        made.drop_extent(EXTENT)
        kept[name] = [head.commit, digest_of(made, read_head(made, name, copy))]
    state = slots.snapshot(newest)
    environment = {k: v for k, v in state.environment.items() if k != ENVIRONMENT}
    if kept:
        environment[ENVIRONMENT] = kept
    state = dataclasses.replace(state, environment=environment)
    _write(made, keys[1], slots.run_id, state, newest)


def _write(made: Region, key: OwnerKey, run_id: bytes, state: Snapshot, manifest: Manifest) -> None:
    """Seal a state into new slots, as the commit that it was, and open it again."""
    before = Pinned(
        None, Layout(0, 0, 0, 0), manifest.commit - 1, manifest.previous, None, open=True
    )
    slots = Slots(made, key, run_id, before)
    slots.write(state)
    slots.close()
    again = Slots.open(made, key)
    written = again.newest() if again else None
    assert again is not None
    assert written is not None
    if again.snapshot(written).digest() != state.digest():
        raise SealError(
            f"Commit {manifest.commit} of {made.name} does not open as it was sealed",
            "The memory or the disk is failing: try another machine",
        )


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
