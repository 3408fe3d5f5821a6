"""Keys: `keygen` makes the owner's key, a run's key from it, and a development key."""

from pathlib import Path

import click

from plinius.cli.attest import job_digest_option
from plinius.cli.console import answer, say
from plinius.cli.shared_options import PATH, json_option
from plinius.keys import OwnerKey, load_key


@click.command()
@click.option("-o", "--output", type=PATH, required=True, help="The key file to create.")
@click.option("--from", "owner", type=PATH, help="Derive the key of a job's run from this key.")
@job_digest_option
@click.option("--development", is_flag=True, help="A key that signs simulated evidence instead.")
@json_option
def keygen(
    output: Path, owner: Path | None, job_digest: bytes | None, development: bool, as_json: bool
) -> None:
    """Create an owner's key, in a file that only you can read."""
    if (owner is None) != (job_digest is None) or (development and owner):
        raise click.UsageError("--from and --job-digest belong together, without --development")
    if development:
        from plinius.trust.simulated import DevelopmentKey

        signer = DevelopmentKey.generate()
        signer.save(output)
        say("A development key proves nothing: use it for tests only.")
        answer({"key": str(output), "signer": signer.public.hex()}, as_json)
        return
    if owner is not None and job_digest is not None:
        from plinius.trust.release import run_key

        key = run_key(load_key(owner), job_digest)
    else:
        key = OwnerKey.generate()
    key.save(output)
    answer({"key": str(output), "key_id": key.id.hex()}, as_json)
