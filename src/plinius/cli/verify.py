"""`verify`: opens everything in a sealed dataset or a region."""

import sys
from pathlib import Path

import click

from plinius.cli.attest import job_digest_option, key_of_run
from plinius.cli.console import answer, counting, refuse
from plinius.cli.inspect_files import describe_region
from plinius.cli.shared_options import PATH, json_option, key_option
from plinius.data.dataset_extent import EXTENT, open_dataset
from plinius.data.sealed_dataset import SealedDataset
from plinius.errors import SealError
from plinius.files import open_to_read
from plinius.jsonvalue import Json
from plinius.keys import OwnerKey, load_key
from plinius.maintenance.verification import verify_records
from plinius.pm.region import MAGIC, Region
from plinius.slots import read_snapshot


@click.command()
@click.argument("file", type=PATH)
@key_option
@job_digest_option
@json_option
def verify(file: Path, key_path: Path, job_digest: bytes | None, as_json: bool) -> None:
    """Open every record of a sealed dataset, or all of a region, and say what is damaged.

    Exit code 1 if anything does not open. The answer on stdout lists the damaged records as
    ranges of indices.
    """
    with open_to_read(file) as opened:
        is_region = opened.read(len(MAGIC)) == MAGIC
    key = load_key(key_path)
    if is_region:
        answer(verify_region(file, key, job_digest), as_json)
        return
    if job_digest:
        raise click.UsageError("--job-digest is for a region")
    dataset = SealedDataset.from_file(file, key)
    with counting("opening records") as progress:
        records = verify_records(dataset, progress)
    answer(
        {
            "ok": records.whole == records.count,
            "kind": "sealed dataset",
            "id": dataset.header.id.hex(),
            **records.as_json(),
        },
        as_json,
    )
    try:
        records.require_whole(dataset.name)
    except SealError as refusal:
        refuse(refusal)  # the answer is on stdout already, unlike that of other refusals
    sys.stdout.flush()


def verify_region(file: Path, key: OwnerKey | None, job_digest: bytes | None) -> dict[str, Json]:
    """Check a region's structure, and with a key that its newest commit and all records open.

    Returns what `describe_region` does, and what opened. Raises what is found not to be right.
    """
    with Region.open(file, writable=False) as opened:
        opened.consistency_check()
        result = describe_region(opened)
        if key:
            snapshot = read_snapshot(opened, key_of_run(key, job_digest))
            result["mirror_opens"] = snapshot.iteration if snapshot else None
            if opened.extent(EXTENT):
                dataset = open_dataset(opened, key)
                with counting("opening records") as progress:
                    records = verify_records(dataset, progress)
                records.require_whole(dataset.name)
                result["records_open"] = records.whole
    return {"ok": True, **result}
