"""`seal --to` and `unwrap`: a dataset's key for recipients, who have the private halves."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from plinius.cli.console import answer, say
from plinius.cli.shared_options import PATH, json_option
from plinius.errors import KeyFileError
from plinius.key_file import load_key
from plinius.keys import OwnerKey
from plinius.trust.recipients import (
    Recipient,
    fresh_key_for,
    load_recipient,
    load_recipient_key,
    open_key_for,
)

to_option = click.option(
    "--to",
    "recipients",
    type=PATH,
    multiple=True,
    help="Seal under a new key, for this recipient (.pub file; may be given again) instead of "
    "--key. OUTPUT.to has the key for them (plinius unwrap).",
)


@contextmanager
def sealing_key(
    key_path: Path | None, recipients: tuple[Path, ...], output: Path
) -> Iterator[OwnerKey]:
    """The key to seal with: from a file, or a new one for recipients, which OUTPUT.to then holds.

    If sealing fails, that file is removed again.
    """
    if (key_path is None) == (not recipients):
        raise click.UsageError("give either --key or --to")
    if key_path is not None:
        yield load_key(key_path)
        return
    with key_for([load_recipient(path) for path in recipients], output) as key:
        yield key


@contextmanager
def key_for(
    recipients: Sequence[Recipient], output: Path, own: OwnerKey | None = None
) -> Iterator[OwnerKey]:
    """The key to seal `output` with: `own` without recipients, else a new one for them.

    OUTPUT.to then holds it; if sealing fails, that file is removed again. Raises as `fresh_key_for`
    does.
    """
    if own is not None and not recipients:
        yield own
        return
    envelope = output.with_name(output.name + ".to")
    key = fresh_key_for(recipients, envelope)
    try:
        yield key
    except BaseException:
        envelope.unlink(missing_ok=True)
        raise
    say(f"{envelope} holds the key for {len(recipients)} recipients: it goes with the data.")


@click.command()
@click.argument("file", type=PATH)
@click.option(
    "--with", "mine", type=PATH, required=True, help="Your recipient's key (keygen --recipient)."
)
@click.option("-o", "--output", type=PATH, help="The key file to create; default: stdout.")
@click.option("--key-id", help="Refuse any other key than the one with this id (16 hex digits).")
@json_option
def unwrap(file: Path, mine: Path, output: Path | None, key_id: str | None, as_json: bool) -> None:
    """Get the key out of a .to file, with your recipient's key.

    It is made by plinius seal --to, and by export and predict under a job with recipients.

    On stdout it goes to another command and onto no disk: --key fd:3 3< <(plinius unwrap ...).
    Who sealed the data is not proved: compare the key's id with what its owner told you.
    """
    if output is None and (as_json or sys.stdout.isatty()):
        raise click.UsageError("a key is not shown: give -o, or send stdout to another command")
    key, text = open_key_for(file, load_recipient_key(mine))
    if key_id not in (None, key.id.hex()):
        raise KeyFileError(
            f"{file} holds key {key.id.hex()}, not key {key_id}", "Ask the owner of the data"
        )
    if output is None:
        sys.stdout.buffer.write(text)
        say(f"This is key {key.id.hex()}.")
        return
    key.save(output)
    answer({"key": str(output), "key_id": key.id.hex()}, as_json)
