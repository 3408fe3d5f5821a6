"""`predict`: what a mirrored network says of sealed data, sealed for the owner or in clear."""

from pathlib import Path

import click

from plinius.cli.access import OwnerAccess, owner_access
from plinius.cli.console import answer, counting, say
from plinius.cli.shared_options import (
    PATH,
    cfg_argument,
    data_option,
    json_option,
    region_option,
)
from plinius.data.sealed_dataset import DatasetHeader
from plinius.snapshot import Snapshot
from plinius.sources.clear_files import SUFFIXES
from plinius.trust.permit import require_job_of


@click.command()
@cfg_argument
@data_option
@region_option
@owner_access
@click.option(
    "-o",
    "--output",
    type=PATH,
    required=True,
    help="A .sealed file, which only the key opens (plinius open); or in clear a .csv or .npz.",
)
@json_option
def predict(
    cfg: Path,
    data: Path,
    region: Path,
    access: OwnerAccess,
    output: Path,
    as_json: bool,
) -> None:
    """Predict with the mirrored network; the data may be without labels."""
    if output.suffix not in (".sealed", *SUFFIXES):
        raise click.UsageError("-o ends in .sealed, .csv or .npz")
    from plinius.training.prediction import predict as predictions_of

    permit, key = access.permit, access.key

    def require(snapshot: Snapshot, header: DatasetHeader) -> None:
        require_job_of(snapshot, permit.digest if permit else None)
        if permit:
            permit.require_predictions(snapshot, header)

    with counting("predicting") as progress:
        run_key = access.key_of(region)
        found = predictions_of(
            cfg, data, region, key, run_key=run_key, require=require, progress=progress
        )
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
