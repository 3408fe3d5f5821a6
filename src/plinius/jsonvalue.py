"""Values as JSON: the type, and the one way to write them."""

import json

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
"""What JSON can hold."""


def to_json(value: Json) -> bytes:
    """Compact JSON with sorted keys; a float is written so that it reads back bit for bit.

    Raises ValueError for a float that is not finite: RFC 8259 has no word for it.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
