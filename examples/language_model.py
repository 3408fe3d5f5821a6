"""A small transformer language model, sealed beside the next forward and backward pass."""

import torch
from model import LanguageModel
from place import place
from text import Text

import plinius

here = place("language_model", iterations=200)
torch.manual_seed(0)

loader = plinius.ResumableLoader(Text(64), batch=16)
model = LanguageModel()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
state = {"model": model, "optimizer": optimizer, "loader": loader}

with plinius.Mirror.open(here.region, here.key, state, overlap=True) as mirror:
    iteration = mirror.mirror_in()
    print(f"begins after iteration {iteration}")
    while iteration < here.iterations:
        for batch in loader:
            loss = model(**batch)["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            iteration += 1
            mirror.mirror_out(iteration)
            if iteration % 20 == 0:
                print(f"iteration {iteration}  loss {loss:.3f}")
            if iteration == here.iterations:
                break
    mirror.wait()
    print(f"digest {mirror.digest(iteration)}")
