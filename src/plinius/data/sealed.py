"""The sealed dataset: made from a source, opened record by record.

Normative description: docs/formats/sealed-dataset.md. The clear header is authenticated; class
names and records are sealed. Every record is bound to its dataset, its index and the count.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from plinius import sealing
from plinius.data.header import (
    HEADER_BYTES,
    ID_BYTES,
    MAGIC,
    MAX_META_BYTES,
    DatasetHeader,
    parse_header,
)
from plinius.data.records import Array, Part, Record, Source
from plinius.errors import FormatError, SealError, SourceError, StorageError
from plinius.files import open_to_read, publish
from plinius.keys import OwnerKey

__all__ = [
    "MAGIC",
    "ByteReader",
    "DatasetHeader",
    "SealedDataset",
    "map_file",
    "read_header",
    "seal_dataset",
]

ByteReader = Callable[[int, int], memoryview]
"""Shows `length` bytes at `offset` of a dataset: (offset, length) -> bytes."""

_HEADER_PURPOSE = "dataset-header"
_RECORDS_PURPOSE = "dataset-records"
_HEADER_PIECE, _META_PIECE = 0, 1
_PROGRESS_STEP = 1024


def seal_dataset(
    source: Source,
    key: OwnerKey,
    out_path: Path,
    progress: Callable[[int, int], None] | None = None,
) -> DatasetHeader:
    """Seal all records of `source` into the new file `out_path`; returns its header.

    `progress` is called with (records done, all records) now and then. The file appears whole or
    not at all. Raises what the source raises, and StorageError if the file exists or cannot be
    written.
    """
    meta = json.dumps({"class_names": source.class_names}).encode()
    header = DatasetHeader(
        id=sealing.fresh(ID_BYTES),
        salt=sealing.fresh(sealing.SALT_BYTES),
        key_id=key.id,
        count=source.count,
        sample=source.sample,
        label=source.label,
        classes=source.classes,
        meta_bytes=len(meta) + sealing.TAG_BYTES,
    )
    if header.meta_bytes > MAX_META_BYTES:
        raise SourceError(f"The class names of {source.name} are too long", "Shorten them")
    head = key.sealer(_HEADER_PURPOSE, header.salt)
    clear = header.pack()
    clear += head.seal(_HEADER_PIECE, b"", clear)
    with publish(out_path) as file:
        file.write(clear)
        file.write(head.seal(_META_PIECE, meta, clear))
        sealer = key.sealer(_RECORDS_PURPOSE, header.salt)
        binding = header.binding()
        record = np.empty((1, header.record_bytes), np.uint8)
        sample_part, label_part = _split(record, header)
        sealed = bytearray(header.stride)
        for index, (sample, label) in enumerate(source):
            sample_part[0] = sample
            label_part[0] = label
            sealer.seal_into(index, record.data, binding + _word(index), sealed)
            file.write(sealed)
            if progress and (index + 1) % _PROGRESS_STEP == 0:
                progress(index + 1, header.count)
    if progress:
        progress(header.count, header.count)
    return header


def read_header(read: ByteReader, size: int, name: str = "The file") -> DatasetHeader:
    """The header of a sealed dataset of `size` bytes: checked, but without a key not authentic.

    Raises FormatError.
    """
    return parse_header(bytes(read(0, min(size, HEADER_BYTES))), size, name)


def map_file(path: Path) -> tuple[ByteReader, int]:
    """A reader of the file, and its size in bytes. Raises StorageError."""
    try:
        file = open_to_read(path)
        size = file.seek(0, 2)
    except OSError as error:
        raise _unreadable(path, error) from None

    def read(offset: int, length: int) -> memoryview:
        try:
            return memoryview(os.pread(file.fileno(), max(0, min(length, size - offset)), offset))
        except OSError as error:
            raise _unreadable(path, error) from None

    return read, size


def _unreadable(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"Cannot read {path}: {error.strerror}", "Name a sealed dataset that can be read"
    )


class SealedDataset:
    """A sealed dataset open under its owner's key; safe to use from several threads.

    The bytes may lie in memory of the host, which may change them at any time: each piece is
    copied before it is opened, so that what was authenticated is what is used.
    """

    def __init__(
        self, read: ByteReader, size: int, key: OwnerKey, name: str = "The dataset"
    ) -> None:
        """Authenticate the header and open the class names.

        Raises FormatError (foreign, cut, or of another version), KeyFileError (another key) and
        SealError (altered).
        """
        raw = bytes(read(0, min(size, HEADER_BYTES)))
        self.header = header = parse_header(raw, size, name)
        key.require(header.key_id, name.replace("the ", "The ", 1))  # it begins a sentence
        head = key.sealer(_HEADER_PURPOSE, header.salt)
        clear, tag = raw[: -sealing.TAG_BYTES], raw[-sealing.TAG_BYTES :]
        _open(head, _HEADER_PIECE, tag, clear, f"The header of {name}")
        meta = bytes(read(HEADER_BYTES, header.meta_bytes))
        self.class_names = _class_names(
            _open(head, _META_PIECE, meta, raw, f"The class list of {name}"), name
        )
        self.name = name
        self._read = read
        self._sealer = key.sealer(_RECORDS_PURPOSE, header.salt)
        self._binding = header.binding()

    @classmethod
    def from_file(cls, path: Path, key: OwnerKey) -> "SealedDataset":
        """The dataset in a file, which is mapped and not loaded. Raises StorageError as well."""
        read, size = map_file(path)
        return cls(read, size, key, path.name)

    def open_record(self, index: int) -> Record:
        """The sample and the label of one record. Raises as `open_batch` does."""
        samples, labels = self.open_batch([index])
        return samples[0, ...], labels[0, ...]

    def open_batch(
        self,
        indices: Sequence[int] | npt.NDArray[np.int64],
        samples_out: Array | None = None,
        labels_out: Array | None = None,
    ) -> tuple[Array, Array]:
        """The samples (n, *shape) and the labels (n, *shape) of n records, in that order.

        They are written to the arrays given, if any. Raises ValueError for an index
        out of range or an array of another type or shape, SealError naming the record that does
        not open; the arrays given are then as they were.
        """
        header, read, opener = self.header, self._read, self._sealer.open_into
        numbers = np.asarray(indices, np.int64).reshape(-1).tolist()
        if numbers and not 0 <= min(numbers) <= max(numbers) < header.count:
            raise ValueError(f"a record of {self.name} is numbered 0 to {header.count - 1}")
        batch = np.empty((len(numbers), header.record_bytes), np.uint8)
        samples, labels = _split(batch, header)
        _check_out(samples_out, samples)
        _check_out(labels_out, labels)
        stride, length = header.stride, header.record_bytes
        flat = batch.reshape(-1).data
        start = 0
        for number in numbers:
            sealed = bytes(read(header.records_offset + number * stride, stride))
            try:
                opener(number, sealed, self._binding + _word(number), flat[start : start + length])
            except SealError:
                raise sealing.broken(f"Record {number} of {self.name}") from None
            start += length
        return _filled(samples_out, samples), _filled(labels_out, labels)


def _split(batch: npt.NDArray[np.uint8], header: DatasetHeader) -> tuple[Array, Array]:
    """The samples and labels inside records (n, record_bytes), as views."""
    at = header.sample.nbytes
    return _typed(batch[:, :at], header.sample), _typed(batch[:, at:], header.label)


def _typed(rows: npt.NDArray[np.uint8], part: Part) -> Array:
    return rows.view(part.dtype).reshape(len(rows), *part.shape)


def _check_out(out: Array | None, wanted: Array) -> None:
    if out is not None and (out.dtype != wanted.dtype or out.shape != wanted.shape):
        raise ValueError(f"needs an array {wanted.dtype} {wanted.shape} to write to")


def _filled(out: Array | None, values: Array) -> Array:
    if out is None:
        return np.ascontiguousarray(values)
    out[...] = values
    return out


def _open(sealer: sealing.Sealer, piece: int, sealed: bytes, aad: bytes, what: str) -> bytes:
    try:
        return sealer.open(piece, sealed, aad)
    except SealError:
        raise sealing.broken(what) from None


def _class_names(meta: bytes, name: str) -> tuple[str, ...]:
    """The class names in the meta block, which its owner wrote, but maybe with another program."""
    try:
        names = json.loads(meta)["class_names"]
        if isinstance(names, list) and all(isinstance(item, str) for item in names):
            return tuple(names)
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise FormatError(f"The class list of {name} makes no sense", "Seal the data again")


def _word(index: int) -> bytes:
    return index.to_bytes(8, "little")
