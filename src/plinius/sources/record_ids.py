"""The owner's names of records, sealed beside the class names."""

import json
from collections.abc import Sequence
from typing import Any

from plinius.data.dataset_header import MAX_META_BYTES
from plinius.errors import FormatError
from plinius.jsonvalue import Json


def ids_that_fit(ids: Sequence[str]) -> dict[str, Json]:
    """The member `ids` of a meta block; none if they would take more than half of its room."""
    fits = len(json.dumps(ids)) <= MAX_META_BYTES // 2
    return {"ids": [*ids]} if fits else {}


def record_ids(about: dict[str, Any], count: int, name: str) -> list[str]:
    """The ids in an opened meta block; without them the numbers of records. Raises FormatError."""
    ids = about.get("ids")
    if ids is None:
        return [str(number) for number in range(count)]
    if isinstance(ids, list) and len(ids) == count and all(isinstance(id, str) for id in ids):
        return ids
    raise FormatError(f"The record ids of {name} are not valid", "Seal the data again")
