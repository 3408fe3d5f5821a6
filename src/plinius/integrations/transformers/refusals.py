"""Which configurations of a Trainer are resumed exactly, and which settings must be equal then."""

import inspect
import os
from typing import Any

from transformers import Trainer, TrainerCallback

from plinius.errors import StateError
from plinius.integrations.shared import not_covered, other_version, require_one_process
from plinius.jsonvalue import Json

_SETTINGS = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "optim",
    "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm",
    "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "label_smoothing_factor",
    "neftune_noise_alpha", "bf16", "seed", "data_seed", "full_determinism", "eval_strategy",
    "eval_delay", "save_strategy", "logging_strategy", "load_best_model_at_end",
    "metric_for_best_model", "greater_is_better", "dataloader_drop_last",
    "dataloader_num_workers", "train_sampling_strategy",
)  # fmt: skip
"""Settings of TrainingArguments that must be equal when a run is resumed."""
_STEPS = ("max_steps", "num_train_epochs", "logging_steps", "eval_steps", "save_steps")
"""Settings in the TrainerState that must be equal, too."""
_PARAMETERS = {
    "_run_epoch": {"epoch", "resume_from_checkpoint", "epochs_trained", "train_dataloader",
                   "steps_trained_in_current_epoch"},
    "get_batch_samples": {"epoch_iterator"},
    "_finalize_training": set(),
    "_evaluate": set(),
}  # fmt: skip
"""Methods of a Trainer that the callback replaces, and the parameters that it needs of them."""


def require_covered(trainer: Trainer, own: TrainerCallback) -> None:
    """Raise StateError, with its name, for the first thing that cannot be resumed exactly."""
    if not _is_tested_version(trainer):
        raise other_version("transformers", "5.23")
    args = trainer.args
    require_one_process(max(args.world_size, args.n_gpu), "Train in one process on one device")
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise not_covered(
            "Hugging Face", "DeepSpeed and FSDP", "Train in one process on one device"
        )
    optim = str(getattr(args.optim, "value", args.optim))
    own_class = [it for it in trainer.callback_handler.callbacks if type(it) is type(own)]
    for found, what, solution in (
        (len(own_class) > 1, "There are two MirrorCallbacks", "Give one"),
        (trainer.state.global_step > 0,
         "train() was given a checkpoint to resume from (resume_from_checkpoint)",
         "Call train() without: the mirror resumes the run"),
        (trainer.state.is_hyper_param_search, "A hyperparameter search is many runs",
         "Train one run with a mirror, or search without"),
        (args.auto_find_batch_size, "auto_find_batch_size changes the batches during the run",
         "Choose the batch size, and leave it out"),
        (args.torch_compile, "torch_compile may compile other kernels in the next process",
         "Leave torch_compile out"),
        (trainer.accelerator.scaler is not None,
         "The gradient scaler of fp16 is not mirrored", "Use bf16 or float32"),
        (args.dataloader_num_workers and args.dataloader_persistent_workers,
         "Persistent workers draw random numbers across epochs (dataloader_persistent_workers)",
         "Leave dataloader_persistent_workers out"),
        ("layerwise" in optim or "lomo" in optim,
         f"The optimizer {optim} steps within the backward pass", "Choose another optimizer"),
    ):  # fmt: skip
        if found:
            raise StateError(what, solution)


def require_best_model(trainer: Trainer) -> None:
    """Raise StateError if the best model is to be loaded, and its checkpoint is missing."""
    best = trainer.state.best_model_checkpoint
    if trainer.args.load_best_model_at_end and best is not None and not os.path.isdir(best):
        raise StateError(
            f"The checkpoint of the best model, {best}, is missing",
            "Keep output_dir with the region, or leave load_best_model_at_end out",
        )


def identity_of(trainer: Trainer) -> dict[str, Json]:
    """The settings that must be equal when the run is resumed, by name."""
    settings = {name: _json(getattr(trainer.args, name, None)) for name in _SETTINGS}
    steps = {name: getattr(trainer.state, name) for name in _STEPS}
    return {f"trainer.{name}": it for name, it in {**settings, **steps}.items()}


def _is_tested_version(trainer: Trainer) -> bool:
    methods = {name: getattr(trainer, name, None) for name in _PARAMETERS}
    return all(
        method is not None and _PARAMETERS[name] <= inspect.signature(method).parameters.keys()
        for name, method in methods.items()
    )


def _json(value: Any) -> Json:
    value = getattr(value, "value", value)
    return value if isinstance(value, bool | int | float | str | None) else str(value)
