"""Another owner's key for a sealed dataset or a region: all of it is sealed anew.

The new file is made beside the old one, as NAME.rekeying, synced, opened with the new key and
compared, and only then renamed over the old one. So a stop at any instant leaves the old file or
the new one, whole; the same command then starts again, or finds that it is done.
"""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plinius.data.dataset_header import MAGIC as DATASET_MAGIC
from plinius.data.records import Progress, Record, Source
from plinius.data.sealed_dataset import (
    SealedDataset,
    file_reader,
    read_header,
    seal_dataset,
)
from plinius.errors import FormatError, KeyFileError, StorageError
from plinius.files import cannot_read, not_regular, open_to_read, sync_folder
from plinius.keys import OwnerKey
from plinius.maintenance.verification import BATCH_BYTES, verify_records
from plinius.pm.region import MAGIC as REGION_MAGIC


def kind_of(path: Path) -> str:
    """ "dataset" or "region". Raises FormatError for other files, StorageError."""
    with open_to_read(path) as file:
        try:
            magic = file.read(8)
        except OSError as error:
            raise cannot_read(path, error) from None
    if magic in (DATASET_MAGIC, REGION_MAGIC):
        return "dataset" if magic == DATASET_MAGIC else "region"
    raise FormatError(
        f"{path} is neither a sealed dataset nor a region",
        "Name a file made by plinius seal or plinius train",
    )


def require_another(old: OwnerKey, new: OwnerKey) -> None:
    """Raise KeyFileError if the new key is the old one."""
    if old.id == new.id:
        raise KeyFileError(
            f"The new key is the old one, {old.id.hex()}", "Make another one with plinius keygen"
        )


def rekey_dataset(path: Path, old: OwnerKey, new: OwnerKey, progress: Progress) -> bool:
    """Seal a dataset under another key, in place of the old file; its id stays.

    False if it is sealed with the new key already. `progress` counts records, each twice. Raises
    KeyFileError, SealError, FormatError, StorageError; the file is then as it was.
    """
    require_another(old, new)
    path = resolved(path)
    with one_at_a_time(path):  # before it is looked at: another rekey may have been at work
        if _is_done(path, new):
            return False
        dataset = SealedDataset.from_file(path, old)
        with work_file(path, DATASET_MAGIC) as work:
            seal_again(dataset, new, work, progress)
            replace(work, path)
    return True


def seal_again(dataset: SealedDataset, key: OwnerKey, out: Path, progress: Progress) -> None:
    """Seal all records of a dataset, with its id, under `key` into a new file, and open them.

    `progress` counts each record twice. Raises SealError, StorageError.
    """
    count = dataset.header.count
    seal_dataset(
        source_of(dataset), key, out, lambda done, _: progress(done, 2 * count),
        same_id=dataset.header.id,
    )  # fmt: skip
    sealed = SealedDataset.from_file(out, key)
    found = verify_records(sealed, lambda done, _: progress(count + done, 2 * count))
    found.require_whole(str(out))


def source_of(dataset: SealedDataset) -> Source:
    """The records of a sealed dataset as a source, opened batch by batch."""
    header = dataset.header
    at_once = max(1, BATCH_BYTES // header.stride)

    def records() -> Iterator[Record]:
        for start in range(0, header.count, at_once):
            samples, labels = dataset.open_batch(range(start, min(start + at_once, header.count)))
            for index in range(len(samples)):
                yield samples[index, ...], labels[index, ...]

    about = {name: value for name, value in dataset.about.items() if name != "class_names"}
    return Source(
        dataset.name, header.count, header.sample, header.label, records, header.classes,
        dataset.class_names, about,
    )  # fmt: skip


def resolved(path: Path) -> Path:
    """The file that a path names; the one that a link names, which is replaced and not the link."""
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        what = error if isinstance(error, OSError) else OSError(str(error))
        raise cannot_read(path, what) from None


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Refuse a second rekey in the folder of a file: both would use the same names.

    Raises StorageError.
    """
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(
                f"Another rekey is at work in {path.parent}", "Wait until it is done"
            ) from None
        yield
    finally:
        os.close(folder)


@contextmanager
def work_file(path: Path, magic: bytes) -> Iterator[Path]:
    """The name of the new file while it is made. What an earlier call left there is removed before,
    and what this one leaves if it fails. Raises StorageError if another file is in the way.
    """
    work = path.with_name(path.name + ".rekeying")
    if os.path.lexists(work):
        with open_to_read(work) as file:
            ours = not work.is_symlink() and file.read(len(magic)) == magic
        if not ours:
            raise StorageError(
                f"{work} is in the way, and is not of an earlier rekey", "Move it elsewhere"
            )
        work.unlink()
    try:
        yield work
    finally:
        work.unlink(missing_ok=True)


def replace(work: Path, path: Path) -> None:
    """Put the new file, which is synced, in the place of the old one; mode and owner stay.

    They are set through a descriptor: whoever can write to the folder could put a link to another
    file in the place of the new one, and would be given that.
    """
    try:
        status = path.stat()
        handle = os.open(work, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG((made := os.fstat(handle)).st_mode) or made.st_nlink != 1:
                raise not_regular()
            if (status.st_uid, status.st_gid) != (made.st_uid, made.st_gid):
                os.fchown(handle, status.st_uid, status.st_gid)
            os.fchmod(handle, status.st_mode & 0o777)
        finally:
            os.close(handle)
        os.replace(work, path)
        sync_folder(path.parent)
    except OSError as error:
        raise StorageError(
            f"Cannot replace {path}: {error.strerror or error}", "Check its folder's permissions"
        ) from None


def _is_done(path: Path, new: OwnerKey) -> bool:
    read, size = file_reader(path)
    return read_header(read, size, str(path)).key_id == new.id
