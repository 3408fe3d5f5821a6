"""Modules, callbacks and data for the Lightning configurations in lightning_runs.py."""

from collections.abc import Callable
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback
from torch import nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC


class KilledError(BaseException):
    """No handler in the run catches this."""


class Killer(Callback):
    """Ends the run at the n-th call of one hook."""

    def __init__(self, place: str, at: int) -> None:
        self.remaining = at

        def hook(*_: Any, **__: Any) -> None:
            self.remaining -= 1
            if self.remaining == 0:
                raise KilledError

        if place:
            setattr(self, place, hook)

    def state_dict(self) -> dict[str, Any]:
        """Empty: how often it was called is no part of the run."""
        return {}


class Net(lightning.LightningModule):
    """A module with batch norm and dropout, and one optimizer."""

    def __init__(self, make: Callable[[Any], Any], **settings: Any) -> None:
        super().__init__()
        self.body: Any = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 3)
        )
        self._make, self._settings = make, settings

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        """The loss of a batch."""
        loss = nn.functional.cross_entropy(self.body(batch[0]), batch[1])
        self.log("loss", loss, on_step=True, on_epoch=False)
        return loss

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        """Log a value."""
        self.log("worth", self.body(batch[0]).square().mean())

    def configure_optimizers(self) -> Any:
        """What the configuration makes."""
        return self._make(self.body.parameters())


class Manual(Net):
    """Two optimizers that take turns, with manual optimization."""

    def __init__(self) -> None:
        super().__init__(lambda parameters: None)
        self.automatic_optimization = False

    def training_step(self, batch: list[torch.Tensor], index: int) -> None:  # type: ignore[override]
        """A step of one of the two."""
        optimizers: Any = self.optimizers()
        chosen = optimizers[index % 2]
        loss = nn.functional.cross_entropy(self.body(batch[0]), batch[1])
        self.manual_backward(loss)
        chosen.step()
        chosen.zero_grad()

    def configure_optimizers(self) -> Any:
        """One for the first layer, one for the last."""
        return [
            torch.optim.Adam(self.body[0].parameters()),
            torch.optim.SGD(self.body[4].parameters(), 0.1, momentum=0.9),
        ]


class Counting(Callback):
    """A callback with a state of its own."""

    def __init__(self) -> None:
        self.seen = 0

    def on_train_batch_start(self, *_: Any, **__: Any) -> None:
        """Count."""
        self.seen += 1

    def state_dict(self) -> dict[str, Any]:
        """The count."""
        return {"seen": self.seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the count."""
        self.seen = state_dict["seen"]


class WithoutStateDict(Callback):
    """A callback without a state_dict that changes the weights at random in many hooks."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        """Count the step; change the learning rate."""
        self.seen.append(trainer.global_step)
        trainer.optimizers[0].param_groups[0]["lr"] *= 0.99

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Change weights at random."""
        self.seen.append(-1)
        with torch.no_grad():
            pl_module.body[0].bias.add_(torch.randn(8) * 0.01)

    on_validation_end = on_train_epoch_end = on_train_epoch_start

    def on_train_end(self, *_: Any) -> None:
        """Count once more."""
        self.seen.append(-2)


class RandomHooks(Net):
    """Changes a weight at random in every hook, and in validation."""

    def change_weight(self) -> None:
        """Change a weight at random."""
        with torch.no_grad():
            self.body[4].bias.add_(torch.randn(3) * 0.01)

    on_fit_start = on_train_start = on_train_epoch_start = on_train_epoch_end = change_weight
    on_validation_start = on_validation_end = on_train_end = change_weight

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        """Log a value, and change a weight."""
        super().validation_step(batch, index)
        self.change_weight()


class LoggedMeans(Net):
    """Logs values that are summed over an epoch; one of them at the first batch only."""

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        """The loss of a batch, logged with every reduction."""
        loss = nn.functional.cross_entropy(self.body(batch[0]), batch[1])
        self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log("most", loss, on_step=False, on_epoch=True, reduce_fx="max")
        self.log("least", loss, on_step=False, on_epoch=True, reduce_fx=min)
        self.log("sum", loss, on_step=False, on_epoch=True, reduce_fx=sum, sync_dist=True)
        if index == 0:
            self.log("first", loss, on_step=False, on_epoch=True, enable_graph=True)
        return loss


class WithMetrics(Net):
    """Counts in metrics that are logged as objects or by their values."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        super().__init__(make)
        self.right = MulticlassAccuracy(3)
        self.parts: Any = nn.ModuleDict({"loss": MeanMetric(), "area": MulticlassAUROC(3)})
        self.validated = MulticlassAccuracy(3)
        self.ever = MeanMetric()

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        """The loss of a batch."""
        scores = self.body(batch[0])
        loss = nn.functional.cross_entropy(scores, batch[1])
        self.parts["loss"](loss)
        self.parts["area"].update(scores.softmax(1), batch[1])
        self.ever.update(loss)
        if index != 3:
            self.log("right", self.right, on_step=True, on_epoch=True)
        self.right(scores, batch[1])
        self.log("mean", self.parts["loss"], on_step=False, on_epoch=True)
        self.log("ever", self.ever.compute())
        return loss

    def on_train_epoch_end(self) -> None:
        """Compute a metric from all scores of the epoch."""
        self.log("area", self.parts["area"].compute())
        self.parts["area"].reset()

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        """Count the right answers."""
        super().validation_step(batch, index)
        self.validated.update(self.body(batch[0]), batch[1])
        self.log("validated", self.validated)


class CountingData(lightning.LightningDataModule):
    """A data module that counts the batches it has read."""

    def __init__(self, train: Any, validation: Any) -> None:
        super().__init__()
        self.train, self.validation, self.read = train, validation, 0

    def train_dataloader(self) -> Any:
        """The batches."""
        return self.train

    def val_dataloader(self) -> Any:
        """The batches of the validation."""
        return self.validation

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Count, and change the batch by the count."""
        self.read += 1
        return [batch[0] * (1 + 0.01 * self.read), batch[1]]

    def state_dict(self) -> dict[str, Any]:
        """The count."""
        return {"read": self.read}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the count."""
        self.read = state_dict["read"]


class SkipsBatches(Net):
    """Leaves out some batches."""

    def training_step(self, batch: list[torch.Tensor], index: int) -> Any:
        """None or the loss of a batch."""
        return None if index == 2 else super().training_step(batch, index)


class NoisyDataset(torch.utils.data.Dataset[Any]):
    """Adds random noise to a record when it is read."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        inputs, label = self.data[index]
        return inputs + torch.randn(4) * 0.1, label
