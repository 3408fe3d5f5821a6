"""Lightning configurations, killed at many places and compared with a run that was not."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    WeightAveraging,
)
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC

from plinius.integrations.lightning import MirrorCallback
from plinius.loader import ResumableLoader
from unit.mirroring import KEY

PLACES = (
    "on_train_start", "on_train_epoch_start", "on_train_batch_start", "on_before_backward",
    "on_before_optimizer_step", "on_before_zero_grad", "on_train_batch_end",
    "on_validation_start", "on_validation_batch_end", "on_validation_epoch_end",
    "on_validation_end", "on_train_epoch_end", "on_train_end", "on_fit_end",
)  # fmt: skip
schedules = torch.optim.lr_scheduler


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
        self.body = nn.Sequential(
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

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        """Shake the weights."""
        self.seen.append(-1)
        with torch.no_grad():
            module.body[0].bias.add_(torch.randn(8) * 0.01)

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
        self.parts = nn.ModuleDict({"loss": MeanMetric(), "area": MulticlassAUROC(3)})
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


class Short(Net):
    """Ends some epochs early."""

    def on_train_batch_start(self, batch: Any, index: int) -> int | None:
        """No more of this epoch."""
        return -1 if self.current_epoch == 1 and index == 3 else None


class Two(Net):
    """Trains from two loaders."""

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        """The loss of both."""
        return super().training_step(batch[0], index) + super().training_step(batch[1], index)


class Augmented(torch.utils.data.Dataset[Any]):
    """Draws when it is read."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        inputs, label = self.data[index]
        return inputs + torch.randn(4) * 0.1, label


def sgd(parameters: Any) -> Any:
    """The plainest optimizer with a state."""
    return torch.optim.SGD(parameters, 0.1, momentum=0.9)


def scheduled(
    make: Callable[[Any], Any], interval: str, monitor: str | None = None
) -> Callable[[Any], Any]:
    """An optimizer with a schedule."""

    def configure(parameters: Any) -> Any:
        optimizer = sgd(parameters)
        schedule = {"scheduler": make(optimizer), "interval": interval, "strict": False}
        schedule |= {"monitor": monitor} if monitor else {}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    return configure


Configuration = tuple[Callable[[], Net], dict[str, Any], dict[str, Any]]
"""The module, what the Trainer and what the mirror are given."""


def _net(make: Callable[[Any], Any], cls: type[Net] = Net) -> Callable[[], Net]:
    return lambda: cls(make)


def _plateau(interval: str, monitor: str, cls: type[Net] = Net) -> Callable[[], Net]:
    def make(optimizer: Any) -> Any:
        return schedules.ReduceLROnPlateau(optimizer, "max", factor=0.5, patience=0)

    return _net(scheduled(make, interval, monitor), cls)


def _stopping(**options: Any) -> Callable[[], Any]:
    return lambda: EarlyStopping(**options)


