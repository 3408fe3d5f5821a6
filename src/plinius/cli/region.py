"""Regions: `region info` shows one, `region verify` checks it."""

from pathlib import Path

import click

from plinius.cli.attest import job_digest_option
from plinius.cli.console import answer
from plinius.cli.inspect_files import describe_region
from plinius.cli.shared_options import PATH, json_option
from plinius.cli.verify import verify_region
from plinius.keys import load_key
from plinius.pm.region import Region


@click.group()
def region() -> None:
    """Show or check a region."""


@region.command()
@click.argument("file", type=PATH)
@json_option
def info(file: Path, as_json: bool) -> None:
    """Show a region's structure, without a key."""
    with Region.open(file, writable=False) as opened:
        answer(describe_region(opened), as_json)


@region.command()
@click.argument("file", type=PATH)
@click.option(
    "--key",
    "key_path",
    type=PATH,
    help="Also open the newest commit and every record with this key.",
)
@job_digest_option
@json_option
def verify(file: Path, key_path: Path | None, job_digest: bytes | None, as_json: bool) -> None:
    """Check a region's structure, and with a key that the newest commit and every record open."""
    if job_digest and not key_path:
        raise click.UsageError("--job-digest needs --key")
    key = load_key(key_path) if key_path else None
    answer(verify_region(file, key, job_digest), as_json)
