"""The options of a mirror."""

from dataclasses import dataclass

from plinius.jsonvalue import Json


@dataclass(frozen=True)
class MirrorOptions:
    """The choices that `Mirror.open` describes. Raises ValueError for two that do not fit."""

    overlap: bool = False
    trust_versions: bool = False
    only_steps_write: bool = False
    threads: int | None = None
    identity: dict[str, Json] | None = None
    run_id: str | None = None

    def __post_init__(self) -> None:
        if self.only_steps_write and not self.overlap:
            raise ValueError("only_steps_write is a choice for overlap=True")
        if self.threads is not None and self.threads < 1:
            raise ValueError("threads must be at least 1")
