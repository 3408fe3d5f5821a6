"""Three kinds of Darknet runs: boxes in pictures, sequences, and pictures changed in training."""

from pathlib import Path

import numpy as np

from cli.world import World, call

RUNS = {
    "detection": """[net]
batch=4
height=16
width=16
channels=1
learning_rate=0.001
max_batches=6
exposure=1.5
resize_step=4
[convolutional]
filters=8
size=3
stride=2
pad=1
batch_normalize=1
activation=leaky
[convolutional]
filters=8
size=3
pad=1
activation=leaky
[shortcut]
from=-2
[upsample]
[convolutional]
filters=14
size=1
activation=linear
[yolo]
mask=0,1
anchors=4,5, 8,7, 12,12
classes=2
num=3
max=3
[route]
layers=1
[reorg]
stride=2
[convolutional]
filters=7
size=1
activation=linear
[yolo]
mask=2
anchors=4,5, 8,7, 12,12
classes=2
num=3
max=3
jitter=.3
random=1
""",
    "sequence": """[net]
batch=4
subdivisions=2
time_steps=5
inputs=3
learning_rate=0.05
max_batches=6
[rnn]
output=6
activation=tanh
[gru]
output=6
tanh=1
[lstm]
output=6
batch_normalize=1
[dropout]
probability=.2
[connected]
output=3
activation=linear
[softmax]
""",
    "augmented": """[net]
batch=4
height=16
width=16
channels=1
learning_rate=0.01
max_batches=6
angle=7
aspect=.75
exposure=.75
min_crop=14
max_crop=20
[crop]
crop_height=12
crop_width=12
flip=1
[local]
filters=2
size=3
pad=1
activation=leaky
[batchnorm]
[deconvolutional]
filters=2
size=2
stride=2
activation=leaky
[lrn]
[convolutional]
filters=2
activation=linear
[avgpool]
[logistic]
""",
}


def sealed(world: World, kind: str, folder: Path) -> Path:
    """A sealed dataset for a kind of run."""
    draws = np.random.default_rng(5)
    count = 12
    if kind == "sequence":
        x = draws.random((count, 5, 3), np.float32)
        y = np.eye(3, dtype=np.float32)[draws.integers(0, 3, (count, 5))]
    else:
        x = draws.random((count, 1, 16, 16), np.float32)
        y = np.eye(2, dtype=np.float32)[draws.integers(0, 2, count)]
    if kind == "detection":
        y = np.zeros((count, 3, 5), np.float32)
        y[:, 0] = [0.4, 0.6, 0.3, 0.3, 1]
        y[::2, 1] = [0.7, 0.2, 0.7, 0.6, 0]
    np.savez(folder / "data.npz", x=x, y=y)
    call("seal", "--key", world.key, "-o", folder / "data.sealed", "--npz", folder / "data.npz")
    return folder / "data.sealed"
