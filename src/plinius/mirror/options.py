"""The options of a mirror."""

from dataclasses import dataclass

from plinius.errors import StateError
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

    def __post_init__(self) -> None:
        if self.only_steps_write and not self.overlap:
            raise StateError(
                "only_steps_write is a choice for overlap=True", "Give both, or leave it out"
            )
        if self.threads is not None and not _is_count(self.threads):
            raise StateError(
                f"threads={self.threads!r} is not a number of threads",
                f"Give a whole number from 1 to {MAX_THREADS}",
            )


def _is_count(threads: int) -> bool:
    return (
        isinstance(threads, int) and not isinstance(threads, bool) and 1 <= threads <= MAX_THREADS
    )
