"""What a hardened process reports of itself."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """One measure: `missing` says why it is not in force; it is None if it is."""

    name: str
    missing: str | None = None
