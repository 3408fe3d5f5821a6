"""Hugging Face Trainer: a callback that mirrors a run, and resumes it.

trainer = Trainer(model, arguments, train_dataset=..., callbacks=[MirrorCallback(path, key)])
trainer.train()
"""

import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback

from plinius.errors import StateError
from plinius.integrations.trainer_batches import Batches
from plinius.integrations.trainer_support import identity_of, require_best_model, require_covered
from plinius.integrations.trainer_values import TrainerValues, find_trainer
from plinius.keys import OwnerKey
from plinius.mirror import Mirror

_HOOKS = ("_run_epoch", "get_batch_samples", "_finalize_training", "_evaluate")


class MirrorCallback(TrainerCallback):
    """Mirrors a Trainer's run: model, optimizer, scheduler, and all that the Trainer keeps itself.

    A commit is made where a step begins, if `every` steps were made since the last one or if there
    was an evaluation, and when the last step is made: everything that followed the step before is
    done then (log, evaluation, save). A killed script, run again, goes on at that place. The
    epoch's batches are read again up to there. The best model is loaded, and the run ended, by
    each process that finds the run at its end.

    `state` holds what else belongs to the run; `options` are those of `Mirror.open`. In one
    process, `close` it first if training raised.
    """

    def __init__(
        self,
        region: str | Path,
        key: OwnerKey,
        *,
        every: int = 1,
        state: MutableMapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self._region, self._key, self._every = region, key, every
        self._extra: MutableMapping[str, Any] = {} if state is None else state
        self._options = options
        self.mirror: Mirror | None = None
        self._trainer: Trainer | None = None
        self._kept: dict[str, Any] = {}
        self._resuming = self._evaluated = self._stopped = False
        self._mirrored = self._first_epoch = self._epoch = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **about: Any) -> None:
        """Open the mirror and go on from it.

        Raises StateError, naming it, for a configuration that is not covered, and what
        `Mirror.open` and `mirror_in` raise.
        """
        self.close()
        trainer = find_trainer(self)
        require_covered(trainer, about["train_dataloader"], self)
        self._values = TrainerValues(trainer, self, self._extra.values())
        self._batches = Batches(about["train_dataloader"])
        self._kept = self._take(ended=False)
        self._parts = {
            "model": about["model"],
            "optimizer": about["optimizer"],
            "scheduler": about["lr_scheduler"],
            "trainer": self._kept,
            **self._extra,
        }
        identity = {**self._options.get("identity", {}), "trainer": identity_of(trainer)}
        options = {**self._options, "identity": identity}
        self.mirror = Mirror.open(self._region, self._key, self._parts, **options)
        self._mirrored = self.mirror.mirror_in()
        self._extra.update({name: self._parts[name] for name in self._extra})
        self._resuming, self._first_epoch = self.mirror.commits > 0, 0
        self._evaluated = self._stopped = False
        if self._resuming:
            self._kept = self._parts["trainer"]
            self._digest = self.mirror.digest()
            self._first_epoch = self._kept["epoch"]
            self._values.put(self._kept)
        self._hook(trainer)

    def on_step_begin(self, args: Any, state: Any, control: Any, **about: Any) -> None:
        """All that followed the step before is done: mirror it out. Or go on from there."""
        if self._resuming:
            self._resume()
        elif self._evaluated or state.global_step >= self._mirrored + self._every:
            self._mirror_out(ended=False)

    def on_evaluate(self, args: Any, state: Any, control: Any, **about: Any) -> None:
        """An evaluation is worth a commit."""
        self._evaluated = not self._resuming

    def on_save(self, args: Any, state: Any, control: Any, **about: Any) -> None:
        """A checkpoint is worth a commit."""
        self._evaluated = not self._resuming

    def on_train_end(self, args: Any, state: Any, control: Any, **about: Any) -> None:
        """Let go of the region. Raises StorageError if the last step is not mirrored."""
        self.close()

    def close(self) -> None:
        """Let go of the region and the Trainer, which does not tell of exceptions.

        Raises StorageError if the last step is not mirrored.
        """
        trainer, self._trainer = self._trainer, None
        if trainer:
            for name in _HOOKS:
                vars(trainer).pop(name, None)
        mirror, self.mirror = self.mirror, None
        if mirror:
            mirror.close()

    def _hook(self, trainer: Trainer) -> None:
        """Have the Trainer's loop ask here: it counts from the run's begin in every process."""
        self._trainer = trainer
        self._train_epoch, self._get_samples = trainer._run_epoch, trainer.get_batch_samples
        self._finalize, self._evaluate_all = trainer._finalize_training, trainer._evaluate
        trainer._run_epoch = self._run_epoch
        trainer.get_batch_samples = self._get_batch_samples
        trainer._finalize_training = self._finalize_training
        trainer._evaluate = self._evaluate

    def _run_epoch(self, **given: Any) -> None:
        """An epoch of the Trainer, or the rest of it."""
        assert self._trainer is not None
        state, control = self._trainer.state, self._trainer.control
        if self._resuming and self._kept["ended"]:
            control.should_training_stop = self._stopped = True
            return
        self._epoch = given["epoch"] = self._first_epoch + given["epoch"]
        skipped = self._kept["data"]["batches"] if self._resuming else 0
        if self._resuming:
            self._batches.begin_epoch_again(self._epoch, self._kept["data"])
        else:
            self._batches.begin_epoch()
        if skipped:  # the Trainer then counts from there; its own skipping is not iterated over
            given.update(
                resume_from_checkpoint=os.devnull,
                epochs_trained=self._epoch,
                steps_trained_in_current_epoch=skipped,
            )
        self._train_epoch(**given)
        last = self._epoch + 1 >= state.num_train_epochs
        if self._first_epoch and last and not self._trainer.control.should_training_stop:
            self._trainer.control.should_training_stop = self._stopped = True

    def _get_batch_samples(self, epoch_iterator: Any, *given: Any, **named: Any) -> Any:
        return self._get_samples(self._batches.next_group(epoch_iterator), *given, **named)

    def _evaluate(self, *given: Any, **named: Any) -> Any:
        """An evaluation of the Trainer; that on its start is part of what is resumed."""
        return {} if self._resuming else self._evaluate_all(*given, **named)

    def _finalize_training(self, *given: Any, **named: Any) -> Any:
        """All steps are made: mirror that out, before the best model is loaded."""
        assert self._trainer is not None and self.mirror is not None
        if self._stopped:  # by us, to leave the loop
            self._trainer.control.should_training_stop = False
        if self._resuming:
            self._resume()
        else:
            self._mirror_out(ended=True)
            self.mirror.wait()
            if self.mirror.failure:
                self._mirror_out(ended=True)
                self.mirror.wait()
        require_best_model(self._trainer)
        return self._finalize(*given, **named)

    def _resume(self) -> None:
        """Put back what the way to this place changed. Raises StateError if that cannot be."""
        assert self.mirror is not None
        self._resuming = False
        if not self._kept["ended"]:
            self._batches.require_same(self._kept["data"])
        self._values.put(self._kept)
        self._batches.put_random(self._kept["random"])
        if self.mirror.digest() != self._digest:
            raise StateError(
                "What is mirrored changed before training went on: a callback wrote to it in "
                "on_train_begin, on_epoch_begin or on_step_begin",
                "Change the model, the optimizer and the scheduler before trainer.train()",
            )

    def _take(self, *, ended: bool) -> dict[str, Any]:
        data = self._batches.take()
        random = self._batches.random()
        place = {"epoch": self._epoch, "ended": ended, "data": data, "random": random}
        return {**self._values.take(), **place}

    def _mirror_out(self, *, ended: bool) -> None:
        assert self.mirror is not None and self._trainer is not None
        self._parts.update(self._extra)
        self._parts["trainer"] = self._kept = self._take(ended=ended)
        self._mirrored = self._trainer.state.global_step
        self._evaluated = False
        self.mirror.mirror_out(self._mirrored)
