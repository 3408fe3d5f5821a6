"""Programs of a hostile host that read sealed records out through what a trainer lets leave.

Each is given only what the host has: the sealed files, the commands, and what they print. It never
reads the key file, and returns (what it read, what is true). To see them, run in tests/

    python -m attacks.readouts [a part of a name]
"""

import json
import re
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from cli.world import CLASSES, HELD_OUT, RECORDS, SIDE, World, call, make_world, textures
from plinius.training.sampler import Sampler
from plinius.trust.signing import SigningKey

PIXELS = SIDE * SIDE
PIXEL = 37
Read = tuple[list[Any], list[Any]]


class RefusedError(Exception):
    """A command refused, with this sentence."""


@dataclass
class Host:
    """The host's folder, and the options of the job that the owner's trainer insists on, if any."""

    world: World
    folder: Path
    job: list[object] = field(default_factory=list)
    names: Any = field(default_factory=count)

    def file(self, content: str | bytes, suffix: str = "") -> Path:
        """A new file with this content."""
        path = self.folder / f"{next(self.names)}{suffix}"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def region(self) -> Path:
        """The name of a new region."""
        return self.folder / f"{next(self.names)}.region"

    def command(self, *arguments: object) -> dict[str, Any]:
        """What a command answers. Raises RefusedError."""
        result = call(*arguments, *self.job, "--json")
        if result.code == 1:
            raise RefusedError(result.stderr.splitlines()[-1])
        answer: dict[str, Any] = result.json
        return answer

    def train(self, cfg: Path, region: Path, *more: object) -> dict[str, Any]:
        """What `train` answers."""
        w = self.world
        what = ["--data", w.data, "--region", region, "--key", w.key, "--threads", 1]
        return self.command("train", cfg, *what, *more)

    def losses(self, cfg: Path, *more: object) -> npt.NDArray[np.float64]:
        """The loss of every iteration of a new run."""
        metrics = self.folder / f"{next(self.names)}.jsonl"
        self.train(cfg, self.region(), "--metrics", metrics, *more)
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        return np.array([line["loss"] for line in lines], np.float64)


def cfg(
    batch: int = 1,
    iterations: int = 40,
    cost: str = "L1",
    rate: str = "0",
    subdivisions: int = 1,
    layer: str = "[cost]",
) -> str:
    """One linear layer and a cost."""
    kind = f"type={cost}" if layer == "[cost]" else ""
    return (
        f"[net]\nbatch={batch}\nsubdivisions={subdivisions}\nheight={SIDE}\nwidth={SIDE}\n"
        f"channels=1\nlearning_rate={rate}\nmomentum=0\ndecay=0\nmax_batches={iterations}\n"
        f"[connected]\noutput={CLASSES}\nactivation=linear\n{layer}\n{kind}\n"
    )


def parameters(weights: npt.ArrayLike, biases: npt.ArrayLike) -> bytes:
    """A .weights file of one [connected] layer: weights (CLASSES, PIXELS), biases (CLASSES)."""
    parts = (np.broadcast_to(np.asarray(biases, "<f4"), CLASSES), np.asarray(weights, "<f4"))
    return struct.pack("<iiiQ", 0, 2, 0, 0) + b"".join(part.tobytes() for part in parts)


def one_pixel(scale: float = 1) -> npt.NDArray[np.float32]:
    """Weights with which every output is `scale` times one pixel."""
    weights = np.zeros((CLASSES, PIXELS), np.float32)
    weights[:, PIXEL] = scale
    return weights


def drawn(batch: int, iterations: int, seed: int = 0) -> list[list[int]]:
    """The records of each iteration: public, since seed and count are."""
    sampler = Sampler(RECORDS, batch, seed)
    return [sampler.indices(at).tolist() for at in range(iterations)]


def pixels() -> npt.NDArray[np.int64]:
    """The secret: that pixel of each record (0 to 255)."""
    return textures(RECORDS, seed=1)[0].reshape(RECORDS, -1)[:, PIXEL].astype(np.int64)


