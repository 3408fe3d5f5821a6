"""What a mirrored run has reached: `test`, `digest`, `export`."""

from pathlib import Path
from typing import cast

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
from plinius.data.sealed_dataset import SealedDataset, seal_dataset
from plinius.files import publish
from plinius.jsonvalue import Json
from plinius.sources.sealed_file import SUFFIXES, file_source


@click.command()
@cfg_argument
@data_option
@region_option
@owner_access
@click.option(
    "--recalibrate",
    "training_data",
    type=PATH,
    help="Compute the rolling statistics of batch normalisation anew from this sealed dataset.",
)
@commit_option
@json_option
def test(
    cfg: Path,
    data: Path,
    region: Path,
    access: OwnerAccess,
    training_data: Path | None,
    commit: str,
    as_json: bool,
) -> None:
    """Measure the mirrored network on a sealed dataset: by class, by box, or by number."""
    from plinius.training.evaluation import TrainingData, trained_network
    from plinius.training.recalibration import lag, recalibrate
    from plinius.training.scores import evaluate

    permit, key = access.permit, access.key
    snapshot = access.state(region, commit)
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
        found = evaluate(network, dataset, progress)
    if permit and digits is not None:
        found = permit.accuracy_of(found, digits)
    answer({**found, "iteration": snapshot.iteration}, as_json)


@click.command()
@region_option
@owner_access
@commit_option
@json_option
def digest(region: Path, access: OwnerAccess, commit: str, as_json: bool) -> None:
    """Print the SHA-256 of the mirrored run state: equal states have equal digests."""
    snapshot = access.state(region, commit)
    if access.permit:
        access.permit.require_digest(snapshot)
    answer({"digest": snapshot.digest(), "iteration": snapshot.iteration}, as_json)


@click.command()
@click.argument("cfg", type=PATH, required=False)
@region_option
@owner_access
@click.option(
    "-o", "--output", type=PATH, required=True, help="A .weights, .safetensors or .onnx file."
)
@click.option("--part", default="model", show_default=True, help="Which part of the state.")
@commit_option
@json_option
def export(
    cfg: Path | None,
    region: Path,
    access: OwnerAccess,
    output: Path,
    part: str,
    commit: str,
    as_json: bool,
) -> None:
    """Write mirrored parameters: .safetensors of any run, .weights or .onnx with CFG.

    In clear, or under a job with recipients sealed for these: to NAME.safetensors.sealed and so on.
    """
    recipients = access.permit.recipients if access.permit else ()
    suffix = Path(output.stem).suffix if recipients else output.suffix
    if access.permit:
        access.permit.require_sealed(output)
    if suffix not in SUFFIXES:
        sealed = ", and then in .sealed" if recipients else ""
        raise click.UsageError(f"-o ends in .weights, .safetensors or .onnx{sealed}")
    if suffix != ".safetensors" and cfg is None:
        raise click.UsageError(f"a {suffix} file needs the CFG of its network")
    snapshot = access.state(region, commit)
    if access.permit:
        access.permit.require_export(snapshot, part if suffix == ".safetensors" else "model")
    result: dict[str, Json] = {"exported": str(output), "iteration": snapshot.iteration}
    if cfg:
        from plinius.training.evaluation import trained_network

        network = trained_network(cfg, snapshot)
        start = cast(int, snapshot.identity.get("seen", 0))
        result["seen"] = seen = start + snapshot.iteration * read_cfg(cfg).net.rows
    metadata = {name: str(n) for name, n in result.items() if name in ("iteration", "seen")}
    if cfg and suffix == ".weights":
        from plinius.darknet.weights import weights_file

        data = weights_file(network, seen)
    elif cfg and suffix == ".onnx":
        from plinius.training.onnx_files import onnx_file

        data, names = onnx_file(network, metadata)
        result["outputs"] = [*names]
    else:
        from plinius.training.safetensors_files import safetensors_file

        data = safetensors_file(snapshot, part, metadata)[0]
    if recipients:
        with key_for(recipients, output) as key:
            seal_dataset(file_source(data, suffix), key, output)
    else:
        with publish(output) as file:
            file.write(data)
        say(f"{output} holds the parameters in clear: whoever has it has the model.")
    answer(result, as_json)
