"""The owner's key: `keygen`."""

from pathlib import Path

import click

from plinius.cli.console import answer
from plinius.cli.shared_options import PATH, json_option
from plinius.keys import OwnerKey


@click.command()
@click.option("-o", "--output", type=PATH, required=True, help="The key file to create.")
@json_option
def keygen(output: Path, as_json: bool) -> None:
    """Create an owner's key, in a file that only you can read."""
    key = OwnerKey.generate()
    key.save(output)
    answer({"key": str(output), "key_id": key.id.hex()}, as_json)
