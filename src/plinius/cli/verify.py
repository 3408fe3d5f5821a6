"""`verify`: opens everything in a sealed dataset or a region."""

from pathlib import Path

import click

from plinius.cli.commits import RegionKeys, job_of_run_option, region_keys
from plinius.cli.console import answer, counting, refuse
from plinius.cli.inspect_files import describe_region
from plinius.cli.shared_options import PATH, json_option, key_option
from plinius.data.dataset_extent import EXTENT, open_dataset
from plinius.data.sealed_dataset import SealedDataset
from plinius.errors import SealError
from plinius.files import open_to_read
from plinius.history.kept_commits import open_all_kept
from plinius.history.live_region import read_region
from plinius.jsonvalue import Json
from plinius.key_file import load_key
from plinius.maintenance.verification import verify_records
from plinius.pm.region import MAGIC, Region
from plinius.slots import read_snapshot


@click.command()
@click.argument("file", type=PATH)
@key_option
@job_of_run_option
@json_option
def verify(file: Path, key_path: Path, job_path: Path | None, as_json: bool) -> None:
    """Open every record of a sealed dataset, or all of a region, and say what is damaged.

    Exit code 1 if anything does not open. The answer on stdout lists the damaged records as
    ranges of indices.
    """
    with open_to_read(file) as opened:
        is_region = opened.read(len(MAGIC)) == MAGIC
    if is_region:
        answer(verify_region(file, region_keys(key_path, job_path)), as_json)
        return
    if job_path:
        raise click.UsageError("--job is for a region")
    key = load_key(key_path)
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


def verify_region(file: Path, keys: RegionKeys | None) -> dict[str, Json]:
    """Check a region's structure, and with keys that its newest commit and all records open.

    Returns what `describe_region` does, and what opened. Raises what is found not to be right.
    """

    def check(opened: Region) -> dict[str, Json]:
        opened.consistency_check()
        result = describe_region(opened)
        if keys:
            snapshot = read_snapshot(opened, keys.run)
            result["mirror_opens"] = snapshot.iteration if snapshot else None
            if kept := open_all_kept(opened, keys.run):
                result["kept_open"] = [*kept]
            if opened.extent(EXTENT):
                dataset = open_dataset(opened, keys.data)
                with counting("opening records") as progress:
                    records = verify_records(dataset, progress)
                records.require_whole(dataset.name)
                result["records_open"] = records.whole
        return {"ok": True, **result}

    return read_region(file, check)
