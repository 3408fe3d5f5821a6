"""Runs of the Hugging Face Trainer: killed, started again, compared with uninterrupted runs."""

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate.state import AcceleratorState, GradientState, PartialState

from plinius.integrations.transformers import MirrorCallback
from unit.mirroring import KEY

EVENTS = (
    "on_train_begin", "on_train_end", "on_epoch_begin", "on_step_begin", "on_substep_end",
    "on_pre_optimizer_step", "on_step_end",
    "on_log", "on_prediction_step", "on_evaluate", "on_save", "on_epoch_end",
)  # fmt: skip
_TIMES = ("runtime", "per_second")

Build = Callable[[Path, list[transformers.TrainerCallback]], transformers.Trainer]
"""Builds a Trainer that writes to a folder, with these callbacks and its own."""


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


def _event(name: str) -> Callable[..., None]:
    def event(self: "Killer", *_: Any, **__: Any) -> None:
        self.happened(name)

    return event


class Killer(transformers.TrainerCallback):
    """Counts the events of a run, and raises at one. The counts are no state of the run."""

    def __init__(self, at: tuple[str, int] | None = None) -> None:
        counts: dict[str, int] = {}

        def happened(name: str) -> None:
            counts[name] = counts.get(name, 0) + 1
            if at == (name, counts[name]):
                raise Killed

        self.happened = happened
        self.counted: Callable[[], dict[str, int]] = lambda: counts


for _name in EVENTS:
    setattr(Killer, _name, _event(_name))


def run(
    build: Build, folder: Path, *, before: Killer, after: Killer, options: dict[str, Any] | None
) -> dict[str, Any]:
    """Train like a new process; returns the final state. `options` None: without a mirror."""
    for singleton in (AcceleratorState, GradientState, PartialState):
        singleton._reset_state()
    transformers.set_seed(7)
    mirrors = [MirrorCallback(folder / "run.region", KEY, **options)] if options is not None else []
    trainer = build(folder / "out", [before, *mirrors, after])
    try:
        output = trainer.train()
    finally:
        for mirror in mirrors:
            mirror.close()
    return outcome(trainer, output.training_loss, folder)


def outcome(trainer: transformers.Trainer, loss: float, folder: Path) -> dict[str, Any]:
    """The final state of a run, without times and the name of the folder."""
    others = [
        it for it in trainer.callback_handler.callbacks
        if not isinstance(it, MirrorCallback | Killer | transformers.PrinterCallback
        | transformers.ProgressCallback)
    ]  # fmt: skip
    assert trainer.model and trainer.optimizer and trainer.lr_scheduler
    final = {
        "model": dict(trainer.model.state_dict()),
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.lr_scheduler.state_dict(),
        "state": dataclasses.asdict(trainer.state),
        "control": vars(trainer.control),
        "callbacks": [(type(it).__name__, vars(it)) for it in others],
        "loss": loss,
        "random": [random.getstate(), np.random.get_state(), torch.get_rng_state()],
    }
    return {name: _comparable(it, str(folder)) for name, it in final.items()}


def _comparable(value: Any, folder: str) -> Any:
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.shape, value.detach().numpy().tobytes()
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, dict):
        return {
            name: _comparable(it, folder) for name, it in value.items()
            if not str(name).endswith(_TIMES)
        }  # fmt: skip
    if isinstance(value, list | tuple):
        return [_comparable(it, folder) for it in value]
    if callable(value):
        return "callable"
    return repr(value).replace(folder, "")
