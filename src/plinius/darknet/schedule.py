"""Learning rates by Darknet's policies (darknet: network.c, get_current_rate)."""

import hashlib
import math

from plinius.darknet.cfg import Net


def rate(net: Net, batch_number: int, seed: int = 0) -> float:
    """The learning rate of update `batch_number`; the first update of a new network is 1.

    For n < burn_in: learning_rate * (n / burn_in) ** power; later learning_rate times the factor
    of the policy: constant: 1. step: scale ** (n // step). steps: the product of the scales whose
    step is <= n. exp: gamma ** n. poly: (1 - n / max_batches) ** power. random: u ** power, with u
    in [0, 1) drawn from (seed, n). sigmoid: 1 / (1 + exp(gamma * (n - step))).

    It depends on the arguments alone: nothing is remembered between calls.
    """
    n = batch_number
    if n < net.burn_in:
        return net.learning_rate * math.pow(n / net.burn_in, net.power)
    return net.learning_rate * _factor(net, n, seed)


def _factor(net: Net, n: int, seed: int) -> float:
    match net.policy:
        case "step":
            return _power(net.scale, n // net.step)
        case "steps":
            passed = (s for at, s in zip(net.steps, net.scales, strict=True) if at <= n)
            return math.prod(passed)
        case "exp":
            return _power(net.gamma, n)
        case "poly":
            # After max_batches the original continues: with an even power, its rate grows again.
            return math.pow(max(0.0, 1 - n / net.max_batches), net.power)
        case "random":
            return math.pow(_uniform(seed, n), net.power)
        case "sigmoid":
            # The original subtracts unsigned numbers, which wraps for n < step.
            return 1 / (1 + math.exp(min(net.gamma * (n - net.step), 700.0)))
        case _:
            return 1.0


def _power(base: float, exponent: int) -> float:
    try:
        return float(base**exponent)
    except OverflowError:
        return math.inf


def _uniform(seed: int, n: int) -> float:
    """A number in [0, 1), the same on every machine for the same (seed, n)."""
    digest = hashlib.sha256(f"{seed} {n}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48
