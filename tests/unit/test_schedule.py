"""Learning rates by batch number."""

import math

import pytest

from plinius.darknet.cfg import Net, parse_cfg
from plinius.darknet.schedule import rate


def net(options: str) -> Net:
    """A [net] with rate 0.2 and `options`."""
    text = "[net]\ninputs=2\nlearning_rate=0.2\n" + options.replace(" ", "\n") + "\n[softmax]\n"
    return parse_cfg(text, "a.cfg").net


@pytest.mark.parametrize(
    ("options", "batch", "factor"),
    [
        ("policy=constant", 77, 1),
        ("policy=step step=3 scale=.5", 2, 1),
        ("policy=step step=3 scale=.5", 7, 0.25),
        ("policy=steps steps=1,40 scales=.5,.1", 0, 1),
        ("policy=steps steps=1,40 scales=.5,.1", 39, 0.5),
        ("policy=steps steps=1,40 scales=.5,.1", 40, 0.05),
        ("policy=exp gamma=.9", 3, 0.729),
        ("policy=poly power=2 max_batches=10", 5, 0.25),
        ("policy=poly power=2 max_batches=10", 10, 0),
        ("policy=sigmoid gamma=-.1 step=50", 50, 0.5),
        ("policy=constant burn_in=8 power=2", 4, 0.25),
        ("policy=constant burn_in=8 power=2", 8, 1),
    ],
)
def test_policies_follow_their_formulas(options: str, batch: int, factor: float) -> None:
    """Each policy multiplies the base rate as in the original."""
    assert rate(net(options), batch) == pytest.approx(0.2 * factor)


def test_poly_stays_at_nothing_after_the_end() -> None:
    """The original's rate grows again after max_batches, ours does not."""
    assert rate(net("policy=poly max_batches=10"), 30) == 0
    assert rate(net("policy=poly power=2.5 max_batches=10"), 11) == 0


def test_sigmoid_is_signed() -> None:
    """Before `step` the difference is negative; the original's unsigned number wraps there."""
    expected = 0.2 / (1 + math.exp(-0.1 * (10 - 50)))
    assert rate(net("policy=sigmoid gamma=-.1 step=50"), 10) == pytest.approx(expected)
    assert rate(net("policy=sigmoid gamma=9 step=1"), 10**6) == pytest.approx(0)


def test_random_is_a_function_of_seed_and_batch() -> None:
    """Policy random draws anew for each batch, and the same again for the same seed."""
    random = net("policy=random power=1")
    drawn = [rate(random, n, seed=5) for n in range(200)]
    assert drawn == [rate(random, n, seed=5) for n in range(200)]
    assert drawn != [rate(random, n, seed=6) for n in range(200)]
    assert len(set(drawn)) == 200
    assert all(0 <= value < 0.2 for value in drawn)
    assert 0.08 < sum(drawn) / 200 < 0.12


def test_growth_without_bound_is_infinity() -> None:
    """A rate beyond every number is infinite, not an exception."""
    assert rate(net("policy=exp gamma=9"), 10**6) == math.inf
