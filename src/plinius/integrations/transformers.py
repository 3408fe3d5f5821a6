"""Hugging Face Trainer: a callback that mirrors a run, and resumes it.

trainer = Trainer(model, arguments, train_dataset=..., callbacks=[MirrorCallback(path, key)])
trainer.train()
"""

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from plinius.errors import StateError
from plinius.keys import OwnerKey
from plinius.mirror import Mirror

_COUNTS = ("global_step", "epoch", "total_flos", "num_input_tokens_seen", "best_metric")


class MirrorCallback(TrainerCallback):
    """Mirrors model, optimizer, scheduler and the Trainer's counts every `every` steps.

    A killed script, run again, goes on at the step after the last mirrored one: the loader skips
    what was seen (random numbers that a dataset draws are not the same again). `state` holds what
    else belongs to the run; `options` are those of `Mirror.open`. In one process, `close` it first
    if training raised.
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
        self._extra, self._options = state or {}, options
        self._mirrored = 0
        self._epochs = self._batches = self._epoch = 0
        self.mirror: Mirror | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **about: Any) -> None:
        """Open the mirror and go on from it. Raises what `Mirror.open` and `mirror_in` raise."""
        if args.world_size > 1:
            raise StateError(
                f"A region is written by one process, not by a group of {args.world_size}",
                "Train in one process",
            )
        loader, accumulated = about["train_dataloader"], args.gradient_accumulation_steps
        if len(loader) % accumulated:
            raise StateError(
                f"An epoch of {len(loader)} batches is no multiple of {accumulated}, the gradient "
                "accumulation steps, so that it cannot be resumed in its midst",
                "Drop the last records (dataloader_drop_last), or choose other numbers",
            )
        parts: dict[str, Any] = {
            "model": about["model"],
            "optimizer": about["optimizer"],
            "scheduler": about["lr_scheduler"],
            "trainer": _Counts(state),
            **self._extra,
        }
        self.mirror = Mirror.open(self._region, self._key, parts, **self._options)
        self._mirrored = self.mirror.mirror_in()
        self._epoch, self._steps_in_epoch = -1, len(loader) // accumulated
        self._epochs, steps = divmod(self._mirrored, self._steps_in_epoch)
        if state.global_step >= state.max_steps:  # all is done, but the Trainer begins an epoch
            steps, control.should_training_stop = self._steps_in_epoch, True
        self._batches = loader.skip_batches = steps * accumulated

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **about: Any) -> None:
        """The Trainer counts epochs from 0 again: have the loader shuffle as in the true one."""
        self._epoch += 1
        loader, epoch = about["train_dataloader"], self._epochs + self._epoch
        shuffle = type(loader).set_epoch
        loader.set_epoch = lambda _: shuffle(loader, epoch)
        if self._epoch > 0:
            self._batches = loader.skip_batches = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **about: Any) -> None:
        """Skipping drew random numbers: put those back once more that the run was at."""
        if self._batches and self.mirror and state.global_step == self._mirrored:
            self.mirror.mirror_in()
        self._batches = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **about: Any) -> None:
        """Mirror the step out."""
        assert self.mirror is not None
        state.epoch = state.global_step / self._steps_in_epoch
        if state.global_step >= self._mirrored + self._every:
            self._mirror_out(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **about: Any) -> None:
        """Mirror the last step out and let go of the region.

        Raises StorageError if the last step is not mirrored.
        """
        if self.mirror and (state.global_step != self._mirrored or self.mirror.failure):
            self._mirror_out(state)
        self.close()

    def close(self) -> None:
        """Let go of the region: the Trainer does not tell of exceptions.

        Raises StorageError if the last step is not mirrored.
        """
        mirror, self.mirror = self.mirror, None
        if mirror:
            mirror.close()

    def _mirror_out(self, state: Any) -> None:
        assert self.mirror is not None
        self.mirror.mirror_out(state.global_step)
        self._mirrored = state.global_step


class _Counts:
    """What the Trainer counts, and what it logged."""

    def __init__(self, state: Any) -> None:
        self._state = state

    def state_dict(self) -> dict[str, Any]:
        counts = {name: getattr(self._state, name) for name in _COUNTS}
        return {**counts, "log_history": self._state.log_history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self._state, name, value)
