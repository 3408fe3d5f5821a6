"""What a mirrored run has reached: `test`, `digest`, `export`."""

from pathlib import Path

import click

from plinius.cli.attest import job_digest_option, key_of_run
from plinius.cli.console import answer, counting, say
from plinius.cli.shared_options import (
    PATH,
    cfg_argument,
    data_option,
    json_option,
    key_option,
    region_option,
)
from plinius.darknet.cfg import read_cfg
from plinius.data.sealed_dataset import SealedDataset
from plinius.jsonvalue import Json
from plinius.keys import load_key
from plinius.slots import newest_snapshot


@click.command()
@cfg_argument
@data_option
@region_option
@key_option
@job_digest_option
@json_option
def test(
    cfg: Path, data: Path, region: Path, key_path: Path, job_digest: bytes | None, as_json: bool
) -> None:
    """Measure the accuracy of the mirrored network on a sealed dataset."""
    from plinius.training.evaluation import accuracy, trained_network

    key = load_key(key_path)
    snapshot = newest_snapshot(region, key_of_run(key, job_digest))
    network = trained_network(cfg, snapshot)
    dataset = SealedDataset.from_file(data, key)
    with counting("testing") as progress:
        fraction = accuracy(network, dataset, progress)
    answer(
        {"accuracy": fraction, "samples": dataset.header.count, "iteration": snapshot.iteration},
        as_json,
    )


@click.command()
@region_option
@key_option
@job_digest_option
@json_option
def digest(region: Path, key_path: Path, job_digest: bytes | None, as_json: bool) -> None:
    """Print the SHA-256 of the mirrored run state: equal states have equal digests."""
    snapshot = newest_snapshot(region, key_of_run(load_key(key_path), job_digest))
    answer({"digest": snapshot.digest(), "iteration": snapshot.iteration}, as_json)


@click.command()
@click.argument("cfg", type=PATH, required=False)
@region_option
@key_option
@job_digest_option
@click.option("-o", "--output", type=PATH, required=True, help="A .weights or .safetensors file.")
@click.option("--part", default="model", show_default=True, help="Which part of the state.")
@json_option
def export(
    cfg: Path | None,
    region: Path,
    key_path: Path,
    job_digest: bytes | None,
    output: Path,
    part: str,
    as_json: bool,
) -> None:
    """Write mirrored parameters in clear: .safetensors of any run, .weights if CFG is given."""
    from plinius.training.safetensors_files import export_safetensors

    if output.suffix not in (".weights", ".safetensors"):
        raise click.UsageError("-o ends in .weights or .safetensors")
    if output.suffix == ".weights" and cfg is None:
        raise click.UsageError("a .weights file needs the CFG of its network")
    snapshot = newest_snapshot(region, key_of_run(load_key(key_path), job_digest))
    result: dict[str, Json] = {"exported": str(output), "iteration": snapshot.iteration}
    if cfg:
        from plinius.darknet.weights import save_weights
        from plinius.training.evaluation import trained_network

        network = trained_network(cfg, snapshot)
        result["seen"] = seen = snapshot.iteration * read_cfg(cfg).net.batch
    if cfg and output.suffix == ".weights":
        save_weights(network, output, seen)
    else:
        metadata = {name: str(n) for name, n in result.items() if name in ("iteration", "seen")}
        export_safetensors(snapshot, part, output, metadata)
    say(f"{output} holds the parameters in clear: whoever has it has the model.")
    answer(result, as_json)
