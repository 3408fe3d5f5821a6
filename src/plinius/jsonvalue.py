"""JSON values (RFC 8259): their type, and the one way in which they are written."""

import json
import math
from typing import Any

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
"""What JSON can hold, without NaN and infinities."""


def to_json(value: Json) -> bytes:
    """JSON in ASCII without spaces, keys sorted by code point, floats in their shortest exact form.

    Equal values have equal bytes. Raises ValueError for a float that is not finite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


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
