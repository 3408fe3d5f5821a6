"""`generate`: text that a mirrored network writes."""

from pathlib import Path

import click

from plinius.cli.access import OwnerAccess, owner_access
from plinius.cli.commits import commit_option
from plinius.cli.console import answer, say
from plinius.cli.shared_options import (
    cfg_argument,
    json_option,
    region_option,
)


@click.command()
@cfg_argument
@region_option
@owner_access
@click.option("--begin", default="\n", help="What the text goes on from. Default: a line end.")
@click.option(
    "--length", type=click.IntRange(1, 1_000_000), default=200, show_default=True, help="In bytes."
)
@click.option(
    "--temperature",
    type=click.FloatRange(0.01, 100),
    default=0.7,
    show_default=True,
    help="Above 1 more surprising, below 1 less.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Decides what is drawn.",
)
@commit_option
@json_option
def generate(
    cfg: Path,
    region: Path,
    access: OwnerAccess,
    begin: str,
    length: int,
    temperature: float,
    seed: int,
    commit: str,
    as_json: bool,
) -> None:
    """Write text with a mirrored network that was trained on text. It is in clear."""
    if not begin:
        raise click.UsageError("--begin needs one character or more")
    from plinius.training.generation import generate as generated

    snapshot = access.state(region, commit)
    if access.permit:
        access.permit.refuse("generating text")
    written = generated(
        cfg, snapshot, begin.encode(), length, temperature=temperature, seed=seed
    ).decode(errors="replace")
    say("The text is in clear; it may repeat what the network was trained on.")
    if as_json:
        answer({"text": written, "iteration": snapshot.iteration}, True)
    else:
        click.echo(begin + written)
