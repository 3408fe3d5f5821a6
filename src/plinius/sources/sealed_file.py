"""A whole file as records: its bytes in pieces, so that it is sealed as any dataset is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

from plinius.data.records import ABSENT, ArraySpec, Record, Source
from plinius.errors import SourceError
from plinius.files import publish

PIECE_BYTES = 1 << 20
SUFFIXES = (".weights", ".safetensors", ".onnx")
"""The files that are sealed in this way: parameters that are exported for recipients."""

_BYTE, _MEMBER = np.dtype("u1"), "file"


def file_source(data: bytes, suffix: str) -> Source:
    """The bytes of a file as records of one piece each; the last is filled up with zeros."""
    piece = max(1, min(PIECE_BYTES, len(data)))

    def records() -> Iterator[Record]:
        for start in range(0, len(data), piece):
            sample = np.zeros(piece, _BYTE)
            part = data[start : start + piece]
            sample[: len(part)] = np.frombuffer(part, _BYTE)
            yield sample, np.zeros(0, _BYTE)

    spec, count = ArraySpec(_BYTE, (piece,)), -(-len(data) // piece)
    about = {_MEMBER: {"suffix": suffix, "bytes": len(data)}}
    return Source(f"the {suffix} file", count, spec, ABSENT, records, 0, (), cast(Any, about))


def is_file(source: Source) -> bool:
    """Whether the records of a source are the pieces of a file."""
    return _MEMBER in source.about


def write_file(source: Source, path: Path) -> None:
    """Write a file whose pieces the records are to the new file `path`, mode 0600.

    Raises SourceError if `path` has another suffix, or the records are no such pieces; SealError,
    StorageError.
    """
    member: Any = source.about[_MEMBER]
    said = member if isinstance(member, dict) else {}
    suffix, size, piece = said.get("suffix"), said.get("bytes"), source.sample.nbytes
    pieces = source.sample == ArraySpec(_BYTE, (piece,)) and source.label == ABSENT
    whole = type(size) is int and (source.count - 1) * piece < size <= source.count * piece
    if suffix not in SUFFIXES or not pieces or not whole:
        raise SourceError(f"{source.name} holds no file", "Fetch it again from its owner")
    if path.suffix != suffix:
        raise SourceError(f"{source.name} holds a {suffix} file", f"Write it as one: -o x{suffix}")
    left = cast(int, size)
    with publish(path) as file:
        for sample, _ in source:
            file.write(sample[:left].tobytes())
            left -= piece
