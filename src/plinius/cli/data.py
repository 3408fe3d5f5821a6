"""Sealed files: `inspect` shows what is readable without a key, `open` writes them in clear."""

from pathlib import Path

import click

from plinius.cli.console import answer, say
from plinius.cli.inspect_files import inspect_file
from plinius.cli.shared_options import PATH, json_option, key_option
from plinius.data.sealed_dataset import SealedDataset
from plinius.key_file import load_key
from plinius.sources.clear_files import SUFFIXES, source_of, write_clear
from plinius.sources.sealed_file import SUFFIXES as FILE_SUFFIXES
from plinius.sources.text import write_text


@click.command()
@click.argument("file", type=PATH)
@json_option
def inspect(file: Path, as_json: bool) -> None:
    """Show what a sealed dataset or a region is, without a key."""
    answer(inspect_file(file), as_json)


@click.command(name="open")
@click.argument("file", type=PATH)
@key_option
@click.option(
    "-o",
    "--output",
    type=PATH,
    required=True,
    help="A .csv or .npz file; .json of boxes, .txt of text, and of parameters what they were "
    "exported as.",
)
@click.option("--tokenizer", type=PATH, help="For .txt: the tokenizer, if it is too long to seal.")
@json_option
def open_file(
    file: Path, key_path: Path, output: Path, tokenizer: Path | None, as_json: bool
) -> None:
    """Write the records of a sealed dataset, sealed predictions or sealed parameters in clear."""
    is_text = output.suffix == ".txt"
    endings = (*SUFFIXES, *FILE_SUFFIXES, ".txt")
    if output.suffix not in endings:
        raise click.UsageError(f"-o ends in {', '.join(endings)}")
    if tokenizer and not is_text:
        raise click.UsageError("--tokenizer is for -o of a .txt file")
    source = source_of(SealedDataset.from_file(file, load_key(key_path)))
    if is_text:
        write_text(source, output, tokenizer)
    else:
        write_clear(source, output)
    say(f"{output} holds the records in clear: whoever has it can read them.")
    answer({"opened": str(output), "count": source.count}, as_json)
