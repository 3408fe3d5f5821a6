"""The Lightning callback: a run that is stopped anywhere in an epoch resumes exactly."""

import contextlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from plinius.errors import MismatchError, StateError, StorageError
from plinius.slots import newest_snapshot
from plinius.training.loader import ResumableLoader
from unit.mirroring import KEY

lightning = pytest.importorskip("lightning", reason="lightning is not installed")
from lightning import LightningModule  # noqa: E402
from lightning.pytorch import Callback  # noqa: E402

from plinius.integrations.lightning import MirrorCallback  # noqa: E402

EPOCH, STEPS = 5, 13


class StoppedError(Exception):
    pass


class Module(LightningModule):
    def __init__(self, stop: int | None) -> None:
        super().__init__()
        self.layer = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5))
        self.stop = stop
        self.steps: list[int] = []
        self.validated = 0

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        if self.global_step == self.stop:
            raise StoppedError
        self.steps.append(self.global_step)
        loss: torch.Tensor = self.layer(batch[0]).square().mean()
        return loss

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        self.validated += 1

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), 0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)]


def fit(
    region: Path,
    stop: int | None = None,
    *,
    accumulate: int = 1,
    module: Module | None = None,
    loader: object = None,
    settings: dict[str, object] | None = None,
    callbacks: tuple[object, ...] = (),
    validation: object = None,
    checkpoint: str | None = None,
    save: Path | None = None,
    trainers: list[object] | None = None,
    state: dict[str, Any] | None = None,
    **options: object,
) -> Module:
    """Train a small module for STEPS steps, in epochs of EPOCH batches; raise at step `stop`."""
    lightning.seed_everything(3, verbose=False)
    dataset = torch.utils.data.TensorDataset(torch.randn(EPOCH * 2, 4))
    resumable = ResumableLoader(dataset, 2, seed=1)
    state = {} if state is None else state
    state["loader"] = resumable
    callback = MirrorCallback(region, KEY, state=state, **options)  # type: ignore[arg-type]
    trainer = lightning.Trainer(
        max_steps=STEPS, accelerator="cpu", callbacks=[*callbacks, callback], logger=False,
        enable_progress_bar=False, enable_model_summary=False,
        accumulate_grad_batches=accumulate, default_root_dir=region.parent,
        **{"enable_checkpointing": False, **(settings or {})},
    )  # fmt: skip
    module = module or Module(stop)
    if trainers is not None:
        trainers.append(trainer)
    validation = validation or torch.utils.data.DataLoader(dataset)
    trainer.fit(module, loader or resumable, validation, ckpt_path=checkpoint)
    if save:
        trainer.save_checkpoint(save)
    return module


