"""Lightning: a callback that mirrors a Trainer's run, and resumes it.

trainer = Trainer(callbacks=[MirrorCallback("run.region", key, state={"loader": loader})])
trainer.fit(module, loader)
"""

import logging
from collections.abc import Callable, MutableMapping
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging

from plinius.errors import StateError
from plinius.integrations.lightning.coverage import (
    refused,
    require_can_go_on,
    require_covered,
    require_ended_as_a_longer_one,
    require_loaders,
)
from plinius.integrations.lightning.states import (
    CallbackStates,
    MetricStates,
    Progress,
    stateful_data,
)
from plinius.keys import OwnerKey
from plinius.mirror import Mirror

_log = logging.getLogger("plinius")


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
        self._run: _Run | None = None

    @property
    def mirror(self) -> Mirror | None:
        """The mirror of the run that is fitted; None before and after."""
        return self._run.mirror if self._run else None

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
            "metrics": MetricStates(pl_module),
            "callbacks": CallbackStates(others, trainer, pl_module),
            "averages": [it._average_model for it in others if isinstance(it, WeightAveraging)],
            **stateful_data(trainer),
            **self._extra,
        }
        mirror = Mirror.open(self._region, self._key, state, **self._options)
        self._run = _Run(trainer, mirror, progress, self._every, [*self._extra.values()])
        self._run.begin()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the region. Raises StorageError if the last step is not mirrored."""
        run, self._run = self._run, None
        if run:
            run.release()
            run.mirror.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Let go of the region; what happened first is what is told."""
        run, self._run = self._run, None
        if run:
            run.release()
            run.mirror.__exit__(type(exception), exception, None)


class _Run:
    """One call of fit, mirrored between the parts of Lightning's loops.

    These places are no hooks: within a hook, some callbacks are done and others are not.
    """

    def __init__(
        self, trainer: Trainer, mirror: Mirror, progress: Progress, every: int, given: list[object]
    ) -> None:
        self.mirror = mirror
        self._trainer, self._progress, self._every = trainer, progress, every
        self._given, self._mirrored = given, 0
        self._trained = False
        fit: Any = trainer.fit_loop
        self._undo = [
            _replace(fit, "run", self._run),
            _replace(fit, "on_run_start", self._on_run_start),
            _replace(fit.epoch_loop, "advance", self._advance),
            _replace(fit, "on_run_end", self._on_run_end),
        ]

    def begin(self) -> None:
        """Put back what Lightning needs to find its place, and all the rest."""
        configured = self._trainer.accumulate_grad_batches
        self._mirrored = self.mirror.mirror_in()
        self._resumed = self.mirror.committed is not None
        if self.mirror.not_bit_exact:
            _log.warning("The run does not go on bit by bit: %s", self.mirror.not_bit_exact)
        # GradientAccumulationScheduler wants to find it as configured
        self._trainer.accumulate_grad_batches = configured

    def release(self) -> None:
        """Leave Lightning's loops as they were."""
        for undo in self._undo:
            undo()

    def _run(self, theirs: Callable[[], None]) -> None:
        """All of fitting; a run that had ended before is left as it was then."""
        theirs()
        if self._resumed and not self._trained:
            self.mirror.mirror_in()
            self._not_restarting()
            require_ended_as_a_longer_one(self._trainer, self._progress)

    def _on_run_start(self, theirs: Callable[[], None]) -> None:
        """Every on_train_start, and then the state once more."""
        theirs()
        self._trained = True
        require_loaders(self._trainer, self._given)
        if not self._resumed:
            return
        self.mirror.mirror_in()  # again: zero_grad, hooks and a sanity check came in between
        if self._progress.ended:
            require_can_go_on(self._trainer, self._progress)
            self._progress.go_on()
            self._not_restarting()

    def _advance(self, theirs: Callable[[Any], None], fetcher: Any) -> None:
        """One batch, when all that followed the batch before is done."""
        self._not_restarting()
        if self._trainer.global_step >= self._mirrored + self._every:
            self._mirror_out()
        try:
            theirs(fetcher)
        except StopIteration:
            raise refused(
                "an epoch that ends before its last batch (on_train_batch_start returned -1)",
                "Leave out batches in training_step (return None)",
            ) from None

    def _on_run_end(self, theirs: Callable[[], None]) -> None:
        """Every on_train_end, and then the last commit."""
        theirs()
        self._progress.ended = True
        self._mirror_out()

    def _not_restarting(self) -> None:
        """Lightning leaves things out where it restarts; here, nothing of them is done yet."""
        fit: Any = self._trainer.fit_loop
        fit._restarting = fit.epoch_loop.restarting = False

    def _mirror_out(self) -> None:
        self.mirror.mirror_out(self._trainer.global_step)
        self._mirrored = self._trainer.global_step


def _replace(loop: Any, name: str, ours: Callable[..., None]) -> Callable[[], None]:
    """Put ours, which calls theirs, in the place of a loop's method; returns what undoes it."""
    setattr(loop, name, partial(ours, getattr(loop, name)))
    return lambda: delattr(loop, name)
