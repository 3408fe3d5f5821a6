"""JSON values: their type, and how they are written."""

import json

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
"""A value that JSON can represent."""


def to_json(value: Json) -> bytes:
    """Compact JSON in UTF-8 with sorted keys; a float is read back bit for bit.

    Raises ValueError for a float that is not finite, which JSON cannot represent (RFC 8259).
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
