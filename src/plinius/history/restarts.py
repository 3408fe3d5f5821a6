"""What every commit carries of the past of its run: its first commit, and where it was restarted.

It is in the environment of the manifest, sealed, and no part of the state or its digest: a run that
was killed has the bits of one that was not.
"""

from typing import cast

from plinius.jsonvalue import Json
from plinius.slots import Manifest, Slots

MAX_RESTARTS = 256
"""So many of the newest restarts are listed; all are counted."""


class Restarts:
    """What is known of the past of a mirrored run."""

    def __init__(self) -> None:
        self.first: str | None = None
        self.count = 0
        self.restarts: list[tuple[int, int]] = []

    @classmethod
    def of(cls, manifest: Manifest) -> "Restarts":
        """What a commit carries: the past up to this commit."""
        found, where = cls(), manifest.environment
        found.first = cast(str | None, where.get("first"))
        if manifest.commit == 1:
            found.first = manifest.digest
        found.count = cast(int, where.get("restart_count", 0))
        listed = cast(list[list[int]], where.get("restarts", []))
        found.restarts = [(commit, iteration) for commit, iteration in listed]
        return found

    def restarted(self, manifest: Manifest) -> None:
        """Note that the run goes on from a commit."""
        self.count += 1
        self.restarts = [*self.restarts, (manifest.commit, manifest.iteration)][-MAX_RESTARTS:]

    def environment(self, slots: Slots) -> dict[str, Json]:
        """What the next commit carries."""
        if slots.commits == 1:
            self.first = slots.digest
        listed: list[Json] = [[commit, iteration] for commit, iteration in self.restarts]
        return {"first": self.first, "restarts": listed, "restart_count": self.count}
