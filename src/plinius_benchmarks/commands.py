"""`plinius bench`: the commands that measure."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from plinius.cli.console import counting

if TYPE_CHECKING:
    from plinius_benchmarks.figures import Report

_PATH = click.Path(path_type=Path)
_MEMORY = Path("/dev/shm")  # noqa: S108 - fresh folders are made in it
_json = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
_plot = click.option("--plot", type=_PATH, help="Also draw a picture (needs matplotlib).")
_short = click.option("--short", is_flag=True, help="Fewer sizes and rounds.")
_places = click.option(
    "--place", "places", type=_PATH, multiple=True,
    help="A folder to measure in; default: /dev/shm and the current one.",
)  # fmt: skip
_cfg = click.option("--cfg", type=_PATH, required=True, help="A Darknet network.")
_data = click.option("--data", type=_PATH, required=True, help="A sealed dataset for it.")
_key = click.option("--key", "key_path", type=_PATH, required=True, help="The owner's key file.")

Progress = Callable[[int, int], None]


@click.group()
def bench() -> None:
    """Measure on this machine what the paper measured on its own."""


@bench.command()
@click.option("--seconds", type=click.FloatRange(0.01, 60), default=0.6, show_default=True)
@_plot
@_json
def sps(seconds: float, plot: Path | None, as_json: bool) -> None:
    """Random swaps in persistent memory, beside the paper's Fig. 6; SECONDS for each point."""
    from plinius_benchmarks.sps import run_sps
    from plinius_benchmarks.sps_report import sps_plot, sps_table

    with counting("measuring") as progress:
        report = run_sps(seconds, progress=progress)
    if plot:
        sps_plot(report, plot)
    if as_json:
        click.echo(json.dumps(report))
    else:
        Console(width=150).print(sps_table(report))


@bench.command()
@_places
@_short
@_plot
@_json
def mirror(places: tuple[Path, ...], short: bool, **out: Any) -> None:
    """Saving and restoring against all other ways, beside the paper's Fig. 7 and Table I."""
    _tell(lambda progress: _mirror(places, short, progress), **out)


@bench.command()
@_short
@_plot
@_json
def batch(short: bool, **out: Any) -> None:
    """Iterations on sealed and on plain data, beside the paper's Fig. 8."""
    _tell(lambda progress: _batch(short, progress), **out)


@bench.command()
@_cfg
@_data
@_key
@_places
@_short
@_plot
@_json
def crash(
    cfg: Path, data: Path, key_path: Path, places: tuple[Path, ...], short: bool, **out: Any
) -> None:
    """Training that is killed, with a mirror and without, as the paper's Fig. 9."""
    _tell(lambda progress: _crash(cfg, data, key_path, places, short, progress), **out)


@bench.command()
@_cfg
@_places
@_short
@_plot
@_json
def overhead(cfg: Path, places: tuple[Path, ...], short: bool, **out: Any) -> None:
    """What a mirror costs an iteration of three models."""
    _tell(lambda progress: _overhead(cfg, places, short, progress), **out)


@bench.command(name="all")
@_cfg
@_data
@_key
@_places
@_short
@click.option("-o", "--output", type=_PATH, required=True, help="A folder for the report page.")
def everything(
    cfg: Path, data: Path, key_path: Path, places: tuple[Path, ...], short: bool, output: Path
) -> None:
    """Measure all of it and write one page, report.html, with a JSON file and a plot of each."""
    from plinius_benchmarks.page import write_page
    from plinius_benchmarks.plots import plot

    output.mkdir(parents=True, exist_ok=True)
    reports, pictures = [], {}
    runs: dict[str, Callable[[Progress], Report]] = {
        "mirror": lambda progress: _mirror(places, short, progress),
        "batch": lambda progress: _batch(short, progress),
        "crash": lambda progress: _crash(cfg, data, key_path, places, short, progress),
        "overhead": lambda progress: _overhead(cfg, places, short, progress),
    }
    for name, run in runs.items():
        with counting(f"measuring {name}") as progress:
            report = run(progress)
        (output / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
        pictures[name] = output / f"{name}.png"
        plot(report, pictures[name])
        _print(report)
        reports.append(report)
    write_page(reports, pictures, output / "report.html")
    click.echo(f"All figures: {output / 'report.html'}")


def _mirror(places: tuple[Path, ...], short: bool, progress: Progress) -> "Report":
    from plinius_benchmarks import mirror as module

    layers = module.SHORT if short else module.LAYERS + module.LARGE
    rounds = module.SHORT_ROUNDS if short else module.ROUNDS
    return module.run_mirror(_in(places), layers, rounds, progress)


def _batch(short: bool, progress: Progress) -> "Report":
    from plinius_benchmarks import batch as module

    sizes = module.SHORT if short else module.SIZES
    rounds = module.SHORT_ROUNDS if short else module.ROUNDS
    return module.run_batch(sizes, rounds, progress)


def _crash(
    cfg: Path,
    data: Path,
    key_path: Path,
    places: tuple[Path, ...],
    short: bool,
    progress: Progress,
) -> "Report":
    from plinius_benchmarks import crash as module

    iterations = module.SHORT_ITERATIONS if short else module.ITERATIONS
    kills = module.SHORT_KILLS if short else module.KILLS
    return module.run_crash(cfg, data, key_path, iterations, kills, _in(places), progress)


def _overhead(cfg: Path, places: tuple[Path, ...], short: bool, progress: Progress) -> "Report":
    from plinius_benchmarks import overhead as module

    rounds = module.SHORT_ROUNDS if short else module.ROUNDS
    return module.run_overhead(cfg, _in(places), rounds, progress)


def _in(places: tuple[Path, ...]) -> tuple[Path, ...]:
    return places or tuple(place for place in (_MEMORY, Path.cwd()) if place.is_dir())


def _tell(run: Callable[[Progress], "Report"], plot: Path | None, as_json: bool) -> None:
    from plinius_benchmarks import plots

    with counting("measuring") as progress:
        report = run(progress)
    if plot:
        plots.plot(report, plot)
    if as_json:
        click.echo(json.dumps(report))
    else:
        _print(report)


def _print(report: "Report") -> None:
    from plinius_benchmarks.tables import tables

    for table in tables(report):
        Console(width=170).print(table)
