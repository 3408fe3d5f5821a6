"""The command line: talks to people; nothing else imports it.

What needs torch is imported by the commands that use it: the others answer at once.
"""

import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from plinius import __version__
from plinius.cli.console import Refusals, answer, counting, say, training
from plinius.cli.inspection import describe_region, inspect_file
from plinius.darknet.cfg import read_cfg
from plinius.data.extent import EXTENT as DATASET_EXTENT
from plinius.data.extent import open_dataset
from plinius.data.records import Source
from plinius.data.sealed import SealedDataset, seal_dataset
from plinius.jsonvalue import Json
from plinius.keys import OwnerKey, load_key
from plinius.pm.region import Region
from plinius.slots import newest_snapshot, read_snapshot
from plinius.sources.folder import folder_source
from plinius.sources.idx import idx_source
from plinius.sources.legacy import legacy_source
from plinius.sources.npz import npz_source
from plinius.training.telemetry import IterationMetrics, metrics_file, tensorboard
from plinius_benchmarks.commands import bench

if TYPE_CHECKING:
    from plinius.training.trainer import Run

PATH = click.Path(path_type=Path)
_key = click.option("--key", "key_path", type=PATH, required=True, help="The owner's key file.")
_json = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
_region = click.option("--region", type=PATH, required=True, help="The persistent-memory region.")
_data = click.option("--data", type=PATH, required=True, help="A sealed dataset.")
_cfg = click.argument("cfg", type=PATH)


@click.group(cls=Refusals, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="plinius")
def main() -> None:
    """Secure machine learning that survives: sealed data, sealed state, bit-identical resume."""


@main.command()
@click.option("-o", "--output", type=PATH, required=True, help="The key file to make.")
@_json
def keygen(output: Path, as_json: bool) -> None:
    """Make an owner's key, in a file that only you can read."""
    key = OwnerKey.generate()
    key.save(output)
    answer({"key": str(output), "key_id": key.id.hex()}, as_json)


@main.command()
@_key
@click.option("-o", "--output", type=PATH, required=True, help="The sealed dataset to make.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["idx", "npz", "folder", "plinius"]),
    help="What the data is; told from the other options if left out.",
)
@click.option("--images", type=PATH, help="IDX images, or the original's encrypted images.")
@click.option("--labels", type=PATH, help="IDX labels, or the original's encrypted labels.")
@click.option("--npz", type=PATH, help="An .npz archive of arrays x and y.")
@click.option("--folder", type=PATH, help="A folder of class folders of PNG or JPEG images.")
@click.option("--classes", type=click.IntRange(0, 2**32 - 1), default=0, help="How many classes.")
@click.option("--legacy-key", help="The original's published key, in hex (format plinius).")
@click.option("--skip-bytes", type=click.IntRange(0), help="Images are a piece: pass over these.")
@_json
def seal(key_path: Path, output: Path, as_json: bool, **source: Any) -> None:
    """Seal a dataset: only the owner's key opens it, record by record."""
    key = load_key(key_path)
    with counting("sealing") as progress:
        header = seal_dataset(_source(**source), key, output, progress)
    answer(
        {
            "sealed": str(output),
            "id": header.id.hex(),
            "count": header.count,
            "bytes": header.size,
            "sample": [str(header.sample.dtype), list(header.sample.shape)],
            "label": [str(header.label.dtype), list(header.label.shape)],
            "classes": header.classes,
        },
        as_json,
    )


def _source(
    kind: str | None,
    images: Path | None,
    labels: Path | None,
    npz: Path | None,
    folder: Path | None,
    classes: int,
    legacy_key: str | None,
    skip_bytes: int | None,
) -> Source:
    kind = kind or ("npz" if npz else "folder" if folder else "idx")
    needed = {"npz": [npz], "folder": [folder]}.get(kind, [images, labels])
    if all(path is None for path in needed):
        names = {"npz": "--npz", "folder": "--folder"}.get(kind, "--images and --labels")
        raise click.UsageError(f"--format {kind} needs {names}")
    if len([path for path in (images or labels, npz, folder) if path]) > 1:
        raise click.UsageError("name one source: --images and --labels, --npz, or --folder")
    if kind != "plinius" and (legacy_key or skip_bytes is not None):
        raise click.UsageError("--legacy-key and --skip-bytes go with --format plinius")
    if npz:
        return npz_source(npz, classes)
    if folder:
        return folder_source(folder)
    if kind == "idx":
        return idx_source(images, labels, classes)
    try:
        return legacy_source(bytes.fromhex(legacy_key or ""), images, labels, skip_bytes)
    except ValueError:
        raise click.UsageError("--legacy-key is 32 hex digits") from None


