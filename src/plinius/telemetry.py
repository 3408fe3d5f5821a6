"""The single exit for metrics: what leaves the trainer leaves here.

Each of these numbers is declassified: the host may read it. Nothing else about the data or the
parameters leaves in clear.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from plinius.errors import PliniusError, StorageError
from plinius.files import PRIVATE, private


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
        file = open(path, "a", encoding="utf-8", opener=_private)  # noqa: SIM115
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


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, PRIVATE)


@contextmanager
def tensorboard(folder: Path | None, after: int) -> Iterator[Listener]:
    """Writes the numbers of each iteration for TensorBoard; to None, nothing.

    `after` is where the run goes on: TensorBoard then passes over what an earlier process wrote of
    the iterations behind it. Raises StorageError, and PliniusError if TensorBoard is not installed.
    """
    if folder is None:
        yield lambda metrics: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise PliniusError(
            "TensorBoard is not installed", "Run pip install 'plinius[tensorboard]'"
        ) from None
    try:
        with private():
            writer = SummaryWriter(str(folder), purge_step=after + 1)
            writer.flush()
    except OSError as error:
        raise StorageError(
            f"Cannot write metrics to {folder}: {error.strerror}",
            "Name a folder that you can write to (--tensorboard)",
        ) from None

    def write(metrics: IterationMetrics) -> None:
        for name, value in asdict(metrics).items():
            if name != "iteration":
                writer.add_scalar(name, value, metrics.iteration)

    try:
        yield write
    finally:
        writer.close()
