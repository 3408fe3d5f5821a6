"""A small run of any torch objects, and its mirror."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from plinius.keys import OwnerKey
from plinius.mirror import Mirror

KEY = OwnerKey(bytes(range(32)))


def seed() -> None:
    """The same random numbers from here on."""
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)


class Net(nn.Module):
    """A tied, normalised, dropping network with a frozen part."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of 11 classes, for indices of any of them."""
        logits: torch.Tensor = self.head(self.drop(self.norm(self.frozen(self.embedding(x)))))
        return logits


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """The usual optimizer."""
    return torch.optim.AdamW(parameters, lr=0.01)


class Loop:
    """A user's loop: everything it has is in `state`."""

    def __init__(self, make: Any = adamw) -> None:
        seed()
        self.model = Net()
        self.optimizer = make([p for p in self.model.parameters() if p.requires_grad])
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2, 0.7)
        self.state: dict[str, Any] = {
            "model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler,
            "best": float("inf"), "seen": [], "note": "none",
        }  # fmt: skip

    def step(self) -> None:
        """One iteration on random records."""
        x, y = torch.randint(0, 11, (16,)), torch.randint(0, 11, (16,))

        def closure() -> torch.Tensor:
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.model(x), y)
            loss.backward()
            return loss

        loss = float(self.optimizer.step(closure).detach())
        self.scheduler.step()
        self.state["best"] = min(self.state["best"], loss + 1e-6 * random.random())
        self.state["seen"].append(float(np.random.rand()))
        self.state["note"] = f"loss {loss:.3f}"

    def train(self, mirror: Mirror, until: int) -> int:
        """The three lines: resumes, trains to an iteration; returns where it began."""
        start = mirror.mirror_in()
        for iteration in range(start + 1, until + 1):
            self.step()
            mirror.mirror_out(iteration)
        mirror.wait()
        return start


def ended(
    path: Path, until: int, stops: tuple[int, ...] = (), make: Any = adamw, **how: Any
) -> str:
    """The digest of a run that was built anew at each of the stops, as after a kill."""
    for last in (*stops, until):
        loop = Loop(make)
        with Mirror.open(path, KEY, loop.state, **how) as mirror:
            loop.train(mirror, last)
            assert mirror.failure is None
            assert mirror.not_bit_exact is None
            digest = mirror.digest(last)
    return digest
