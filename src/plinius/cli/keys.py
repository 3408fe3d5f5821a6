"""Keys: `keygen` makes an owner's key, or a development key."""

from pathlib import Path

import click

from plinius.cli.console import answer, say
from plinius.cli.shared_options import PATH, json_option
from plinius.keys import OwnerKey


@click.command()
@click.option("-o", "--output", type=PATH, required=True, help="The key file to create.")
@click.option("--development", is_flag=True, help="A key that signs simulated evidence instead.")
@json_option
def keygen(output: Path, development: bool, as_json: bool) -> None:
    """Create an owner's key, in a file that only you can read."""
    if development:
        from plinius.trust.simulated import DevelopmentKey

        signer = DevelopmentKey.generate()
        signer.save(output)
        say("A development key proves nothing: use it for tests only.")
        answer({"key": str(output), "signer": signer.public.hex()}, as_json)
        return
    key = OwnerKey.generate()
    key.save(output)
    answer({"key": str(output), "key_id": key.id.hex()}, as_json)
