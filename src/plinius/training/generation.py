"""Tokens that a mirrored recurrent network writes after a beginning, drawn from a seed."""

from collections.abc import Sequence
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
    beginning: Sequence[int],
    length: int,
    *,
    temperature: float = 0.7,
    seed: int = 0,
    tokens: int = 256,
) -> list[int]:
    """`length` tokens after `beginning`, of the network of `cfg` with a mirrored state.

    The network takes tokens one-hot (inputs=tokens) and ends in a softmax over as many; there are
    256 if they are bytes. Each token is drawn from its probabilities at `temperature`, without
    those below 0.0001 (darknet: examples/rnn.c, test_char_rnn; utils.c, sample_array), by numbers
    that depend on `seed` alone. Raises CfgError for another network, MismatchError if the state has
    another cfg, and ValueError without a beginning or for a token in it that is too large.
    """
    if not beginning:
        raise ValueError("generating needs a beginning of one token or more")
    if max(beginning) >= tokens:
        raise ValueError(f"a token of the beginning is not below {tokens}")
    network = trained_network(Path(cfg), snapshot)
    _require_tokens(network, tokens)
    single = network.stepwise()
    for layer in single.sequence:
        if isinstance(layer, Softmax):
            layer.temperature = temperature
    raw = np.random.Philox(key=np.array([seed, 0], np.uint64)).random_raw(length)
    chances = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
    out: list[int] = []
    with torch.inference_mode():
        for token in beginning[:-1]:
            _after(single, token, tokens)
        token = beginning[-1]
        for chance in chances:
            found = _after(single, token, tokens).double().numpy()
            found[found < _LEAST] = 0
            ends = found.cumsum()
            token = min(int(np.searchsorted(ends, chance * ends[-1], side="right")), tokens - 1)
            out.append(token)
    return out


def _after(network: Network, token: int, tokens: int) -> torch.Tensor:
    """The probabilities (tokens,) of the token after this one."""
    x = torch.zeros(1, tokens)
    x[0, token] = 1
    return network(x)[0]  # type: ignore[no-any-return]


def _require_tokens(network: Network, tokens: int) -> None:
    wrong = network.inputs != tokens or network.truths != tokens
    if wrong or not ends_in_probabilities(network) or network.time_steps < 2:
        raise CfgError(
            f"{network.name} is no network that predicts {'bytes' if tokens == 256 else 'tokens'}",
            f"Give time_steps, inputs={tokens}, and a last [softmax] over {tokens}",
        )
