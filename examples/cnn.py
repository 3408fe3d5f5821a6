"""A CNN on scikit-learn's handwritten digits: three lines make the loop survive."""

import torch
from place import place
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

import plinius

here = place("cnn", iterations=200)
torch.manual_seed(0)

images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
images = images.float().div(16).reshape(-1, 1, 8, 8)
loader = plinius.ResumableLoader(TensorDataset(images, labels), batch=64)
model = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
    nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 10),
)  # fmt: skip
optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)

state = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "loader": loader}
mirror = plinius.Mirror.open(here.region, here.key, state)
iteration = mirror.mirror_in()
print(f"begins after iteration {iteration}")

while iteration < here.iterations:
    for x, y in loader:
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        iteration += 1
        mirror.mirror_out(iteration)
        if iteration == here.iterations:
            break

digest = mirror.digest(iteration)
model.eval()
with torch.no_grad():
    right = (model(images).argmax(1) == labels).float().mean()
print(f"accuracy {right:.4f}")
print(f"digest {digest}")
mirror.close()
