"""The options of a mirror."""

from dataclasses import dataclass

from plinius.errors import StateError
from plinius.history.commit_history import MOST_KEPT
from plinius.jsonvalue import Json
from plinius.mirror.anchoring import Anchor

MAX_THREADS = 1024


@dataclass(frozen=True)
class MirrorOptions:
    """The choices that `Mirror.open` describes. Raises StateError for what does not fit."""

    overlap: bool = False
    trust_versions: bool = False
    only_steps_write: bool = False
    threads: int | None = None
    identity: dict[str, Json] | None = None
    run_id: str | None = None
    anchor: Anchor | None = None
    keep: int = 0
    keep_every: int = 1

    def __post_init__(self) -> None:
        if self.only_steps_write and not self.overlap:
            raise StateError(
                "only_steps_write is a choice for overlap=True", "Give both, or leave it out"
            )
        if self.threads is not None and not _is_whole(self.threads, 1, MAX_THREADS):
            raise StateError(
                f"threads={self.threads!r} is not a number of threads",
                f"Give a whole number from 1 to {MAX_THREADS}",
            )
        every_alone = self.keep == 0 and self.keep_every != 1
        if (
            every_alone
            or not _is_whole(self.keep, 0, MOST_KEPT)
            or not _is_whole(self.keep_every, 1, 2**63 - 1)
        ):
            raise StateError(
                f"keep={self.keep!r}, keep_every={self.keep_every!r} do not say what to keep",
                f"Give keep from 1 to {MOST_KEPT} and keep_every from 1, or leave both out",
            )


def _is_whole(number: object, least: int, most: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and least <= number <= most
