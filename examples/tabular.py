"""Health data in a table: sealed by its owner, opened one batch at a time by the trainer."""

import pyarrow
import torch
from place import place
from sklearn.datasets import load_breast_cancer
from torch import nn

import plinius

here = place("tabular", iterations=300)
torch.manual_seed(0)

# The owner, once: 569 tumours, 30 numbers each, benign or malignant. Mean and deviation are those
# of the part to train on. A kill in between starts this again.
train, held_out = (here.region.with_name(f"tumours.{part}.sealed") for part in ("train", "test"))
if not held_out.exists():
    train.unlink(missing_ok=True)
    found = load_breast_cancer()
    columns = dict(zip(found.feature_names, found.data.T, strict=True))
    columns["diagnosis"] = found.target_names[found.target]
    plinius.seal(
        pyarrow.table(columns), here.key, here.region.with_name("tumours.sealed"),
        target="diagnosis", standardize=True, split=(0.7, 0.3), stratify=True,
    )  # fmt: skip

# The trainer.
data = plinius.SealedDataset.open(train, here.key)
loader = plinius.ResumableLoader(data, batch=32)
model = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, data.classes))
optimizer = torch.optim.Adam(model.parameters(), lr=0.001)

state = {"model": model, "optimizer": optimizer, "loader": loader}
mirror = plinius.Mirror.open(here.region, here.key, state)
iteration = mirror.mirror_in()
print(f"begins after iteration {iteration}")

while iteration < here.iterations:
    for x, y in loader:
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        iteration += 1
        mirror.mirror_out(iteration)
        if iteration == here.iterations:
            break

digest = mirror.digest(iteration)
model.eval()
test = plinius.SealedDataset.open(held_out, here.key)
with torch.no_grad():
    x, y = test.batch(range(len(test)))
    right = (model(x).argmax(1) == y).float().mean()
print(f"accuracy {right:.4f} of {len(test)} tumours that it was not trained on")
print(f"digest {digest}")
mirror.close()
