"""`train`: a Darknet network on sealed data, mirrored into a region."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from plinius.cli.broker import broker_options
from plinius.cli.console import answer, counting, say
from plinius.cli.shared_options import (
    PATH,
    STOPPED,
    cfg_argument,
    data_option,
    job_options,
    json_option,
    load_permit,
    region_option,
)
from plinius.cli.stop import Stop
from plinius.cli.train_progress import LOG_EVERY, training_progress
from plinius.darknet.cfg import read_cfg
from plinius.jsonvalue import Json
from plinius.keys import OwnerKey, load_key
from plinius.training.metrics import (
    IterationMetrics,
    Listener,
    check_outputs,
    metrics_file,
    tensorboard,
)

if TYPE_CHECKING:
    from plinius.training.trainer import Run
    from plinius.trust.permit import Permit
    from plinius.trust.trainer import BrokerAnchor

Talk = Callable[[str], None]
_WARNING = "warning: "


@click.command()
@cfg_argument
@data_option
@region_option
@click.option(
    "--key",
    "key_path",
    type=PATH,
    help="The owner's key, if no broker gives the keys: a file, -, fd:N, or env:NAME.",
)
@broker_options
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Decides starting weights, dropout and the order of records.",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    help="CPU threads. Default: as the mirrored run, or all cores.",
)
@click.option(
    "--iterations",
    "wanted",
    type=click.IntRange(0),
    help="The iteration to stop after. Default: max_batches of the cfg.",
)
@click.option(
    "--mirror-every",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Mirror after every this many iterations.",
)
@click.option("--validate", type=PATH, help="Measure the network on this sealed dataset.")
@click.option(
    "--validate-every",
    type=click.IntRange(1),
    help="Validate after every this many iterations. Default: once an epoch.",
)
@click.option(
    "--patience",
    type=click.IntRange(1),
    help="Stop early after this many validations that were no better than the best.",
)
@click.option("--metrics", type=PATH, help="Append one JSON line per iteration to this file.")
@click.option(
    "--tensorboard", "board", type=PATH, help="Also write the metrics for TensorBoard here."
)
@click.option(
    "--log-every",
    type=click.IntRange(1),
    help=f"Print a line after every this many iterations. Default: {LOG_EVERY} where stderr is no "
    "terminal, else a line that is replaced.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print warnings and refusals only.")
@click.option("-v", "--verbose", is_flag=True, help="Also print where the time goes.")
@click.option("--weights", type=PATH, help="Start from these parameters (.weights, .safetensors).")
@click.option(
    "--upto",
    type=click.IntRange(1),
    help="The .weights file holds the first so many layers, as darknet53.conv.74 holds 74.",
)
@click.option(
    "--clear", is_flag=True, help="Begin the schedule anew, whatever the weights have seen."
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
    show_default=True,
    help="What the forward and backward pass compute in.",
)
@click.option(
    "--accept-previous",
    is_flag=True,
    help="If the newest commit does not open, continue from the one before it.",
)
@click.option("--run-id", help="Refuse a region that holds another run than this one (hex).")
@click.option("--dataset-id", help="Refuse any other dataset than this one (hex).")
@job_options
@json_option
def train(
    cfg: Path,
    data: Path,
    region: Path,
    key_path: Path | None,
    wanted: int | None,
    mirror_every: int,
    validate: Path | None,
    validate_every: int | None,
    patience: int | None,
    metrics: Path | None,
    board: Path | None,
    log_every: int | None,
    quiet: bool,
    verbose: bool,
    accept_previous: bool,
    run_id: str | None,
    dataset_id: str | None,
    job_path: Path | None,
    owner_path: Path | None,
    as_json: bool,
    broker: str | None,
    broker_pin: bytes | None,
    broker_ca: Path | None,
    job_digest: bytes | None,
    simulated: Path | None,
    tpm: str | None,
    accept_rollback: bool,
    **chosen: Any,
) -> None:
    """Train a Darknet network on sealed data. The same command again resumes the run."""
    stop = Stop()  # before torch is imported, which takes seconds
    for name in ("OMP_DYNAMIC", "OMP_THREAD_LIMIT"):
        # With fewer threads than torch expects, gradients would be wrong.
        os.environ.pop(name, None)
    from plinius.training.trainer import Run, Settings, last_iteration
    from plinius.training.validation import ValidationPlan

    permit = load_permit(job_path, owner_path, by_broker=broker is not None)
    if (chosen["upto"] or chosen["clear"]) and chosen["weights"] is None:
        raise click.UsageError("--upto and --clear are for --weights")
    if (validate_every or patience) and validate is None:
        raise click.UsageError("--validate-every and --patience are for --validate")
    if quiet and (verbose or log_every):
        raise click.UsageError("--quiet goes with neither --verbose nor --log-every")
    talk = _warn if quiet else say
    if permit:
        until = permit.until(wanted)
        run_id, dataset_id = permit.run(run_id), permit.training_dataset(dataset_id)
        job_digest = _same_job(permit, job_digest) if broker else job_digest
    else:
        last_iteration(read_cfg(cfg), wanted)  # refuse before a region is made
    settings = Settings(cfg, data, run_id=run_id, dataset_id=dataset_id, **chosen)
    keys = _keys(
        key_path, broker, broker_pin, broker_ca, job_digest, simulated, tpm, accept_rollback
    )
    check_outputs(metrics, board)
    with counting("loading the sealed dataset") as progress:
        run = Run(
            region,
            keys.run,
            settings,
            progress=progress,
            accept_previous=accept_previous,
            permission=permit,
            data_key=keys.data,
            anchor=keys.anchor,
            validation=ValidationPlan(validate, validate_every, patience) if validate else None,
        )
    with run:
        _report_start(run, talk)
        if permit is None:
            talk("No job: whoever gives this command chooses what is computed (--job limits it).")
            until = last_iteration(run.cfg, wanted, run.start_update)
        resumed_at = run.iteration
        with (
            _nothing() if quiet else training_progress(until, log_every, verbose) as show,
            _metrics_listener(metrics, board, resumed_at) as write,
        ):

            def listener(iteration: IterationMetrics) -> None:
                write(iteration)
                show(iteration)

            last = run.train(until, mirror_every, listener, lambda: stop.wanted)
        done = run.iteration >= until or run.stopped_early
        _report_end(run, done, talk)
        answer(_result(run, done, resumed_at, last), as_json)
    if not done:
        sys.exit(STOPPED)


def _same_job(permit: "Permit", asked_for: bytes | None) -> bytes:
    """The digest of the job that the broker is asked for keys of: the one that is given here."""
    digest = bytes.fromhex(permit.file_digest)
    if asked_for not in (None, digest):
        raise click.UsageError("--job-digest is of another job than --job")
    return digest


@dataclass(frozen=True)
class _Keys:
    """What opens the run and its data, and what remembers the newest commit."""

    run: OwnerKey
    data: OwnerKey
    anchor: "BrokerAnchor | None"


def _keys(
    path: Path | None,
    broker: str | None,
    pin: bytes | None,
    certificates: Path | None,
    job: bytes | None,
    simulated: Path | None,
    tpm: str | None,
    accept_rollback: bool,
) -> _Keys:
    """The keys from a file, or from a broker to which this process attests."""
    if (path is None) == (broker is None):
        raise click.UsageError("give either --key or --broker")
    if broker is None:
        if pin or certificates or job or simulated or tpm or accept_rollback:
            raise click.UsageError(
                "--broker-pin, --broker-ca, --job-digest, --simulated, --tpm and "
                "--accept-rollback are options for --broker"
            )
        assert path is not None
        key = load_key(path)
        return _Keys(key, key, None)
    if job is None:
        raise click.UsageError("--broker needs --job and --owner, or --job-digest")
    if simulated and tpm:
        raise click.UsageError("give either --simulated or --tpm")
    if pin and certificates:
        raise click.UsageError("give either --broker-pin or --broker-ca")
    from plinius.trust.client import Address
    from plinius.trust.trainer import Source, ask_for_keys

    granted = ask_for_keys(
        Address(broker, certificates, pin),
        job,
        Source(simulated, tpm),
        accept_rollback=accept_rollback,
    )
    if granted.evidence_kind == "simulated":
        say("warning: the evidence was SIMULATED: the host can read keys, data and parameters")
    say(f"The broker gave the keys of job {job.hex()} for {granted.evidence_kind} evidence.")
    return _Keys(granted.run_key, granted.dataset_keys, granted.anchor)


@contextmanager
def _metrics_listener(
    metrics: Path | None, board: Path | None, resumed_at: int
) -> Iterator[Listener]:
    """Writes the metrics of each iteration where it was asked."""
    with metrics_file(metrics) as write, tensorboard(board, resumed_at) as plot:

        def report(iteration: IterationMetrics) -> None:
            write(iteration)
            plot(iteration)

        yield report


@contextmanager
def _nothing() -> Iterator[Listener]:
    yield lambda iteration: None


def _warn(text: str) -> None:
    """Say a warning, and nothing else: what --quiet leaves."""
    if text.startswith(_WARNING):
        say(text)


def _report_start(run: "Run", say: Talk) -> None:
    """Say what a person should know before training starts."""
    for warning in run.network.warnings:
        say(f"warning: {warning}")
    if run.slow_precision:
        say("warning: this CPU has no bf16 instructions, so fp32 is many times faster here")
    if run.start.seen:
        say(
            f"The weights have seen {run.start.seen} records: the schedule goes on at update "
            f"{run.start_update + run.iteration + 1} (--clear, in a new region, begins it anew)."
        )
    if run.resumed:
        say(f"Resumed at iteration {run.iteration}" + _exactness(run))
    if run.early_scores_lag:
        say(
            "warning: batch normalisation starts from rolling statistics of 0, so that the first "
            "scores lag: with a --patience of less than some 500 iterations training may stop "
            "too early"
        )
    granularity = run.region.granularity
    say(f"The region is {granularity.name}: a commit survives {granularity.survives}.")


def _report_end(run: "Run", done: bool, say: Talk) -> None:
    """Say how far training went."""
    best = run.best
    if run.stopped_early and best:
        say(
            f"Stopped early: {best.since} validations were no better than the {best.metric} of "
            f"{best.score:.4f} at iteration {best.iteration}."
        )
    say(
        f"Done: iteration {run.iteration}, mirrored."
        if done
        else f"Stopped at iteration {run.iteration}, mirrored; the same command resumes it."
    )


def _result(
    run: "Run", done: bool, resumed_at: int, last: IterationMetrics | None
) -> dict[str, Json]:
    """How far training went, for JSON."""
    result: dict[str, Json] = {
        "iteration": run.iteration,
        "resumed_at": resumed_at,
        "run_id": run.mirror.run_id,
        "dataset_id": run.dataset_id,
        "done": done,
        "average_loss": run.average_loss,
        "loss": last.loss if last else None,
    }
    if run.validation:
        best = run.best
        result["stopped_early"] = run.stopped_early
        result["best"] = asdict(best) if best else None
    return result


def _exactness(run: "Run") -> str:
    """The end of the sentence "Resumed at iteration N": whether the resume is bit-identical."""
    if run.mirror.not_bit_exact:
        return f"; from here it is NOT bit-exact: {run.mirror.not_bit_exact}."
    if run.mirror.inexact_since is not None:
        return f"; since iteration {run.mirror.inexact_since} it is NOT bit-exact."
    return ", bit-identical."
