"""Accelerate: what it prepared is mirrored like anything else."""

import torch
from accelerate import Accelerator
from model import LanguageModel
from place import place
from text import Text

import plinius

here = place("accelerate", iterations=100)
torch.manual_seed(0)

accelerator = Accelerator(cpu=True)
loader = plinius.ResumableLoader(Text(64), batch=16)
model = LanguageModel()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.999)
model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)

state = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "loader": loader}
with plinius.Mirror.open(here.region, here.key, state, overlap=True) as mirror:
    iteration = mirror.mirror_in()
    print(f"begins after iteration {iteration}")
    while iteration < here.iterations:
        for batch in loader:
            accelerator.backward(model(**batch)["loss"])
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            iteration += 1
            mirror.mirror_out(iteration)
            if iteration == here.iterations:
                break
