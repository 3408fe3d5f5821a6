"""Golden cases from the original Darknet C code (../shared/vectors/darknet/index.json)."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plinius.darknet.cfg import Cfg, read_cfg
from plinius.darknet.cfg_options import ALIASES
from plinius.darknet.losses import Cost
from plinius.darknet.network import Network
from plinius.darknet.optimizer import make_optimizer, set_rate
from plinius.darknet.schedule import rate
from plinius.darknet.weights import load_weights, save_weights
from plinius.errors import CfgError

VECTORS = Path(__file__).parents[2].parent / "shared" / "vectors"
FOLDER = VECTORS / "darknet"
SUPPORTED = {"convolutional", "connected", "maxpool", "avgpool", "dropout", "softmax", "cost"}
RATES_AT = (0, 1, 2, 5, 10, 50, 100, 250, 499)
# Departures on purpose, by name: (case, group of arrays) -> why.
DEPARTURES = {
    ("cost_masked", "tout_01"): "the original writes the mask mark over the layer's own output",
}


def cases() -> list[dict[str, Any]]:
    """The cases all of whose layers we have."""
    if not FOLDER.is_dir():
        return []
    index = json.loads((FOLDER / "index.json").read_text())["cases"]
    return [case for case in index if {ALIASES.get(n, n) for n in case["layers"]} <= SUPPORTED]


def names(wanted: Callable[[dict[str, Any]], bool]) -> list[Any]:
    """Parameters for a test: the wanted cases, or one that skips."""
    if not FOLDER.is_dir():
        mark = pytest.mark.skip(reason=f"the vectors are not at {FOLDER}")
        return [pytest.param(None, marks=mark, id="absent")]
    return [pytest.param(case, id=case["name"]) for case in cases() if wanted(case)]


def trainable(case: dict[str, Any]) -> bool:
    """Whether the case trains with a rule that both sides share."""
    return str(case["name"]) != "conv_xnor"


def off(ours: Any, reference: Any) -> float:
    """The largest difference, relative to the largest reference value."""
    ours, reference = (
        np.asarray(ours, np.float64).ravel(),
        np.asarray(reference, np.float64).ravel(),
    )
    assert ours.shape == reference.shape
    return float(np.abs(ours - reference).max() / max(np.abs(reference).max(), 1e-30))


def opened(case: dict[str, Any]) -> tuple[Cfg, Network, int, Any]:
    """(cfg, network with the initial weights, seen, arrays) of a case."""
    folder = FOLDER / case["name"]
    cfg = read_cfg(folder / "case.cfg")
    network = Network(cfg)
    seen = load_weights(network, folder / "initial.weights")
    return cfg, network, seen, np.load(folder / "vectors.npz")


def payload(path: Path) -> Any:
    """The floats of a weights file of version 0.2.0."""
    return np.frombuffer(path.read_bytes()[20:], "<f4")


@pytest.mark.parametrize("case", names(lambda case: trainable(case) and case["updates"]))
def test_outputs_are_the_originals(case: dict[str, Any]) -> None:
    """Every layer puts out what the original's does, in inference and in training."""
    if {"infer", "train_out"} <= set(case["accidental"]):
        pytest.skip(f"an accident of the original: {case['remarks']}")
    cfg, network, _, arrays = opened(case)
    x = torch.from_numpy(arrays["X"])[: cfg.net.sub_batch]
    for mode, prefix, group in ((False, "out", "infer"), (True, "tout", "train_out")):
        network.train(mode)
        if group not in case["suggested"]:
            continue
        with torch.no_grad():
            outputs = network.outputs(x)
        for i, (layer, y) in enumerate(zip(network.sequence, outputs, strict=True)):
            name = f"{prefix}_{i:02}"
            if isinstance(layer, Cost) or (case["name"], name) in DEPARTURES:
                continue
            assert off(y, arrays[name]) <= case["suggested"][group], name


