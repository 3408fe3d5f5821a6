"""Health data in a table: sealed by its owner, opened one batch at a time by the trainer."""

import numpy as np
import torch
from place import place
from sklearn.datasets import load_breast_cancer
from torch import nn

import plinius
from plinius.data.sealed_dataset import SealedDataset, seal_dataset
from plinius.sources.npz import npz_source
from plinius.training.batches import Batches
from plinius.training.sampler import Sampler

here = place("tabular", iterations=300)
torch.manual_seed(0)

# The owner, once: 569 patients, 30 numbers each, benign or malignant.
sealed = here.region.with_suffix(".sealed")
if not sealed.exists():
    x, y = load_breast_cancer(return_X_y=True)
    x = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
    plain = here.region.with_suffix(".npz")
    np.savez(plain, x=x, y=y)
    seal_dataset(npz_source(plain), here.key, sealed)
    plain.unlink()

# The trainer.
dataset = SealedDataset.from_file(sealed, here.key)
batches = Batches(dataset, input_shape=(30,), truths=2)
sampler = Sampler(dataset.header.count, batch=32, seed=0)  # a function of the iteration
model = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 2))
optimizer = torch.optim.Adam(model.parameters(), lr=0.001)

mirror = plinius.Mirror.open(here.region, here.key, {"model": model, "optimizer": optimizer})
start = mirror.mirror_in()
print(f"begins after iteration {start}")
for iteration in range(start, here.iterations):
    x, truth = batches.open(sampler.indices(iteration))
    nn.functional.cross_entropy(model(x), truth).backward()
    optimizer.step()
    optimizer.zero_grad()
    mirror.mirror_out(iteration + 1)

digest = mirror.digest(here.iterations)
model.eval()
with torch.no_grad():
    x, truth = batches.open(np.arange(dataset.header.count))
    right = (model(x).argmax(1) == truth.argmax(1)).float().mean()
print(f"accuracy {right:.4f}")
print(f"digest {digest}")
mirror.close()