@main.command()
@click.argument("file", type=PATH)
@_json
def inspect(file: Path, as_json: bool) -> None:
    """Show what a sealed dataset or a region is, without a key."""
    answer(inspect_file(file), as_json)


@main.command()
@_cfg
@_data
@_region
@_key
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(1, 1024), help="Default: the mirrored run's.")
@click.option("--iterations", "wanted", type=click.IntRange(0), help="Default: max_batches.")
@click.option("--mirror-every", type=click.IntRange(1), default=1, show_default=True)
@click.option("--metrics", type=PATH, help="Append one JSON line an iteration.")
@click.option("--tensorboard", "board", type=PATH, help="Write them for TensorBoard, too.")
@click.option("--weights", type=PATH, help="Begin with these parameters (.weights, .safetensors).")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option(
    "--accept-previous",
    is_flag=True,
    help="If the newest commit does not open, knowingly go on from the one before.",
)
@click.option("--run-id", help="Refuse a region that holds another run than this one (hex).")
@click.option("--dataset-id", help="Refuse any other dataset than this one (hex).")
@_json
def train(
    cfg: Path,
    data: Path,
    region: Path,
    key_path: Path,
    seed: int,
    threads: int | None,
    wanted: int | None,
    mirror_every: int,
    metrics: Path | None,
    board: Path | None,
    weights: Path | None,
    precision: Literal["fp32", "bf16"],
    accept_previous: bool,
    run_id: str | None,
    dataset_id: str | None,
    as_json: bool,
) -> None:
    """Train a Darknet network on sealed data. The same command again resumes where it was."""
    stop = threading.Event()  # before torch is imported, which takes seconds
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    for unsound in ("OMP_DYNAMIC", "OMP_THREAD_LIMIT"):
        os.environ.pop(
            unsound, None
        )  # with fewer threads than torch counts on, gradients are wrong
    from plinius.training.trainer import Run, Settings, iterations

    key = load_key(key_path)
    until = iterations(read_cfg(cfg), wanted)
    settings = Settings(cfg, data, seed, precision, threads, weights, run_id, dataset_id)
    with counting("loading the sealed dataset") as progress:
        run = Run(region, key, settings, progress=progress, accept_previous=accept_previous)
    with run:
        _tell_start(run)
        started = run.iteration
        with (
            training(until) as show,
            metrics_file(metrics) as write,
            tensorboard(board, started) as draw,
        ):

            def tell(told: IterationMetrics) -> None:
                show(told)
                write(told)
                draw(told)

            last = run.train(until, mirror_every, tell, stop.is_set)
        done = run.iteration >= until
        say(
            f"Done: iteration {run.iteration}, mirrored."
            if done
            else f"Stopped at iteration {run.iteration}, mirrored; the same command goes on."
        )
        result: dict[str, Json] = {
            "iteration": run.iteration,
            "resumed_at": started,
            "run_id": run.mirror.run_id,
            "dataset_id": run.dataset_id,
            "done": done,
            "average_loss": run.average_loss,
            "loss": last.loss if last else None,
        }
        answer(result, as_json)


def _tell_start(run: "Run") -> None:
    for warning in run.network.warnings:
        say(f"warning: {warning}")
    if run.slow_precision:
        say("warning: this CPU has no bf16 instructions, so fp32 is many times faster here")
    if run.resumed:
        say(f"Resumed at iteration {run.iteration}" + _exactness(run))
    granularity = run.region.granularity
    say(f"The region is {granularity.name}: a commit survives {granularity.survives}.")


def _exactness(run: "Run") -> str:
    if run.mirror.not_bit_exact:
        return f"; from here it is NOT bit-exact: {run.mirror.not_bit_exact}."
    if run.mirror.inexact_since is not None:
        return f"; since iteration {run.mirror.inexact_since} it is NOT bit-exact."
    return ", bit-identical."


