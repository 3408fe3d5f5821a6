"""JSON values (RFC 8259): their type, and the one way in which they are written."""

import itertools
import json
import math
import os
from typing import Any


class JsonText:
    """A value as the JSON that `to_json` wrote of it; in a tree it stands for that value."""

    __slots__ = ("text",)

    def __init__(self, text: bytes) -> None:
        self.text = text


Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"] | JsonText
"""What JSON can hold, without NaN and infinities."""

_MARK = os.urandom(16).hex()  # no value of a user is equal to it


def to_json(value: Json) -> bytes:
    """JSON in ASCII without spaces, keys sorted by code point, floats in their shortest exact form.

    Equal values have equal bytes. Raises ValueError for a float that is not finite.
    """
    texts: list[bytes] = []

    def mark(text: object) -> str:
        if not isinstance(text, JsonText):
            raise TypeError(f"a {type(text).__qualname__} has no JSON")
        texts.append(text.text)
        return _MARK

    dumped = json.dumps(
        value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=mark
    ).encode()
    if not texts:
        return dumped
    between = dumped.split(f'"{_MARK}"'.encode())
    return b"".join(itertools.chain(*zip(between, texts, strict=False), between[-1:]))


def from_json(data: bytes) -> dict[str, Any]:
    """The object that JSON in UTF-8 says.

    Raises ValueError for everything else: no object, a key twice in one object, a number that no
    finite float can hold, too many levels.
    """
    try:
        found = json.loads(
            data.decode(), parse_constant=_finite, parse_float=_finite, object_pairs_hook=_object
        )
    except RecursionError:
        raise ValueError("the JSON has too many levels") from None
    if not isinstance(found, dict):
        raise ValueError("the JSON is no object")
    return found


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError("the JSON has a number that is not finite")
    return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("the JSON has a key twice in one object")
    return found
