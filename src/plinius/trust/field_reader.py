"""Reads the fields of a quote, in order."""

from typing import Literal

from plinius.trust.claims import does_not_hold


class FieldReader:
    """Reads fields of bytes, numbers in one byte order; what lies beyond the end is refused."""

    def __init__(self, data: bytes, order: Literal["little", "big"]) -> None:
        self._data, self._order, self._at = data, order, 0

    @property
    def left(self) -> int:
        """Bytes not yet read."""
        return len(self._data) - self._at

    def take(self, length: int) -> bytes:
        """The next bytes. Raises AttestationError if there are not so many."""
        if length > self.left:
            raise does_not_hold("the quote is truncated")
        self._at += length
        return self._data[self._at - length : self._at]

    def number(self, length: int) -> int:
        """The next whole number of `length` bytes."""
        return int.from_bytes(self.take(length), self._order)

    def sized(self) -> bytes:
        """The next bytes, behind their length in 2 bytes."""
        return self.take(self.number(2))
