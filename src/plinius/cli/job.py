"""Jobs: `job create` signs one, `job show` shows one, `job verify` checks who signed it."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from plinius.cli.console import answer
from plinius.cli.shared_options import PATH, json_option, key_option
from plinius.darknet.cfg import Cfg, read_cfg
from plinius.darknet.recipe import recipe_digest
from plinius.data.sealed_dataset import SealedDataset
from plinius.errors import JobError
from plinius.files import publish
from plinius.jsonvalue import Json
from plinius.key_file import load_key
from plinius.keys import OwnerKey
from plinius.trust.declassification import declassification
from plinius.trust.job import (
    ANCHORS,
    MAX_COUNT,
    MAX_DIGITS,
    MAX_LARGEST,
    METRICS,
    OUTPUTS,
    PRECISIONS,
    Anchor,
    Grant,
    Job,
    Metrics,
    Outputs,
    Recipe,
    Role,
)
from plinius.trust.job_file import SignedJob, load_job, show_job, sign_job
from plinius.trust.permit import require_enough
from plinius.trust.recipients import Recipient, load_recipient
from plinius.trust.signing import load_signer, load_signing_key

_COUNT = click.IntRange(1, MAX_COUNT)
_NONE = "none"


@click.group()
def job() -> None:
    """Say and sign what a trainer may compute, or show what an owner signed."""


@job.command()
@click.argument("cfg", type=PATH)
@key_option
@click.option("--sign", type=PATH, required=True, help="The owner's signing key.")
@click.option("-o", "--output", type=PATH, required=True, help="The job to create.")
@click.option("--data", type=PATH, required=True, help="The sealed dataset to train on.")
@click.option("--validate", type=PATH, multiple=True, help="One to test on during training.")
@click.option("--test", type=PATH, multiple=True, help="One to test on at the end.")
@click.option("--weights", type=PATH, help="The parameters to start from. Default: none.")
@click.option(
    "--seed",
    "seeds",
    type=click.IntRange(0, 2**63 - 1),
    multiple=True,
    help="A seed that a run may have (may be given again). Default: 0.",
)
@click.option("--iterations", type=_COUNT, help="Default: max_batches of the cfg.")
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="fp32",
    show_default=True,
    help="What the forward and backward pass compute in.",
)
@click.option(
    "--minimum-batch", type=_COUNT, default=8, show_default=True, help="Least records in a batch."
)
@click.option(
    "--metric",
    "metrics",
    type=click.Choice((*METRICS, _NONE)),
    multiple=True,
    help="Leaves during training. Default: loss.",
)
@click.option(
    "--every", type=_COUNT, default=100, show_default=True, help="Iterations in a released mean."
)
@click.option(
    "--records", type=_COUNT, default=64, show_default=True, help="Least records in a number."
)
@click.option(
    "--digits",
    type=click.IntRange(0, MAX_DIGITS),
    default=2,
    show_default=True,
    help="Decimal places of the numbers that leave.",
)
@click.option(
    "--largest",
    type=click.IntRange(1, MAX_LARGEST),
    default=10,
    show_default=True,
    help="A larger loss leaves as this one.",
)
@click.option(
    "--allow",
    "outputs",
    type=click.Choice((*OUTPUTS, _NONE)),
    multiple=True,
    help="An output that may be asked for. Default: accuracy.",
)
@click.option("--export", "exports", multiple=True, help="A part that may be exported.")
@click.option(
    "--for",
    "recipients",
    type=PATH,
    multiple=True,
    help="Exports and predictions are sealed for this recipient (.pub file; may be given again).",
)
@click.option(
    "--output-every", type=_COUNT, help="Iterations between validations. Default: at the end."
)
@click.option(
    "--days",
    type=click.IntRange(1, 3650),
    default=30,
    show_default=True,
    help="After so many days the job expires.",
)
@click.option("--run-id", default="any", help="The only run that may do it (hex).")
@click.option("--measurement", "measurements", multiple=True, help="Of code that may do it (hex).")
@click.option(
    "--anchor",
    type=click.Choice(ANCHORS),
    default="none",
    show_default=True,
    help="What has to remember the newest commit outside the region.",
)
@click.option(
    "--anchor-every",
    type=_COUNT,
    default=1,
    show_default=True,
    help="Commits until it has to, at the latest.",
)
@json_option
def create(
    cfg: Path,
    key_path: Path,
    sign: Path,
    output: Path,
    data: Path,
    validate: tuple[Path, ...],
    test: tuple[Path, ...],
    weights: Path | None,
    seeds: tuple[int, ...],
    iterations: int | None,
    precision: str,
    minimum_batch: int,
    metrics: tuple[str, ...],
    every: int,
    records: int,
    digits: int,
    largest: int,
    outputs: tuple[str, ...],
    exports: tuple[str, ...],
    recipients: tuple[Path, ...],
    output_every: int | None,
    days: int,
    run_id: str,
    measurements: tuple[str, ...],
    anchor: str,
    anchor_every: int,
    as_json: bool,
) -> None:
    """Sign what may be computed: this CFG, on this data, with what may leave."""
    key, signing = load_key(key_path), load_signing_key(sign)
    network = read_cfg(cfg)
    last = iterations or _last(network)
    made = Job(
        run=run_id,
        expires=datetime.now(UTC).replace(microsecond=0) + timedelta(days=days),
        measurements=measurements,
        recipe=Recipe(
            cfg=recipe_digest(network),
            weights=_sha256(network, weights) if weights else "none",
            precision=precision,
            seeds=seeds or (0,),
            iterations=last,
            minimum_batch=minimum_batch,
        ),
        metrics=Metrics(_chosen(metrics, "loss", "--metric"), every, records, digits, largest),
        outputs=Outputs(
            _chosen(outputs, "accuracy", "--allow"),
            exports,
            tuple(load_recipient(path).text for path in recipients),
            output_every or last,
        ),
        anchor=Anchor(anchor, anchor_every),
        datasets=(
            _grant(data, key, "train"),
            *(_grant(path, key, "validate") for path in validate),
            *(_grant(path, key, "test") for path in test),
        ),
    )
    require_enough(made, network.net.batch)
    signed = sign_job(made, signing)
    with publish(output) as file:
        file.write(signed)
    answer({"job": str(output), **_described(show_job(output))}, as_json)


@job.command()
@click.argument("file", type=PATH)
@json_option
def show(file: Path, as_json: bool) -> None:
    """Show what a job allows, without checking whose it is."""
    answer(_described(show_job(file)), as_json)


@job.command()
@click.argument("file", type=PATH)
@click.option("--owner", type=PATH, required=True, help="The owner's public file (.pub).")
@json_option
def verify(file: Path, owner: Path, as_json: bool) -> None:
    """Check that this owner signed a job, and that it has not expired."""
    signed = load_job(file, load_signer(owner))
    if datetime.now(UTC) >= signed.job.expires:
        raise JobError(
            f"The job expired on {signed.job.expires:%Y-%m-%d %H:%M:%S} UTC",
            "Ask its owner for a new one",
        )
    answer({"ok": True, **_described(signed)}, as_json)


def _described(signed: SignedJob) -> dict[str, Json]:
    job = signed.job
    recipe, leaves = job.recipe, declassification(job)
    return {
        "digest": signed.digest,
        "terms": signed.terms,
        "signer": signed.signer.public.hex(),
        "expires": f"{job.expires:%Y-%m-%dT%H:%M:%SZ}",
        "run": job.run,
        "measurements": list(job.measurements),
        "cfg": recipe.cfg,
        "weights": recipe.weights,
        "precision": recipe.precision,
        "seeds": list(recipe.seeds),
        "iterations": recipe.iterations,
        "minimum_batch": recipe.minimum_batch,
        "datasets": [[grant.role, grant.id] for grant in job.datasets],
        "metrics": list(job.metrics.allowed),
        "every": job.metrics.every,
        "records": job.metrics.records,
        "digits": job.metrics.digits,
        "largest": job.metrics.largest,
        "outputs": list(job.outputs.allowed),
        "exports": list(job.outputs.exports),
        "recipients": [Recipient.of_text(text).id.hex() for text in job.outputs.recipients],
        "output_every": job.outputs.every,
        "anchor": [job.anchor.kind, job.anchor.every],
        "bits_per_iteration": round(leaves.iteration, 4),
        "bits_of_a_run": round(leaves.total, 1),
        "unbounded": list(leaves.unbounded),
    }


def _grant(path: Path, key: OwnerKey, role: Role) -> Grant:
    """The dataset in a file, whose id is authenticated with the owner's key."""
    return Grant(SealedDataset.from_file(path, key).header.id.hex(), role)


def _sha256(network: Cfg, weights: Path) -> str:
    """The digest of parameters that the network can be started from."""
    from plinius.darknet.network import Network
    from plinius.training.beginning import begin

    return str(begin(Network(network), weights).sha256)


def _last(network: Cfg) -> int:
    if network.net.max_batches == 0:
        raise JobError(
            f"{network.name} has no max_batches, so the job would never end",
            "Say how many iterations it may have (--iterations)",
        )
    return network.net.max_batches


def _chosen(given: Sequence[str], default: str, option: str) -> tuple[str, ...]:
    if _NONE in given and len(given) > 1:
        raise click.UsageError(f"{option} none goes with no other {option}")
    return () if _NONE in given else tuple(given) or (default,)
