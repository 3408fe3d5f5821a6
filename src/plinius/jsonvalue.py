"""JSON values (RFC 8259): their type, and the one way in which they are written."""

import json

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
"""What JSON can hold, without NaN and infinities."""


def to_json(value: Json) -> bytes:
    """JSON in ASCII without spaces, keys sorted by code point, floats in their shortest exact form.

    Equal values have equal bytes. Raises ValueError for a float that is not finite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
