"""Writes real images, handwritten digits of 8 x 8 pixels: `python demo/digits.py digits`.

1,797 PNG files in ten folders, which bear the names of the classes; from scikit-learn (the extra
`examples`).
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def main() -> None:
    """Write them into the new folder that was named."""
    folder, data = Path(sys.argv[1]), load_digits()
    for name in NAMES:
        (folder / name).mkdir(parents=True)
    for number, (pixels, kind) in enumerate(zip(data.images, data.target, strict=True)):
        grey = (pixels * (255 / 16)).round().astype(np.uint8)
        Image.fromarray(grey).save(folder / NAMES[kind] / f"{number}.png")


if __name__ == "__main__":
    main()