@main.command()
@_cfg
@_data
@_region
@_key
@_json
def test(cfg: Path, data: Path, region: Path, key_path: Path, as_json: bool) -> None:
    """Measure the accuracy of the mirrored network on a sealed dataset."""
    from plinius.training.evaluation import accuracy, trained_network

    key = load_key(key_path)
    snapshot = newest_snapshot(region, key)
    network = trained_network(cfg, snapshot)
    dataset = SealedDataset.from_file(data, key)
    with counting("testing") as progress:
        share = accuracy(network, dataset, progress)
    answer(
        {"accuracy": share, "samples": dataset.header.count, "iteration": snapshot.iteration},
        as_json,
    )


@main.command()
@_region
@_key
@_json
def digest(region: Path, key_path: Path, as_json: bool) -> None:
    """Print the SHA-256 of the mirrored run state: equal states, equal digests."""
    snapshot = newest_snapshot(region, load_key(key_path))
    answer({"digest": snapshot.digest(), "iteration": snapshot.iteration}, as_json)


@main.command()
@click.argument("cfg", type=PATH, required=False)
@_region
@_key
@click.option("-o", "--output", type=PATH, required=True, help="A .weights or .safetensors file.")
@click.option("--part", default="model", show_default=True, help="Which part of the state.")
@_json
def export(
    cfg: Path | None, region: Path, key_path: Path, output: Path, part: str, as_json: bool
) -> None:
    """Write mirrored parameters, in clear: of any run as .safetensors, of a CFG's as .weights."""
    from plinius.training.parameters import export_safetensors

    if output.suffix not in (".weights", ".safetensors"):
        raise click.UsageError("-o ends in .weights or .safetensors")
    if output.suffix == ".weights" and cfg is None:
        raise click.UsageError("a .weights file needs the CFG of its network")
    snapshot = newest_snapshot(region, load_key(key_path))
    told: dict[str, Json] = {"exported": str(output), "iteration": snapshot.iteration}
    if cfg:
        from plinius.darknet.weights import save_weights
        from plinius.training.evaluation import trained_network

        network = trained_network(cfg, snapshot)
        told["seen"] = seen = snapshot.iteration * read_cfg(cfg).net.batch
    if cfg and output.suffix == ".weights":
        save_weights(network, output, seen)
    else:
        about = {name: str(told[name]) for name in ("iteration", "seen") if name in told}
        export_safetensors(snapshot, part, output, **about)
    say(f"{output} holds the parameters in clear: whoever has it has the model.")
    answer(told, as_json)


@main.group()
def region() -> None:
    """Look into a region, or prove it."""


@region.command()
@click.argument("file", type=PATH)
@_json
def info(file: Path, as_json: bool) -> None:
    """Show a region's structure, without a key."""
    with Region.open(file, writable=False) as opened:
        answer(describe_region(opened), as_json)


@region.command()
@click.argument("file", type=PATH)
@click.option("--key", "key_path", type=PATH, help="Also open every sealed byte with this key.")
@_json
def verify(file: Path, key_path: Path | None, as_json: bool) -> None:
    """Check a region's structure, and with a key that everything sealed in it opens."""
    key = load_key(key_path) if key_path else None
    with Region.open(file, writable=False) as opened:
        opened.consistency_check()
        result = describe_region(opened)
        if key:
            snapshot = read_snapshot(opened, key)
            result["mirror_opens"] = snapshot.iteration if snapshot else None
            if opened.extent(DATASET_EXTENT):
                dataset = open_dataset(opened, key)
                with counting("opening records") as progress:
                    for index in range(dataset.header.count):
                        dataset.open_record(index)
                        progress(index + 1, dataset.header.count)
                result["records_open"] = dataset.header.count
        answer({"ok": True, **result}, as_json)


main.add_command(bench)


@main.command(name="doctor")
@click.argument("region_path", metavar="[REGION]", type=PATH, required=False)
@_json
def doctor_command(region_path: Path | None, as_json: bool) -> None:
    """Say what is protected here, and what is not."""
    from plinius.cli import doctor

    findings = doctor.examine(region_path)
    if as_json:
        answer({f.topic: {"protected": f.protected, "found": f.found} for f in findings}, True)
        return
    words = {True: "protected", False: "NOT protected", None: "-"}
    for finding in findings:
        click.echo(f"{words[finding.protected]:<13}  {finding.topic}: {finding.found}")
