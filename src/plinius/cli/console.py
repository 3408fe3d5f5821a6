"""The terminal: results go to stdout, messages and progress to stderr."""

import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Live

from plinius.data.records import Progress
from plinius.errors import PliniusError, StorageError
from plinius.jsonvalue import Json

INTERRUPTED = 128 + signal.SIGINT
"""Exit code of a command that Ctrl-C ended, as of a process that it killed."""

stderr = Console(stderr=True, highlight=False, emoji=False)  # ":100:" is a line number


_OWN_PROCESS = object()


class Refusals(click.Group):
    """A command group that prints a refusal as one message and exits with 1, never a traceback."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **extra: Any) -> Any:
        """Run a command line: that of this process if none is given."""
        if args is None and isinstance(sys.stdout, io.TextIOWrapper):
            # A terminal in Latin-1 shows other letters as escapes; names of files stay exact.
            wide = (sys.stdout.encoding or "").lower() in ("utf-8", "utf8")
            sys.stdout.reconfigure(errors="surrogateescape" if wide else "backslashreplace")
        return super().main(args, *more, obj=_OWN_PROCESS if args is None else None, **extra)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command that was named."""
        try:
            _let_commands_be_interrupted()
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _end_interrupted()
        except PliniusError as refusal:
            refuse(refusal)
        except BrokenPipeError:
            sys.exit(1)
        except OSError as error:
            where = f" {error.filename}" if error.filename else ""
            what = f"The file system refused{where}: {error.strerror or error}"
            refuse(StorageError(what, "Check the path and its space"))
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "allocate memory" not in str(error):
                _end_if_interrupted()
                raise
            refuse(StorageError("There is not enough memory", "Use a machine with more"))
        except Exception:
            _end_if_interrupted()  # an import that it cut off may end with another error
            raise


class _Interrupt:
    """The handler of Ctrl-C: raises KeyboardInterrupt, so that nothing half-made is left."""

    def __init__(self) -> None:
        self.came = False

    def __call__(self, *_: object) -> None:
        self.came = True
        spec = getattr(sys.modules.get("torch"), "__spec__", None)
        if getattr(spec, "_initializing", False):
            # torch aborts if its import is cut off, and a command makes nothing before that.
            os.write(2, b"plinius: Interrupted.\n")
            os._exit(INTERRUPTED)
        raise KeyboardInterrupt


_interrupt = _Interrupt()


def _let_commands_be_interrupted() -> None:
    """Have Ctrl-C interrupt the command, where it would end the process."""
    _interrupt.came = False
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, _interrupt)


def _end_if_interrupted() -> None:
    if _interrupt.came:
        _end_interrupted()


def _end_interrupted() -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the next one ends the process at once
    stderr.print("plinius: Interrupted.", style="bold red")
    sys.exit(INTERRUPTED)


def refuse(refusal: PliniusError) -> NoReturn:
    """Print a refusal on stderr and exit with 1."""
    stderr.print(f"plinius: {refusal}", style="bold red", soft_wrap=True, markup=False)
    sys.exit(1)


def is_own_process() -> bool:
    """Whether the command is what this process was started for, not called by another program."""
    return click.get_current_context().find_root().obj is _OWN_PROCESS


def say(text: str) -> None:
    """Print a message for the person on stderr."""
    stderr.print(text, soft_wrap=True, markup=False)


def answer(result: dict[str, Json], as_json: bool) -> None:
    """Print the command's result on stdout: one JSON object, or one line per entry."""
    if as_json:
        click.echo(json.dumps(result))
        return
    width = max(map(len, result), default=0)
    for name, value in result.items():
        text = value if isinstance(value, str) else _shown(value)
        click.echo(f"{name:<{width}}  {text}")


def _shown(value: Json) -> str:
    """A value as JSON, with letters as they are where stdout can show them."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


@contextmanager
def counting(what: str) -> Iterator[Progress]:
    """A progress bar, called with (done, total); it is hidden unless stderr is a terminal."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Live(*columns, console=stderr, transient=True, disable=not is_terminal()) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def columns_to_fit() -> int | None:
    """The columns of the terminal that shows stdout, or those of COLUMNS; None if neither is."""
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        return None
    return shutil.get_terminal_size().columns


def is_terminal() -> bool:
    """Whether a person sees stderr while the command runs."""
    return sys.stderr.isatty()
