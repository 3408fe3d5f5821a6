"""`plinius bench`: the commands that measure."""

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from plinius.cli.console import counting
from plinius.errors import StorageError
from plinius.files import publish, require_name

if TYPE_CHECKING:
    from plinius_benchmarks.report import Progress, Report

    Measure = Callable[[Progress], Report]

_PATH = click.Path(path_type=Path)
_MEMORY = Path("/dev/shm")  # noqa: S108 - fresh folders are made in it


def _options(*options: Any) -> Callable[[Any], Any]:
    """A decorator that adds several options to a command."""
    return lambda command: functools.reduce(lambda made, add: add(made), reversed(options), command)


_out = _options(
    click.option("--plot", type=_PATH, help="Also draw a picture (needs matplotlib)."),
    click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout."),
)
_short = click.option("--short", is_flag=True, help="Fewer sizes and rounds.")
_places = click.option(
    "--place", "places", type=_PATH, multiple=True,
    help="A folder to measure in; default: /dev/shm and the current one.",
)  # fmt: skip
_cfg = click.option("--cfg", type=_PATH, required=True, help="A Darknet network.")
_training = _options(
    _cfg,
    click.option("--data", type=_PATH, required=True, help="A sealed dataset for it."),
    click.option("--key", "key_path", type=_PATH, required=True, help="The owner's key file."),
    _places,
    _short,
)


@click.group()
def bench() -> None:
    """Measure on this machine what the paper measured on its own."""


@bench.command()
@click.option("--seconds", type=click.FloatRange(0.01, 60), default=0.6, show_default=True)
@_out
def sps(seconds: float, **out: Any) -> None:
    """Random swaps in persistent memory, beside the paper's figure 6; SECONDS for each point."""
    _run(_sps(seconds), **out)


@bench.command()
@_training
@_out
def iteration(plot: Path | None, as_json: bool, **run: Any) -> None:
    """An iteration of the trainer, everything included, against PyTorch by hand."""
    _run(_iteration(**run), plot, as_json)


@bench.command()
@_places
@_short
@_out
def mirror(places: tuple[Path, ...], short: bool, **out: Any) -> None:
    """Saving and restoring against all other ways, beside the paper's figure 7 and table I."""
    _run(_mirror(places, short), **out)


@bench.command()
@_short
@_out
def batch(short: bool, **out: Any) -> None:
    """Iterations on sealed and on plain data, beside the paper's figure 8."""
    _run(_batch(short), **out)


@bench.command()
@_training
@_out
def crash(plot: Path | None, as_json: bool, **run: Any) -> None:
    """Training that is killed, with a mirror and without, as in the paper's figure 9."""
    _run(_crash(**run), plot, as_json)


@bench.command()
@_cfg
@_places
@_short
@_out
def overhead(cfg: Path, places: tuple[Path, ...], short: bool, **out: Any) -> None:
    """What a mirror costs an iteration of three models."""
    _run(_overhead(cfg, places, short), **out)


@bench.command(name="all")
@_training
@click.option("-o", "--output", type=_PATH, required=True, help="A folder for the report page.")
def everything(output: Path, **run: Any) -> None:
    """Measure all of it and write one page, report.html, with a JSON file and a plot of each."""
    from plinius_benchmarks.page import write_page
    from plinius_benchmarks.plots import plot

    places, short = run["places"], run["short"]
    measures = {
        "sps": _sps(0.2 if short else 0.6),
        "iteration": _iteration(**run),
        "mirror": _mirror(places, short),
        "batch": _batch(short),
        "crash": _crash(**run),
        "overhead": _overhead(run["cfg"], places, short),
    }
    require_name(output)
    output.mkdir(parents=True, exist_ok=True)
    for name in measures:
        _require_free(output / f"{name}.json")
        _require_free(output / f"{name}.png")
    _require_free(output / "report.html")
    reports, pictures = [], {}
    for name, measure in measures.items():
        with counting(f"measuring {name}") as progress:
            report = measure(progress)
        with publish(output / f"{name}.json") as file:
            file.write((json.dumps(report, indent=1) + "\n").encode())
        pictures[name] = output / f"{name}.png"
        plot(report, pictures[name])
        _print(report)
        reports.append(report)
    write_page(reports, pictures, output / "report.html")
    click.echo(f"All figures: {output / 'report.html'}")


def _sps(seconds: float) -> "Measure":
    from plinius_benchmarks.sps import run_sps

    return lambda progress: run_sps(seconds, progress=progress)


def _iteration(
    cfg: Path, data: Path, key_path: Path, places: tuple[Path, ...], short: bool
) -> "Measure":
    from plinius_benchmarks import iteration as module

    rounds = module.SHORT_ROUNDS if short else module.ROUNDS
    return lambda progress: module.run_iteration(cfg, data, key_path, _in(places), rounds, progress)


def _mirror(places: tuple[Path, ...], short: bool) -> "Measure":
    from plinius_benchmarks import mirror as module

    layers = module.SHORT if short else module.LAYERS + module.LARGE
    rounds = module.SHORT_ROUNDS if short else module.ROUNDS
    return lambda progress: module.run_mirror(_in(places), layers, rounds, progress)


def _batch(short: bool) -> "Measure":
    from plinius_benchmarks import batch as module

    sizes = module.SHORT if short else module.SIZES
    rounds = module.SHORT_ROUNDS if short else module.ROUNDS
    return lambda progress: module.run_batch(sizes, rounds, progress)


def _crash(
    cfg: Path, data: Path, key_path: Path, places: tuple[Path, ...], short: bool
) -> "Measure":
    from plinius_benchmarks import crash as module

    iterations = module.SHORT_ITERATIONS if short else module.ITERATIONS
    kills = module.SHORT_KILLS if short else module.KILLS
    return lambda progress: module.run_crash(
        cfg, data, key_path, iterations, kills, _in(places), progress
    )


def _overhead(cfg: Path, places: tuple[Path, ...], short: bool) -> "Measure":
    from plinius_benchmarks import overhead as module

    rounds = module.SHORT_ROUNDS if short else module.ROUNDS
    return lambda progress: module.run_overhead(cfg, _in(places), rounds, progress)


def _in(places: tuple[Path, ...]) -> tuple[Path, ...]:
    return places or tuple(place for place in (_MEMORY, Path.cwd()) if place.is_dir())


def _run(measure: "Measure", plot: Path | None, as_json: bool) -> None:
    from plinius_benchmarks import plots

    if plot:
        _require_free(plot)
    with counting("measuring") as progress:
        report = measure(progress)
    if plot:
        plots.plot(report, plot)
    if as_json:
        click.echo(json.dumps(report))
    else:
        _print(report)


def _require_free(path: Path) -> None:
    """Raise StorageError for a name that is taken: before an hour of measuring, not after it."""
    require_name(path)
    if os.path.lexists(path):
        raise StorageError(f"{path} exists already", "Choose another name, or remove it first")


def _print(report: "Report") -> None:
    from plinius_benchmarks.tables import tables

    for table in tables(report):
        Console(width=170).print(table)
