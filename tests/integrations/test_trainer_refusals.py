"""What the Hugging Face callback refuses by name."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from plinius.errors import MismatchError, StateError
from unit.mirroring import KEY

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
from transformers import Trainer, TrainerCallback  # noqa: E402

from integrations.trainer_configurations import BEST, Sentences, classifier, make  # noqa: E402
from integrations.trainer_runs import Killed, Killer, run  # noqa: E402
from plinius.integrations.transformers import MirrorCallback  # noqa: E402
from plinius.integrations.transformers.refusals import require_covered  # noqa: E402


class HoldsObject(TrainerCallback):
    """A callback with an object in an attribute."""

    def __init__(self, held: Any) -> None:
        self.held = held


class HasTeacher(Trainer):
    """A Trainer with a second model."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.teacher = torch.nn.Linear(2, 2)


class ContinuedStream(torch.utils.data.IterableDataset[dict[str, Any]]):
    """A stream: an epoch starts where the one before stopped."""

    def __init__(self) -> None:
        sentences = Sentences()
        self.records = (sentences[index % len(sentences)] for index in range(1000))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (it for _, it in zip(range(12), self.records, strict=False))


def train(folder: Path, killer: Killer | None = None, **settings: Any) -> None:
    run(make(**settings), folder, before=Killer(), after=killer or Killer(), options={})


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"auto_find_batch_size": True}, "auto_find_batch_size changes"),
        ({"torch_compile": True}, "torch_compile may compile"),
        (
            {"dataloader_num_workers": 1, "dataloader_persistent_workers": True},
            "Persistent workers draw",
        ),
        ({"trainer": HasTeacher}, "HasTeacher, which holds a Linear in its attribute teacher"),
        (
            {"own": lambda: [HoldsObject([torch.nn.Linear(2, 2)])]},
            r"HoldsObject 1, which holds a list in its attribute held.*state=",
        ),
    ],
    ids=lambda it: next(iter(it)) if isinstance(it, dict) else "",
)
def test_a_configuration_that_is_not_covered_is_refused_before_the_first_step(
    settings: dict[str, Any], match: str, tmp_path: Path
) -> None:
    """With its name. Nothing is trained, and no region is created."""
    killer = Killer()
    with pytest.raises(StateError, match=match):
        train(tmp_path, killer, **settings)
    assert killer.counted().get("on_step_begin", 0) == 0
    assert not (tmp_path / "run.region").exists()


def test_a_checkpoint_to_resume_from_and_a_second_mirror_are_refused(tmp_path: Path) -> None:
    """The run cannot be resumed from two states."""
    train(tmp_path / "saved", save_strategy="steps", save_steps=4)
    checkpoint = str(tmp_path / "saved" / "out" / "checkpoint-4")
    mirror = MirrorCallback(tmp_path / "run.region", KEY)
    with pytest.raises(StateError, match="resume_from_checkpoint"):
        make()(tmp_path / "out", [mirror]).train(resume_from_checkpoint=checkpoint)
    second = MirrorCallback(tmp_path / "second.region", KEY)
    with pytest.raises(StateError, match="two MirrorCallbacks"):
        make()(tmp_path / "out", [mirror, second]).train()


def test_an_object_that_a_callback_holds_is_mirrored_if_it_is_in_the_state(tmp_path: Path) -> None:
    """That is the solution that the error names."""
    held = torch.nn.Linear(2, 2)
    before = held.weight.detach().clone()
    for width, at in ((1.0, ("on_step_end", 3)), (2.0, None)):
        held.weight.data.copy_(before * width)
        mirror = MirrorCallback(tmp_path / "run.region", KEY, state={"held": held})
        killer = Killer(at)
        trainer = make(own=lambda: [HoldsObject(held)])(tmp_path / "out", [mirror, killer])
        try:
            trainer.train()
        except Killed:
            assert at
        mirror.close()
    assert torch.equal(held.weight, before)


@pytest.mark.parametrize("setting", ["learning_rate", "max_steps", "gradient_accumulation_steps"])
def test_other_settings_than_the_run_began_with_are_refused(setting: str, tmp_path: Path) -> None:
    """Before anything is restored."""
    with pytest.raises(Killed):
        train(tmp_path, Killer(("on_step_begin", 4)))
    with pytest.raises(MismatchError, match=setting):
        train(tmp_path, None, **{setting: 3})


def _shorter() -> Sentences:
    return Sentences(17)


@pytest.mark.parametrize(
    ("first", "then"),
    [(ContinuedStream, ContinuedStream), (Sentences, _shorter)],
    ids=["a stream", "other data"],
)
def test_data_that_is_not_the_same_again_is_refused(
    first: Callable[[], Any], then: Callable[[], Any], tmp_path: Path
) -> None:
    """The next batches are compared with those that the stopped run had read."""
    with pytest.raises(Killed):
        train(tmp_path, Killer(("on_step_begin", 5)), data=first, max_steps=8)
    with pytest.raises((StateError, MismatchError), match="is not the same as before|epochs"):
        train(tmp_path, data=then, max_steps=8)


def test_a_missing_checkpoint_of_the_best_model_is_refused(tmp_path: Path) -> None:
    """The Trainer would only warn, and the run would end with another model."""
    with pytest.raises(Killed):
        train(tmp_path, Killer(("on_epoch_end", 2)), **BEST)
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(StateError, match="checkpoint of the best model, .* is missing"):
        train(tmp_path, **BEST)


def test_a_callback_outside_of_a_trainer_is_refused(tmp_path: Path) -> None:
    """It has no Trainer to mirror."""
    with pytest.raises(StateError, match="was not called by a transformers.Trainer"):
        MirrorCallback(tmp_path / "run.region", KEY).on_train_begin(
            None, None, None, train_dataloader=None
        )


def test_the_methods_of_the_trainer_are_restored(tmp_path: Path) -> None:
    """After training, the callback has left nothing in the Trainer or its callbacks."""
    mirror = MirrorCallback(tmp_path / "run.region", KEY)
    trainer = make(classifier)(tmp_path / "out", [mirror])
    known = {*vars(trainer)}
    trainer.train()
    names = {"_run_epoch", "get_batch_samples", "_finalize_training", "_evaluate"}
    assert not names & ({*vars(trainer)} - known)
    assert not {"on_epoch_begin", "on_step_begin"} & {*vars(trainer.callback_handler)}


def test_another_version_of_transformers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One where a method that the callback replaces has other parameters."""

    def run_epoch(self: Trainer, epoch: int) -> None:
        raise NotImplementedError

    monkeypatch.setattr(Trainer, "_run_epoch", run_epoch)
    with pytest.raises(StateError, match="This version of transformers has another training loop"):
        train(tmp_path)


@pytest.mark.parametrize(
    ("target", "name", "value", "match"),
    [
        (Trainer, "is_fsdp_enabled", True, "does not cover DeepSpeed and FSDP"),
        (transformers.TrainingArguments, "world_size", 2, "by one process, not by a group of 2"),
        (transformers.TrainingArguments, "n_gpu", 3, "by one process, not by a group of 3"),
    ],
    ids=["FSDP", "processes", "devices"],
)
def test_a_group_of_processes_or_devices_is_refused(
    target: type, name: str, value: Any, match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A region has one writer."""
    mirror = MirrorCallback(tmp_path / "run.region", KEY)
    trainer = make()(tmp_path / "out", [mirror])
    fixed = property(lambda _: value, lambda *_: None)
    monkeypatch.setattr(target, name, fixed, raising=False)
    with pytest.raises(StateError, match=match):
        require_covered(trainer, mirror)
