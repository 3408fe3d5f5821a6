"""The console: data goes to stdout, talk and progress to stderr."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from plinius.errors import PliniusError, StorageError
from plinius.jsonvalue import Json
from plinius.training.telemetry import IterationMetrics

stderr = Console(stderr=True, highlight=False, emoji=False)  # ":100:" is a line number


class Refusals(click.Group):
    """A command group in which a refusal is one sentence and exit code 1, never a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except PliniusError as refusal:
            _refuse(refusal)
        except BrokenPipeError:
            sys.exit(1)
        except OSError as error:
            where = f" {error.filename}" if error.filename else ""
            what = f"The file system refused{where}: {error.strerror or error}"
            _refuse(StorageError(what, "Check the path and its space"))
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "allocate memory" not in str(error):
                raise
            _refuse(StorageError("There is not enough memory", "Use a machine with more"))


def _refuse(refusal: PliniusError) -> NoReturn:
    stderr.print(f"plinius: {refusal}", style="bold red", soft_wrap=True, markup=False)
    sys.exit(1)


def say(text: str) -> None:
    """Tell the person something."""
    stderr.print(text, soft_wrap=True, markup=False)


def answer(result: dict[str, Json], as_json: bool) -> None:
    """The command's result: one JSON object, or a line for each of its parts."""
    if as_json:
        click.echo(json.dumps(result))
        return
    width = max(map(len, result), default=0)
    for name, value in result.items():
        text = value if isinstance(value, str) else json.dumps(value)
        click.echo(f"{name:<{width}}  {text}")


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar for (done, all) calls; nothing is shown where stderr is no terminal."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr, transient=True, disable=not _watched()) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def training(until: int) -> Iterator[Callable[[IterationMetrics], None]]:
    """The live line of a training run: numbers that fill 80 columns, so no bar."""
    line = TextColumn("{task.description}")
    with Progress(line, console=stderr, disable=not _watched()) as live:
        task = live.add_task("starting")

        def show(m: IterationMetrics) -> None:
            live.update(
                task,
                description=f"{m.iteration}/{until} loss {m.loss:.4f} "
                f"average {m.average_loss:.4f} rate {m.rate:.5f} "
                f"{m.seconds:.2f} s/iteration mirror {1000 * m.mirror_seconds:.1f} ms",
            )

        yield show


def _watched() -> bool:
    return sys.stderr.isatty()
