"""Metrics: the numbers that leave the trainer in clear, after each iteration.

The host can read each of them. `Coarseness` is the only place that decides what leaves. What else
leaves in clear is a result that a person asked a command for (`test`, `digest`, `export`):
THREATS.md lists all of it.
"""

import errno
import json
import logging
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plinius.errors import NotInstalledError, StorageError
from plinius.files import PRIVATE, not_regular, require_name

_log = logging.getLogger("plinius")


@dataclass(frozen=True)
class ValidationMetrics:
    """The score of one validation, and the best one so far with its iteration.

    `metric` says which: accuracy, mean_average_precision, or rmse, of which less is better.
    """

    metric: str
    score: float
    best: float
    best_iteration: int


@dataclass(frozen=True)
class IterationMetrics:
    """The metrics of one iteration; the first is 1.

    `loss` and `average_loss` are None where they may not leave. Where only means over several
    iterations may, `loss` is such a mean, at the last of these iterations, and None before.
    `seconds` is the whole iteration, `open_seconds` opening its records, `mirror_seconds` mirroring
    (0 bytes and nearly no time if it was not mirrored). `rate` is the learning rate. `validation`
    is None unless there was one after this iteration.
    """

    iteration: int
    loss: float | None
    average_loss: float | None
    rate: float
    seconds: float
    open_seconds: float
    mirror_seconds: float
    mirror_bytes: int
    validation: ValidationMetrics | None = None


@dataclass(frozen=True)
class Coarseness:
    """Which of `loss` and `average_loss` leave, and how coarse.

    They leave after every `every` iterations: `loss` as the mean over these, `average_loss` as it
    is then. Both are limited to 0..`largest` and rounded to `digits` decimal places, so that each
    is one of `largest` * 10**`digits` + 1 values.
    """

    allowed: frozenset[str]
    every: int
    digits: int
    largest: int

    def ends(self, iteration: int) -> bool:
        """Whether metrics leave after this iteration."""
        return iteration > 0 and iteration % self.every == 0

    def loss(self, iteration: int, total: float) -> float | None:
        """The loss that leaves; `total` is the sum over the last `every` iterations."""
        return self._leaves("loss", iteration, total / self.every)

    def average_loss(self, iteration: int, average: float | None) -> float | None:
        """The average loss that leaves."""
        return self._leaves("average_loss", iteration, average)

    def score(self, value: float) -> float:
        """The accuracy or mean average precision that leaves, of one from 0 to 1."""
        return round(value, self.digits)

    def _leaves(self, name: str, iteration: int, value: float | None) -> float | None:
        if name not in self.allowed or value is None or not self.ends(iteration):
            return None
        return round(min(max(value, 0.0), float(self.largest)), self.digits)


Listener = Callable[[IterationMetrics], None]
"""A function called with the metrics of every iteration, after its commit if it has one."""


def check_outputs(metrics: Path | None, board: Path | None) -> None:
    """Raise what `metrics_file` and `tensorboard` raise, before a run is made for nothing."""
    if metrics is not None:
        try:
            require_name(metrics)
            if _there(metrics):
                os.close(_private(metrics))
            else:
                _require_writable(metrics.parent)
        except OSError as error:
            raise _cannot_write_file(metrics, error) from None
    if board is not None:
        _summary_writer()
        try:
            require_name(board)
            nearest = next((it for it in (board, *board.parents) if _there(it)), Path())
            _require_writable(nearest)
        except OSError as error:
            raise _cannot_write_folder(board, error) from None


def _there(path: Path) -> bool:
    """Whether there is something of this name. Raises OSError for a name that cannot be."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _require_writable(folder: Path) -> None:
    """Raise OSError unless files can be made in a folder."""
    if not stat.S_ISDIR(folder.stat().st_mode):
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


@contextmanager
def metrics_file(path: Path | None) -> Iterator[Listener]:
    """A listener that appends a JSON line per iteration to a file; if None, it does nothing.

    A kill damages at most the last line. A line that cannot be written, as on a full disk, is
    missing, and said in the log once: training goes on. Raises StorageError if the file cannot be
    opened.
    """
    if path is None:
        yield lambda metrics: None
        return
    try:
        handle = _private(path)
    except OSError as error:
        raise _cannot_write_file(path, error) from None
    warn = _warn_once(f"Metrics cannot be written to {path}")
    # What follows a line that a kill or a full disk cut is a line of its own.
    size = os.fstat(handle).st_size
    torn = b"\n" if size and os.pread(handle, 1, size - 1) != b"\n" else b""

    def write(metrics: IterationMetrics) -> None:
        nonlocal torn
        line = torn + json.dumps(asdict(metrics)).encode() + b"\n"
        try:
            whole = os.write(handle, line) == len(line)
            torn = b"" if whole else b"\n"
            if not whole:
                warn(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        except OSError as error:
            warn(error)

    try:
        yield write
    finally:
        os.close(handle)


def _warn_once(what: str) -> Callable[[OSError], None]:
    warned = False

    def warn(error: OSError) -> None:
        nonlocal warned
        if not warned:
            _log.warning("%s: %s. Training goes on.", what, error.strerror or error)
        warned = True

    return warn


def _private(path: Path) -> int:
    """Open a file to append to, or make it; what is no regular file is neither followed nor waited
    for. Raises OSError, StorageError.
    """
    require_name(path)
    if path.is_symlink():
        raise not_regular()
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    handle = os.open(path, flags, PRIVATE)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise not_regular()
    return handle


@contextmanager
def tensorboard(folder: Path | None, resumed_at: int) -> Iterator[Listener]:
    """A listener that writes metrics for TensorBoard; if `folder` is None, it does nothing.

    TensorBoard ignores what an earlier process wrote about iterations after `resumed_at`. Raises
    StorageError, and NotInstalledError if TensorBoard is not installed.
    """
    if folder is None:
        yield lambda metrics: None
        return
    made = _summary_writer()
    require_name(folder)
    try:
        with private_files():
            writer = made(str(folder), purge_step=resumed_at + 1)
            writer.flush()
    except OSError as error:
        raise _cannot_write_folder(folder, error) from None

    warn = _warn_once(f"Metrics cannot be written to {folder}")

    def write(metrics: IterationMetrics) -> None:
        try:
            for name, value in scalars(metrics).items():
                writer.add_scalar(name, value, metrics.iteration)
        except OSError as error:
            warn(error)

    try:
        yield write
    finally:
        try:
            writer.close()
        except OSError as error:
            warn(error)


def _summary_writer() -> Any:
    """TensorBoard's class. Raises NotInstalledError."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise NotInstalledError(
            "TensorBoard is not installed", "Run pip install 'plinius[tensorboard]'"
        ) from None
    return SummaryWriter


def scalars(metrics: IterationMetrics) -> dict[str, float]:
    """The metrics by name, without those that are None; that of a validation as validation_..."""
    values = asdict(metrics)
    del values["iteration"], values["validation"]
    if it := metrics.validation:
        values[f"validation_{it.metric}"] = it.score
    return {name: value for name, value in values.items() if value is not None}


@contextmanager
def private_files() -> Iterator[None]:
    """A context in which other code makes private files: it sets the umask of the process."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def _cannot_write_file(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"Cannot write metrics to {path}: {error.strerror}",
        "Name a file in a folder that you can write to (--metrics)",
    )


def _cannot_write_folder(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"Cannot write metrics to {path}: {error.strerror}",
        "Name a folder that you can write to (--tensorboard)",
    )
