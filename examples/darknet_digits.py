"""A Darknet network of classes; its pictures are changed in training (digits.cfg)."""

from pathlib import Path

import torch
from darknet_run import finish
from place import place
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

import plinius

CFG = Path(__file__).with_name("digits.cfg")


def seal_digits(folder: Path, key: plinius.OwnerKey) -> tuple[Path, Path]:
    """The owner: a part to train on, and one to test with."""
    train, test = (folder / f"digits8.{part}.sealed" for part in ("train", "test"))
    if not test.exists():
        train.unlink(missing_ok=True)
        x, y = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
        plain = TensorDataset((x * 15).to(torch.uint8).reshape(-1, 1, 8, 8), y)
        names = [str(number) for number in range(10)]
        plinius.seal(
            plain,
            key,
            folder / "digits8.sealed",
            class_names=names,
            split=(0.8, 0.2),
            stratify=True,
        )
    return train, test


if __name__ == "__main__":
    here = place("darknet_digits", iterations=300)
    finish(here, CFG, *seal_digits(here.region.parent, here.key))
