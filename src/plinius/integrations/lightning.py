"""Lightning: a callback that mirrors a Trainer's run, and resumes it.

trainer = Trainer(callbacks=[MirrorCallback("run.region", key, state={"loader": loader})])
trainer.fit(module, loader)
"""

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from plinius.errors import StateError
from plinius.integrations.lightning_support import (
    require_covered,
    require_loaders,
    require_no_means,
)
from plinius.keys import OwnerKey
from plinius.mirror import Mirror

_VALIDATION = "epoch_loop.val_loop"


class MirrorCallback(Callback):
    """Mirrors module, optimizers, schedulers and Lightning's own progress every `every` steps.

    A killed script, run again, goes on at the step after the last mirrored one. The batches come
    from loaders that are in `state` (`plinius.ResumableLoader`), which holds whatever else belongs
    to the run. What a resumed run would lose is refused by name when fitting starts: see
    docs/mirror.md. `options` are those of `Mirror.open`.
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
        self.mirror: Mirror | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the mirror and go on from it. Raises what `Mirror.open` and `mirror_in` raise."""
        if trainer.world_size > 1:
            raise StateError(
                f"A region is written by one process, not by a group of {trainer.world_size}",
                "Train with Trainer(devices=1)",
            )
        require_covered(trainer, pl_module)
        state: dict[str, Any] = {
            "model": pl_module,
            "optimizers": [*trainer.optimizers],
            "schedulers": [config.scheduler for config in trainer.lr_scheduler_configs],
            "lightning": _Progress(trainer),
            "callbacks": _Callbacks(trainer, self),
            **self._extra,
        }
        self.mirror = Mirror.open(self._region, self._key, state, **self._options)
        self._mirrored = self.mirror.mirror_in()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises StateError unless what the batches come from is in the state."""
        require_loaders(trainer, [*self._extra.values()])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any
    ) -> None:
        """Mirror the step out, unless only gradients were accumulated."""
        require_no_means(trainer)
        if trainer.global_step >= self._mirrored + self._every:
            self._mirror_out(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any
    ) -> None:
        """Count the epoch that Lightning forgets when it resumes behind the last batch of one."""
        progress: Any = trainer.fit_loop.epoch_progress
        for counts in (progress.total, progress.current):
            counts.ready = counts.started = max(counts.ready, counts.processed + 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mirror the last step out."""
        if trainer.global_step != self._mirrored or (self.mirror and self.mirror.failure):
            self._mirror_out(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the region. Raises StorageError if the last step is not mirrored."""
        mirror, self.mirror = self.mirror, None
        if mirror:
            mirror.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Let go of the region; what happened first is what is told."""
        mirror, self.mirror = self.mirror, None
        if mirror:
            mirror.__exit__(type(exception), exception, None)

    def _mirror_out(self, trainer: Trainer) -> None:
        assert self.mirror is not None
        self.mirror.mirror_out(trainer.global_step)
        self._mirrored = trainer.global_step


class _Progress:
    """What Lightning counts: epochs, batches, steps. Validation is run again if it was stopped."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        counts = self._trainer.fit_loop.state_dict()
        return {name: c for name, c in counts.items() if not name.startswith(_VALIDATION)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._trainer.fit_loop.load_state_dict(state_dict)


class _Callbacks:
    """The states of the other callbacks, as Lightning's own checkpoints have them."""

    def __init__(self, trainer: Trainer, mirror: MirrorCallback) -> None:
        self._callbacks = [it for it in trainer.callbacks if it is not mirror]  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        return {it.state_key: it.state_dict() for it in self._callbacks if it.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for callback in self._callbacks:
            if callback.state_key in state_dict:
                callback.load_state_dict(state_dict[callback.state_key])
