"""The Hugging Face callback: stopped anywhere in an epoch, it goes on as if nothing had been."""

from pathlib import Path
from typing import Any

import pytest
import torch

from plinius.errors import MismatchError
from plinius.slots import newest_snapshot
from unit.mirroring import KEY

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
from plinius.integrations.transformers import MirrorCallback  # noqa: E402

STEPS = 13


class StoppedError(Exception):
    pass


class Records(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": torch.arange(4.0) + index}


class Model(torch.nn.Module):
    def __init__(self, stop: int | None, width: int = 4) -> None:
        super().__init__()
        self.layer = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Dropout(0.5))
        self.calls, self.stop = 0, stop

    def forward(self, x: torch.Tensor, **_: object) -> dict[str, torch.Tensor]:
        if self.calls == self.stop:
            raise StoppedError
        self.calls += 1
        return {"loss": self.layer(x).square().mean()}


def train(
    region: Path, stop: int | None = None, *, accumulate: int = 1, width: int = 4, **options: object
) -> Model:
    """Train a small model for STEPS steps, in epochs of 5 batches; raise before one."""
    arguments = transformers.TrainingArguments(
        output_dir=str(region.parent / "out"), max_steps=STEPS, per_device_train_batch_size=2,
        gradient_accumulation_steps=accumulate, use_cpu=True, save_strategy="no",
        report_to="none", disable_tqdm=True, logging_steps=4,
    )  # fmt: skip
    transformers.set_seed(7)
    model = Model(stop, width)
    callback = MirrorCallback(region, KEY, **options)  # type: ignore[arg-type]
    trainer = transformers.Trainer(model, arguments, train_dataset=Records(), callbacks=[callback])
    try:
        trainer.train()
    finally:
        callback.close()
    assert trainer.state.global_step == STEPS
    return model


@pytest.mark.parametrize("options", [{}, {"overlap": True}, {"every": 3}], ids=str)
@pytest.mark.parametrize("stop", [1, 4, 5, 6, 10])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    stop: int, options: dict[str, Any], tmp_path: Path
) -> None:
    """In the midst of an epoch, at its last batch, at the first of the next: equal tensors."""
    whole, region = tmp_path / "whole.region", tmp_path / "run.region"
    assert train(whole, **options).calls == STEPS
    with pytest.raises(StoppedError):
        train(region, stop, **options)
    every = int(str(options.get("every", 1)))
    assert train(region, **options).calls == STEPS - stop // every * every
    ended, wanted = newest_snapshot(region, KEY), newest_snapshot(whole, KEY)
    assert [(t.name, bytes(t.data)) for t in ended.tensors] == [
        (t.name, bytes(t.data)) for t in wanted.tensors
    ]


def test_gradients_that_were_accumulated_are_stepped_over_as_well(tmp_path: Path) -> None:
    """A step of five batches is what is counted."""
    whole, region = tmp_path / "whole.region", tmp_path / "run.region"
    train(whole, accumulate=5)
    with pytest.raises(StoppedError):
        train(region, 23, accumulate=5)
    assert train(region, accumulate=5).calls == 5 * STEPS - 20
    ended, wanted = newest_snapshot(region, KEY), newest_snapshot(whole, KEY)
    assert [bytes(t.data) for t in ended.tensors] == [bytes(t.data) for t in wanted.tensors]


def test_a_run_that_is_done_does_nothing_more(tmp_path: Path) -> None:
    """The same script again: no step is made, and the state is what it was."""
    region = tmp_path / "run.region"
    train(region)
    before = [bytes(t.data) for t in newest_snapshot(region, KEY).tensors]
    assert train(region).calls == 0
    assert [bytes(t.data) for t in newest_snapshot(region, KEY).tensors] == before


def test_another_model_is_refused(tmp_path: Path) -> None:
    """Its names and shapes are compared before anything is changed."""
    train(tmp_path / "run.region")
    with pytest.raises(MismatchError, match=r"model/layer.0.weight is float32\[4, 4\] there"):
        train(tmp_path / "run.region", width=3)


@pytest.mark.parametrize("stop", [3, 4, 5, 6, 11])
def test_the_last_step_of_an_epoch_may_have_fewer_batches(stop: int, tmp_path: Path) -> None:
    """Five batches in steps of two: the third step has one, also when it is resumed."""
    whole, region = tmp_path / "whole.region", tmp_path / "run.region"
    train(whole, accumulate=2)
    with pytest.raises(StoppedError):
        train(region, stop, accumulate=2)
    train(region, accumulate=2)
    ended, wanted = newest_snapshot(region, KEY), newest_snapshot(whole, KEY)
    assert [bytes(t.data) for t in ended.tensors] == [bytes(t.data) for t in wanted.tensors]
