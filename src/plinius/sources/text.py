"""Records from a text: sequences of bytes, each with the sequence one byte further as its label."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plinius.data.records import ArraySpec, Record, Source
from plinius.errors import SourceError
from plinius.files import open_to_read

_MAX_BYTES = 2**32
_BYTE = np.dtype("u1")


@dataclass(frozen=True)
class TextSource:
    """The records of a text file, and the bytes at its end that filled no whole record."""

    source: Source
    left_out: int


def text_source(path: Path, length: int) -> TextSource:
    """Records of a file's bytes as tokens 0 to 255: sample and label are uint8 (length,).

    Record i has the bytes from i * length; its label are those from i * length + 1, so that each
    token has the next one as its target. The file is read into memory. Raises SourceError for one
    that is shorter than a record or longer than 4 GiB, StorageError.
    """
    with open_to_read(path) as file:
        data = np.frombuffer(file.read(_MAX_BYTES + 1), np.uint8)
    if len(data) > _MAX_BYTES:
        raise SourceError(f"{path} is longer than 4 GiB", "Seal it in several pieces")
    count = (len(data) - 1) // length
    if count < 1:
        raise SourceError(
            f"{path} has {len(data)} bytes, and a record needs {length + 1}",
            "Give a longer text or a shorter --sequence",
        )

    def records() -> Iterator[Record]:
        for start in range(0, count * length, length):
            yield data[start : start + length], data[start + 1 : start + 1 + length]

    spec = ArraySpec(_BYTE, (length,))
    source = Source(str(path), count, spec, spec, records)
    return TextSource(source, len(data) - 1 - count * length)
