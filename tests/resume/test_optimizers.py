"""Every optimizer and scheduler: a run that was stopped ends bit for bit as one that was not."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.optim import lr_scheduler as schedules
from torch.optim.swa_utils import SWALR

from plinius.errors import StateError
from resume.loops import Build, Step, require_alike

Make = Callable[[Any], Any]
HERE = {
    name: found
    for name, found in vars(optim).items()
    if inspect.isclass(found) and issubclass(found, optim.Optimizer)
    if name not in ("Optimizer", "SparseAdam")  # SparseAdam has a loop of its own
}
SCHEDULERS: dict[str, Make] = {
    "StepLR": lambda o: schedules.StepLR(o, 2),
    "MultiStepLR": lambda o: schedules.MultiStepLR(o, [1, 3]),
    "ConstantLR": schedules.ConstantLR,
    "LinearLR": schedules.LinearLR,
    "ExponentialLR": lambda o: schedules.ExponentialLR(o, 0.9),
    "CosineAnnealingLR": lambda o: schedules.CosineAnnealingLR(o, 5),
    "PolynomialLR": schedules.PolynomialLR,
    "LambdaLR": lambda o: schedules.LambdaLR(o, lambda n: 0.9**n),
    "MultiplicativeLR": lambda o: schedules.MultiplicativeLR(o, lambda n: 0.9),
    "CyclicLR": lambda o: schedules.CyclicLR(o, 0.01, 0.1, 2, scale_fn=lambda x: 0.5),
    "OneCycleLR": lambda o: schedules.OneCycleLR(o, 0.1, total_steps=20),
    "CosineAnnealingWarmRestarts": lambda o: schedules.CosineAnnealingWarmRestarts(o, 2),
    "ChainedScheduler": lambda o: schedules.ChainedScheduler(
        [schedules.ConstantLR(o), schedules.ExponentialLR(o, 0.9)]
    ),
    "SWALR": lambda o: SWALR(o, 0.05, anneal_epochs=3),
}


def building(make: Make, schedule: Make | None = None, create_graph: bool = False) -> Build:
    """A small network stepped by the optimizer that `make` gives for it."""

    def build() -> tuple[dict[str, Any], Step]:
        model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 4))
        optimizer = make(model)
        scheduler = schedule(optimizer) if schedule else None
        if callable(getattr(optimizer, "train", None)):
            optimizer.train()

        def step(iteration: int) -> None:
            x, y = torch.randn(5, 6), torch.randint(0, 4, (5,))

            def closure() -> torch.Tensor:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward(create_graph=create_graph)
                return loss

            optimizer.step(closure)
            if scheduler:
                scheduler.step()
            optimizer.zero_grad()

        state = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
        return {name: part for name, part in state.items() if part is not None}, step

    return build


@pytest.mark.parametrize("name", HERE)
def test_every_optimizer_of_torch(name: str, tmp_path: Path) -> None:
    """With its default settings; Muon takes matrices only."""

    def make(model: nn.Module) -> Any:
        parameters = [p for p in model.parameters() if name != "Muon" or p.ndim == 2]
        return HERE[name](parameters, lr=0.01)  # type: ignore[call-arg]

    require_alike(building(make), tmp_path, [(2,)])


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_of_torch(name: str, tmp_path: Path) -> None:
    """Those of several are loops of their own; ReduceLROnPlateau is one as well."""

    def make(model: nn.Module) -> Any:
        return optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    require_alike(building(make, SCHEDULERS[name]), tmp_path, [(2,)])


@pytest.mark.parametrize("name", ["SGDScheduleFree", "AdamWScheduleFree", "RAdamScheduleFree"])
def test_schedule_free_optimizers(name: str, tmp_path: Path) -> None:
    """Their parameters are not the weights that are evaluated."""
    module = pytest.importorskip("schedulefree")
    make = lambda model: getattr(module, name)(model.parameters(), lr=0.01)  # noqa: E731
    require_alike(building(make), tmp_path, [(2,)])


@pytest.mark.parametrize("name", ["EMA", "PostHocEMA"])
def test_ema_pytorch(name: str, tmp_path: Path) -> None:
    """A moving average that is a module."""
    module = pytest.importorskip("ema_pytorch")

    def build() -> tuple[dict[str, Any], Step]:
        base, step = building(lambda model: optim.Adam(model.parameters()))()
        options: dict[str, Any] = {}
        if name == "PostHocEMA":
            options = {"checkpoint_folder": str(tmp_path / "ema"), "sigma_rels": (0.05, 0.28)}
        average = getattr(module, name)(base["model"], update_every=1, **options)

        def averaging(iteration: int) -> None:
            step(iteration)
            average.update()

        return {**base, "average": average}, averaging

    require_alike(build, tmp_path, [(2,)])


def test_every_optimizer_of_pytorch_optimizer(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """All that can be made with a rate and step a small network: the same, or refused by name.

    Without --soak, every third of them.
    """
    step_by = 1 if request.config.getoption("--soak") else 3
    module = pytest.importorskip("pytorch_optimizer")
    ended: dict[str, str] = {}
    for name in sorted(module.get_supported_optimizers())[::step_by]:
        cls = module.load_optimizer(name)
        graph = "hessian" in name or "sophia" in name
        build = building(lambda model: cls(model.parameters(), lr=0.01), None, graph)  # noqa: B023
        try:
            _, step = build()
            step(1)
            step(2)
        except Exception:
            ended[name] = "does not run so"
            continue
        folder = tmp_path / name
        folder.mkdir()
        try:
            require_alike(build, folder, [(2,)])
            ended[name] = "alike"
        except StateError as error:
            ended[name] = str(error)
    refused = {name: how for name, how in ended.items() if "cannot be mirrored" in how}
    assert all("optimizer/state/" in how for how in refused.values())
    assert len(refused) <= 3, refused
    assert list(ended.values()).count("alike") > 100 // step_by
