"""The callback, and the mirrored run of one call of fit."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer, callbacks

from plinius.integrations.lightning.refusals import (
    not_covered,
    require_covered,
    require_extendable,
    require_loaders,
    require_same_limits_or_whole_epoch,
    require_tested_version,
)
from plinius.integrations.lightning.trainer_state import (
    CallbackStates,
    LoopState,
    MetricStates,
    data_module_part,
)
from plinius.integrations.shared import RunMirror, RunOptions, replace_method, require_one_process
from plinius.mirror import Mirror


class MirrorCallback(RunOptions, Callback):
    """Mirrors a run of `Trainer.fit`: commits every `every` steps, and resumes from the newest.

    The state is the module, its optimizers and schedulers, what Lightning counts and logs, the
    other callbacks, and what `state` holds. A commit is made before a batch is read. Everything
    that follows the batch before it has been done then: the hooks of all callbacks, validation, the
    end of the epoch and the start of the next one. The last commit is made after all on_train_end
    hooks. If the script is killed and started again, the run resumes from the newest commit and
    repeats what came after it.

    The batches must come from a `plinius.ResumableLoader` that is in `state`. What cannot be
    resumed exactly is refused by name when fitting starts: see docs/mirror.md. `options` are those
    of `Mirror.open`.
    """

    _run: "_Run | None" = None

    @property
    def mirror(self) -> Mirror | None:
        """The mirror of the run; None before and after fitting."""
        return self._run.run.mirror if self._run else None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the mirror and resume from it.

        Raises StateError for what is not covered, and what `Mirror.open` and `mirror_in` raise.
        """
        require_tested_version(trainer)
        require_one_process(trainer.world_size, "Train with Trainer(devices=1)")
        require_covered(trainer, pl_module, self)
        others: list[Callback] = [it for it in trainer.callbacks if it is not self]  # type: ignore[attr-defined]
        loops = LoopState(trainer)
        parts: dict[str, Any] = {
            "model": pl_module,
            "optimizers": [*trainer.optimizers],
            "schedulers": [config.scheduler for config in trainer.lr_scheduler_configs],
            "lightning": loops,
            "metrics": MetricStates(pl_module),
            "callbacks": CallbackStates(others, trainer, pl_module),
            "averages": [
                it._average_model for it in others if isinstance(it, callbacks.WeightAveraging)
            ],
            **data_module_part(trainer),
        }
        run = RunMirror(self._region, self._key, parts, self._given, self._options)
        self._run = _Run(trainer, run, loops, self._every, [*self._given.values()])
        self._run.start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the region. Raises StorageError if the last step is not mirrored."""
        self._close(None)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Close the region; the exception of the training is the one that is raised."""
        self._close(exception)

    def _close(self, error: BaseException | None) -> None:
        run, self._run = self._run, None
        if run:
            run.close(error)


class _Run:
    """One call of fit: commits and restores between the phases of Lightning's loops.

    The hooks of a callback would be the wrong places: when one is called, the same hook of some
    callbacks has been called, and that of others has not. So methods of the loops are replaced.
    """

    def __init__(
        self, trainer: Trainer, run: RunMirror, loops: LoopState, every: int, given: list[object]
    ) -> None:
        self.run = run
        self._trainer, self._loops, self._every = trainer, loops, every
        self._given = given
        self._committed_step = 0
        self._training_started = False
        fit: Any = trainer.fit_loop
        self._undo = [
            replace_method(fit, "run", self._fit),
            replace_method(fit, "on_run_start", self._on_run_start),
            replace_method(fit.epoch_loop, "advance", self._advance),
            replace_method(fit, "on_run_end", self._on_run_end),
        ]

    def start(self) -> None:
        """Restore the newest commit: Lightning reads from its counters how much is done."""
        configured = self._trainer.accumulate_grad_batches
        self._committed_step = self.run.start()
        # GradientAccumulationScheduler requires the configured value when training starts
        self._trainer.accumulate_grad_batches = configured

    def close(self, error: BaseException | None) -> None:
        """Undo the replacements, and close the mirror."""
        for undo in self._undo:
            undo()
        self.run.close(error)

    def _fit(self, original: Callable[[], None]) -> None:
        """The whole loop. If the run has ended before, only its final state is restored."""
        original()
        if self.run.resumed and not self._training_started:
            self.run.restore()
            self._clear_restarting()
            require_same_limits_or_whole_epoch(self._trainer, self._loops)

    def _on_run_start(self, original: Callable[[], None]) -> None:
        """All on_train_start hooks; then restore again what they and the sanity check changed."""
        original()
        self._training_started = True
        require_loaders(self._trainer, self._given)
        if not self.run.resumed:
            return
        self.run.restore()
        if self._loops.ended:
            require_extendable(self._trainer, self._loops)
            self._loops.extend()
            self._clear_restarting()

    def _advance(self, original: Callable[[Any], None], fetcher: Any) -> None:
        """Commit if a commit is due, then train on one batch."""
        self._clear_restarting()
        if self._trainer.global_step >= self._committed_step + self._every:
            self._commit()
        try:
            original(fetcher)
        except StopIteration:
            raise not_covered(
                "an epoch that ends before its last batch (on_train_batch_start returned -1)",
                "Leave out batches in training_step (return None)",
            ) from None

    def _on_run_end(self, original: Callable[[], None]) -> None:
        """All on_train_end hooks, and then the last commit."""
        original()
        self._loops.ended = True
        self._commit()

    def _clear_restarting(self) -> None:
        """Have Lightning leave nothing out: a restarting loop skips hooks and counts."""
        fit: Any = self._trainer.fit_loop
        fit._restarting = fit.epoch_loop.restarting = False

    def _commit(self) -> None:
        self._committed_step = self._trainer.global_step
        self.run.commit(self._committed_step)
