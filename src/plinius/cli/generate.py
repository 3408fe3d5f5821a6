"""`generate`: text that a mirrored network writes."""

from collections.abc import Sequence
from pathlib import Path

import click

from plinius.cli.access import OwnerAccess, owner_access
from plinius.cli.commits import commit_option
from plinius.cli.console import answer, say
from plinius.cli.shared_options import (
    PATH,
    cfg_argument,
    json_option,
    region_option,
)
from plinius.sources.tokenizer import Tokenizer, Tokens


@click.command()
@cfg_argument
@region_option
@owner_access
@click.option("--begin", default="\n", help="What the text goes on from. Default: a line end.")
@click.option(
    "--length",
    type=click.IntRange(1, 1_000_000),
    default=200,
    show_default=True,
    help="In tokens (bytes).",
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
@click.option("--tokenizer", type=PATH, help="The tokenizer of the text, if too long to seal.")
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
    tokenizer: Path | None,
    commit: str,
    as_json: bool,
) -> None:
    """Write text with a mirrored network that was trained on text. It is in clear."""
    if not begin:
        raise click.UsageError("--begin needs one character or more")
    from plinius.training.evaluation import TrainingData
    from plinius.training.generation import generate as generated

    snapshot = access.state(region, commit)
    if access.permit:
        access.permit.refuse("generating text")
    tokens = TrainingData.of_region(region, access.key).tokens or Tokens()
    coding = Tokenizer.of(tokens, tokenizer, "the text in the region")
    before = coding.encode(begin.encode(), "--begin")
    if not before:
        raise click.UsageError("--begin has no token of the tokenizer")
    ids = generated(
        cfg,
        snapshot,
        before,
        length,
        temperature=temperature,
        seed=seed,
        tokens=tokens.count,
    )
    written = _continued(coding, before, ids)
    say("The text is in clear; it may repeat what the network was trained on.")
    if as_json:
        answer({"text": written, "iteration": snapshot.iteration}, True)
    else:
        click.echo(begin + written)


def _continued(coding: Tokenizer, before: Sequence[int], ids: list[int]) -> str:
    """The text of `ids` after that of `before`: whether it begins with a space can depend on it."""
    whole, begun = coding.decode([*before, *ids]), coding.decode(before)
    text = whole[len(begun) :] if whole.startswith(begun) else coding.decode(ids)
    return text.decode(errors="replace")
