"""Keys: `keygen` makes an owner's key, a key that signs jobs, or a development key."""

from pathlib import Path

import click

from plinius.cli.console import answer, say
from plinius.cli.shared_options import PATH, json_option
from plinius.key_source import ask_passphrase
from plinius.keys import OwnerKey
from plinius.trust.recipients import RecipientKey, load_recipient_key
from plinius.trust.signing import SigningKey


@click.command()
@click.option("-o", "--output", type=PATH, help="The key file to create.")
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
@click.option(
    "--recipient",
    is_flag=True,
    help="A key that opens what is sealed to its public half (.pub), for plinius seal --to.",
)
@click.option("--public", type=PATH, help="Only print the public half of this recipient's key.")
@click.option("--development", is_flag=True, help="A key that signs simulated evidence instead.")
@json_option
def keygen(
    output: Path | None,
    signing: bool,
    wrapped: bool,
    recipient: bool,
    public: Path | None,
    development: bool,
    as_json: bool,
) -> None:
    """Create an owner's key, in a file that only you can read."""
    if signing + wrapped + recipient + development + (public is not None) > 1:
        raise click.UsageError(
            "give one of --signing, --passphrase, --recipient, --public and --development"
        )
    if (output is None) == (public is None):
        raise click.UsageError("give -o, or --public")
    if public is not None:
        mine = load_recipient_key(public).recipient
        if as_json:
            answer({"public": mine.line, "recipient": mine.id.hex()}, as_json)
        else:
            click.echo(mine.line)
        return
    assert output is not None
    if recipient:
        own = RecipientKey.generate()
        beside = own.save(output)
        answer(
            {"key": str(output), "public": str(beside), "recipient": own.recipient.id.hex()},
            as_json,
        )
        return
    if development:
        from plinius.trust.simulated import DevelopmentKey

        signer = DevelopmentKey.generate()
        signer.save(output)
        say("A development key proves nothing: use it for tests only.")
        answer({"key": str(output), "signer": signer.public.hex()}, as_json)
        return
    if signing:
        secret = SigningKey.generate()
        half = secret.save(output)
        answer(
            {"key": str(output), "public": str(half), "signer": secret.signer.public.hex()},
            as_json,
        )
        return
    key = OwnerKey.generate()
    key.save(output, ask_passphrase(str(output), again=True) if wrapped else None)
    answer({"key": str(output), "key_id": key.id.hex()}, as_json)
