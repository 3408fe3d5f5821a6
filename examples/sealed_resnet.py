"""A small ResNet on sealed images: its owner seals any PyTorch dataset, the loop opens batches."""

import torch
from place import place
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import plinius

here = place("sealed_resnet", iterations=200)
torch.manual_seed(0)

# The owner, once: a part to train on and one to test with. A kill in between starts this again.
images, test_images = (here.region.with_name(f"digits.{part}.sealed") for part in ("train", "test"))
if not test_images.exists():
    images.unlink(missing_ok=True)
    x, y = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    plain = TensorDataset((x * 15).to(torch.uint8).reshape(-1, 1, 8, 8), y)
    names = [f"digit {number}" for number in range(10)]
    plinius.seal(
        plain, here.key, here.region.with_name("digits.sealed"),
        class_names=names, split=(0.8, 0.2), stratify=True,
    )  # fmt: skip


class Block(nn.Module):
    """Two convolutions beside a shortcut (He, Zhang, Ren and Sun, 2015)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outside),
            nn.ReLU(), nn.Conv2d(outside, outside, 3, padding=1, bias=False),
            nn.BatchNorm2d(outside),
        )  # fmt: skip
        self.shortcut = nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both, without what is negative."""
        return nn.functional.relu(self.path(x) + self.shortcut(x))


# The trainer: only the batch that it asked for is in memory in clear.
data = plinius.SealedDataset.open(images, here.key)
loader = plinius.ResumableLoader(data, batch=64)
model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1), Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, data.classes),
)  # fmt: skip
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)

state = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "loader": loader}
mirror = plinius.Mirror.open(here.region, here.key, state)
iteration = mirror.mirror_in()
print(f"begins after iteration {iteration}")

while iteration < here.iterations:
    for x, y in loader:
        nn.functional.cross_entropy(model(x / 255), y).backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        iteration += 1
        mirror.mirror_out(iteration)
        if iteration == here.iterations:
            break

digest = mirror.digest(iteration)
model.eval()
test = plinius.SealedDataset.open(test_images, here.key)
with torch.no_grad():
    x, y = test.batch(range(len(test)))
    chances = model(x / 255).softmax(1)
    right = (chances.argmax(1) == y).float().mean()
predictions = here.region.with_suffix(".predictions")
predictions.unlink(missing_ok=True)
plinius.Predictions.of(chances, test, iteration=iteration).save(predictions, here.key)  # sealed
print(f"accuracy {right:.4f} of {len(test)} images that it was not trained on")
print(f"digest {digest}")
mirror.close()
