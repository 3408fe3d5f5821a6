"""What `train` says of a run: before it starts, at its end, and as JSON."""

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from plinius.history.kept_commits import kept_bytes
from plinius.jsonvalue import Json
from plinius.training.metrics import IterationMetrics

if TYPE_CHECKING:
    from plinius.training.trainer import Run

Talk = Callable[[str], None]


def report_start(run: "Run", say: Talk) -> None:
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
    for back in run.mirror.returns:
        say(
            f"warning: this run went back from iteration {back.from_iteration} to iteration "
            f"{back.to_iteration} (commits {back.from_commit} and {back.to_commit})."
        )
    if run.other_learning_rate is not None:
        say(
            f"warning: this run went back with learning_rate={run.other_learning_rate:g}, which "
            f"takes the place of the cfg's {run.cfg.net.learning_rate:g}."
        )
    granularity = run.region.granularity
    say(f"The region is {granularity.name}: a commit survives {granularity.survives}.")


def report_end(run: "Run", done: bool, say: Talk) -> None:
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
    if kept := kept_bytes(run.region):
        say(f"{len(kept)} kept commits take {sum(kept) / 1e6:.1f} MB (plinius region log).")


def result_of(
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
    if run.other_learning_rate is not None:
        result["learning_rate"] = run.other_learning_rate
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
