"""Regions: `region info` shows one, `region verify` checks it."""

from pathlib import Path

import click

from plinius.cli.console import answer, counting
from plinius.cli.inspect_files import describe_region
from plinius.cli.shared_options import PATH, json_option
from plinius.data.dataset_extent import EXTENT as DATASET_EXTENT
from plinius.data.dataset_extent import open_dataset
from plinius.keys import load_key
from plinius.pm.region import Region
from plinius.slots import read_snapshot
from plinius.trust.job_file import show_job
from plinius.trust.release import run_key


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
@click.option("--job", type=PATH, help="The job that a broker gave the key of the run for.")
@json_option
def verify(file: Path, key_path: Path | None, job: Path | None, as_json: bool) -> None:
    """Check a region's structure, and with a key that the newest commit and every record open."""
    if job and not key_path:
        raise click.UsageError("--job needs --key")
    key = load_key(key_path) if key_path else None
    run = run_key(key, bytes.fromhex(show_job(job).digest)) if key and job else key
    with Region.open(file, writable=False) as opened:
        opened.consistency_check()
        result = describe_region(opened)
        if key and run:
            snapshot = read_snapshot(opened, run)
            result["mirror_opens"] = snapshot.iteration if snapshot else None
            if opened.extent(DATASET_EXTENT):
                dataset = open_dataset(opened, key)
                with counting("opening records") as progress:
                    for index in range(dataset.header.count):
                        dataset.open_record(index)
                        progress(index + 1, dataset.header.count)
                result["records_open"] = dataset.header.count
        answer({"ok": True, **result}, as_json)
