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
    """What no handler of the run takes for its own."""


class Killer(Callback):
    """Ends the run at the n-th time that it comes to a place."""

    def __init__(self, place: str, at: int) -> None:
        self.left = at

        def come(*_: Any, **__: Any) -> None:
            self.left -= 1
            if self.left == 0:
                raise KilledError

        if place:
            setattr(self, place, come)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: how often it came is no part of the run."""
        return {}


class Net(lightning.LightningModule):
    """A module with all that has a state, stepped by one optimizer."""

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
        """What it is worth."""
        self.log("worth", self.body(batch[0]).square().mean())

    def configure_optimizers(self) -> Any:
        """As the configuration says."""
        return self._make(self.body.parameters())


class Manual(Net):
    """Two optimizers in turn, by hand."""

    def __init__(self) -> None:
        super().__init__(lambda parameters: None)
        self.automatic_optimization = False

    def training_step(self, batch: list[torch.Tensor], index: int) -> None:  # type: ignore[override]
        """One of the two steps."""
        optimizers: Any = self.optimizers()
        chosen = optimizers[index % 2]
        loss = nn.functional.cross_entropy(self.body(batch[0]), batch[1])
        self.manual_backward(loss)
        chosen.step()
        chosen.zero_grad()

    def configure_optimizers(self) -> Any:
        """One for each end of the body."""
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
        """What was counted."""
        return {"seen": self.seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.seen = state_dict["seen"]


class Bare(Callback):
    """A callback without a state_dict, which writes and draws before and after the mirror."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        """Count after the step; change the rate."""
        self.seen.append(trainer.global_step)
        trainer.optimizers[0].param_groups[0]["lr"] *= 0.99

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Shake the weights."""
        self.seen.append(-1)
        with torch.no_grad():
            pl_module.body[0].bias.add_(torch.randn(8) * 0.01)

    on_validation_end = on_train_epoch_end = on_train_epoch_start

    def on_train_end(self, *_: Any) -> None:
        """Count once more."""
        self.seen.append(-2)


class Hooks(Net):
    """Draws and writes wherever Lightning asks, and in validation."""

    def shake(self) -> None:
        """Change a weight at random."""
        with torch.no_grad():
            self.body[4].bias.add_(torch.randn(3) * 0.01)

    on_fit_start = on_train_start = on_train_epoch_start = on_train_epoch_end = shake
    on_validation_start = on_validation_end = on_train_end = shake

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        """Write into a buffer."""
        super().validation_step(batch, index)
        self.shake()


class Means(Net):
    """Logs what is summed over an epoch; one of the values at its first batch only."""

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        """The loss of a batch, logged in every way."""
        loss = nn.functional.cross_entropy(self.body(batch[0]), batch[1])
        self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log("most", loss, on_step=False, on_epoch=True, reduce_fx="max")
        self.log("least", loss, on_step=False, on_epoch=True, reduce_fx=min)
        self.log("sum", loss, on_step=False, on_epoch=True, reduce_fx=sum, sync_dist=True)
        if index == 0:
            self.log("first", loss, on_step=False, on_epoch=True, enable_graph=True)
        return loss


class Metrics(Net):
    """Counts in metrics, which are logged as objects or by their values."""

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
        """What a list of scores comes to."""
        self.log("area", self.parts["area"].compute())
        self.parts["area"].reset()

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        """Count what is right."""
        super().validation_step(batch, index)
        self.validated.update(self.body(batch[0]), batch[1])
        self.log("validated", self.validated)


class Data(lightning.LightningDataModule):
    """A data module that counts what was read."""

    def __init__(self, train: Any, validation: Any) -> None:
        super().__init__()
        self.train, self.validation, self.read = train, validation, 0

    def train_dataloader(self) -> Any:
        """The batches."""
        return self.train

    def val_dataloader(self) -> Any:
        """Those that are judged."""
        return self.validation

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Count, and let it change the batch."""
        self.read += 1
        return [batch[0] * (1 + 0.01 * self.read), batch[1]]

    def state_dict(self) -> dict[str, Any]:
        """What was counted."""
        return {"read": self.read}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.read = state_dict["read"]


class Sometimes(Net):
    """Leaves out some steps."""

    def training_step(self, batch: list[torch.Tensor], index: int) -> Any:
        """Nothing, or the loss."""
        return None if index == 2 else super().training_step(batch, index)


class Augmented(torch.utils.data.Dataset[Any]):
    """Draws when it is read."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        inputs, label = self.data[index]
        return inputs + torch.randn(4) * 0.1, label
