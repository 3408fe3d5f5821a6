"""Golden cases from the original Darknet C code (../shared/vectors/darknet/index.json)."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from plinius.darknet.activations import ACTIVATIONS
from plinius.darknet.cfg import Cfg, read_cfg
from plinius.darknet.layers.elementwise import Dropout
from plinius.darknet.losses.cost import Cost
from plinius.darknet.network import Network
from plinius.darknet.optimizer import make_optimizer, set_rate
from plinius.darknet.schedule import rate
from plinius.darknet.weights import load_weights, save_weights
from plinius.errors import CfgError

VECTORS = Path(__file__).parents[2].parent / "shared" / "vectors"
FOLDER = VECTORS / "darknet"
RATES_AT = (0, 1, 2, 5, 10, 50, 100, 250, 499)


def cases() -> list[dict[str, Any]]:
    """All cases."""
    if not FOLDER.is_dir():
        return []
    index: list[dict[str, Any]] = json.loads((FOLDER / "index.json").read_text())["cases"]
    return index


def names(wanted: Callable[[dict[str, Any]], bool]) -> list[Any]:
    """Parameters for a test: the wanted cases, or one that skips."""
    if not FOLDER.is_dir():
        mark = pytest.mark.skip(reason=f"the vectors are not at {FOLDER}")
        return [pytest.param(None, marks=mark, id="absent")]
    return [pytest.param(case, id=case["name"]) for case in cases() if wanted(case)]


def builds(case: dict[str, Any]) -> bool:
    """Whether we take its cfg: an unknown activation is refused, where the original takes relu."""
    words = (FOLDER / case["name"] / "case.cfg").read_text().split()
    used = {word.removeprefix("activation=") for word in words if word.startswith("activation=")}
    return used <= set(ACTIVATIONS)


# Departures on purpose, by rule.


def marks_its_input(network: Network, layer: int) -> bool:
    """[cost] type=masked of the original writes the mark over the output of the layer before it."""
    after = network.sequence[layer + 1 :][:1]
    return any(isinstance(cost, Cost) and cost.kind == "masked" for cost in after)


def departs(case: dict[str, Any], network: Network) -> set[str]:
    """Groups that follow an accident of the original, and so cannot match the right gradient."""
    found = set(case["accidental"])
    kinds = {layer.section.kind for layer in network.sequence}
    if "normalization" in kinds:  # its gradient is approximate, also where that shows less
        found |= {"grad", "weights"}
    if "batchnorm" in kinds:  # the original never updates its scales
        found |= {"weights"}
    if found & {"grad", "delta", "weights"}:
        found |= {"weights", "after3", "loss"}
    return found


def off(ours: Any, reference: Any) -> float:
    """The largest difference, relative to the largest reference value."""
    ours, reference = (
        np.asarray(ours, np.float64).ravel(),
        np.asarray(reference, np.float64).ravel(),
    )
    assert ours.shape == reference.shape
    return float(np.abs(ours - reference).max() / max(np.abs(reference).max(), 1e-30))


def opened(case: dict[str, Any]) -> tuple[Cfg, Network, int, Any]:
    """(cfg, network with the initial weights and recorded masks, seen, arrays) of a case."""
    folder = FOLDER / case["name"]
    cfg = read_cfg(folder / "case.cfg")
    network = Network(cfg)
    network.seen = seen = load_weights(network, folder / "initial.weights")
    arrays = np.load(folder / "vectors.npz")
    for i, layer in enumerate(network.sequence):
        if isinstance(layer, Dropout):
            recorded = [name for name in arrays.files if name.startswith(f"mask_{i:02}_")]
            if recorded:
                inject(layer, iter([arrays[f"mask_{i:02}_{k}"] for k in range(len(recorded))]))
    return cfg, network, seen, arrays


def inject(layer: Dropout, masks: Iterator[Any]) -> None:
    """Make a layer keep what the recorded masks keep, one mask a pass."""

    def kept(x: Tensor) -> Tensor:
        return torch.from_numpy(next(masks)).reshape(x.shape) > 0

    layer.kept = kept  # type: ignore[method-assign]


def payload(path: Path) -> Any:
    """The floats of a weights file of version 0.2.0."""
    return np.frombuffer(path.read_bytes()[20:], "<f4")


@pytest.mark.parametrize("case", names(builds))
@pytest.mark.parametrize(
    ("mode", "prefixes", "group"),
    [(False, ("out", "out2"), "infer"), (True, ("tout",), "train_out")],
)
def test_outputs_are_the_originals(
    case: dict[str, Any], mode: bool, prefixes: tuple[str, ...], group: str
) -> None:
    """Every layer puts out what the original's does; a second pass goes on from the states."""
    if group in case["accidental"]:
        pytest.skip(f"an accident of the original: {case['remarks']}")
    if group not in case["suggested"]:
        pytest.skip("not recorded")
    cfg, network, _, arrays = opened(case)
    x = torch.from_numpy(arrays["X"])[: cfg.net.sub_batch]
    network.train(mode)
    network.seen += len(x)
    compared = 0
    for prefix in prefixes:
        if not any(name.startswith(f"{prefix}_") for name in arrays.files):
            continue
        with torch.no_grad():
            outputs = network.outputs(x)
        for i, (layer, y) in enumerate(zip(network.sequence, outputs, strict=True)):
            if isinstance(layer, Cost) or (mode and marks_its_input(network, i)):
                continue
            name = f"{prefix}_{i:02}"
            assert off(y, arrays[name]) <= case["suggested"][group], name
            compared += 1
    assert compared


