"""How a text becomes tokens and tokens become text: by bytes, or by a tokenizer.json file.

Which way it was is sealed with the records, as the member `text` of the meta block.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plinius.errors import FormatError, MismatchError, NotInstalledError, SourceError
from plinius.files import read_file
from plinius.jsonvalue import Json, to_json

_MAX_FILE_BYTES = 64 << 20
_MAX_SEALED_BYTES = 512 << 10
_BYTES = 256


@dataclass(frozen=True)
class Tokens:
    """What is known of the tokens of a text.

    They are below `count`. `sha256` is that of the tokenizer file, None for bytes; `file` is the
    whole file, None for bytes or if it is too long to be sealed with the records.
    """

    count: int = _BYTES
    sha256: str | None = None
    file: str | None = None

    @classmethod
    def of(cls, about: dict[str, Any], name: str) -> "Tokens | None":
        """That of an opened meta block, None if it is of no text. Raises FormatError."""
        found = about.get("text")
        if found is None:
            return None
        try:
            tokens = cls(int(found["tokens"]), found.get("sha256"), found.get("tokenizer"))
        except (TypeError, ValueError, KeyError, AttributeError):
            tokens = cls(0)
        texts = (tokens.sha256, tokens.file)
        if tokens.count < 1 or not all(it is None or isinstance(it, str) for it in texts):
            raise FormatError(f"The tokens of {name} are not valid", "Seal the text again")
        return tokens

    def to_json(self) -> dict[str, Json]:
        """The member of the meta block."""
        return {"tokens": self.count, "sha256": self.sha256, "tokenizer": self.file}

    def is_like(self, other: "Tokens") -> bool:
        """Whether a token means the same in both."""
        return (self.count, self.sha256) == (other.count, other.sha256)


class Tokenizer:
    """Encodes text as tokens and decodes it, by bytes or by the library `tokenizers`.

    A file's special tokens are not added, and its truncation and padding are not used.
    """

    def __init__(self, tokens: Tokens, library: Any = None) -> None:
        self.tokens = tokens
        self._library = library

    @classmethod
    def from_file(cls, path: Path) -> "Tokenizer":
        """That of a tokenizer.json file of at most 64 MiB.

        Raises StorageError, SourceError for another file, and NotInstalledError.
        """
        data = read_file(path, _MAX_FILE_BYTES)
        library = _loaded(data, str(path))
        values = library.get_vocab(with_added_tokens=True).values()
        if not values:
            raise SourceError(f"The tokenizer {path} has no tokens", "Give one that was trained")
        text = data.decode()
        short = len(to_json(text)) <= _MAX_SEALED_BYTES
        digest = hashlib.sha256(data).hexdigest()
        return cls(Tokens(max(values) + 1, digest, text if short else None), library)

    @classmethod
    def of(cls, tokens: Tokens, path: Path | None, name: str) -> "Tokenizer":
        """That of the text `name`: by bytes, from what is sealed with it, or from its file.

        Raises as `from_file`, MismatchError if the file is another one, and SourceError if it is
        needed and `path` is None.
        """
        if path is not None:
            given = cls.from_file(path)
            if not given.tokens.is_like(tokens):
                what = "bytes" if tokens.sha256 is None else "those of another tokenizer"
                raise MismatchError(
                    f"The tokens of {name} are {what}, not those of {path}",
                    "Leave out --tokenizer" if tokens.sha256 is None else "Give that tokenizer",
                )
            return given
        if tokens.sha256 is None:
            return cls(tokens)
        if tokens.file is None:
            raise SourceError(
                f"The tokenizer of {name} is too long to be sealed with it",
                f"Give its file with --tokenizer (SHA-256 {tokens.sha256})",
            )
        return cls(tokens, _loaded(tokens.file.encode(), f"that is sealed with {name}"))

    def encode(self, text: bytes, name: str = "The text") -> Sequence[int]:
        """The tokens of a text, which is UTF-8 unless they are its bytes. Raises SourceError."""
        if self._library is None:
            return text
        try:
            decoded = text.decode()
        except UnicodeDecodeError as error:
            raise SourceError(
                f"{name} is not UTF-8 at byte {error.start}",
                "Convert it, or leave out --tokenizer to seal its bytes",
            ) from None
        ids: list[int] = self._library.encode(decoded, add_special_tokens=False).ids
        return ids

    def decode(self, tokens: Sequence[int]) -> bytes:
        """The text of tokens; where they are bytes, just these."""
        if self._library is None:
            return bytes(tokens)
        text: str = self._library.decode([*tokens], skip_special_tokens=False)
        return text.encode(errors="replace")


def _loaded(data: bytes, name: str) -> Any:
    """The library's tokenizer. Raises SourceError, NotInstalledError."""
    try:
        from tokenizers import Tokenizer as Library
    except ImportError:
        raise NotInstalledError(
            "The library tokenizers is not installed", "Run pip install 'plinius[text]'"
        ) from None
    try:
        library = Library.from_str(data.decode())
        library.no_truncation()
        library.no_padding()
    except Exception as error:  # the library raises nothing more exact
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise SourceError(
            f"The tokenizer {name} is not valid: {' '.join(reason.split())[:200]}",
            "Give a tokenizer.json, as Tokenizer.save of the library tokenizers writes it",
        ) from None
    return library
