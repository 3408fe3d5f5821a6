"""Accelerate: what it prepared is mirrored like anything else, also between accumulated batches.

The gradients are part of the model's state. Which of the batches of a step is the next is known to
the accelerator alone, so that its count is put into the state as well.
"""

from typing import Any

import torch
from accelerate import Accelerator
from model import LanguageModel
from place import place
from text import Text

import plinius

here = place("accelerate", iterations=100)
torch.manual_seed(0)


class Accumulation:
    """How many batches the accelerator accumulated."""

    def state_dict(self) -> dict[str, Any]:
        """The count, which Accelerate's own checkpoints hold as well."""
        return {"step": accelerator.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting from there."""
        accelerator.step = state_dict["step"]


accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
loader = plinius.ResumableLoader(Text(64), batch=16)
model = LanguageModel()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.999)
model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)

state = {
    "model": model,
    "optimizer": optimizer,
    "scheduler": scheduler,
    "loader": loader,
    "accumulation": Accumulation(),
}
with plinius.Mirror.open(here.region, here.key, state, overlap=True) as mirror:
    iteration = mirror.mirror_in()
    print(f"begins after iteration {iteration}")
    while iteration < here.iterations:
        for batch in loader:
            with accelerator.accumulate(model):
                accelerator.backward(model(**batch)["loss"])
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            iteration += 1
            mirror.mirror_out(iteration)
            if iteration == here.iterations:
                break
