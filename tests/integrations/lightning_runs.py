"""Lightning configurations, killed at many places and compared with a run that was not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback
from torch import nn

from plinius.integrations.lightning import MirrorCallback
from plinius.training.loader import ResumableLoader
from unit.mirroring import KEY

PLACES = (
    "on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end",
    "on_validation_start", "on_validation_batch_end", "on_validation_end", "on_train_epoch_end",
    "on_train_epoch_start",
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


def sgd(parameters: Any) -> Any:
    """The plainest optimizer with a state."""
    return torch.optim.SGD(parameters, 0.1, momentum=0.9)


def scheduled(make: Callable[[Any], Any], interval: str) -> Callable[[Any], Any]:
    """An optimizer with a schedule."""

    def configure(parameters: Any) -> Any:
        optimizer = sgd(parameters)
        schedule = {"scheduler": make(optimizer), "interval": interval}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    return configure


Configuration = tuple[Callable[[], Net], dict[str, Any], dict[str, Any]]
"""The module, what the Trainer and what the mirror are given."""


def _net(make: Callable[[Any], Any]) -> Callable[[], Net]:
    return lambda: Net(make)


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
    "fewer batches": (_net(sgd), {"limit_train_batches": 3}, {}),
    "no validation": (_net(sgd), {"limit_val_batches": 0}, {}),
    "one validation batch": (_net(sgd), {"limit_val_batches": 1}, {}),
    "no sanity check": (_net(sgd), {"num_sanity_val_steps": 0}, {}),
    "a callback with a state": (_net(sgd), {"callbacks": Counting}, {}),
    "checkpoints of Lightning": (_net(sgd), {"enable_checkpointing": True}, {}),
    "anomalies": (_net(sgd), {"detect_anomaly": True}, {}),
    "inference mode off": (_net(sgd), {"inference_mode": False}, {}),
}  # fmt: skip


def fit(name: str, region: Path, place: str = "", at: int = 0) -> list[str]:
    """Train a configuration, killed at a place if one is given; what it has come to."""
    make, settings, options = CONFIGURATIONS[name]
    settings = dict(settings)
    lightning.seed_everything(3, verbose=False)
    data = torch.utils.data.TensorDataset(torch.randn(10, 4), torch.randint(0, 3, (10,)))
    if settings.get("precision") == "64-true":
        data = torch.utils.data.TensorDataset(data.tensors[0].double(), data.tensors[1])
    loader = ResumableLoader(data, 2, seed=1)
    mirror = MirrorCallback(region, KEY, state={"loader": loader}, **options)
    given = [settings.pop("callbacks")()] if "callbacks" in settings else []
    before, after = ([Killer(place, at)], []) if at % 2 else ([], [Killer(place, at)])
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=region.parent, callbacks=[*before, *given, mirror, *after],
        **{"max_steps": 13, "enable_checkpointing": False, **settings},
    )  # fmt: skip
    module = make()
    trainer.fit(module, loader, torch.utils.data.DataLoader(data, 5))
    parts: list[object] = [module.state_dict(), [it.state_dict() for it in trainer.optimizers]]
    parts += [[it.scheduler.state_dict() for it in trainer.lr_scheduler_configs]]
    parts += [trainer.global_step, trainer.current_epoch, loader.iteration, torch.rand(3)]
    parts += [{type(it).__name__: it.state_dict() for it in given}]
    torch.set_printoptions(profile="full", precision=17)
    return [repr(part) for part in parts]
