"""Hugging Face Trainer: a callback that mirrors a run, and resumes it.

trainer = Trainer(model, arguments, train_dataset=..., callbacks=[MirrorCallback(path, key)])
trainer.train()
"""

import os
from collections.abc import Callable, MutableMapping
from functools import partial
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback

from plinius.integrations.transformers.batches import Batches
from plinius.integrations.transformers.coverage import (
    identity_of,
    require_best_model,
    require_covered,
)
from plinius.integrations.transformers.values import TrainerValues, find_trainer
from plinius.keys import OwnerKey
from plinius.mirror import Mirror

_HOOKS = ("_run_epoch", "get_batch_samples", "_finalize_training", "_evaluate")
_EVENTS = ("on_epoch_begin", "on_step_begin")
Call = Callable[..., Any]


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
        self._resuming = self._due = self._stopped = False
        self._mirrored = self._first_epoch = self._epoch = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **about: Any) -> None:
        """Look at what is to be trained; the mirror is opened when the other callbacks began.

        Raises StateError, naming it, for a configuration that is not covered.
        """
        self.close()
        trainer = find_trainer(self)
        require_covered(trainer, self)
        self._values = TrainerValues(trainer, self, self._extra.values())
        self._batches = Batches(about["train_dataloader"])
        self._kept = self._take(ended=False)
        self._resuming = self._due = self._stopped = False
        self._first_epoch = self._epoch = 0
        self._hook(trainer)

    def on_evaluate(self, args: Any, state: Any, control: Any, **about: Any) -> None:
        """An evaluation is worth a commit."""
        self._due = not self._resuming

    def on_save(self, args: Any, state: Any, control: Any, **about: Any) -> None:
        """A checkpoint is worth a commit."""
        self._due = not self._resuming

    def on_train_end(self, args: Any, state: Any, control: Any, **about: Any) -> None:
        """Let go of the region. Raises StorageError if the last step is not mirrored."""
        self.close()

    def close(self) -> None:
        """Let go of the region and the Trainer, which does not tell of exceptions.

        Raises StorageError if the last step is not mirrored.
        """
        trainer, self._trainer = self._trainer, None
        if trainer:
            for owner, names in ((trainer, _HOOKS), (trainer.callback_handler, _EVENTS)):
                for name in names:
                    vars(owner).pop(name, None)
        mirror, self.mirror = self.mirror, None
        if mirror:
            mirror.close()

    def _hook(self, trainer: Trainer) -> None:
        """Have the Trainer's loop ask here: it counts from the run's begin in every process."""
        self._trainer, self._callbacks = trainer, trainer.callback_handler
        for owner, names in ((trainer, _HOOKS), (self._callbacks, _EVENTS)):
            for name in names:
                theirs = getattr(owner, name)
                setattr(owner, name, partial(getattr(self, f"_{name.lstrip('_')}"), theirs))

    def _start(self) -> None:
        """Open the mirror and go on from it, once in a training."""
        if self.mirror:
            return
        assert self._trainer is not None
        trainer = self._trainer
        self._parts = {
            "model": trainer.model,
            "optimizer": trainer.optimizer,
            "scheduler": trainer.lr_scheduler,
            "trainer": self._kept,
            **self._extra,
        }
        identity = {**self._options.get("identity", {}), **identity_of(trainer)}
        options = {**self._options, "identity": identity}
        self.mirror = Mirror.open(self._region, self._key, self._parts, **options)
        self._mirrored = self.mirror.mirror_in()
        self._extra.update({name: self._parts[name] for name in self._extra})
        self._resuming = self.mirror.commits > 0
        if self._resuming:
            self._kept = self._parts["trainer"]
            self._first_epoch = self._kept["epoch"]
            self._values.put(self._kept)

    def _on_epoch_begin(self, theirs: Call, args: Any, state: Any, control: Any) -> Any:
        """The begin of an epoch that is resumed is part of what is resumed."""
        self._start()
        return control if self._resuming else theirs(args, state, control)

    def _on_step_begin(self, theirs: Call, args: Any, state: Any, control: Any) -> Any:
        """All that followed the step before is done: mirror it out. Or go on from there."""
        if self._resuming:
            self._resume()
        elif self._due or state.global_step >= self._mirrored + self._every:
            self._mirror_out(ended=False)
        return theirs(args, state, control)

    def _run_epoch(self, theirs: Call, **given: Any) -> None:
        """An epoch of the Trainer, or the rest of it."""
        assert self._trainer is not None
        state, control = self._trainer.state, self._trainer.control
        if self._resuming and self._kept["ended"]:
            control.should_training_stop = self._stopped = True
            return
        self._epoch = given["epoch"] = self._first_epoch + given["epoch"]
        skipped = self._kept["reading"]["batches"] if self._resuming else 0
        if self._resuming:
            self._batches.begin_epoch_again(self._epoch, self._kept["reading"])
        else:
            self._batches.begin_epoch()
        if skipped:  # the Trainer then counts from there; its own skipping is not iterated over
            given.update(
                resume_from_checkpoint=os.devnull,
                epochs_trained=self._epoch,
                steps_trained_in_current_epoch=skipped,
            )
        theirs(**given)
        last = self._epoch + 1 >= state.num_train_epochs
        if self._first_epoch and last and not self._trainer.control.should_training_stop:
            self._trainer.control.should_training_stop = self._stopped = True

    def _get_batch_samples(self, theirs: Call, iterator: Any, *given: Any, **named: Any) -> Any:
        return theirs(self._batches.next_group(iterator), *given, **named)

    def _evaluate(self, theirs: Call, *given: Any, **named: Any) -> Any:
        """An evaluation of the Trainer; that on its start is part of what is resumed."""
        self._start()
        return {} if self._resuming else theirs(*given, **named)

    def _finalize_training(self, theirs: Call, *given: Any, **named: Any) -> Any:
        """All steps are made: mirror that out, before the best model is loaded."""
        self._start()
        assert self._trainer is not None
        assert self.mirror is not None
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
        return theirs(*given, **named)

    def _resume(self) -> None:
        """Put back what the way to this place changed. Raises StateError for other data."""
        self._resuming = False
        if not self._kept["ended"]:
            self._batches.require_same(self._kept["reading"])
        self._values.put(self._kept)
        self._batches.put_random(self._kept["random"])

    def _take(self, *, ended: bool) -> dict[str, Any]:
        return {
            **self._values.take(),
            "epoch": self._epoch,
            "ended": ended,
            "reading": self._batches.take(),
            "random": self._batches.random(),
        }

    def _mirror_out(self, *, ended: bool) -> None:
        assert self._trainer is not None
        assert self.mirror is not None
        self._parts.update(self._extra)
        self._parts["trainer"] = self._kept = self._take(ended=ended)
        self._mirrored = self._trainer.state.global_step
        self._due = False
        self.mirror.mirror_out(self._mirrored)
