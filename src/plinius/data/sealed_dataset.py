"""The sealed dataset: created from a source, opened record by record.

The format is described in docs/formats/sealed-dataset.md. The header is in clear and
authenticated; class names and records are sealed. Every record is bound to its dataset, its index
and the count of records.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plinius import sealing
from plinius.data.dataset_header import (
    HEADER_BYTES,
    ID_BYTES,
    MAGIC,
    MAX_META_BYTES,
    DatasetHeader,
    parse_header,
)
from plinius.data.records import Array, ArraySpec, Progress, Record, Source
from plinius.errors import FormatError, SealError, SourceError
from plinius.files import cannot_read, open_to_read, publish
from plinius.jsonvalue import from_json
from plinius.keys import OwnerKey, require_key

__all__ = [
    "MAGIC",
    "ByteReader",
    "DatasetHeader",
    "SealedDataset",
    "file_reader",
    "read_header",
    "seal_dataset",
]

ByteReader = Callable[[int, int], memoryview]
"""Returns the bytes of a sealed dataset at (offset, length), fewer at its end."""

_HEADER_PURPOSE = "dataset-header"
_RECORDS_PURPOSE = "dataset-records"
_HEADER_MESSAGE, _META_MESSAGE = 0, 1
_PROGRESS_RECORDS = 1024


def seal_dataset(
    source: Source,
    key: OwnerKey,
    out_path: Path,
    progress: Progress | None = None,
    same_id: bytes | None = None,
) -> DatasetHeader:
    """Seal all records of `source` into the new file `out_path`; returns its header.

    `progress` counts records. `same_id` is the id of a dataset that has just these records. The
    file appears complete or not at all. Raises what the source raises, SourceError if the class
    names are too long, StorageError if the file exists or cannot be written, and KeyFileError if
    `key` is no owner's key.
    """
    require_key(key)
    meta = json.dumps({**source.about, "class_names": source.class_names}).encode()
    header = DatasetHeader(
        id=same_id or sealing.fresh(ID_BYTES),
        salt=sealing.fresh(sealing.SALT_BYTES),
        key_id=key.id,
        count=source.count,
        sample=source.sample,
        label=source.label,
        classes=source.classes,
        meta_bytes=len(meta) + sealing.TAG_BYTES,
    )
    if header.meta_bytes > MAX_META_BYTES:
        what = f"The class names, columns and record ids of {source.name} are too long"
        raise SourceError(what, f"Shorten them to {MAX_META_BYTES} bytes, or leave out the ids")
    header_sealer = key.sealer(_HEADER_PURPOSE, header.salt)
    raw = header.pack()
    raw += header_sealer.seal(_HEADER_MESSAGE, b"", raw)
    with publish(out_path) as file:
        file.write(raw)
        file.write(header_sealer.seal(_META_MESSAGE, meta, raw))
        sealer = key.sealer(_RECORDS_PURPOSE, header.salt)
        aad_prefix = header.record_aad_prefix()
        record = np.empty((1, header.record_bytes), np.uint8)
        sample_view, label_view = _split(record, header)
        sealed = bytearray(header.stride)
        for index, (sample, label) in enumerate(source):
            sample_view[0] = sample
            label_view[0] = label
            sealer.seal_into(index, record.data, aad_prefix + _u64(index), sealed)
            file.write(sealed)
            if progress and (index + 1) % _PROGRESS_RECORDS == 0:
                progress(index + 1, header.count)
    if progress:
        progress(header.count, header.count)
    return header


def read_header(read: ByteReader, size: int, name: str = "The file") -> DatasetHeader:
    """The header of a sealed dataset of `size` bytes, checked but not authenticated: no key.

    Raises FormatError.
    """
    return parse_header(bytes(read(0, min(size, HEADER_BYTES))), size, name)


def file_reader(path: Path) -> tuple[ByteReader, int]:
    """A reader of a file, and the file's size in bytes. Both raise StorageError."""
    file = open_to_read(path)
    size = os.fstat(file.fileno()).st_size

    def read(offset: int, length: int) -> memoryview:
        try:
            return memoryview(os.pread(file.fileno(), max(0, min(length, size - offset)), offset))
        except OSError as error:
            raise cannot_read(path, error) from None

    return read, size


