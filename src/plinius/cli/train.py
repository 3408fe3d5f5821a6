"""`train`: a Darknet network on sealed data, mirrored into a region."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from plinius.cli.access import TrainerAccess, trainer_access
from plinius.cli.console import answer, counting, live_line, say
from plinius.cli.shared_options import (
    PATH,
    STOPPED,
    cfg_argument,
    data_option,
    json_option,
    region_option,
)
from plinius.darknet.cfg import Cfg, read_cfg
from plinius.training.metrics import IterationMetrics, Listener, metrics_file, tensorboard
from plinius.trust.landlock import Reach

if TYPE_CHECKING:
    from plinius.training.trainer import Run, Settings


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
@click.option("--metrics", type=PATH, help="Append one JSON line per iteration to this file.")
@click.option(
    "--tensorboard", "board", type=PATH, help="Also write the metrics for TensorBoard here."
)
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
@json_option
def train(
    cfg: Path,
    data: Path,
    region: Path,
    access: TrainerAccess,
    wanted: int | None,
    mirror_every: int,
    metrics: Path | None,
    board: Path | None,
    accept_previous: bool,
    run_id: str | None,
    dataset_id: str | None,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Train a Darknet network on sealed data. The same command again resumes the run."""
    stop = _Stop()  # before torch is imported, which takes seconds
    for name in ("OMP_DYNAMIC", "OMP_THREAD_LIMIT"):
        # With fewer threads than torch expects, gradients would be wrong.
        os.environ.pop(name, None)

    import torch._dynamo  # noqa: F401 (else the first step loads it, and its cache is out of reach)

    from plinius.training.trainer import Run, Settings, last_iteration

    permit, network = access.permit, read_cfg(cfg)
    if (chosen["upto"] or chosen["clear"]) and chosen["weights"] is None:
        raise click.UsageError("--upto and --clear are for --weights")
    if permit:
        until = permit.until(wanted)
        run_id, dataset_id = permit.run(run_id), permit.training_dataset(dataset_id)
    else:
        last_iteration(network, wanted)  # refuse before a region is made
    settings = Settings(cfg, data, run_id=run_id, dataset_id=dataset_id, **chosen)
    keys = access.keys(_reach(cfg, network, settings, (region, metrics, board)))
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
        )
    with run:
        _report_start(run)
        if permit is None:
            say("No job: whoever gives this command chooses what is computed (--job limits it).")
            until = last_iteration(run.cfg, wanted, run.start_update)
        resumed_at = run.iteration
        with _listener(until, metrics, board, resumed_at) as listener:
            last = run.train(until, mirror_every, listener, lambda: stop.wanted)
        _report_end(run, until, resumed_at, last, as_json)
    if run.iteration < until:
        sys.exit(STOPPED)


def _reach(
    cfg_path: Path, cfg: Cfg, settings: "Settings", outputs: tuple[Path | None, ...]
) -> Reach:
    """The files that this command still opens once it has keys."""
    beside = (cfg_path.parent, cfg_path.parent.parent, Path())
    named = [at / name for name in (*cfg.trees, *cfg.maps) for at in beside]
    weights = (settings.weights,) if settings.weights else ()
    written = [path for path in outputs if path is not None]
    return Reach(
        read=(cfg_path, settings.data, *weights, *named),
        write=tuple(path for path in written if path.is_file()),
        make_in=tuple(
            path if path.is_dir() else path.parent for path in written if not path.is_file()
        ),
    )


@contextmanager
def _listener(
    until: int, metrics: Path | None, board: Path | None, resumed_at: int
) -> Iterator[Listener]:
    """All that is done with the metrics of an iteration: shown, and written where it was asked."""
    with (
        live_line(until) as show,
        metrics_file(metrics) as write,
        tensorboard(board, resumed_at) as plot,
    ):

        def report(iteration: IterationMetrics) -> None:
            show(iteration)
            write(iteration)
            plot(iteration)

        yield report


class _Stop:
    """Set by SIGINT and SIGTERM: training then stops after the current iteration.

    A plain attribute: the lock in threading.Event is not safe in a handler of two signals.
    """

    def __init__(self) -> None:
        self.wanted = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, *_: object) -> None:
        self.wanted = True


def _report_start(run: "Run") -> None:
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
    granularity = run.region.granularity
    say(f"The region is {granularity.name}: a commit survives {granularity.survives}.")


def _report_end(
    run: "Run", until: int, resumed_at: int, last: IterationMetrics | None, as_json: bool
) -> None:
    """Say how far training went, and print the result."""
    done = run.iteration >= until
    say(
        f"Done: iteration {run.iteration}, mirrored."
        if done
        else f"Stopped at iteration {run.iteration}, mirrored; the same command resumes it."
    )
    answer(
        {
            "iteration": run.iteration,
            "resumed_at": resumed_at,
            "run_id": run.mirror.run_id,
            "dataset_id": run.dataset_id,
            "done": done,
            "average_loss": run.average_loss,
            "loss": last.loss if last else None,
        },
        as_json,
    )


def _exactness(run: "Run") -> str:
    """The end of the sentence "Resumed at iteration N": whether the resume is bit-identical."""
    if run.mirror.not_bit_exact:
        return f"; from here it is NOT bit-exact: {run.mirror.not_bit_exact}."
    if run.mirror.inexact_since is not None:
        return f"; since iteration {run.mirror.inexact_since} it is NOT bit-exact."
    return ", bit-identical."
