"""The callback: it commits and resumes between the phases of the Trainer's loop."""

import os
from collections.abc import Callable, Sequence
from typing import Any

from transformers import Trainer, TrainerCallback

from plinius.integrations.shared import RunMirror, RunOptions, replace_method
from plinius.integrations.transformers.batches import Batches
from plinius.integrations.transformers.refusals import (
    identity_of,
    require_best_model,
    require_covered,
)
from plinius.integrations.transformers.trainer_state import TrainerValues, find_trainer
from plinius.mirror import Mirror

Method = Callable[..., Any]


class MirrorCallback(RunOptions, TrainerCallback):
    """Mirrors a run of `Trainer.train`: model, optimizer, scheduler, and the Trainer's own values.

    A commit is made where a step begins, if `every` steps were made since the last commit, or if
    the model was evaluated or saved since. Everything that follows the step before it has been done
    then: log, evaluation, save. Another commit is made after the last step. If the script is killed
    and started again, the run resumes from the newest commit: the batches of the epoch are read
    again up to there. When all steps are made, each process that is started again loads the best
    model and ends the run.

    `state` holds what else belongs to the run; `options` are those of `Mirror.open`. If training
    raises, call `close` before the region is used again in the same process.
    """

    _run: RunMirror | None = None
    _undo: Sequence[Callable[[], None]] = ()

    @property
    def mirror(self) -> Mirror | None:
        """The mirror of the run; None before the first epoch and after training."""
        return self._run.mirror if self._run else None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the configuration. The mirror is opened later, after this event of all callbacks.

        Raises StateError, with its name, for what is not covered.
        """
        self.close()
        trainer = find_trainer(self)
        require_covered(trainer, self)
        self._trainer = trainer
        self._values = TrainerValues(trainer, self, self._given.values())
        self._batches = Batches(kwargs["train_dataloader"])
        self._resuming = self._commit_due = self._stopped = False
        self._committed_step = self._first_epoch = self._epoch = 0
        self._captured = self._capture(ended=False)
        self._replace_methods(trainer)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Have the next commit made before the next step, whatever `every` says."""
        self._commit_due = not self._resuming

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Have the next commit made before the next step, whatever `every` says."""
        self._commit_due = not self._resuming

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the region. Raises StorageError if the last step is not mirrored."""
        self.close()

    def close(self) -> None:
        """Close the region, and undo all changes to the Trainer; a second call does nothing.

        The Trainer has no event for exceptions: after one, call this. Raises StorageError if the
        last step is not mirrored.
        """
        for undo in self._undo:
            undo()
        run, self._run, self._undo = self._run, None, ()
        if run:
            run.close()

    def _replace_methods(self, trainer: Trainer) -> None:
        """Replace methods of the Trainer: its loop has no way to begin within a run."""
        handler = trainer.callback_handler
        self._undo = [
            replace_method(trainer, "_run_epoch", self._run_epoch),
            replace_method(trainer, "get_batch_samples", self._get_batch_samples),
            replace_method(trainer, "_finalize_training", self._finalize_training),
            replace_method(trainer, "_evaluate", self._evaluate),
            replace_method(handler, "on_epoch_begin", self._all_on_epoch_begin),
            replace_method(handler, "on_step_begin", self._all_on_step_begin),
        ]

    def _opened(self) -> RunMirror:
        """The mirror of the run; the first call opens it and restores the newest commit."""
        if self._run:
            return self._run
        trainer = self._trainer
        parts = {
            "model": trainer.model,
            "optimizer": trainer.optimizer,
            "scheduler": trainer.lr_scheduler,
            "trainer": self._captured,
        }
        identity = {**self._options.get("identity", {}), **identity_of(trainer)}
        options = {**self._options, "identity": identity}
        self._run = RunMirror(self._region, self._key, parts, self._given, options)
        self._committed_step = self._run.start()
        self._resuming = self._run.resumed
        if self._resuming:
            self._captured = self._run["trainer"]
            self._first_epoch = self._captured["epoch"]
            self._values.restore(self._captured)
        return self._run

    def _all_on_epoch_begin(self, original: Method, args: Any, state: Any, control: Any) -> Any:
        """The event of all callbacks, except at the start of an epoch that is resumed."""
        self._opened()
        return control if self._resuming else original(args, state, control)

    def _all_on_step_begin(self, original: Method, args: Any, state: Any, control: Any) -> Any:
        """Resume here, or commit if a commit is due; then the event of all callbacks."""
        if self._resuming:
            self._finish_resume()
        elif self._commit_due or state.global_step >= self._committed_step + self._every:
            self._commit(ended=False)
        return original(args, state, control)

    def _run_epoch(self, original: Method, **arguments: Any) -> None:
        """An epoch of the Trainer, or the rest of an epoch that is resumed."""
        state, control = self._trainer.state, self._trainer.control
        if self._resuming and self._captured["ended"]:
            control.should_training_stop = self._stopped = True
            return
        self._epoch = arguments["epoch"] = self._first_epoch + arguments["epoch"]
        skipped = self._captured["position"]["batches"] if self._resuming else 0
        if self._resuming:
            self._batches.resume_epoch(self._epoch, self._captured["position"])
        else:
            self._batches.begin_epoch()
        if skipped:  # have the Trainer count from there; what it skips itself is never read
            arguments.update(
                resume_from_checkpoint=os.devnull,
                epochs_trained=self._epoch,
                steps_trained_in_current_epoch=skipped,
            )
        original(**arguments)
        last = self._epoch + 1 >= state.num_train_epochs
        if self._first_epoch and last and not self._trainer.control.should_training_stop:
            self._trainer.control.should_training_stop = self._stopped = True

    def _get_batch_samples(
        self, original: Method, iterator: Any, *arguments: Any, **named: Any
    ) -> Any:
        return original(self._batches.next_group(iterator), *arguments, **named)

    def _evaluate(self, original: Method, *arguments: Any, **named: Any) -> Any:
        """An evaluation of the Trainer, except the one at its start when a run is resumed."""
        self._opened()
        return {} if self._resuming else original(*arguments, **named)

    def _finalize_training(self, original: Method, *arguments: Any, **named: Any) -> Any:
        """All steps are made: commit that, before the best model is loaded."""
        mirror = self._opened().mirror
        if self._stopped:  # by this callback, to leave the loop
            self._trainer.control.should_training_stop = False
        if self._resuming:
            self._finish_resume()
        else:
            self._commit(ended=True)
            mirror.wait()
            if mirror.failure:
                self._commit(ended=True)
                mirror.wait()
        require_best_model(self._trainer)
        return original(*arguments, **named)

    def _finish_resume(self) -> None:
        """Restore again what reading the epoch changed. Raises StateError for other data."""
        self._resuming = False
        if not self._captured["ended"]:
            self._batches.require_same_group(self._captured["position"])
        self._values.restore(self._captured)
        self._batches.restore_generators(self._captured["generators"])

    def _capture(self, *, ended: bool) -> dict[str, Any]:
        return {
            **self._values.capture(),
            "epoch": self._epoch,
            "ended": ended,
            "position": self._batches.position(),
            "generators": self._batches.generator_states(),
        }

    def _commit(self, *, ended: bool) -> None:
        self._captured = self._capture(ended=ended)
        self._committed_step = self._trainer.state.global_step
        self._commit_due = False
        self._opened().commit(self._committed_step, trainer=self._captured)
