"""What THREATS.md admits: whoever chooses the cfg reads the data out through the loss."""

import json
import struct
from pathlib import Path

import numpy as np

from cli.world import CLASSES, RECORDS, SIDE, World, call, textures
from plinius.training.sampler import Sampler

CFG = """\
[net]
batch=1
height=8
width=8
channels=1
learning_rate=0
max_batches=40

[connected]
output=4
activation=linear

[cost]
type=L1
"""
READ = 40


def test_a_cfg_of_the_hosts_own_reads_a_pixel_of_each_record(world: World, tmp_path: Path) -> None:
    """One weight is 1, so the loss is that pixel and a constant; the owner's key stays unseen."""
    pixel = 37
    weights = np.zeros((CLASSES, SIDE * SIDE), "<f4")
    weights[0, pixel] = 1
    biases = np.full(CLASSES, 2, "<f4")  # so that every output is above its truth
    cfg, start, metrics = tmp_path / "own.cfg", tmp_path / "own.weights", tmp_path / "metrics"
    cfg.write_text(CFG)
    start.write_bytes(struct.pack("<iiiQ", 0, 2, 0, 0) + biases.tobytes() + weights.tobytes())
    what = ["--data", world.data, "--region", tmp_path / "r", "--key", world.key]
    call("train", cfg, *what, "--weights", start, "--metrics", metrics, "--json")
    losses = np.array([json.loads(line)["loss"] for line in metrics.read_text().splitlines()])
    read = np.rint((losses - 2 * CLASSES + 1) * 255)
    order = Sampler(RECORDS, 1, seed=0)
    true = textures(RECORDS, seed=1)[0].reshape(RECORDS, -1)
    assert len(read) == READ
    assert read.tolist() == [true[order.indices(at)[0], pixel] for at in range(READ)]
