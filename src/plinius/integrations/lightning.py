"""Lightning: a callback that mirrors a Trainer's run, and resumes it.

trainer = Trainer(callbacks=[MirrorCallback("run.region", key, state={"loader": loader})])
trainer.fit(module, loader)
"""

from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging

from plinius.errors import StateError
from plinius.integrations.lightning_state import CallbackStates, Progress
from plinius.integrations.lightning_support import (
    require_can_go_on,
    require_covered,
    require_loaders,
)
from plinius.keys import OwnerKey
from plinius.mirror import Mirror


class MirrorCallback(Callback):
    """Mirrors module, optimizers, schedulers and Lightning's own progress every `every` steps.

    A commit is made before a batch is read, when all that followed the batch before is done: other
    callbacks, validation, the end of an epoch and the begin of the next. A last one is made after
    every on_train_end. A killed script, run again, goes on from there: what came after is done
    again. The batches come from a `plinius.ResumableLoader` that is in `state`, which holds
    whatever else belongs to the run. What a resumed run would lose is refused by name when fitting
    starts: see docs/mirror.md. `options` are those of `Mirror.open`.
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
        self._release: Callable[[], None] = lambda: None
        self.mirror: Mirror | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the mirror and go on from it. Raises what `Mirror.open` and `mirror_in` raise."""
        if trainer.world_size > 1:
            raise StateError(
                f"A region is written by one process, not by a group of {trainer.world_size}",
                "Train with Trainer(devices=1)",
            )
        require_covered(trainer, pl_module, self)
        others: list[Callback] = [it for it in trainer.callbacks if it is not self]  # type: ignore[attr-defined]
        progress = Progress(trainer)
        state: dict[str, Any] = {
            "model": pl_module,
            "optimizers": [*trainer.optimizers],
            "schedulers": [config.scheduler for config in trainer.lr_scheduler_configs],
            "lightning": progress,
            "callbacks": CallbackStates(others, trainer, pl_module),
            "averages": [it._average_model for it in others if isinstance(it, WeightAveraging)],
            **self._extra,
        }
        self.mirror = Mirror.open(self._region, self._key, state, **self._options)
        self._mirrored = self.mirror.mirror_in()
        trainer.accumulate_grad_batches = progress.accumulate  # until on_train_start has seen it
        self._hook(trainer, progress)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the region. Raises StorageError if the last step is not mirrored."""
        mirror = self._let_go()
        if mirror:
            mirror.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Let go of the region; what happened first is what is told."""
        mirror = self._let_go()
        if mirror:
            mirror.__exit__(type(exception), exception, None)

    def _let_go(self) -> Mirror | None:
        self._release()
        self._release = lambda: None
        mirror, self.mirror = self.mirror, None
        return mirror

    def _hook(self, trainer: Trainer, progress: Progress) -> None:
        """Take part in Lightning's loops where no hook of a callback, of whom others follow, is."""
        fit: Any = trainer.fit_loop
        epoch, mirror = fit.epoch_loop, self.mirror
        assert mirror is not None
        resumed, ran = mirror.committed is not None, False

        def not_restarting() -> None:
            """Nothing is left of what came before: Lightning is not to leave anything out."""
            fit._restarting = epoch.restarting = False

        def started() -> None:
            nonlocal ran
            ran = True
            require_loaders(trainer, [*self._extra.values()])
            if not resumed:
                return
            # Once more: on_train_start of others, and zero_grad, have changed what was put back.
            mirror.mirror_in()
            if progress.ended:
                require_can_go_on(trainer, progress)
                progress.ended = False
                not_restarting()

        def before_batch() -> None:
            not_restarting()
            if trainer.global_step >= self._mirrored + self._every:
                self._mirror_out(trainer)

        def ended() -> None:
            progress.ended = True
            self._mirror_out(trainer)

        def left() -> None:
            if resumed and not ran:  # a run that had ended: hooks and a sanity check came since
                mirror.mirror_in()
                not_restarting()

        undo = [
            _around(fit, "run", after=left),
            _around(fit, "on_run_start", after=started),
            _around(epoch, "advance", before=before_batch),
            _around(fit, "on_run_end", after=ended),
        ]
        self._release = lambda: [it() for it in undo] and None

    def _mirror_out(self, trainer: Trainer) -> None:
        assert self.mirror is not None
        self.mirror.mirror_out(trainer.global_step)
        self._mirrored = trainer.global_step


def _nothing() -> None:
    pass


def _around(
    loop: Any,
    name: str,
    *,
    before: Callable[[], None] = _nothing,
    after: Callable[[], None] = _nothing,
) -> Callable[[], None]:
    """Call something before and after a method of one loop; returns what undoes it."""
    theirs = getattr(loop, name)

    def call(*given: Any) -> None:
        before()
        theirs(*given)
        after()

    setattr(loop, name, call)
    return lambda: delattr(loop, name)
