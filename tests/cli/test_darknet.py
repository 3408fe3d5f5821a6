"""Darknet networks on the command line: `describe`, weights to begin with, runs of every kind."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch

from cli.darknet_runs import RUNS, sealed
from cli.world import CFG, World, call, digest_of
from plinius.darknet.cfg import parse_cfg, read_cfg
from plinius.darknet.network import Network
from plinius.darknet.weights import load_weights, save_weights
from plinius.data.sealed_dataset import SealedDataset
from plinius.key_file import load_key
from plinius.training.recalibration import recalibrate


@pytest.mark.parametrize("kind", RUNS)
def test_runs_of_every_kind_resume_bit_for_bit(kind: str, world: World, tmp_path: Path) -> None:
    """A run that ended after every iteration has the digest of one that never did."""
    cfg, data = tmp_path / "net.cfg", sealed(world, kind, tmp_path)
    cfg.write_text(RUNS[kind])

    def train(region: Path, *more: object) -> None:
        using = ["--data", data, "--key", world.key, "--region", region, "--threads", 1]
        result = call("train", cfg, *using, *more)
        assert result.code == 0, result.stderr

    train(tmp_path / "whole")
    for iteration in range(7):
        train(tmp_path / "parts", "--iterations", iteration)
    assert digest_of(tmp_path / "parts", world.key) == digest_of(tmp_path / "whole", world.key)
    tested = call(
        *("test", cfg, "--data", data, "--key", world.key, "--region", tmp_path / "whole", "--json")
    )
    name = "mean_average_precision" if kind == "detection" else "accuracy"
    assert 0 <= tested.json[name] <= 1
    task = "detection" if kind == "detection" else "classification"
    assert (tested.json["task"], tested.json["samples"] > 0) == (task, True)


def test_training_goes_on_where_the_weights_ended(world: World, tmp_path: Path) -> None:
    """`seen` of a .weights file counts for the schedule, the end and export, unless --clear.

    A resume need not be given the weights again.
    """
    network, file = Network(read_cfg(world.cfg)), tmp_path / "a.weights"
    save_weights(network, file, 8 * 20)
    region, out = tmp_path / "on", tmp_path / "out.weights"
    metrics = ["--metrics", tmp_path / "m.jsonl"]
    first = call(*world.train(region, "--weights", file, "--iterations", 2, "--json", *metrics))
    assert "have seen 160 records: the schedule goes on at update 21" in first.stderr
    assert first.json["iteration"] == 2
    last = call(*world.train(region, "--json"))
    assert last.json["iteration"] == 4  # max_batches=24
    rates = [json.loads(line)["rate"] for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert rates == pytest.approx([0.1 * (1 - n / 24) ** 4 for n in (21, 22)])
    using = ["--region", region, "--key", world.key]
    assert call("export", world.cfg, *using, "-o", out, "--json").json["seen"] == 8 * 24
    assert load_weights(network, out) == 8 * 24

    anew = tmp_path / "anew"
    result = call(*world.train(anew, "--weights", file, "--clear", "--json", "--iterations", 3))
    assert "have seen" not in result.stderr
    assert call(*world.train(anew, "--json")).json["iteration"] == 24
    refused = call(*world.train(anew, "--weights", file))
    assert "This is not the run in the region: seen is 160 but was unknown" in refused.stderr


def test_the_first_layers_can_begin_a_run(world: World, tmp_path: Path) -> None:
    """--upto loads a file of the first layers; it needs weights, and no .safetensors file."""
    network, file, region = Network(read_cfg(world.cfg), seed=9), tmp_path / "a", tmp_path / "r"
    save_weights(network, file, 0, upto=1)
    told = call(*world.train(region, "--weights", file, "--iterations", 0))
    assert "say that it holds 2 layers (--upto 2)" in told.stderr
    call(*world.train(region, "--weights", file, "--upto", 1, "--iterations", 0))
    out = tmp_path / "out.weights"
    call("export", world.cfg, "--region", region, "--key", world.key, "-o", out)
    begun = Network(read_cfg(world.cfg))
    load_weights(begun, out)
    assert begun.sequence[0].arrays()["weights"].equal(network.sequence[0].arrays()["weights"])
    assert call(*world.train(tmp_path / "s", "--upto", 1)).code == 2
    assert call(*world.train(tmp_path / "s", "--clear")).code == 2
    assert not (tmp_path / "s").exists()


def test_describe_shows_the_layers(world: World, tmp_path: Path) -> None:
    """Darknet's table as text and as JSON, and the network drawn as an SVG picture."""
    told = call("describe", world.cfg)
    lines = told.stdout.splitlines()
    assert lines[0].split() == [
        *("layer", "type", "filters", "size", "input", "output", "parameters", "BFLOPs")
    ]
    assert lines[1].split()[:4] == ["0", "convolutional", "6", "3x3/1"]
    assert "8 x 8 x 1  8 x 8 x 6" in lines[1]
    network = Network(read_cfg(world.cfg))
    assert lines[-3].startswith(f"{network.parameter_count:,} parameters, ")
    picture = tmp_path / "net.svg"
    values = call("describe", world.cfg, "--json", "--draw", picture).json
    assert values["parameters"] == network.parameter_count
    assert values["layers"][0]["bflops"] == pytest.approx(2 * 9 * 6 * 64 / 1e9)
    assert values["layers"][1]["output"] == [6, 4, 4]
    save_weights(network, tmp_path / "a", 0)
    assert values["weights_file_bytes"] == (tmp_path / "a").stat().st_size
    drawn = ElementTree.fromstring(picture.read_text())
    boxes = [it for it in drawn.iter("{http://www.w3.org/2000/svg}rect") if it.get("rx")]
    assert len(boxes) == len(network.sequence)
    assert call("describe", world.cfg, "--draw", tmp_path / "net.png").code == 2
    assert call("describe", world.cfg, "--draw", picture).code == 1


