"""Records from texts: sequences of tokens, labelled with the sequences one token further."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plinius.data.records import Array, ArraySpec, Record, Source
from plinius.errors import SourceError
from plinius.files import cannot_read, open_to_read, publish
from plinius.jsonvalue import Json
from plinius.sources.tokenizer import Tokenizer, Tokens

_MAX_BYTES = 2**32
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class TextSource:
    """The records of a text, and the tokens at its end that filled no whole record.

    `is_exact` says whether the tokens decode to just this text.
    """

    source: Source
    left_out: int
    is_exact: bool = True


def text_source(path: Path, length: int, tokenizer: Tokenizer | None = None) -> TextSource:
    """Records of a text, or of all .txt files of a folder, one after the other in order of names.

    The tokens are the bytes, 0 to 255, or those of `tokenizer`. Sample and label are (length,) of
    uint8, uint16 or uint32, the smallest that holds every token. Record i has the tokens from
    i * length; its label are those from i * length + 1, so that each token has the next one as its
    target. A tokenizer encodes pieces of at least 1 MiB, which end with a line. The text is read
    into memory. Raises SourceError for one that is shorter than a record, longer than 4 GiB, or not
    UTF-8 where a tokenizer needs it, and StorageError.
    """
    tokenizer = tokenizer or Tokenizer(Tokens())
    tokens = tokenizer.tokens
    dtype = np.min_scalar_type(tokens.count - 1).newbyteorder("<")
    pieces, exact, read = [], True, 0
    for file in _files(path):
        for piece in _pieces(file, tokens.sha256 is None):
            read += len(piece)
            if read > _MAX_BYTES:
                raise SourceError(f"{path} is longer than 4 GiB", "Seal it in several pieces")
            ids = tokenizer.encode(piece, str(file))
            pieces.append(
                np.frombuffer(ids, dtype) if isinstance(ids, bytes) else np.array(ids, dtype)
            )
            exact = exact and tokenizer.decode(ids) == piece
    data: Array = np.concatenate(pieces) if pieces else np.empty(0, dtype)
    count = (len(data) - 1) // length
    if count < 1:
        what = "bytes" if tokens.sha256 is None else "tokens"
        raise SourceError(
            f"{path} has {len(data)} {what}, and a record needs {length + 1}",
            "Give a longer text or a shorter --sequence",
        )

    def records() -> Iterator[Record]:
        for start in range(0, count * length, length):
            yield data[start : start + length], data[start + 1 : start + 1 + length]

    spec = ArraySpec(data.dtype, (length,))
    about: dict[str, Json] = {"text": tokens.to_json()}
    source = Source(str(path), count, spec, spec, records, about=about)
    return TextSource(source, len(data) - 1 - count * length, exact)


def write_text(source: Source, path: Path, tokenizer_file: Path | None = None) -> None:
    """Write the text of sealed tokens to the new file `path`, mode 0600.

    Raises SourceError if they are of no text, what `Tokenizer.of` raises, SealError, StorageError.
    """
    tokens = Tokens.of(source.about, source.name)
    if tokens is None:
        raise SourceError(f"{source.name} holds no text", "Write .csv or .npz")
    tokenizer = Tokenizer.of(tokens, tokenizer_file, source.name)
    ids: list[int] = []
    last: list[int] = []
    for sample, label in source:
        ids += sample.reshape(-1).tolist()
        last = label.reshape(-1)[-1:].tolist()
    with publish(path) as file:
        file.write(tokenizer.decode(ids + last))


def _files(path: Path) -> list[Path]:
    """The file itself, or the .txt files of a folder and the folders in it."""
    if not path.is_dir():
        return [path]

    def refuse(error: OSError) -> None:
        raise cannot_read(error.filename, error)

    found = [
        Path(folder, name)
        for folder, _, names in os.walk(path, onerror=refuse)
        for name in names
        if name.endswith(".txt") and not name.startswith(".")
    ]
    if not found:
        raise SourceError(f"{path} holds no .txt file", "Name a file, or a folder of .txt files")
    return sorted(found)


def _pieces(path: Path, whole: bool) -> Iterator[bytes]:
    """The bytes of a file: at once, or in pieces that end with a line or with the file."""
    try:
        with open_to_read(path) as file:
            if whole:
                yield file.read(_MAX_BYTES + 1)
                return
            while piece := file.read(_PIECE_BYTES):
                yield piece + file.readline(_MAX_BYTES)
    except OSError as error:
        raise cannot_read(path, error) from None