class SealedDataset:
    """A sealed dataset, opened with its owner's key; safe to use from several threads.

    The sealed bytes can be in memory of the host, which can change them at any time. Each message
    is therefore copied before it is opened, so that the bytes authenticated are the bytes used.
    """

    def __init__(
        self, read: ByteReader, size: int, key: OwnerKey, name: str = "The dataset"
    ) -> None:
        """Authenticate the header and open the class names. `name` is used in messages.

        `about` is the opened meta block. Raises FormatError (not a sealed dataset, incomplete, or
        of another version), KeyFileError (sealed with another key, or `key` is no owner's key) and
        SealError (altered).
        """
        require_key(key)
        raw = bytes(read(0, min(size, HEADER_BYTES)))
        self.header = header = parse_header(raw, size, name)
        key.require(header.key_id, name.replace("the ", "The ", 1))  # it begins a sentence
        sealer = key.sealer(_HEADER_PURPOSE, header.salt)
        clear, tag = raw[: -sealing.TAG_BYTES], raw[-sealing.TAG_BYTES :]
        _open_message(sealer, _HEADER_MESSAGE, tag, clear, f"The header of {name}")
        sealed_meta = bytes(read(HEADER_BYTES, header.meta_bytes))
        meta = _open_message(sealer, _META_MESSAGE, sealed_meta, raw, f"The class list of {name}")
        self.about = _about(meta, name)
        self.class_names: tuple[str, ...] = tuple(self.about["class_names"])
        self.name = name
        self._read = read
        self._sealer = key.sealer(_RECORDS_PURPOSE, header.salt)
        self._aad_prefix = header.record_aad_prefix()

    @classmethod
    def from_file(cls, path: Path, key: OwnerKey) -> "SealedDataset":
        """The dataset in a file, which is read record by record. Also raises StorageError."""
        read, size = file_reader(path)
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
        """The samples (n, *sample shape) and labels (n, *label shape) of n records, as asked for.

        They are written to `samples_out` and `labels_out` where these are given. Raises
        ValueError for an index out of range or an array of another dtype or shape, and SealError,
        which names the record that does not open; the arrays given are then unchanged.
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
                opener(
                    number, sealed, self._aad_prefix + _u64(number), flat[start : start + length]
                )
            except SealError:
                raise sealing.does_not_open(f"Record {number} of {self.name}") from None
            start += length
        return _filled(samples_out, samples), _filled(labels_out, labels)


def _split(batch: npt.NDArray[np.uint8], header: DatasetHeader) -> tuple[Array, Array]:
    """Views of the samples and of the labels in records (n, record_bytes)."""
    at = header.sample.nbytes
    return _view(batch[:, :at], header.sample), _view(batch[:, at:], header.label)


def _view(rows: npt.NDArray[np.uint8], spec: ArraySpec) -> Array:
    return rows.view(spec.dtype).reshape(len(rows), *spec.shape)


def _check_out(out: Array | None, wanted: Array) -> None:
    if out is not None and (out.dtype != wanted.dtype or out.shape != wanted.shape):
        raise ValueError(f"needs an array {wanted.dtype} {wanted.shape} to write to")


def _filled(out: Array | None, values: Array) -> Array:
    if out is None:
        return np.ascontiguousarray(values)
    out[...] = values
    return out


def _open_message(
    sealer: sealing.Sealer, number: int, sealed: bytes, aad: bytes, what: str
) -> bytes:
    try:
        return sealer.open(number, sealed, aad)
    except SealError:
        raise sealing.does_not_open(what) from None


def _about(meta: bytes, name: str) -> dict[str, Any]:
    """The opened meta block. Raises FormatError if it has another structure."""
    try:
        about = from_json(meta)
        names = about["class_names"]
        if isinstance(names, list) and all(isinstance(item, str) for item in names):
            return about
    except (ValueError, KeyError):
        pass
    raise FormatError(f"The class list of {name} is not valid", "Seal the data again")


def _u64(index: int) -> bytes:
    return index.to_bytes(8, "little")