def test_describe_takes_no_memory_for_what_cannot_be_trained(world: World, tmp_path: Path) -> None:
    """A network that is larger than the machine is described; training it is refused."""
    path = tmp_path / "large.cfg"
    path.write_text(
        "[net]\nbatch=65536\nheight=128\nwidth=128\nchannels=2\nmax_batches=1\n"
        + "[convolutional]\nactivation=linear\nfilters=2\n" * 2_00
        + "[cost]\n"
    )
    values = call("describe", path, "--json").json
    assert values["training_bytes"] > 200 * 65536 * 2 * 128 * 128 * 4
    assert values["parameters"] == 200 * 6
    arguments = world.train(tmp_path / "region")
    arguments[1] = path
    refused = call(*arguments)
    assert refused.code == 1
    assert f"To train {path} takes at least " in refused.stderr
    assert not (tmp_path / "region").exists()


def test_what_has_no_effect_is_said_once(world: World, tmp_path: Path) -> None:
    """Keys that do nothing are named when a run begins."""
    cfg = tmp_path / "net.cfg"
    cfg.write_text(CFG.replace("channels=1", "channels=1\nnotruth=1\nmosaic=1"))
    told = call("describe", cfg)
    assert told.stderr.splitlines() == [
        f"warning: {cfg}:7: [net] notruth, mosaic have no effect here"
    ]


def test_changed_pictures_are_trained_on_and_others_refused(world: World, tmp_path: Path) -> None:
    """Larger pictures are cropped, in the middle by test and predict; flat samples are refused."""
    cfg, draws = tmp_path / "net.cfg", np.random.default_rng(1)
    cfg.write_text(CFG.replace("channels=1", "channels=1\nexposure=1.5\nmin_crop=8\nmax_crop=12"))
    sealed = {}
    for name, shape in (("pictures", (1, 10, 9)), ("flat", (64,))):
        x, y = draws.random((8, *shape), np.float32), np.arange(8, dtype=np.int64) % 2
        np.savez(tmp_path / f"{name}.npz", x=x, y=y)
        sealed[name] = tmp_path / f"{name}.sealed"
        source = ["--npz", tmp_path / f"{name}.npz"]
        assert call("seal", "--key", world.key, "-o", sealed[name], *source).code == 0
    using = ["--key", world.key, "--region", tmp_path / "region"]
    refused = call("train", cfg, "--data", sealed["flat"], *using)
    assert refused.code == 1
    assert "The cfg asks for changed training pictures, but the samples of" in refused.stderr
    assert not (tmp_path / "region").exists()
    done = call("train", cfg, "--data", sealed["pictures"], *using, "--iterations", 2)
    assert done.code == 0, done.stderr
    tested = call("test", cfg, "--data", sealed["pictures"], *using, "--json")
    assert tested.json["samples"] == 8
    told = call(
        "predict", cfg, "--data", sealed["pictures"], *using, "-o", tmp_path / "p.csv", "--json"
    )
    assert told.json["count"] == 8
    plain = call("train", world.cfg, "--data", sealed["pictures"], *using[:2], "--region", "no")
    assert "but the network's input is 1 x 8 x 8" in plain.stderr


def test_rolling_statistics_that_lag_are_said_and_recalibrated(
    world: World, trained: Path, tmp_path: Path
) -> None:
    """After 24 passes they have come 21 % of their way; from training data they are the data's."""
    using = ["--region", trained, "--key", world.key, "--json"]
    before = digest_of(trained, world.key)
    told = call("test", world.cfg, "--data", world.held_out, *using)
    assert "have come 21 % of their way from 0" in told.stderr
    anew = call("test", world.cfg, "--data", world.held_out, *using, "--recalibrate", world.data)
    assert "of their way" not in anew.stderr
    assert anew.json["accuracy"] > told.json["accuracy"]
    assert digest_of(trained, world.key) == before


@pytest.mark.parametrize("kind", ["conn", "lstm"])
def test_recalibrated_statistics_are_the_mean_of_passes(
    kind: str, world: World, tmp_path: Path
) -> None:
    """Of a part that runs once a pass, or once a step."""
    steps, rows = (1, 4) if kind == "conn" else (3, 12)
    cfg = parse_cfg(
        f"[net]\nbatch=4\ntime_steps={steps}\ninputs=2\n[{kind}]\noutput=3\nbatch_normalize=1\n"
        "[softmax]\n",
        "a.cfg",
    )
    draws = np.random.default_rng(2)
    x = draws.random((4, *([steps] if steps > 1 else []), 2), np.float32)
    y = np.zeros((4, *([steps] if steps > 1 else []), 3), np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    data = tmp_path / "data.sealed"
    call("seal", "--key", world.key, "-o", data, "--npz", tmp_path / "data.npz")
    network = Network(cfg)
    recalibrate(network, cfg, SealedDataset.from_file(data, load_key(world.key)))
    layer = network.sequence[0]
    weights = layer.get_parameter("weights" if kind == "conn" else "ui.weights")
    mean = layer.get_buffer("rolling_mean" if kind == "conn" else "ui.rolling_mean")
    seen = (torch.from_numpy(x) @ weights.detach().T).reshape(4, steps, 3).mean(0)
    shares = torch.tensor([0.99 ** (steps - 1 - step) for step in range(steps)])
    expected = (seen * (shares / shares.sum())[:, None]).sum(0)
    assert rows == cfg.net.rows
    torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-6)
