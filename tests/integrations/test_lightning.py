"""The Lightning callback: stopped anywhere in an epoch, it goes on as if nothing had been."""

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
    **options: object,
) -> Module:
    """Train a small module for STEPS steps, in epochs of EPOCH batches; raise before one."""
    lightning.seed_everything(3, verbose=False)
    dataset = torch.utils.data.TensorDataset(torch.randn(EPOCH * 2, 4))
    mine = ResumableLoader(dataset, 2, seed=1)
    callback = MirrorCallback(region, KEY, state={"loader": mine}, **options)  # type: ignore[arg-type]
    trainer = lightning.Trainer(
        max_steps=STEPS, accelerator="cpu", callbacks=[*callbacks, callback], logger=False,
        enable_progress_bar=False, enable_model_summary=False,
        accumulate_grad_batches=accumulate, default_root_dir=region.parent,
        **{"enable_checkpointing": False, **(settings or {})},
    )  # fmt: skip
    module = module or Module(stop)
    trainer.fit(module, loader or mine, torch.utils.data.DataLoader(dataset))
    return module


@pytest.mark.parametrize("options", [{}, {"overlap": True}, {"every": 3}], ids=str)
@pytest.mark.parametrize("stop", [1, 4, 5, 6, 10])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    stop: int, options: dict[str, Any], tmp_path: Path
) -> None:
    """In the midst of an epoch, at its last batch, at the first of the next: equal digests."""
    whole, region = tmp_path / "whole.region", tmp_path / "run.region"
    assert fit(whole, **options).steps == [*range(STEPS)]
    with pytest.raises(StoppedError):
        fit(region, stop, **options)
    again = fit(region, **options)
    every = int(str(options.get("every", 1)))
    assert again.steps == [*range(stop // every * every, STEPS)]
    assert newest_snapshot(region, KEY).digest() == newest_snapshot(whole, KEY).digest()


def test_a_run_that_is_done_does_nothing_more(tmp_path: Path) -> None:
    """The same script again: no step is made, and the state is what it was."""
    region = tmp_path / "run.region"
    fit(region)
    before = newest_snapshot(region, KEY).digest()
    assert fit(region).steps == []
    assert newest_snapshot(region, KEY).digest() == before


def test_another_module_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its names and shapes are compared before anything is changed."""
    fit(tmp_path / "run.region")

    def other(self: Module, stop: int | None) -> None:
        super(Module, self).__init__()
        self.layer = torch.nn.Linear(4, 5)  # type: ignore[assignment]
        self.stop, self.steps = stop, []

    monkeypatch.setattr(Module, "__init__", other)
    with pytest.raises(MismatchError, match="does not fit: model/layer.weight is missing there"):
        fit(tmp_path / "run.region")


def test_what_is_not_mirrored_in_the_end_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that refuses lets training go on to its end, and then the reason is raised."""
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


class Judged(Module):
    """Logs what its validation found."""

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        self.log("found", self.layer(batch[0]).square().mean(), on_epoch=True)


class Plateau(Judged):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "monitor": "found"},
        }


class Mean(Module):
    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        loss = super().training_step(batch, index)
        self.log("loss", loss, on_epoch=True)
        return loss


class Hooked(Module):
    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        checkpoint["mine"] = 1


def with_metric() -> Module:
    module = Module(None)
    module.metric = __import__("torchmetrics").MeanMetric()
    return module


NOT_COVERED: dict[str, tuple[dict[str, object], str]] = {
    "averaging": (
        {"callbacks": (lightning.pytorch.callbacks.StochasticWeightAveraging(0.1, 1),)},
        "the callback StochasticWeightAveraging. Train without it",
    ),
    "accumulation": (
        {"callbacks": (lightning.pytorch.callbacks.GradientAccumulationScheduler({1: 2}),)},
        "the callback GradientAccumulationScheduler",
    ),
    "stopping": (
        {"callbacks": (lightning.pytorch.callbacks.EarlyStopping("found"),)},
        "the callback EarlyStopping",
    ),
    "best": (
        {
            "callbacks": (lightning.pytorch.callbacks.ModelCheckpoint(monitor="found"),),
            "settings": {"enable_checkpointing": True},
        },
        "the ModelCheckpoint that monitors found",
    ),
    "plateau": ({"module": Plateau(None)}, "ReduceLROnPlateau"),
    "mean": ({"module": Mean(None)}, "the mean of loss over an epoch"),
    "hook": ({"module": Hooked(None)}, "on_save_checkpoint of Hooked"),
    "metric": ({"module": with_metric()}, "the metric metric"),
    "every other epoch": (
        {"settings": {"check_val_every_n_epoch": 2}},
        "check_val_every_n_epoch other than 1",
    ),
    "within an epoch": ({"settings": {"val_check_interval": 2}}, "val_check_interval other than"),
    "overfitting": ({"settings": {"overfit_batches": 2}}, "overfit_batches"),
    "plain loader": (
        {"loader": torch.utils.data.DataLoader(torch.zeros(10, 1, 4), shuffle=True)},  # type: ignore[arg-type]
        "batches from a DataLoader that is not in the state. Train from a plinius.ResumableLoader",
    ),
}


@pytest.mark.parametrize("name", NOT_COVERED)
def test_what_is_not_covered_is_refused_by_name(name: str, tmp_path: Path) -> None:
    """When fitting starts, or at the first step."""
    given, sentence = NOT_COVERED[name]
    with pytest.raises(StateError, match=f"The Lightning mirror does not cover {sentence}"):
        fit(tmp_path / "run.region", **given)  # type: ignore[arg-type]
