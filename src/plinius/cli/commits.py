"""What commands on a region share: the keys of its run and data, and which commit is meant."""

import math
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, TypeVar

import click

from plinius.cli.shared_options import PATH
from plinius.history.commit_history import MOST_KEPT
from plinius.key_file import load_key
from plinius.keys import OwnerKey
from plinius.trust.job_file import show_job
from plinius.trust.release import run_key

_F = TypeVar("_F", bound=Callable[..., object])

job_of_run_option = click.option(
    "--job", "job_path", type=PATH, help="The job that a broker gave the key of the run for."
)
commit_option = click.option(
    "--commit",
    default="newest",
    show_default=True,
    help="A kept commit instead: its name, as best, or its number (plinius region log).",
)


def _learning_rate(_: click.Context, option: click.Parameter, value: str | None) -> float | None:
    """The number in learning_rate=NUMBER."""
    if value is None:
        return None
    name, _sign, text = value.partition("=")
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if name != "learning_rate" or not 0 <= number < math.inf:
        raise click.BadParameter(f"{value} is not like learning_rate=0.01", param=option)
    return number


def history_options(command: _F) -> _F:
    """`--keep`, `--keep-every` and `--from-iteration`: parameters of the same names.

    And `--set`: the parameter `learning_rate`.
    """
    for option in (
        click.option(
            "--set",
            "learning_rate",
            metavar="learning_rate=NUMBER",
            callback=_learning_rate,
            help="With --from-iteration: go on from there with this learning_rate instead of the "
            "cfg's. The run keeps it.",
        ),
        click.option(
            "--from-iteration",
            type=click.IntRange(0),
            help="Go back to the kept commit of this iteration. Every later commit records "
            "it, and the same command then resumes.",
        ),
        click.option(
            "--keep-every",
            type=click.IntRange(1),
            default=1,
            show_default=True,
            help="Of the commits for --keep, those of every so many iterations.",
        ),
        click.option(
            "--keep",
            type=click.IntRange(0, MOST_KEPT),
            default=0,
            show_default=True,
            help="Keep the last so many commits; each takes about the size of the state.",
        ),
    ):
        command = option(command)
    return command


class RegionKeys(NamedTuple):
    """What opens the run in a region, and what opens its dataset."""

    run: OwnerKey
    data: OwnerKey


def region_key_options(command: _F) -> _F:
    """`--key`, and `--job`, which is for `--key`: the parameters key_path and job_path."""
    key = click.option("--key", "key_path", type=PATH, help="The owner's key: also open with it.")
    return key(job_of_run_option(command))


def region_keys(key_path: Path | None, job_path: Path | None) -> RegionKeys | None:
    """The keys that the options give, None without `--key`. Raises KeyFileError."""
    if key_path is None:
        if job_path:
            raise click.UsageError("--job needs --key")
        return None
    key = load_key(key_path)
    if job_path is None:
        return RegionKeys(key, key)
    return RegionKeys(run_key(key, bytes.fromhex(show_job(job_path).digest)), key)


def shown_time(seconds: int) -> str:
    """Seconds since 1970 as a date and time of UTC, or as they are if they are no date."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return str(seconds)
