"""`class_weights` of [softmax]: the gradient of a weighted cross-entropy, and balanced ones."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cli.world import World, call
from plinius.darknet.cfg import parse_cfg
from plinius.darknet.network import Network
from plinius.data.sealed_dataset import seal_dataset
from plinius.errors import CfgError
from plinius.key_file import load_key
from plinius.sources.npz import npz_source

CFG = """\
[net]
inputs=2
batch=20
learning_rate=0.1
max_batches=60
[connected]
output=3
activation=linear
[softmax]
{more}
"""


def test_the_gradient_is_that_of_torch(world: World) -> None:
    """With numbers; cost and gradient are sums, as those of cross_entropy with reduction=sum."""
    network = Network(parse_cfg(CFG.format(more="class_weights=1, 0.5 ,4"), "w.cfg"))
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(20) % 3
    truth = torch.nn.functional.one_hot(labels, 3).float()
    objective, reported = network.loss(x, truth)
    torch.autograd.backward(objective)
    (layer,) = (it for it in network.sequence if hasattr(it, "weights"))
    weights = layer.weights.detach().clone().requires_grad_()
    logits = x @ weights.T + layer.biases.detach()
    wanted = torch.nn.functional.cross_entropy(
        logits, labels, weight=torch.tensor([1, 0.5, 4]), reduction="sum"
    )
    torch.autograd.backward(wanted)
    torch.testing.assert_close(reported, wanted.detach())
    torch.testing.assert_close(layer.weights.grad, weights.grad)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("class_weights=1,2", "class_weights need one number for each class"),
        ("class_weights=1,2,-1", "class_weights need one number for each class"),
        ("class_weights=equal", "class_weights need one number for each class"),
        ("class_weights=balanced\ngroups=3", "class_weights are for one group with a loss"),
    ],
)
def test_bad_weights_are_refused(more: str, told: str) -> None:
    """With their line."""
    with pytest.raises(CfgError, match=told):
        Network(parse_cfg(CFG.format(more=more), "w.cfg"))


def test_balanced_weights_find_the_rare_class(world: World, tmp_path: Path) -> None:
    """One record in twenty: a better recall than without, and another recipe; a resume keeps it."""
    random = np.random.default_rng(5)
    labels = np.where(np.arange(400) % 20 == 0, 2, np.arange(400) % 2).astype(np.uint8)
    x = random.normal(size=(400, 2)) * 0.7 + np.array([[0, 0], [2, 0], [1, 1.3]])[labels]
    np.savez(tmp_path / "d.npz", x=x.astype(np.float32), y=labels)
    data = tmp_path / "d.sealed"
    seal_dataset(npz_source(tmp_path / "d.npz", 3), load_key(world.key), data)
    recall = {}
    for name, more in (("plain", ""), ("balanced", "class_weights=balanced")):
        cfg, region = tmp_path / f"{name}.cfg", tmp_path / f"{name}.region"
        cfg.write_text(CFG.format(more=more))
        run = ["--data", data, "--region", region, "--key", world.key]
        half = call("train", cfg, *run, "--threads", 1, "--iterations", 30)
        assert half.code == 0, half.stderr
        assert call("train", cfg, *run, "--json").json["resumed_at"] == 30
        recall[name] = call("test", cfg, *run, "--json").json["recall"][2]
    assert recall["balanced"] > recall["plain"] + 0.3
    other = call("train", tmp_path / "plain.cfg", *run)
    assert "layer 1 [softmax] class_weights is its default but was balanced" in other.stderr