@pytest.mark.parametrize(
    "case", names(lambda case: builds(case) and "grad" in case["suggested"] and case["updates"])
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
    departures, suggested = departs(case, network), case["suggested"]
    optimizer, rows, losses = make_optimizer(network, cfg.net), cfg.net.sub_batch, []
    for update in range(3):
        optimizer.zero_grad()
        for start in range(0, cfg.net.rows, rows):
            x = torch.from_numpy(arrays["X"])[start : start + rows]
            x = x.to(memory_format=layout) if x.dim() == 4 else x
            y = torch.from_numpy(arrays["Y"])[start : start + rows]
            network.seen = seen = seen + rows
            objective, reported = network.loss(x, y)
            (objective / cfg.net.rows).backward()
            losses.append(float(reported))
        if update == 0 and "grad" not in departures:
            check_gradients(network, cfg.net.rows, arrays, suggested["grad"])
        now = rate(cfg.net, seen // cfg.net.rows)
        if "lr" in departures:
            now = float(arrays["lr_used"][update])
        assert now == pytest.approx(arrays["lr_used"][update], rel=suggested["lr"])
        set_rate(optimizer, now)
        optimizer.step()
        recorded = (update == 0, update == 2 and "after3" not in departures)
        if any(recorded) and "weights" not in departures:
            name = f"after{update + 1}.weights"
            save_weights(network, tmp_path / name, seen)
            reference = payload(FOLDER / case["name"] / name)
            ours = payload(tmp_path / name)
            assert off(ours, reference) <= suggested["weights"]
            if update == 0:
                assert off(ours - initial, reference - initial) <= suggested["update1"]
    if "loss" not in case["accidental"]:
        first = cfg.net.subdivisions if departures & {"loss", "after3"} else len(losses)
        assert off(losses[:first], arrays["loss"][:first]) <= suggested["loss"]


def check_gradients(network: Network, rows: int, arrays: Any, tolerance: float) -> None:
    """Compare each layer's gradients, relative to the layer's largest."""
    for i, layer in enumerate(network.sequence):
        prefix = f"grad_{i:02}_"
        keys = [key for key in arrays.files if key.startswith(prefix)]
        largest = max((np.abs(arrays[key]).max() for key in keys), default=0)
        for key in keys:
            gradient = layer.get_parameter(key.removeprefix(prefix).replace("_", ".")).grad
            assert gradient is not None
            ours = -rows * gradient.numpy().ravel()
            assert np.abs(ours - arrays[key]).max() <= tolerance * largest, key


@pytest.mark.parametrize("case", names(builds))
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


@pytest.mark.parametrize("case", names(builds))
def test_weights_are_saved_as_the_original_saves_them(case: dict[str, Any], tmp_path: Path) -> None:
    """A file read and written again is the original's, byte for byte."""
    _, network, seen, _ = opened(case)
    assert seen == case["seen"]
    save_weights(network, tmp_path / "again.weights", seen)
    folder = FOLDER / case["name"]
    resaved = folder / "resaved.weights"
    reference = (resaved if resaved.exists() else folder / "initial.weights").read_bytes()
    assert (tmp_path / "again.weights").read_bytes() == reference


@pytest.mark.parametrize("case", names(lambda case: not builds(case)))
def test_other_cases_are_refused(case: dict[str, Any]) -> None:
    """A case that does not build is refused with the line of its unknown activation."""
    with pytest.raises(CfgError, match=r"case\.cfg:\d+: \[convolutional\] unknown activation"):
        Network(read_cfg(FOLDER / case["name"] / "case.cfg"))


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
    named = [w.split("[net] ")[1] for w in network.warnings]
    assert all(w.endswith("have no effect here") for w in named)
