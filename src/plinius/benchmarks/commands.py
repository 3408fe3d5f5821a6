"""`plinius bench`: the commands that measure."""

import json
from pathlib import Path

import click
from rich.console import Console

from plinius.console import counting

_PATH = click.Path(path_type=Path)


@click.group()
def bench() -> None:
    """Measure on this machine what the paper measured on its own."""


@bench.command()
@click.option("--seconds", type=click.FloatRange(0.01, 60), default=0.6, show_default=True)
@click.option("--plot", type=_PATH, help="Also draw a picture (needs matplotlib).")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def sps(seconds: float, plot: Path | None, as_json: bool) -> None:
    """Random swaps in persistent memory, beside the paper's Fig. 6; SECONDS for each point."""
    from plinius.benchmarks.sps import run_sps
    from plinius.benchmarks.sps_report import sps_plot, sps_table

    with counting("measuring") as progress:
        report = run_sps(seconds, progress=progress)
    if plot:
        sps_plot(report, plot)
    if as_json:
        click.echo(json.dumps(report))
    else:
        Console(width=150).print(sps_table(report))
