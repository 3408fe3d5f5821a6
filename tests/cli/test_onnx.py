"""Networks as .onnx files, run by onnxruntime."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cli.darknet_runs import RUNS, sealed
from cli.world import World, call
from plinius.darknet.cfg import parse_cfg
from plinius.darknet.network import Network
from plinius.errors import CfgError
from plinius.key_file import load_key
from plinius.slots import newest_snapshot
from plinius.training.evaluation import trained_network
from plinius.training.onnx_files import export_onnx

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")

EVERY = """[net]
height=8
width=8
channels=3
[crop]
crop_height=8
crop_width=8
[convolutional]
filters=4
size=3
pad=1
batch_normalize=1
activation=mish
[local]
filters=4
size=3
pad=1
activation=elu
[convolutional]
filters=4
size=3
pad=1
xnor=1
activation=loggy
[shortcut]
from=-2
activation=leaky
[maxpool]
size=2
stride=2
[deconvolutional]
filters=4
size=2
stride=2
activation=hardtan
[lrn]
[batchnorm]
[l2norm]
[route]
layers=-1,-4
[activation]
activation=stair
[dropout]
[avgpool]
[scale_channels]
from=11
[local_avgpool]
size=2
stride=2
[connected]
output=6
activation=plse
[softmax]
groups=2
"""


def ran(data: bytes | Path, x: torch.Tensor) -> tuple[list[str], list[np.ndarray]]:
    """The names and the outputs that onnxruntime gives."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(data), options)
    names = [output.name for output in session.get_outputs()]
    return names, session.run(None, {"input": x.numpy()})


def settled(network: Network) -> Network:
    """A network in evaluation mode whose rolling statistics are not 0."""
    for layer in network.sequence:
        for _, part in layer.parts():
            if part.norm:
                part.rolling_mean.uniform_(-0.1, 0.1)
                part.rolling_variance.uniform_(0.5, 1)
    return network.eval()


def test_onnxruntime_gives_what_the_network_gives(tmp_path: Path) -> None:
    """Every layer that can be exported; other numbers of records than it was traced with."""
    network = settled(Network(parse_cfg(EVERY, "a.cfg"), seed=3))
    assert export_onnx(network, tmp_path / "a.onnx", {"iteration": "7"}) == ["output"]
    x = torch.rand(5, *network.input_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = network(x)
    _, (found,) = ran(tmp_path / "a.onnx", x)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_mirrored_run_is_exported(world: World, tmp_path: Path) -> None:
    """By the command; of a network that finds boxes the outputs of its heads; not without CFG."""
    cfg, data, out = tmp_path / "net.cfg", sealed(world, "detection", tmp_path), tmp_path / "a.onnx"
    cfg.write_text(RUNS["detection"])
    using = ["--region", tmp_path / "region", "--key", world.key]
    assert call("train", cfg, "--data", data, *using, "--iterations", 2).code == 0
    told = call("export", cfg, *using, "-o", out, "--json")
    assert (told.code, told.json["outputs"]) == (0, ["layer_5", "layer_9"]), told.stderr
    network = trained_network(cfg, newest_snapshot(tmp_path / "region", load_key(world.key)))
    x = torch.rand(3, 1, 16, 16)
    names, found = ran(out, x)
    assert names == told.json["outputs"]
    with torch.no_grad():
        for one, (_, two) in zip(found, network.heads(x), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
    refused = call("export", *using, "-o", tmp_path / "b.onnx")
    assert "a .onnx file needs the CFG of its network" in refused.stderr


def test_a_recurrent_network_is_refused(tmp_path: Path) -> None:
    """By its first layer with a state."""
    network = Network(parse_cfg(RUNS["sequence"], "a.cfg"))
    with pytest.raises(CfgError, match=r"a.cfg:8: \[rnn\] keeps a state from pass to pass"):
        export_onnx(network, tmp_path / "b.onnx", {})
    assert not (tmp_path / "b.onnx").exists()


def test_what_torch_cannot_export_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it raises; no file is left."""

    def fails(*_: object, **__: object) -> None:
        raise TypeError("no operator for it\nand a long trace")

    monkeypatch.setattr(torch.onnx, "export", fails)
    network = Network(parse_cfg(EVERY, "a.cfg"))
    with pytest.raises(CfgError, match="torch cannot export a.cfg: no operator for it") as raised:
        export_onnx(network, tmp_path / "a.onnx", {})
    assert "trace" not in str(raised.value) and not (tmp_path / "a.onnx").exists()
