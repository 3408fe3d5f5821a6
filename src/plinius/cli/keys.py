"""The owner's keys: `keygen`."""

from pathlib import Path

import click

from plinius.cli.console import answer
from plinius.cli.shared_options import PATH, json_option
from plinius.key_source import ask_passphrase
from plinius.keys import OwnerKey
from plinius.trust.signing import SigningKey


@click.command()
@click.option("-o", "--output", type=PATH, required=True, help="The key file to create.")
@click.option(
    "--signing",
    is_flag=True,
    help="A key that signs jobs instead; its public half is written beside it (.pub).",
)
@click.option(
    "--passphrase",
    "wrapped",
    is_flag=True,
    help="Seal it under a passphrase: asked for, or of the variable PLINIUS_PASSPHRASE.",
)
@json_option
def keygen(output: Path, signing: bool, wrapped: bool, as_json: bool) -> None:
    """Create an owner's key, in a file that only you can read."""
    if signing and wrapped:
        raise click.UsageError("--passphrase is for an owner's key, not for one that signs")
    if signing:
        secret = SigningKey.generate()
        public = secret.save(output)
        answer(
            {"key": str(output), "public": str(public), "signer": secret.signer.public.hex()},
            as_json,
        )
        return
    key = OwnerKey.generate()
    key.save(output, ask_passphrase(str(output), again=True) if wrapped else None)
    answer({"key": str(output), "key_id": key.id.hex()}, as_json)
