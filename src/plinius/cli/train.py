"""`train`: a Darknet network on sealed data, mirrored into a region."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from plinius.cli.access import TrainerAccess, trainer_access
from plinius.cli.commits import history_options
from plinius.cli.console import answer, counting, say
from plinius.cli.shared_options import (
    PATH,
    STOPPED,
    cfg_argument,
    data_option,
    json_option,
    region_option,
)
from plinius.cli.stop import Stop
from plinius.cli.train_progress import LOG_EVERY, training_progress
from plinius.cli.train_report import report_end, report_start, result_of
from plinius.darknet.cfg import Cfg, read_cfg
from plinius.training.metrics import (
    IterationMetrics,
    Listener,
    check_outputs,
    metrics_file,
    tensorboard,
)
from plinius.training.trackers import check_trackers, mlflow_run, wandb_run
from plinius.trust.landlock import Reach

if TYPE_CHECKING:
    from plinius.training.trainer import Settings

_WARNING = "warning: "


@click.command()
@cfg_argument
@data_option
@region_option
@trainer_access
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
@click.option("--wandb", metavar="PROJECT", help="Also log the metrics to this project of W&B.")
@click.option(
    "--mlflow",
    metavar="URI_OR_FOLDER",
    help="Also log the metrics to this MLflow server or database, or to mlflow.db in this folder.",
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
@history_options
@click.option("--run-id", help="Refuse a region that holds another run than this one (hex).")
@click.option("--dataset-id", help="Refuse any other dataset than this one (hex).")
@json_option
def train(
    cfg: Path,
    data: Path,
    region: Path,
    access: TrainerAccess,
    wanted: int | None,
    mirror_every: int,
    validate: Path | None,
    validate_every: int | None,
    patience: int | None,
    metrics: Path | None,
    board: Path | None,
    wandb: str | None,
    mlflow: str | None,
    log_every: int | None,
    quiet: bool,
    verbose: bool,
    accept_previous: bool,
    run_id: str | None,
    dataset_id: str | None,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Train a Darknet network on sealed data. The same command again resumes the run."""
    stop = Stop()  # before torch is imported, which takes seconds
    for name in ("OMP_DYNAMIC", "OMP_THREAD_LIMIT"):
        # With fewer threads than torch expects, gradients would be wrong.
        os.environ.pop(name, None)

    import torch._dynamo  # noqa: F401 (else the first step loads it, and its cache is out of reach)

    from plinius.training.trainer import Run, Settings, last_iteration
    from plinius.training.validation import ValidationPlan

    permit, network = access.permit, read_cfg(cfg)
    _require_together(chosen)
    if (validate_every or patience) and validate is None:
        raise click.UsageError("--validate-every and --patience are for --validate")
    if quiet and (verbose or log_every):
        raise click.UsageError("--quiet goes with neither --verbose nor --log-every")
    talk = _warn if quiet else say
    if permit:
        until = permit.until(wanted)
        run_id, dataset_id = permit.run(run_id), permit.training_dataset(dataset_id)
    else:
        last_iteration(network, wanted)  # refuse before a region is made
    settings = Settings(cfg, data, run_id=run_id, dataset_id=dataset_id, **chosen)
    check_outputs(metrics, board)
    if wandb == "" or mlflow == "":
        raise click.UsageError("--wandb names a project, and --mlflow a server or a folder")
    if (wandb or mlflow) and (access.hardened or access.address):
        raise click.UsageError(
            "--wandb and --mlflow open connections, which --harden and --broker forbid"
        )
    check_trackers(wandb, mlflow)
    keys = access.keys(_reach(cfg, network, settings, validate, (region, metrics, board)))
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
        report_start(run, talk)
        if permit is None:
            talk("No job: whoever gives this command chooses what is computed (--job limits it).")
            until = last_iteration(run.cfg, wanted, run.start_update)
        resumed_at = run.iteration
        with (
            _nothing() if quiet else training_progress(until, log_every, verbose) as show,
            metrics_file(metrics) as write,
            tensorboard(board, resumed_at) as plot,
            wandb_run(wandb, run.mirror.run_id) as to_wandb,
            mlflow_run(mlflow, run.mirror.run_id) as to_mlflow,
        ):

            def listener(iteration: IterationMetrics) -> None:
                for report in (write, plot, to_wandb, to_mlflow, show):
                    report(iteration)

            last = run.train(until, mirror_every, listener, lambda: stop.wanted)
        done = run.iteration >= until or run.stopped_early
        report_end(run, done, talk)
        answer(result_of(run, done, resumed_at, last), as_json)
    if not done:
        sys.exit(STOPPED)


def _require_together(chosen: dict[str, Any]) -> None:
    """Refuse settings that are for another one, which is not given."""
    if (chosen["upto"] or chosen["clear"]) and chosen["weights"] is None:
        raise click.UsageError("--upto and --clear are for --weights")
    if chosen["keep_every"] != 1 and not chosen["keep"]:
        raise click.UsageError("--keep-every is for --keep")
    if chosen["learning_rate"] is not None and chosen["from_iteration"] is None:
        raise click.UsageError("--set is for --from-iteration: a new run takes it from its cfg")


def _reach(
    cfg_path: Path,
    cfg: Cfg,
    settings: "Settings",
    validate: Path | None,
    outputs: tuple[Path | None, ...],
) -> Reach:
    """The files that this command still opens once it has keys."""
    beside = (cfg_path.parent, cfg_path.parent.parent, Path())
    named = [at / name for name in (*cfg.trees, *cfg.maps) for at in beside]
    more = [path for path in (settings.weights, validate) if path is not None]
    written = [path for path in outputs if path is not None]
    return Reach(
        read=(cfg_path, settings.data, *more, *named),
        write=tuple(path for path in written if path.is_file()),
        make_in=tuple(
            path if path.is_dir() else path.parent for path in written if not path.is_file()
        ),
    )


@contextmanager
def _nothing() -> Iterator[Listener]:
    yield lambda iteration: None


def _warn(text: str) -> None:
    """Say a warning, and nothing else: what --quiet leaves."""
    if text.startswith(_WARNING):
        say(text)