CONFIGURATIONS: dict[str, Configuration] = {
    "SGD": (_net(sgd), {}, {}),
    "AdamW": (_net(lambda p: torch.optim.AdamW(p)), {}, {}),
    "fused AdamW": (_net(lambda p: torch.optim.AdamW(p, fused=True)), {}, {}),
    "LBFGS": (_net(lambda p: torch.optim.LBFGS(p, max_iter=2)), {}, {}),
    "Adagrad": (_net(lambda p: torch.optim.Adagrad(p)), {}, {}),
    "RMSprop": (_net(lambda p: torch.optim.RMSprop(p, momentum=0.5)), {}, {}),
    "overlap": (_net(sgd), {}, {"overlap": True}),
    "every 2": (_net(sgd), {}, {"every": 2}),
    "every 3, overlap": (_net(sgd), {}, {"every": 3, "overlap": True}),
    "StepLR by epoch": (_net(scheduled(lambda o: schedules.StepLR(o, 1), "epoch")), {}, {}),
    "StepLR by step": (_net(scheduled(lambda o: schedules.StepLR(o, 2), "step")), {}, {}),
    "OneCycle": (
        _net(scheduled(lambda o: schedules.OneCycleLR(o, 0.1, total_steps=40), "step")), {}, {},
    ),
    "warm restarts": (
        _net(scheduled(lambda o: schedules.CosineAnnealingWarmRestarts(o, 3), "step")), {}, {},
    ),
    "cosine by epoch": (
        _net(scheduled(lambda o: schedules.CosineAnnealingLR(o, 5), "epoch")), {}, {},
    ),
    "lambda by epoch": (
        _net(scheduled(lambda o: schedules.LambdaLR(o, lambda n: 0.9**n), "epoch")), {}, {},
    ),
    "accumulate 2": (_net(sgd), {"accumulate_grad_batches": 2}, {}),
    "accumulate 3": (_net(sgd), {"accumulate_grad_batches": 3}, {}),
    "accumulate, schedule": (
        _net(scheduled(lambda o: schedules.StepLR(o, 2), "step")),
        {"accumulate_grad_batches": 2}, {},
    ),
    "clip the norm": (_net(sgd), {"gradient_clip_val": 0.1}, {}),
    "clip the value": (
        _net(sgd), {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}, {},
    ),
    "by hand": (Manual, {}, {}),
    "bf16": (_net(sgd), {"precision": "bf16-mixed"}, {}),
    "double": (_net(sgd), {"precision": "64-true"}, {}),
    "epochs": (_net(sgd), {"max_epochs": 3, "max_steps": -1}, {}),
    "no validation": (_net(sgd), {"limit_val_batches": 0}, {}),
    "one validation batch": (_net(sgd), {"limit_val_batches": 1}, {}),
    "no sanity check": (_net(sgd), {"num_sanity_val_steps": 0}, {}),
    "a callback with a state": (_net(sgd), {"callbacks": Counting}, {}),
    "checkpoints of Lightning": (_net(sgd), {"enable_checkpointing": True}, {}),
    "anomalies": (_net(sgd), {"detect_anomaly": True}, {}),
    "inference mode off": (_net(sgd), {"inference_mode": False}, {}),
    "a callback without a state_dict": (_net(sgd), {"callbacks": Bare}, {}),
    "hooks that draw": (_net(sgd, Hooks), {}, {}),
    "hooks that draw, every 3": (_net(sgd, Hooks), {}, {"every": 3, "overlap": True}),
    "no steps at times": (_net(sgd, Sometimes), {}, {}),
    "short epochs": (_net(sgd, Short), {}, {}),
    "augmentation": (_net(sgd), {"data": Augmented}, {}),
    "shuffled validation": (_net(sgd), {"shuffle": True}, {}),
    "two loaders": (_net(sgd, Two), {"two": True}, {}),
    "early stopping": (
        _net(sgd), {"callbacks": _stopping(monitor="worth", patience=1, mode="max"),
                    "max_steps": 60}, {},
    ),
    "early stopping by a mean": (
        _net(sgd, Means), {"callbacks": _stopping(monitor="loss", patience=1, min_delta=0.1,
                                                  check_on_train_epoch_end=True),
                           "max_epochs": 9, "max_steps": -1}, {},
    ),
    "early stopping, later": (
        _net(sgd), {"callbacks": _stopping(monitor="worth", patience=0, mode="max"),
                    "min_epochs": 4, "max_steps": 60}, {},
    ),
    "plateau": (_plateau("epoch", "worth"), {"max_steps": 23}, {}),
    "plateau, epochs": (_plateau("epoch", "worth"), {"max_epochs": 4, "max_steps": -1}, {}),
    "plateau of a mean": (_plateau("epoch", "loss_epoch", Means), {}, {}),
    "plateau by step": (_plateau("step", "worth"), {}, {}),
    "means": (_net(sgd, Means), {}, {}),
    "means, every 3": (_net(sgd, Means), {"max_epochs": 3, "max_steps": -1}, {"every": 3}),
    "means, accumulate": (_net(sgd, Means), {"accumulate_grad_batches": 2}, {}),
    "metrics": (_net(sgd, Metrics), {}, {}),
    "metrics, within an epoch": (_net(sgd, Metrics), {"val_check_interval": 2}, {"every": 2}),
    "a data module": (_net(sgd), {"module": True}, {}),
    "every other epoch": (_plateau("epoch", "worth"), {"check_val_every_n_epoch": 2}, {}),
    "within an epoch": (_plateau("step", "worth"), {"val_check_interval": 2}, {}),
    "a part of an epoch": (_net(sgd, Hooks), {"val_check_interval": 0.5}, {}),
    "across epochs": (
        _net(sgd), {"check_val_every_n_epoch": None, "val_check_interval": 7}, {},
    ),
    "means, within an epoch": (_net(sgd, Means), {"val_check_interval": 2}, {}),
    "the best checkpoint": (
        _net(sgd), {"callbacks": lambda: ModelCheckpoint(monitor="worth", save_top_k=2),
                    "enable_checkpointing": True}, {},
    ),
    "checkpoints by step": (
        _net(sgd), {"callbacks": lambda: ModelCheckpoint(monitor="worth", mode="max",
                                                         every_n_train_steps=3, save_last=True),
                    "enable_checkpointing": True}, {},
    ),
    "accumulation that changes": (
        _net(sgd), {"callbacks": lambda: GradientAccumulationScheduler({1: 2, 2: 3})}, {},
    ),
    "averaged weights": (_net(sgd), {"callbacks": WeightAveraging}, {}),
    "moving average": (
        _net(sgd), {"callbacks": lambda: EMAWeightAveraging(decay=0.9, update_every_n_steps=2,
                                                            update_starting_at_epoch=1)}, {},
    ),
    "rates logged": (_net(sgd), {"callbacks": LearningRateMonitor, "logger": True}, {}),
}  # fmt: skip