@pytest.mark.parametrize(
    "case", names(lambda case: trainable(case) and "grad" in case["suggested"] and case["updates"])
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_training_is_the_originals(
    case: dict[str, Any], layout: torch.memory_format, tmp_path: Path
) -> None:
    """Losses, gradients and the weights after one and three updates are the original's."""
    cfg, network, seen, arrays = opened(case)
    network.to(memory_format=layout)  # type: ignore[call-overload]
    save_weights(network, tmp_path / "initial", seen)
    initial = payload(tmp_path / "initial")
    accidental, suggested = case["accidental"], case["suggested"]
    optimizer, rows, losses = make_optimizer(network, cfg.net), cfg.net.sub_batch, []
    for update in range(3):
        optimizer.zero_grad()
        for start in range(0, cfg.net.batch, rows):
            x = torch.from_numpy(arrays["X"])[start : start + rows]
            x = x.to(memory_format=layout) if x.dim() == 4 else x
            y = torch.from_numpy(arrays["Y"])[start : start + rows]
            objective, reported = network.loss(x, y)
            (objective / cfg.net.batch).backward()
            losses.append(float(reported))
            seen += rows
        if update == 0 and "grad" not in accidental:
            check_gradients(network, cfg.net.batch, arrays, suggested["grad"])
        now = rate(cfg.net, seen // cfg.net.batch)
        if "lr" in accidental:
            now = float(arrays["lr_used"][update])
        assert now == pytest.approx(arrays["lr_used"][update], rel=suggested["lr"])
        set_rate(optimizer, now)
        optimizer.step()
        if update in (0, 2) and "weights" not in accidental:
            name = f"after{update + 1}.weights"
            save_weights(network, tmp_path / name, seen)
            reference = payload(FOLDER / case["name"] / name)
            ours = payload(tmp_path / name)
            assert off(ours, reference) <= suggested["weights"]
            if update == 0:
                assert off(ours - initial, reference - initial) <= suggested["update1"]
    if not {"loss", "delta", "weights"} & set(accidental):
        assert off(losses, arrays["loss"]) <= suggested["loss"]


def check_gradients(network: Network, batch: int, arrays: Any, tolerance: float) -> None:
    """Compare each layer's gradients, relative to the layer's largest."""
    for i, layer in enumerate(network.sequence):
        prefix = f"grad_{i:02}_"
        keys = [key for key in arrays.files if key.startswith(prefix)]
        largest = max((np.abs(arrays[key]).max() for key in keys), default=0)
        for key in keys:
            gradient = layer.get_parameter(key.removeprefix(prefix)).grad
            assert gradient is not None
            ours = -batch * gradient.numpy().ravel()
            assert np.abs(ours - arrays[key]).max() <= tolerance * largest, key


@pytest.mark.parametrize("case", names(trainable))
def test_rates_are_the_originals(case: dict[str, Any]) -> None:
    """The learning rate follows the original's table, but for its two accidents."""
    cfg, _, _, arrays = opened(case)
    net = cfg.net
    for n, reference in zip(RATES_AT, arrays["lr"], strict=True):
        if net.policy == "sigmoid" and n < net.step:
            continue  # the original subtracts unsigned numbers: an accident
        if net.policy == "poly" and n > net.max_batches:
            continue  # the original's rate grows again after the end
        tolerance = case["suggested"]["lr"] * float(max(arrays["lr"]))
        assert rate(net, n) == pytest.approx(reference, abs=tolerance), n


@pytest.mark.parametrize("case", names(trainable))
def test_weights_are_saved_as_the_original_saves_them(case: dict[str, Any], tmp_path: Path) -> None:
    """A file read and written again is the original's, byte for byte."""
    _, network, seen, _ = opened(case)
    assert seen == case["seen"]
    save_weights(network, tmp_path / "again.weights", seen)
    folder = FOLDER / case["name"]
    resaved = folder / "resaved.weights"
    reference = (resaved if resaved.exists() else folder / "initial.weights").read_bytes()
    assert (tmp_path / "again.weights").read_bytes() == reference


@pytest.mark.skipif(not FOLDER.is_dir(), reason="the vectors are absent")
def test_binary_filters_are_refused() -> None:
    """The one case with supported sections and an option we do not have says which line."""
    with pytest.raises(CfgError, match=r"case\.cfg:\d+: \[convolutional\] xnor is not supported"):
        read_cfg(FOLDER / "conv_xnor" / "case.cfg")


@pytest.mark.skipif(not FOLDER.is_dir(), reason="the vectors are absent")
def test_other_sections_are_refused_by_name() -> None:
    """Each case with a section we do not have is refused with its line, or trains."""
    for folder in sorted(path for path in FOLDER.iterdir() if path.is_dir()):
        found = re.findall(r"^\[(\w+)\]", (folder / "case.cfg").read_text(), re.M)
        if not {ALIASES.get(name, name) for name in found} <= SUPPORTED | {"net"}:
            with pytest.raises(CfgError, match=r"case\.cfg:\d+: "):
                read_cfg(folder / "case.cfg")


@pytest.mark.skipif(not VECTORS.is_dir(), reason="the vectors are absent")
@pytest.mark.parametrize(
    ("name", "count"),
    [("mnist", 391_594), ("cfg", 39_082), ("cifar", 7_687_050), ("tiny", 1_046_488)]
    + [(f"big{n}", 371_882 + 590_848 * (n - 1)) for n in (5, 10, 15, 45)],
)
def test_published_networks_have_their_published_size(name: str, count: int) -> None:
    """Parameters and rolling statistics together are as many as the digest of the original says."""
    network = Network(read_cfg(VECTORS / "plinius" / "cfg" / f"{name}.cfg"))
    assert network.parameter_count == count
    assert network.warnings == ()
