"""`predict`: what a mirrored network says of sealed data, sealed for the owner or in clear."""

from pathlib import Path

import click

from plinius.cli.attest import job_digest_option, key_of_run
from plinius.cli.commits import commit_option
from plinius.cli.console import answer, counting, say
from plinius.cli.shared_options import (
    PATH,
    cfg_argument,
    data_option,
    job_options,
    json_option,
    key_option,
    load_permit,
    region_option,
)
from plinius.data.sealed_dataset import DatasetHeader
from plinius.keys import load_key
from plinius.snapshot import Snapshot
from plinius.sources.clear_files import SUFFIXES
from plinius.trust.permit import require_job_of


@click.command()
@cfg_argument
@data_option
@region_option
@key_option
@click.option(
    "-o",
    "--output",
    type=PATH,
    required=True,
    help="A .sealed file, which only the key opens (plinius open); or in clear a .csv or .npz.",
)
@job_digest_option
@job_options
@commit_option
@json_option
def predict(
    cfg: Path,
    data: Path,
    region: Path,
    key_path: Path,
    output: Path,
    job_digest: bytes | None,
    job_path: Path | None,
    owner_path: Path | None,
    commit: str,
    as_json: bool,
) -> None:
    """Predict with the mirrored network; the data may be without labels."""
    if output.suffix not in (".sealed", *SUFFIXES):
        raise click.UsageError("-o ends in .sealed, .csv or .npz")
    from plinius.training.prediction import predict as predictions_of

    permit = load_permit(job_path, owner_path)
    key = load_key(key_path)

    def require(snapshot: Snapshot, header: DatasetHeader) -> None:
        require_job_of(snapshot, permit.digest if permit else None)
        if permit:
            permit.require_predictions(snapshot, header)

    with counting("predicting") as progress:
        run_key = key_of_run(key, job_digest)
        found = predictions_of(
            cfg, data, region, key, run_key=run_key, require=require, progress=progress,
            commit=commit,
        )  # fmt: skip
    found.save(output, key)
    clear = output.suffix in SUFFIXES
    if clear:
        say(f"{output} holds the predictions in clear, a declassification: anyone can read them.")
    answer(
        {
            "predictions": str(output),
            "sealed": not clear,
            "count": len(found.ids),
            "task": "regression" if found.classes is None else "classification",
            "iteration": found.iteration,
        },
        as_json,
    )
