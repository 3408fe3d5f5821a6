"""Sealed datasets and regions: `inspect` shows what is readable without a key."""

from pathlib import Path

import click

from plinius.cli.console import answer
from plinius.cli.inspect_files import inspect_file
from plinius.cli.shared_options import PATH, json_option


@click.command()
@click.argument("file", type=PATH)
@json_option
def inspect(file: Path, as_json: bool) -> None:
    """Show what a sealed dataset or a region is, without a key."""
    answer(inspect_file(file), as_json)
