"""`generate`: text that a mirrored network writes."""

from pathlib import Path

import click

from plinius.cli.attest import job_digest_option, key_of_run
from plinius.cli.commits import commit_option
from plinius.cli.console import answer, say
from plinius.cli.shared_options import (
    cfg_argument,
    job_options,
    json_option,
    key_option,
    load_permit,
    region_option,
)
from plinius.history.reading import snapshot_of
from plinius.keys import load_key
from plinius.trust.permit import require_job_of


@click.command()
@cfg_argument
@region_option
@key_option
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
@job_digest_option
@job_options
@commit_option
@json_option
def generate(
    cfg: Path,
    region: Path,
    key_path: Path,
    begin: str,
    length: int,
    temperature: float,
    seed: int,
    job_digest: bytes | None,
    job_path: Path | None,
    owner_path: Path | None,
    commit: str,
    as_json: bool,
) -> None:
    """Write text with a mirrored network that was trained on text. It is in clear."""
    if not begin:
        raise click.UsageError("--begin needs one character or more")
    from plinius.training.generation import generate as generated

    permit = load_permit(job_path, owner_path)
    snapshot = snapshot_of(region, key_of_run(load_key(key_path), job_digest), commit)
    require_job_of(snapshot, permit.digest if permit else None)
    if permit:
        permit.refuse("generating text")
    written = generated(
        cfg, snapshot, begin.encode(), length, temperature=temperature, seed=seed
    ).decode(errors="replace")
    say("The text is in clear; it may repeat what the network was trained on.")
    if as_json:
        answer({"text": written, "iteration": snapshot.iteration}, True)
    else:
        click.echo(begin + written)
