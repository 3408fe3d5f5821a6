"""`receipt`: signs what a run did, with a key bound in evidence; `receipt verify` checks it."""

import time
from datetime import UTC, datetime
from pathlib import Path

import click

from plinius import __version__
from plinius.cli.access import Keys, TrainerAccess, trainer_access
from plinius.cli.console import answer, counting, say
from plinius.cli.shared_options import PATH, json_option
from plinius.data.dataset_extent import open_dataset
from plinius.data.sealed_dataset import SealedDataset
from plinius.errors import AnchorError, MismatchError
from plinius.files import publish, read_file
from plinius.history.restarts import Restarts
from plinius.jsonvalue import Json
from plinius.pm.region import Region
from plinius.slots import Manifest, Slots
from plinius.snapshot import Snapshot
from plinius.trust.broker_record import require_recorded
from plinius.trust.landlock import Reach
from plinius.trust.permit import Permit, require_job_of
from plinius.trust.policy import load_policy
from plinius.trust.receipt import MAX_RECEIPT_BYTES, sign_receipt, verify_receipt
from plinius.trust.signing import load_signer


class _MakeByDefault(click.Group):
    """A group whose command `make` need not be named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["make", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_MakeByDefault)
def receipt() -> None:
    """Sign what a run did, or check what was signed. `receipt -o FILE` is `receipt make`."""


@receipt.command()
@click.option("--region", type=PATH, required=True, help="The region of the run.")
@click.option("-o", "--output", type=PATH, required=True, help="The receipt to create.")
@click.option("--cfg", type=PATH, help="Test the network, which this file describes, ...")
@click.option("--data", type=PATH, help="... on this sealed dataset, and state the accuracy.")
@trainer_access
@json_option
def make(
    region: Path,
    output: Path,
    cfg: Path | None,
    data: Path | None,
    access: TrainerAccess,
    as_json: bool,
) -> None:
    """Attest to a broker, and sign what the run in a region did."""
    if access.permit is None or access.address is None:
        raise click.UsageError("a receipt needs --broker, --job and --owner")
    if (cfg is None) != (data is None):
        raise click.UsageError("--cfg and --data go together")
    import plinius.training.evaluation  # noqa: F401 (before this process is confined)

    beside = tuple(path for path in (cfg, data, region, access.job_path) if path)
    keys = access.keys(Reach(read=beside, make_in=(output.parent,)))
    assert keys.granted is not None
    assert access.job_path is not None
    with Region.open(region, writable=False) as opened:
        slots = Slots.open(opened, keys.run)
        manifest = slots.newest() if slots else None
        if slots is None or manifest is None:
            raise MismatchError(f"{region} holds no mirrored run", "Train one first")
        snapshot = slots.snapshot(manifest)
        require_job_of(snapshot, access.permit.digest)
        trained_on = open_dataset(opened, keys.data).header.count
    anchored = keys.granted.anchor.begin(slots.run_id.hex())
    if anchored != (manifest.commit, manifest.digest):
        raise AnchorError(
            f"Commit {manifest.commit} in {region} is not the newest that its anchor knows",
            "Run the command that trains once more, which anchors it; or give the newest region",
        )
    accuracy = None
    if cfg and data:
        accuracy = _accuracy(cfg, data, access.permit, keys, snapshot)
    said = _said(access.permit, manifest, slots, trained_on, accuracy)
    said |= {
        "job": read_file(access.job_path, MAX_RECEIPT_BYTES).decode(),
        "evidence": keys.granted.evidence.decode(),
    }
    with publish(output) as file:
        file.write(sign_receipt(said, keys.granted.key))
    answer({"receipt": str(output), **_shown(said)}, as_json)


@receipt.command()
@click.argument("file", type=PATH)
@click.option("--policy", type=PATH, required=True, help="The owner's policy.")
@click.option("--owner", type=PATH, required=True, help="The job's owner (.pub file).")
@click.option(
    "--at",
    type=click.IntRange(0, 2**40),
    help="Judge the evidence as of this time, in seconds since 1970; default: the receipt's.",
)
@click.option(
    "--state",
    type=PATH,
    help="The folder of the broker's files: check that it released the keys and knew the commit.",
)
@json_option
def verify(
    file: Path, policy: Path, owner: Path, at: int | None, state: Path | None, as_json: bool
) -> None:
    """Check a receipt by the owner's policy, offline, and show what it says."""
    began = time.perf_counter()
    when = None if at is None else datetime.fromtimestamp(at, UTC)
    data = read_file(file, MAX_RECEIPT_BYTES)
    found = verify_receipt(data, load_policy(policy), load_signer(owner), when)
    if state is None:
        say("Which broker gave the keys is not checked: --state does that, with its files.")
    else:
        require_recorded(found.predicate, found.job.digest, state)
    kind = "simulated" if "signer" in found.verdict.claims else "real"
    if kind == "simulated":
        say("warning: the evidence is SIMULATED: it proves nothing of the machine")
    claims: dict[str, Json] = {
        name: list(one) if isinstance(one, tuple) else one
        for name, one in found.verdict.claims.items()
    }
    answer(
        {
            "ok": True,
            "broker_checked": state is not None,
            "rule": found.verdict.rule,
            "claims": claims,
            "terms": found.job.terms,
            **_shown(found.predicate),
            "milliseconds": round(1000 * (time.perf_counter() - began), 1),
        },
        as_json,
    )


def _said(
    permit: Permit,
    manifest: Manifest,
    slots: Slots,
    trained_on: int,
    accuracy: dict[str, Json] | None,
) -> dict[str, Json]:
    """What is stated of a run, without job and evidence."""
    past = Restarts.of(manifest)
    tested = accuracy or {}
    counts: dict[object, Json] = {tested.get("dataset"): tested.get("samples")}
    datasets: list[Json] = [
        [one.role, one.id, trained_on if one.role == "train" else counts.get(one.id)]
        for one in permit.job.datasets
    ]
    last: Json = [manifest.commit, manifest.digest]
    return {
        "made": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "plinius": __version__,
        "run": slots.run_id.hex(),
        "iteration": manifest.iteration,
        "datasets": datasets,
        "first": past.first,
        "last": last,
        "restarts": [list(one) for one in past.restarts],
        "restart_count": past.count,
        "anchor": last,
        "accuracy": accuracy,
    }


def _accuracy(
    cfg: Path, data: Path, permit: Permit, keys: Keys, snapshot: Snapshot
) -> dict[str, Json]:
    """The accuracy that may leave, with the dataset that it is of."""
    from plinius.training.detection import mean_average_precision
    from plinius.training.evaluation import trained_network
    from plinius.training.scores import scores

    network = trained_network(cfg, snapshot)
    dataset = SealedDataset.from_file(data, keys.data)
    digits = permit.require_accuracy(snapshot, dataset.header)
    with counting("testing") as progress:
        if network.finds_boxes:
            found: dict[str, Json] = {
                "samples": dataset.header.count,
                "mean_average_precision": mean_average_precision(network, dataset, progress),
            }
        else:
            found = scores(network, dataset, progress)
    return {"dataset": dataset.header.id.hex(), **permit.accuracy_of(found, digits)}


def _shown(said: dict[str, Json]) -> dict[str, Json]:
    """What a person reads of a receipt."""
    return {name: value for name, value in said.items() if name not in ("job", "evidence")}
