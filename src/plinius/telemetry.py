"""The single exit for metrics: what leaves the trainer leaves here.

Each of these numbers is declassified: the host may read it. Nothing else about the data or the
parameters leaves in clear.
"""

import json
from collections.abc import Callable
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


class MetricsFile:
    """Appends one JSON line an iteration, after its commit."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise StorageError(
                f"Cannot write metrics to {path}: {error.strerror}",
                "Name a file in a folder that you can write to (--metrics)",
            ) from None

    def __call__(self, metrics: IterationMetrics) -> None:
        """Write one line, whole, so that a kill never tears an earlier one."""
        self._file.write(json.dumps(asdict(metrics)) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
