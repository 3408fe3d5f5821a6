"""Tokens that a mirrored recurrent network writes after a beginning, drawn from a seed."""

from pathlib import Path

import numpy as np
import torch

from plinius.darknet.losses.classes import Softmax
from plinius.darknet.network import Network
from plinius.errors import CfgError
from plinius.snapshot import Snapshot
from plinius.training.evaluation import ends_in_probabilities, trained_network

_LEAST = 1e-4


def generate(
    cfg: str | Path,
    snapshot: Snapshot,
    beginning: bytes,
    length: int,
    *,
    temperature: float = 0.7,
    seed: int = 0,
) -> bytes:
    """`length` bytes after `beginning`, of the network of `cfg` with a mirrored state.

    The network takes bytes one-hot (inputs=256) and ends in a softmax over 256. Each byte is drawn
    from its probabilities at `temperature`, without those below 0.0001 (darknet: examples/rnn.c,
    test_char_rnn; utils.c, sample_array), by numbers that depend on `seed` alone. Raises CfgError
    for another network, MismatchError if the state has another cfg, ValueError without a beginning.
    """
    if not beginning:
        raise ValueError("generating needs a beginning of one byte or more")
    network = trained_network(Path(cfg), snapshot)
    _require_bytes(network)
    single = network.stepwise()
    for layer in single.sequence:
        if isinstance(layer, Softmax):
            layer.temperature = temperature
    raw = np.random.Philox(key=np.array([seed, 0], np.uint64)).random_raw(length)
    chances = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
    out = bytearray()
    with torch.inference_mode():
        for token in beginning[:-1]:
            _after(single, token)
        token = beginning[-1]
        for chance in chances:
            found = _after(single, token).double().numpy()
            found[found < _LEAST] = 0
            ends = found.cumsum()
            token = min(int(np.searchsorted(ends, chance * ends[-1], side="right")), 255)
            out.append(token)
    return bytes(out)


def _after(network: Network, token: int) -> torch.Tensor:
    """The probabilities (256,) of the token after this one."""
    x = torch.zeros(1, 256)
    x[0, token] = 1
    return network(x)[0]  # type: ignore[no-any-return]


def _require_bytes(network: Network) -> None:
    wrong = network.inputs != 256 or network.truths != 256
    if wrong or not ends_in_probabilities(network) or network.time_steps < 2:
        raise CfgError(
            f"{network.name} is no network that predicts bytes",
            "Give time_steps, inputs=256, and a last [softmax] over 256",
        )
