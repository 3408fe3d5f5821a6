"""The single exit for metrics: what leaves the trainer leaves here.

Each of these numbers is declassified: the host may read it. Nothing else about the data or the
parameters leaves in clear.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from plinius.errors import StorageError


@dataclass(frozen=True)
class IterationMetrics:
    """What is told of one iteration. Times are in seconds."""

    iteration: int
    loss: float
    average_loss: float
    rate: float
    seconds: float
    open_seconds: float
    mirror_seconds: float
    mirror_bytes: int


Listener = Callable[[IterationMetrics], None]


@contextmanager
def metrics_file(path: Path | None) -> Iterator[Listener]:
    """Appends one JSON line an iteration to a file, after its commit if any; to None, nothing.

    Each line is written whole, so that a kill never tears an earlier one. Raises StorageError.
    """
    if path is None:
        yield lambda metrics: None
        return
    try:
        file = path.open("a", encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"Cannot write metrics to {path}: {error.strerror}",
            "Name a file in a folder that you can write to (--metrics)",
        ) from None

    def write(metrics: IterationMetrics) -> None:
        file.write(json.dumps(asdict(metrics)) + "\n")
        file.flush()

    with file:
        yield write