def cost_of_pixel(kind: str) -> npt.NDArray[np.float64]:
    """The cost of a record for each value (0 to 255) of the pixel, where every output is v + 2."""
    v = np.arange(256) / 255
    at_label, elsewhere = 1 + v, 2 + v
    if kind == "L1":
        return at_label + 3 * elsewhere
    if kind == "smooth":
        return (2 * at_label - 1) + 3 * (2 * elsewhere - 1)
    return at_label**2 + 3 * elsewhere**2


def through_a_cost(kind: str) -> Callable[[Host], Read]:
    """The attack through one type of cost."""

    def attack(host: Host) -> Read:
        """Batch 1: the cost of one linear layer is a function of one pixel of one record."""
        start = host.file(parameters(one_pixel(), 2), ".weights")
        losses = host.losses(host.file(cfg(cost=kind)), "--weights", start)
        read = np.abs(losses[:, None] - cost_of_pixel(kind)).argmin(1)
        return read.tolist(), [pixels()[records[0]] for records in drawn(1, 40)]

    return attack


def labels_through_softmax(host: Host) -> Read:
    """Batch 1 and zero weights: the softmax loss is another one for each label."""
    biases = np.arange(CLASSES)
    start = host.file(parameters(np.zeros((CLASSES, PIXELS)), biases), ".weights")
    losses = host.losses(host.file(cfg(layer="[softmax]")), "--weights", start)
    of_label = np.log(np.exp(biases).sum()) - biases
    labels = textures(RECORDS, seed=1)[1]
    read = np.abs(losses[:, None] - of_label).argmin(1)
    return read.tolist(), [int(labels[records[0]]) for records in drawn(1, 40)]


def through_learned_weights(host: Host) -> Read:
    """One step of batch 1 from zero writes the whole record into the parameters: export them."""
    start, region = host.file(parameters(np.zeros((CLASSES, PIXELS)), 0), ".weights"), host.region()
    own = host.file(cfg(iterations=1, cost="sse", rate="1"))
    host.train(own, region, "--weights", start)
    out = host.folder / "learned.safetensors"
    host.command("export", own, "--region", region, "--key", host.world.key, "-o", out)
    weights = next(it for it in load_file(out).values() if it.ndim == 2)
    record = drawn(1, 1)[0][0]
    x, y = textures(RECORDS, seed=1)
    label = int(np.abs(weights).sum(1).argmax())
    read = np.rint(255 * weights[label]).astype(int).tolist()
    return [label, *read], [int(y[record]), *x[record].reshape(-1).tolist()]


def through_subdivisions(host: Host) -> Read:
    """Batches of 8 in 8 passes: sums of 8 pixels, other ones each epoch, are solved for."""
    iterations = 12 * RECORDS // 8
    start = host.file(parameters(one_pixel(), 2), ".weights")
    own = host.file(cfg(batch=8, subdivisions=8, iterations=iterations))
    losses = host.losses(own, "--weights", start, "--mirror-every", iterations)
    sums = np.zeros((iterations, RECORDS))
    for row, records in enumerate(drawn(8, iterations)):
        sums[row, records] = 1
    solved = np.linalg.lstsq(sums, (losses - 7) * 8 / 4 * 255, rcond=None)[0]
    return np.rint(solved).astype(int).tolist(), pixels().tolist()


def through_the_accuracy(host: Host) -> Read:
    """Each threshold and test: how many records of two classes have a brighter pixel, exactly."""
    x, y = textures(HELD_OUT, seed=2)
    values = x.reshape(HELD_OUT, -1)[:, PIXEL]
    own, read, true = host.file(cfg()), [], []
    for threshold in (20, 60, 100, 180, 220):
        weights = np.zeros((CLASSES, PIXELS))
        weights[0, PIXEL] = 1
        start = host.file(parameters(weights, [-(threshold + 0.5) / 255, 0, -9, -9]), ".weights")
        region = host.region()
        host.train(own, region, "--weights", start, "--iterations", 0)
        data = ["--data", host.world.held_out, "--region", region, "--key", host.world.key]
        read.append(round(host.command("test", own, *data)["accuracy"] * HELD_OUT))
        bright = values > threshold
        true.append(int(((y == 0) & bright).sum() + ((y == 1) & ~bright).sum()))
    return read, true


