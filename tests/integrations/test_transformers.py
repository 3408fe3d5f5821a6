"""The Hugging Face callback: a run that is stopped anywhere in an epoch resumes exactly."""

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
    """Train a small model for STEPS steps, in epochs of 5 batches; raise at forward pass `stop`."""
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
def test_a_stopped_run_ends_like_one_that_was_not_stopped(
    stop: int, options: dict[str, Any], tmp_path: Path
) -> None:
    """Stopped within an epoch, at its last batch, at the first of the next: equal tensors."""
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


def test_a_stop_between_accumulated_batches_repeats_the_whole_step(tmp_path: Path) -> None:
    """Five batches make a step: the three of the stopped step are trained on again."""
    whole, region = tmp_path / "whole.region", tmp_path / "run.region"
    train(whole, accumulate=5)
    with pytest.raises(StoppedError):
        train(region, 23, accumulate=5)
    assert train(region, accumulate=5).calls == 5 * STEPS - 20
    ended, wanted = newest_snapshot(region, KEY), newest_snapshot(whole, KEY)
    assert [bytes(t.data) for t in ended.tensors] == [bytes(t.data) for t in wanted.tensors]


def test_a_run_that_has_ended_makes_no_more_steps(tmp_path: Path) -> None:
    """The same script started again: no step is made, and the state is unchanged."""
    region = tmp_path / "run.region"
    train(region)
    before = [bytes(t.data) for t in newest_snapshot(region, KEY).tensors]
    assert train(region).calls == 0
    assert [bytes(t.data) for t in newest_snapshot(region, KEY).tensors] == before


def test_another_model_is_refused(tmp_path: Path) -> None:
    """Its names and shapes are compared before anything is restored."""
    train(tmp_path / "run.region")
    with pytest.raises(MismatchError, match=r"model/layer.0.weight is float32\[4, 4\] there"):
        train(tmp_path / "run.region", width=3)


@pytest.mark.parametrize("stop", [3, 4, 5, 6, 11])
def test_the_last_step_of_an_epoch_may_have_fewer_batches(stop: int, tmp_path: Path) -> None:
    """Five batches in steps of two: the third step has one batch, also when it is resumed."""
    whole, region = tmp_path / "whole.region", tmp_path / "run.region"
    train(whole, accumulate=2)
    with pytest.raises(StoppedError):
        train(region, stop, accumulate=2)
    train(region, accumulate=2)
    ended, wanted = newest_snapshot(region, KEY), newest_snapshot(whole, KEY)
    assert [bytes(t.data) for t in ended.tensors] == [bytes(t.data) for t in wanted.tensors]


def test_a_number_in_the_state_is_restored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is written into the mapping; the run is bit-identical, so there is no warning."""
    region, state = tmp_path / "run.region", {"number": 5}
    with pytest.raises(StoppedError):
        train(region, 4, state=state)
    state["number"] = 6
    train(region, state=state)
    assert state["number"] == 5
    assert "not bit-identical" not in caplog.text


class DoesNotLoad:
    """Has a state_dict that counts how often it was called."""

    calls = 0

    def state_dict(self) -> dict[str, int]:
        self.calls += 1
        return {"calls": self.calls}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        pass


def test_a_value_that_is_not_restored_makes_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An object whose load_state_dict does nothing."""
    with pytest.raises(StoppedError):
        train(tmp_path / "run.region", 4, state={"other": DoesNotLoad()})
    train(tmp_path / "run.region", state={"other": DoesNotLoad()})
    assert "The resumed run is not bit-identical: " in caplog.text


def test_no_steps_between_commits_is_refused(tmp_path: Path) -> None:
    """When the callback is made; Lightning's has the same arguments."""
    with pytest.raises(ValueError, match="every must be at least 1"):
        MirrorCallback(tmp_path / "run.region", KEY, every=0)
