"""Loops over optimizers and schedules as people combine them."""

from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler as schedules

from resume.loops import Step, loop, refused
from resume.loops_objects import net, trained


@loop
def gradients_left_there() -> tuple[dict[str, Any], Step]:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return trained(model, optimizer, clear=False)


@loop
def gradients_accumulated() -> tuple[dict[str, Any], Step]:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())

    def step(iteration: int) -> None:
        model(torch.randn(5, 6)).square().mean().backward()
        if iteration % 4 == 0:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return {"model": model, "optimizer": optimizer}, step


@loop
def optimizer_in_backward() -> tuple[dict[str, Any], Step]:
    model = net()
    optimizers = [torch.optim.Adam([p], foreach=False) for p in model.parameters()]

    def hook(optimizer: torch.optim.Optimizer) -> Any:
        def stepped(parameter: torch.Tensor) -> None:
            optimizer.step()
            optimizer.zero_grad()

        return stepped

    for parameter, optimizer in zip(model.parameters(), optimizers, strict=True):
        parameter.register_post_accumulate_grad_hook(hook(optimizer))

    def step(iteration: int) -> None:
        model(torch.randn(5, 6)).square().mean().backward()

    return {"model": model, "optimizers": optimizers}, step


class Wrapper:
    """An optimizer of another library, without hooks or groups."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self._inner = inner

    def step(self) -> None:
        self._inner.step()

    def zero_grad(self) -> None:
        self._inner.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return self._inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._inner.load_state_dict(state)


@loop
def fused_optimizer_in_a_wrapper() -> tuple[dict[str, Any], Step]:
    model = net()
    return trained(model, Wrapper(torch.optim.AdamW(model.parameters(), fused=True)))


@loop
def optimizer_that_is_not_in_the_state() -> tuple[dict[str, Any], Step]:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    _, step = trained(model, optimizer)
    return {"model": model}, step


@loop
def optimizer_replaced_midway() -> tuple[dict[str, Any], Step]:
    model = net()
    state: dict[str, Any] = {"model": model, "optimizer": torch.optim.Adam(model.parameters())}

    def step(iteration: int) -> None:
        if iteration in (3, 5):
            state["optimizer"] = torch.optim.Adam(model.parameters(), lr=0.1 / iteration)
        model(torch.randn(5, 6)).square().mean().backward()
        state["optimizer"].step()
        state["optimizer"].zero_grad()

    return state, step


@loop
def schedule_of_schedules() -> tuple[dict[str, Any], Step]:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inner = schedules.SequentialLR(
        optimizer, [schedules.ConstantLR(optimizer), schedules.ExponentialLR(optimizer, 0.9)], [1]
    )
    outer = schedules.SequentialLR(optimizer, [inner, schedules.StepLR(optimizer, 1)], [3])
    return trained(model, optimizer, outer)


@loop
def plateau() -> tuple[dict[str, Any], Step]:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = schedules.ReduceLROnPlateau(optimizer, patience=0)
    state, step = trained(model, optimizer)

    def judged(iteration: int) -> None:
        step(iteration)
        scheduler.step(float(torch.rand(())))

    return {**state, "scheduler": scheduler}, judged


@loop
def averaged_weights() -> tuple[dict[str, Any], Step]:
    model = net()
    average = torch.optim.swa_utils.AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.swa_utils.SWALR(optimizer, swa_lr=0.05, anneal_epochs=3)
    state, step = trained(model, optimizer, scheduler)

    def averaging(iteration: int) -> None:
        step(iteration)
        if iteration > 2:
            average.update_parameters(model)

    return {**state, "average": average}, averaging


@loop
def scaled_gradients() -> tuple[dict[str, Any], Step]:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)

    def step(iteration: int) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(torch.randn(5, 6)).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return {"model": model, "optimizer": optimizer, "scaler": scaler}, step


@refused("optimizer/param_groups~11 was missing and is of 2 parameters")
def a_group_added_midway() -> tuple[dict[str, Any], Step]:
    model = net()
    optimizer = torch.optim.Adam(model[0].parameters())
    state, step = trained(model, optimizer)

    def adding(iteration: int) -> None:
        step(iteration)
        if iteration == 3:
            optimizer.add_param_group({"params": list(model[4].parameters())})

    return state, adding


@refused("optimizer was a Adam and is a SGD")
def another_optimizer_midway() -> tuple[dict[str, Any], Step]:
    model = net()
    state: dict[str, Any] = {"model": model, "optimizer": torch.optim.Adam(model.parameters())}

    def step(iteration: int) -> None:
        if iteration == 3:
            state["optimizer"] = torch.optim.SGD(model.parameters(), lr=0.1)

    return state, step


@loop
def sparse_embedding() -> tuple[dict[str, Any], Step]:
    model = nn.Embedding(5000, 8, sparse=True)
    optimizer = torch.optim.SparseAdam(model.parameters())

    def step(iteration: int) -> None:
        model(torch.randint(0, 5000, (3,))).square().sum().backward()
        if iteration % 2:
            optimizer.step()
            optimizer.zero_grad()

    return {"model": model, "optimizer": optimizer}, step


@loop
def lbfgs() -> tuple[dict[str, Any], Step]:
    model = nn.Linear(6, 3)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)

    def step(iteration: int) -> None:
        x = torch.randn(5, 6)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss: torch.Tensor = model(x).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)

    return {"model": model, "optimizer": optimizer}, step


@loop
def two_players() -> tuple[dict[str, Any], Step]:
    maker, judge = net(), nn.Linear(3, 1)
    optimizers = {
        "maker": torch.optim.Adam(maker.parameters(), betas=(0.5, 0.9)),
        "judge": torch.optim.RMSprop(judge.parameters()),
    }

    def step(iteration: int) -> None:
        made = maker(torch.randn(5, 6))
        player = "judge" if iteration % 2 else "maker"
        judge(made).mean().backward()
        optimizers[player].step()
        for optimizer in optimizers.values():
            optimizer.zero_grad()

    return {"maker": maker, "judge": judge, "optimizers": optimizers}, step