def through_an_early_stop(host: Host) -> Read:
    """No metrics file: the run is stopped after each iteration, and its result tells the loss."""
    start, region = host.file(parameters(one_pixel(), 2), ".weights"), host.region()
    own, read = host.file(cfg()), []
    for iteration in range(1, 13):
        loss = host.train(own, region, "--weights", start, "--iterations", iteration)["loss"]
        read.append(round((loss - 7) / 4 * 255))
    return read, [pixels()[records[0]] for records in drawn(1, 12)]


def through_seeds(host: Host) -> Read:
    """A batch of all records but one: the seed says which one is left out of the mean."""
    start = host.file(parameters(one_pixel(), 2), ".weights")
    every = host.file(cfg(batch=RECORDS, iterations=1))
    but_one = host.file(cfg(batch=RECORDS - 1, iterations=1))
    total = host.losses(every, "--weights", start)[0] * RECORDS
    read, true = [], []
    for seed in range(6):
        rest = host.losses(but_one, "--weights", start, "--seed", seed)[0] * (RECORDS - 1)
        read.append(round((total - rest - 7) / 4 * 255))
        (record,) = {*range(RECORDS)} - {*drawn(RECORDS - 1, 1, seed)[0]}
        true.append(pixels()[record])
    return read, true


def through_a_refusal(host: Host) -> Read:
    """Weights so large that a bright pixel makes the loss infinite: the refusal says when."""
    threshold = 200
    scale = float(np.finfo(np.float32).max) / (4 * (threshold + 0.5) / 255)
    start = host.file(parameters(one_pixel(scale), 0), ".weights")
    try:
        host.losses(host.file(cfg()), "--weights", start)
    except RefusedError as refusal:
        match = re.search(r"The loss is (?:inf|nan) at iteration (\d+)", str(refusal))
        if match is None:
            raise
        first = int(match[1])
    bright = [bool(pixels()[records[0]] > threshold) for records in drawn(1, 40)]
    return [first], [bright.index(True) + 1]


ATTACKS: dict[str, Callable[[Host], Read]] = {
    **{f"cost {kind}": through_a_cost(kind) for kind in ("L1", "sse", "masked", "smooth")},
    **{
        attack.__name__.replace("_", " "): attack
        for attack in (
            labels_through_softmax,
            through_learned_weights,
            through_subdivisions,
            through_the_accuracy,
            through_an_early_stop,
            through_seeds,
            through_a_refusal,
        )
    },
}


def main(part: str = "") -> None:
    """Run each attack whose name has this part, without a job and under a default one."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        world = make_world(folder)
        sign, job = folder / "sign", folder / "job"
        SigningKey.generate().save(sign)
        made = ["--data", world.data, "--test", world.held_out, "--key", world.key]
        created = call("job", "create", world.cfg, *made, "--sign", sign, "-o", job)
        assert created.code == 0, created.stderr
        options: list[object] = ["--job", job, "--owner", f"{sign}.pub"]
        for number, (title, attack) in enumerate(ATTACKS.items()):
            if part not in title:
                continue
            print(f"{title}: {attack.__doc__}")
            bare, under = (folder / f"{kind}-{number}" for kind in ("bare", "under"))
            bare.mkdir()
            under.mkdir()
            read, true = attack(Host(world, bare))
            right = sum(a == b for a, b in zip(read, true, strict=True))
            print(f"  without a job: {right} of {len(true)} secret values read")
            try:
                attack(Host(world, under, options))
                print("  under a job: NOT refused")
            except RefusedError as refusal:
                print(f"  under a job: {refusal}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