@pytest.mark.parametrize("options", [{}, {"overlap": True}, {"every": 3}], ids=str)
@pytest.mark.parametrize("stop", [1, 4, 5, 6, 10])
def test_a_stopped_run_ends_like_one_that_was_not_stopped(
    stop: int, options: dict[str, Any], tmp_path: Path
) -> None:
    """Stopped within an epoch, at its last batch, at the first of the next: equal digests."""
    whole, region = tmp_path / "whole.region", tmp_path / "run.region"
    assert fit(whole, **options).steps == [*range(STEPS)]
    with pytest.raises(StoppedError):
        fit(region, stop, **options)
    resumed = fit(region, **options)
    every = int(str(options.get("every", 1)))
    assert resumed.steps == [*range(stop // every * every, STEPS)]
    assert newest_snapshot(region, KEY).digest() == newest_snapshot(whole, KEY).digest()


def test_a_run_that_has_ended_makes_no_more_steps(tmp_path: Path) -> None:
    """The same script started again: no step is made, and the state is unchanged."""
    region = tmp_path / "run.region"
    fit(region)
    before = newest_snapshot(region, KEY).digest()
    assert fit(region).steps == []
    assert newest_snapshot(region, KEY).digest() == before


def test_another_module_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its names and shapes are compared before anything is restored."""
    fit(tmp_path / "run.region")

    def other(self: Module, stop: int | None) -> None:
        super(Module, self).__init__()
        self.layer = torch.nn.Linear(4, 5)  # type: ignore[assignment]
        self.stop, self.steps = stop, []

    monkeypatch.setattr(Module, "__init__", other)
    with pytest.raises(MismatchError, match="does not fit: model/layer.weight is missing there"):
        fit(tmp_path / "run.region")


def test_an_error_of_the_storage_is_raised_when_training_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk does not stop training; the error is raised at the end."""
    from plinius.slots import Slots

    def refused(*_: object) -> int:
        raise StorageError("The disk is full", "Free some space")

    monkeypatch.setattr(Slots, "write", refused)
    with pytest.raises(StorageError, match="The disk is full"):
        fit(tmp_path / "run.region")


def test_a_group_of_processes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A region has one writer."""
    monkeypatch.setattr(lightning.Trainer, "world_size", 2)
    with pytest.raises(StateError, match="written by one process, not by a group of 2"):
        fit(tmp_path / "run.region")


class CheckpointHook(Module):
    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        checkpoint["extra"] = 1


class TakesIterator(Module):
    def training_step(self, dataloader_iter: object) -> None:  # type: ignore[override]
        pass


class ShortEpoch(Module):
    def on_train_batch_start(self, batch: object, index: int) -> int | None:
        return -1 if index == 3 else None


class HoldsObject(Callback):
    """Has no state_dict, and an attribute that holds another object."""

    def __init__(self) -> None:
        self.held = object()


def with_collection() -> Module:
    module = Module(None)
    torchmetrics = pytest.importorskip("torchmetrics")
    module.counted = torchmetrics.MetricCollection([torchmetrics.MeanMetric()])
    return module


callbacks = lightning.pytorch.callbacks
ZEROS: Any = torch.zeros(10, 1, 4)
NOT_COVERED: dict[str, tuple[dict[str, object], str]] = {
    "stochastic averaging": (
        {"callbacks": (callbacks.StochasticWeightAveraging(0.1, 1),)},
        "the callback StochasticWeightAveraging. Train without it",
    ),
    "maximum time": ({"settings": {"max_time": {"hours": 1}}}, "the callback Timer"),
    "another object": (
        {"callbacks": (HoldsObject(),)},
        "the callback HoldsObject, which holds a object in its attribute held. Give it a",
    ),
    "checkpoints by time": (
        {
            "callbacks": (callbacks.ModelCheckpoint(train_time_interval=timedelta(hours=1)),),
            "settings": {"enable_checkpointing": True},
        },
        "the ModelCheckpoint that saves by time",
    ),
    "second mirror": ({"callbacks": (MirrorCallback("a", KEY),)}, "a second MirrorCallback"),
    "hook": ({"module": CheckpointHook(None)}, "on_save_checkpoint of CheckpointHook"),
    "metrics": ({"module": with_collection()}, "counted, a MetricCollection"),
    "validation by time": (
        {"settings": {"val_check_interval": "00:01:00:00"}}, "val_check_interval as a time",
    ),
    "overfitting": ({"settings": {"overfit_batches": 2}}, "overfit_batches"),
    "limited batches": ({"settings": {"limit_train_batches": 3}}, "limit_train_batches"),
    "reloading": (
        {"settings": {"reload_dataloaders_every_n_epochs": 1}},
        "reload_dataloaders_every_n_epochs",
    ),
    "iterator": ({"module": TakesIterator(None)}, r"training_step\(dataloader_iter\)"),
    "short epochs": ({"module": ShortEpoch(None)}, "an epoch that ends before its last batch"),
    "plain loader": (
        {"loader": torch.utils.data.DataLoader(ZEROS, shuffle=True)},
        "batches from a DataLoader. Train from a plinius.ResumableLoader",
    ),
    "loader not in the state": (
        {"loader": ResumableLoader(torch.utils.data.TensorDataset(torch.zeros(10, 4)), 2)},
        "batches from a ResumableLoader that is not in the state",
    ),
    "two loaders": (
        {"loader": [torch.utils.data.DataLoader(ZEROS)] * 2},
        "several loaders of training batches. Read both from one dataset",
    ),
    "generator": (
        {
            "validation": torch.utils.data.DataLoader(
                ZEROS, shuffle=True, generator=torch.Generator()
            )
        },
        "a generator of a validation loader that is not in the state",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_COVERED)
def test_a_configuration_that_is_not_covered_is_refused_by_name(name: str, tmp_path: Path) -> None:
    """When fitting starts; an epoch that ends early, when that happens."""
    given, sentence = NOT_COVERED[name]
    with pytest.raises(StateError, match=f"The Lightning mirror does not cover {sentence}"):
        fit(tmp_path / "run.region", **given)  # type: ignore[arg-type]


def test_a_checkpoint_of_lightning_is_refused(tmp_path: Path) -> None:
    """The run cannot start from two states."""
    saved = tmp_path / "saved.ckpt"
    fit(tmp_path / "a.region", save=saved)
    with pytest.raises(StateError, match="does not cover fit\\(ckpt_path=...\\). Leave it out"):
        fit(tmp_path / "b.region", checkpoint=str(saved))


def test_other_callbacks_than_the_run_began_with_are_refused(tmp_path: Path) -> None:
    """The state of the missing callback would be lost."""
    stopping = callbacks.EarlyStopping("never", strict=False)
    with pytest.raises(StoppedError):
        fit(tmp_path / "run.region", 4, callbacks=(stopping,))
    with pytest.raises(
        StateError, match="The run began with the callback EarlyStopping.*missing now"
    ):
        fit(tmp_path / "run.region")


def test_another_folder_of_checkpoints_is_refused(tmp_path: Path) -> None:
    """Lightning would forget which checkpoint is the best."""
    for folder, error in (("one", StoppedError), ("other", StateError)):
        saving = callbacks.ModelCheckpoint(tmp_path / folder, every_n_train_steps=1)
        with pytest.raises(error) as raised:
            fit(tmp_path / "run.region", 4, callbacks=(saving,),
                settings={"enable_checkpointing": True})  # fmt: skip
    assert "one, and now go to" in str(raised.value)


def test_a_value_that_is_not_restored_makes_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A callback with a state_dict, but without a load_state_dict."""

    class DoesNotLoad(Callback):
        seen = 0

        def on_train_batch_end(self, *_: object) -> None:
            self.seen += 1

        def state_dict(self) -> dict[str, object]:
            return {"seen": self.seen}

    with pytest.raises(StoppedError):
        fit(tmp_path / "run.region", 4, callbacks=(DoesNotLoad(),))
    fit(tmp_path / "run.region", callbacks=(DoesNotLoad(),))
    assert "The resumed run is not bit-identical: " in caplog.text


def test_the_methods_of_the_loops_are_restored(tmp_path: Path) -> None:
    """After fitting, and after an error."""
    for stop, suppressed in ((None, contextlib.nullcontext()), (4, pytest.raises(StoppedError))):
        trainers: list[object] = []
        with suppressed:
            fit(tmp_path / f"{stop}.region", stop, trainers=trainers)
        loop = trainers[0].fit_loop  # type: ignore[attr-defined]
        assert not {"run", "on_run_start", "on_run_end"} & vars(loop).keys()
        assert "advance" not in vars(loop.epoch_loop)


def test_another_version_of_lightning_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose loops lack a method that the callback replaces."""
    monkeypatch.delattr(lightning.pytorch.loops.fit_loop._FitLoop, "on_run_end")
    with pytest.raises(StateError, match="This version of Lightning has another training loop"):
        fit(tmp_path / "run.region")


class CountsInState(Callback):
    """Counts batches in the mapping that is given as `state`."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def on_train_batch_end(self, *_: object) -> None:
        self.state["batches"] += 1

    def state_dict(self) -> dict[str, object]:
        return {}


def test_a_number_in_the_state_is_restored(tmp_path: Path) -> None:
    """It is committed as it is then, and written into the mapping when the run is resumed."""
    for stop, suppressed in ((6, pytest.raises(StoppedError)), (None, contextlib.nullcontext())):
        state: dict[str, Any] = {"batches": 0}
        with suppressed:
            fit(tmp_path / "run.region", stop, state=state, callbacks=(CountsInState(state),))
    assert state["batches"] == STEPS


def test_a_name_that_the_callback_uses_is_refused(tmp_path: Path) -> None:
    """The user's part would replace the module."""
    with pytest.raises(StateError, match="The part model of MirrorCallback"):
        fit(tmp_path / "run.region", state={"model": 1})
