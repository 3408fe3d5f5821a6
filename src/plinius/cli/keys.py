"""The owner's key: `keygen`."""

from pathlib import Path

import click

from plinius.cli.console import answer
from plinius.cli.shared_options import PATH, json_option
from plinius.key_source import ask_passphrase
from plinius.keys import OwnerKey


@click.command()
@click.option("-o", "--output", type=PATH, required=True, help="The key file to create.")
@click.option(
    "--passphrase",
    "wrapped",
    is_flag=True,
    help="Seal it under a passphrase: asked for, or of the variable PLINIUS_PASSPHRASE.",
)
@json_option
def keygen(output: Path, wrapped: bool, as_json: bool) -> None:
    """Create an owner's key, in a file that only you can read."""
    key = OwnerKey.generate()
    key.save(output, ask_passphrase(str(output), again=True) if wrapped else None)
    answer({"key": str(output), "key_id": key.id.hex()}, as_json)
