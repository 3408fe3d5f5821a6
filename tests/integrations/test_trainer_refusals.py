"""What the Hugging Face callback refuses by name, before or instead of going on otherwise."""

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


class Holding(TrainerCallback):
    """A callback that holds what it is given."""

    def __init__(self, held: Any) -> None:
        self.held = held


class Teaching(Trainer):
    """A Trainer with a second model."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.teacher = torch.nn.Linear(2, 2)


class Endless(torch.utils.data.IterableDataset[dict[str, Any]]):
    """A stream that goes on where the last epoch stopped."""

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
        ({"trainer": Teaching}, "Teaching holds a Linear in its attribute teacher"),
        (
            {"own": lambda: [Holding([torch.nn.Linear(2, 2)])]},
            r"Holding 1 holds a list in its attribute held.*state=",
        ),
    ],
    ids=lambda it: next(iter(it)) if isinstance(it, dict) else "",
)
def test_what_is_not_covered_is_refused_by_name_before_the_first_step(
    settings: dict[str, Any], match: str, tmp_path: Path
) -> None:
    """Nothing is trained, and no region is made."""
    killer = Killer()
    with pytest.raises(StateError, match=match):
        train(tmp_path, killer, **settings)
    assert killer.counted().get("on_step_begin", 0) == 0
    assert not (tmp_path / "run.region").exists()


def test_a_checkpoint_to_resume_from_and_a_second_mirror_are_refused(tmp_path: Path) -> None:
    """Two that resume a run would each put another state in place."""
    train(tmp_path / "saved", save_strategy="steps", save_steps=4)
    checkpoint = str(tmp_path / "saved" / "out" / "checkpoint-4")
    mirror = MirrorCallback(tmp_path / "run.region", KEY)
    with pytest.raises(StateError, match="resume_from_checkpoint"):
        make()(tmp_path / "out", [mirror]).train(resume_from_checkpoint=checkpoint)
    second = MirrorCallback(tmp_path / "second.region", KEY)
    with pytest.raises(StateError, match="two MirrorCallbacks"):
        make()(tmp_path / "out", [mirror, second]).train()


def test_what_a_callback_holds_is_mirrored_if_it_is_in_the_state(tmp_path: Path) -> None:
    """The way out that the refusal names."""
    held = torch.nn.Linear(2, 2)
    before = held.weight.detach().clone()
    for width, at in ((1.0, ("on_step_end", 3)), (2.0, None)):
        held.weight.data.copy_(before * width)
        mirror = MirrorCallback(tmp_path / "run.region", KEY, state={"held": held})
        killer = Killer(at)
        trainer = make(own=lambda: [Holding(held)])(tmp_path / "out", [mirror, killer])
        try:
            trainer.train()
        except Killed:
            assert at
        mirror.close()
    assert torch.equal(held.weight, before)


@pytest.mark.parametrize("setting", ["learning_rate", "max_steps", "gradient_accumulation_steps"])
def test_a_run_goes_on_with_the_settings_it_began_with(setting: str, tmp_path: Path) -> None:
    """Others are refused, before anything is changed."""
    with pytest.raises(Killed):
        train(tmp_path, Killer(("on_step_begin", 4)))
    with pytest.raises(MismatchError, match=setting):
        train(tmp_path, None, **{setting: 3})


def _shorter() -> Sentences:
    return Sentences(17)


@pytest.mark.parametrize(
    ("first", "then"), [(Endless, Endless), (Sentences, _shorter)], ids=["a stream", "other data"]
)
def test_data_that_does_not_come_back_is_refused(
    first: Callable[[], Any], then: Callable[[], Any], tmp_path: Path
) -> None:
    """The next batches are compared with those that the run was about to train on."""
    with pytest.raises(Killed):
        train(tmp_path, Killer(("on_step_begin", 5)), data=first, max_steps=8)
    with pytest.raises((StateError, MismatchError), match="does not come back as it was|epochs"):
        train(tmp_path, data=then, max_steps=8)


def test_a_best_model_that_is_gone_is_refused(tmp_path: Path) -> None:
    """The Trainer itself would only warn, and end with another model."""
    with pytest.raises(Killed):
        train(tmp_path, Killer(("on_epoch_end", 2)), **BEST)
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(StateError, match="checkpoint of the best model, .* is missing"):
        train(tmp_path, **BEST)


def test_a_callback_outside_of_a_trainer_is_refused(tmp_path: Path) -> None:
    """There is nothing that it could mirror."""
    with pytest.raises(StateError, match="was not called by a transformers.Trainer"):
        MirrorCallback(tmp_path / "run.region", KEY).on_train_begin(
            None, None, None, train_dataloader=None
        )


def test_the_trainer_is_as_it_was_when_the_run_is_over(tmp_path: Path) -> None:
    """The callback leaves nothing of its own in the Trainer or its callbacks."""
    mirror = MirrorCallback(tmp_path / "run.region", KEY)
    trainer = make(classifier)(tmp_path / "out", [mirror])
    known = {*vars(trainer)}
    trainer.train()
    names = {"_run_epoch", "get_batch_samples", "_finalize_training", "_evaluate"}
    assert not names & ({*vars(trainer)} - known)
    assert not {"on_epoch_begin", "on_step_begin"} & {*vars(trainer.callback_handler)}
