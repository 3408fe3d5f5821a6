"""Keys: `keygen` makes an owner's key, a key that signs jobs, or a development key."""

from pathlib import Path

import click

from plinius.cli.console import answer, say
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
@click.option("--development", is_flag=True, help="A key that signs simulated evidence instead.")
@json_option
def keygen(output: Path, signing: bool, wrapped: bool, development: bool, as_json: bool) -> None:
    """Create an owner's key, in a file that only you can read."""
    if signing + wrapped + development > 1:
        raise click.UsageError("give one of --signing, --passphrase and --development")
    if development:
        from plinius.trust.simulated import DevelopmentKey

        signer = DevelopmentKey.generate()
        signer.save(output)
        say("A development key proves nothing: use it for tests only.")
        answer({"key": str(output), "signer": signer.public.hex()}, as_json)
        return
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