def fit(name: str, region: Path, place: str = "", at: int = 0, **limits: Any) -> list[str]:
    """Train a configuration, killed at a place if one is given; what it has come to."""
    make, settings, options = CONFIGURATIONS[name]
    settings = {**settings, **limits}
    lightning.seed_everything(3, verbose=False)
    data: Any = torch.utils.data.TensorDataset(torch.randn(10, 4), torch.randint(0, 3, (10,)))
    if settings.get("precision") == "64-true":
        data = torch.utils.data.TensorDataset(data.tensors[0].double(), data.tensors[1])
    loader = ResumableLoader(settings.pop("data", lambda it: it)(data), 2, seed=1)
    other = ResumableLoader(data, 3, seed=2)
    mirror = MirrorCallback(region, KEY, state={"loader": loader, "other": other}, **options)
    given = [settings.pop("callbacks")()] if "callbacks" in settings else []
    killer = Killer(place, at)
    before, after = ([killer, *given], []) if at % 2 else ([], [*given, killer])
    validation = torch.utils.data.DataLoader(data, 5, shuffle=settings.pop("shuffle", False))
    as_module = settings.pop("module", False)
    batches: Any = CombinedLoader([loader, other]) if settings.pop("two", False) else loader
    trainer = lightning.Trainer(
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=region.parent, callbacks=[*before, mirror, *after],
        **{"max_steps": 13, "enable_checkpointing": False, "logger": False, **settings},
    )  # fmt: skip
    module = make()
    if as_module:
        trainer.fit(module, datamodule=Data(batches, validation))
    else:
        trainer.fit(module, batches, validation)
    parts = [module.state_dict(), [it.state_dict() for it in trainer.optimizers]]
    parts += [[it.scheduler.state_dict() for it in trainer.lr_scheduler_configs]]
    parts += [trainer.global_step, trainer.current_epoch, loader.iteration, torch.rand(3)]
    parts += [trainer.callback_metrics, [it.state_dict() or vars(it) for it in given]]
    torch.set_printoptions(profile="full", precision=17)
    return [re.sub(r"-v\d+(?=\.ckpt)", "", repr(part)) for part in parts]
