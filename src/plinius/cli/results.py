"""What a mirrored run has reached: `test`, `digest`, `export`."""

from pathlib import Path
from typing import cast

import click

from plinius.cli.attest import job_digest_option, key_of_run
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
from plinius.darknet.cfg import read_cfg
from plinius.data.sealed_dataset import SealedDataset
from plinius.jsonvalue import Json
from plinius.keys import load_key
from plinius.slots import newest_snapshot
from plinius.trust.permit import require_job_of


@click.command()
@cfg_argument
@data_option
@region_option
@key_option
@click.option(
    "--recalibrate",
    "training_data",
    type=PATH,
    help="Compute the rolling statistics of batch normalisation anew from this sealed dataset.",
)
@job_digest_option
@job_options
@json_option
def test(
    cfg: Path,
    data: Path,
    region: Path,
    key_path: Path,
    training_data: Path | None,
    job_digest: bytes | None,
    job_path: Path | None,
    owner_path: Path | None,
    as_json: bool,
) -> None:
    """Measure the mirrored network on a sealed dataset: by class, by box, or by number."""
    from plinius.training.detection import mean_average_precision
    from plinius.training.evaluation import TrainingData, trained_network
    from plinius.training.recalibration import lag, recalibrate
    from plinius.training.scores import scores

    permit = load_permit(job_path, owner_path)
    key = load_key(key_path)
    snapshot = newest_snapshot(region, key_of_run(key, job_digest))
    require_job_of(snapshot, permit.digest if permit else None)
    network = trained_network(cfg, snapshot)
    dataset = SealedDataset.from_file(data, key)
    digits = permit.require_accuracy(snapshot, dataset.header) if permit else None
    TrainingData.of_region(region, key).require_alike(dataset)
    if training_data:
        if permit:
            permit.refuse("recalibrating")
        with counting("recalibrating") as progress:
            recalibrate(
                network, read_cfg(cfg), SealedDataset.from_file(training_data, key), progress
            )
    elif lagging := lag(read_cfg(cfg), network, snapshot):
        say(lagging)
    with counting("testing") as progress:
        if network.finds_boxes:
            precision = mean_average_precision(network, dataset, progress)
            found: dict[str, Json] = {
                "task": "detection",
                "samples": dataset.header.count,
                "mean_average_precision": precision,
            }
        else:
            found = scores(network, dataset, progress)
    if permit and digits is not None:
        found = permit.accuracy_of(found, digits)
    answer({**found, "iteration": snapshot.iteration}, as_json)


@click.command()
@region_option
@key_option
@job_digest_option
@job_options
@json_option
def digest(
    region: Path,
    key_path: Path,
    job_digest: bytes | None,
    job_path: Path | None,
    owner_path: Path | None,
    as_json: bool,
) -> None:
    """Print the SHA-256 of the mirrored run state: equal states have equal digests."""
    permit = load_permit(job_path, owner_path)
    snapshot = newest_snapshot(region, key_of_run(load_key(key_path), job_digest))
    require_job_of(snapshot, permit.digest if permit else None)
    if permit:
        permit.require_digest(snapshot)
    answer({"digest": snapshot.digest(), "iteration": snapshot.iteration}, as_json)


@click.command()
@click.argument("cfg", type=PATH, required=False)
@region_option
@key_option
@job_digest_option
@click.option(
    "-o", "--output", type=PATH, required=True, help="A .weights, .safetensors or .onnx file."
)
@click.option("--part", default="model", show_default=True, help="Which part of the state.")
@job_options
@json_option
def export(
    cfg: Path | None,
    region: Path,
    key_path: Path,
    job_digest: bytes | None,
    output: Path,
    part: str,
    job_path: Path | None,
    owner_path: Path | None,
    as_json: bool,
) -> None:
    """Write mirrored parameters in clear: .safetensors of any run, .weights or .onnx with CFG."""
    from plinius.training.safetensors_files import export_safetensors

    if output.suffix not in (".weights", ".safetensors", ".onnx"):
        raise click.UsageError("-o ends in .weights, .safetensors or .onnx")
    if output.suffix != ".safetensors" and cfg is None:
        raise click.UsageError(f"a {output.suffix} file needs the CFG of its network")
    permit = load_permit(job_path, owner_path)
    snapshot = newest_snapshot(region, key_of_run(load_key(key_path), job_digest))
    require_job_of(snapshot, permit.digest if permit else None)
    if permit:
        permit.require_export(snapshot, part if output.suffix == ".safetensors" else "model")
    result: dict[str, Json] = {"exported": str(output), "iteration": snapshot.iteration}
    if cfg:
        from plinius.darknet.weights import save_weights
        from plinius.training.evaluation import trained_network

        network = trained_network(cfg, snapshot)
        start = cast(int, snapshot.identity.get("seen", 0))
        result["seen"] = seen = start + snapshot.iteration * read_cfg(cfg).net.rows
    metadata = {name: str(n) for name, n in result.items() if name in ("iteration", "seen")}
    if cfg and output.suffix == ".weights":
        save_weights(network, output, seen)
    elif cfg and output.suffix == ".onnx":
        from plinius.training.onnx_files import export_onnx

        result["outputs"] = [*export_onnx(network, output, metadata)]
    else:
        export_safetensors(snapshot, part, output, metadata)
    say(f"{output} holds the parameters in clear: whoever has it has the model.")
    answer(result, as_json)
