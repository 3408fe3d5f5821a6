"""torch.distributed.checkpoint, with a region where its folder of files would be."""

from typing import Any

import torch
from model import LanguageModel
from place import place
from text import Text
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import plinius
from plinius.integrations.distributed_checkpoint import LoadPlanner, RegionStorage, SavePlanner

here = place("checkpoint", iterations=100)
torch.manual_seed(0)

loader = plinius.ResumableLoader(Text(64), batch=16)
model = LanguageModel()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)


def taken() -> dict[str, Any]:
    """Everything that belongs to the run, in the form that the library asks for."""
    parameters, moments = get_state_dict(model, optimizer)
    rng = torch.get_rng_state()
    return {"model": parameters, "optimizer": moments, "rng": rng, "loader": loader.state_dict()}


with RegionStorage(here.region, here.key) as storage:
    if storage.iteration:
        state = taken()
        dcp.load(state, storage_reader=storage, planner=LoadPlanner())
        set_state_dict(
            model,
            optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        torch.set_rng_state(state["rng"])
        loader.load_state_dict(state["loader"])
    iteration = storage.iteration or 0
    print(f"begins after iteration {iteration}")
    while iteration < here.iterations:
        for batch in loader:
            model(**batch)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
            iteration += 1
            if iteration % 10 == 0:
                dcp.save(
                    taken(),
                    storage_writer=storage,
                    planner=SavePlanner(),
                    checkpoint_id=str(iteration),
                )
            if iteration == here.iterations:
                break
