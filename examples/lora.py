"""Fine-tuning with a frozen base: only what moves is mirrored (LoRA: Hu et al. 2021)."""

import torch
from model import LanguageModel
from place import place
from text import Text
from torch import nn

import plinius

RANK = 2


class LowRank(nn.Module):
    """A frozen linear layer and a trainable change to it of low rank."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, RANK, bias=False)
        self.up = nn.Linear(RANK, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the base, and the change."""
        out: torch.Tensor = self.base(x) + self.up(self.down(x))
        return out


here = place("lora", iterations=50)
torch.manual_seed(0)

loader = plinius.ResumableLoader(Text(64), batch=8)
model = LanguageModel(width=256, layers=4).requires_grad_(False)
for layer in model.blocks.layers:
    layer.linear1, layer.linear2 = LowRank(layer.linear1), LowRank(layer.linear2)
trainable = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trainable, lr=0.001)
state = {"model": model, "optimizer": optimizer, "loader": loader}

with plinius.Mirror.open(here.region, here.key, state) as mirror:
    iteration = mirror.mirror_in()
    print(f"begins after iteration {iteration}")
    while iteration < here.iterations:
        for batch in loader:
            loss = model(**batch)["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            iteration += 1
            written = mirror.mirror_out(iteration)
            if iteration % 10 == 0:
                print(f"iteration {iteration}  loss {loss:.3f}  sealed {written:,} bytes")
            if iteration == here.iterations:
                break
    whole = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    print(f"the whole model is {whole:,} bytes")
    print(f"digest {mirror.digest(iteration)}")
