"""What `train` shows of its metrics on stderr: a live line on a terminal, else lines for a log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import Progress as Live
from rich.progress import TextColumn

from plinius.cli.console import is_terminal, say, stderr
from plinius.training.metrics import IterationMetrics, Listener

LOG_EVERY = 100
_SMOOTHING = 0.1


@contextmanager
def training_progress(until: int, log_every: int | None, details: bool) -> Iterator[Listener]:
    """A listener that shows metrics; `details` are where the time of an iteration goes.

    A terminal has a line that is replaced, with the time that is left. A pipe or a file has a line
    after every `log_every` iterations (LOG_EVERY if None), as has a terminal if it is given. Each
    validation has a line of its own.
    """
    lines = log_every or (None if is_terminal() else LOG_EVERY)
    left = _TimeLeft(until)
    column = TextColumn("{task.description}", markup=False)
    with Live(column, console=stderr, disable=not is_terminal()) as live:
        task = live.add_task("starting")

        def show(m: IterationMetrics) -> None:
            text = _line(m, until, details)
            if lines and m.iteration % lines == 0:
                say(text)
            if it := m.validation:
                say(
                    f"{m.iteration}/{until} validation {it.metric} {it.score:.4f}, "
                    f"best {it.best:.4f} at {it.best_iteration}"
                )
            live.update(task, description=f"{text} {left(m.iteration)}")

        yield show


def _line(m: IterationMetrics, until: int, details: bool) -> str:
    text = (
        f"{m.iteration}/{until} loss {_number(m.loss)} average {_number(m.average_loss)} "
        f"rate {m.rate:.5f} {m.seconds:.2f} s/iteration"
    )
    if details:
        text += f" open {1000 * m.open_seconds:.1f} ms mirror {1000 * m.mirror_seconds:.1f} ms"
    return text


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


class _TimeLeft:
    """The time that is left, from a running average of the time between iterations."""

    def __init__(self, until: int) -> None:
        self._until, self._last, self._seconds = until, time.monotonic(), None

    _seconds: float | None

    def __call__(self, iteration: int) -> str:
        now = time.monotonic()
        took, self._last = now - self._last, now
        before = took if self._seconds is None else self._seconds
        self._seconds = before + _SMOOTHING * (took - before)
        minutes, seconds = divmod(round(self._seconds * (self._until - iteration)), 60)
        return f"ETA {minutes // 60}:{minutes % 60:02}:{seconds:02}"
