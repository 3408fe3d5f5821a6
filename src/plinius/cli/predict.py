"""`predict`: what a mirrored network says of sealed data, sealed for the owner or in clear."""

from pathlib import Path

import click

from plinius.cli.access import OwnerAccess, owner_access
from plinius.cli.commits import commit_option
from plinius.cli.console import answer, counting, say
from plinius.cli.recipients import key_for
from plinius.cli.shared_options import (
    PATH,
    cfg_argument,
    data_option,
    json_option,
    region_option,
)
from plinius.darknet.cfg import read_cfg
from plinius.darknet.cfg_keys import HEADS
from plinius.data.sealed_dataset import DatasetHeader
from plinius.jsonvalue import Json
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
    help="A .sealed file, which only the key opens (plinius open); or in clear a .csv or .npz, for "
    "boxes also a .json.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    help="The least score of a box. Default: 0.5.",
)
@click.option(
    "--draw",
    type=PATH,
    help="Also write the pictures with their boxes, in clear, into this new folder.",
)
@commit_option
@json_option
def predict(
    cfg: Path,
    data: Path,
    region: Path,
    access: OwnerAccess,
    output: Path,
    threshold: float | None,
    draw: Path | None,
    commit: str,
    as_json: bool,
) -> None:
    """Predict with the mirrored network; the data may be without labels.

    Under a job with recipients, OUTPUT.sealed is for them, and OUTPUT.sealed.to has its key.
    """
    permit, key = access.permit, access.key
    if permit:
        permit.require_sealed(output)
    if output.suffix not in (".sealed", *SUFFIXES):
        raise click.UsageError("-o ends in .sealed, .csv, .npz or .json")
    finds_boxes = any(section.kind in HEADS for section in read_cfg(cfg).sections)
    if not finds_boxes and (threshold is not None or draw or output.suffix == ".json"):
        raise click.UsageError("--threshold, --draw and .json are for networks that find boxes")
    recipients = permit.recipients if permit else ()

    def require(snapshot: Snapshot, header: DatasetHeader) -> None:
        require_job_of(snapshot, permit.digest if permit else None)
        if permit:
            permit.require_predictions(snapshot, header)

    if permit and draw:
        permit.refuse("drawing pictures")
    run_key = access.key_of(region)
    with counting("predicting") as progress:
        if finds_boxes:
            from plinius.training.found_boxes import find_boxes

            boxes, dataset = find_boxes(
                *(cfg, data, region, key), threshold=0.5 if threshold is None else threshold,
                run_key=run_key, require=require, progress=progress, commit=commit,
            )  # fmt: skip
            with key_for(recipients, output, key) as sealing:
                boxes.save(output, sealing)
            told: dict[str, Json] = {"task": "detection"}
            if output.suffix in SUFFIXES:  # how many are found at a threshold says how sure it is
                told["boxes"] = boxes.count
            told |= {"count": len(boxes.ids), "iteration": boxes.iteration}
        else:
            from plinius.training.prediction import predict as predictions_of

            found = predictions_of(
                cfg, data, region, key, run_key=run_key, require=require, progress=progress,
                commit=commit,
            )  # fmt: skip
            with key_for(recipients, output, key) as sealing:
                found.save(output, sealing)
            told = {"task": "regression" if found.classes is None else "classification"}
            told |= {"count": len(found.ids), "iteration": found.iteration}
    if finds_boxes and draw:
        boxes.draw(dataset, draw)
        say(f"{draw} holds the pictures in clear, with their boxes.")
    clear = output.suffix in SUFFIXES
    if clear:
        say(f"{output} holds the predictions in clear, a declassification: anyone can read them.")
    answer({"predictions": str(output), "sealed": not clear, **told}, as_json)
