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
    help="A .csv or .npz file; of boxes .json too; of parameters what they were exported as.",
)
@json_option
def open_file(file: Path, key_path: Path, output: Path, as_json: bool) -> None:
    """Write the records of a sealed dataset, sealed predictions or sealed parameters in clear."""
    if output.suffix not in (*SUFFIXES, *FILE_SUFFIXES):
        raise click.UsageError(f"-o ends in {', '.join(SUFFIXES)} or {', '.join(FILE_SUFFIXES)}")
    source = source_of(SealedDataset.from_file(file, load_key(key_path)))
    write_clear(source, output)
    say(f"{output} holds the records in clear: whoever has it can read them.")
    answer({"opened": str(output), "count": source.count}, as_json)
