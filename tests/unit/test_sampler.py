"""The sampler: order and position are functions of seed and iteration."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plinius.training.sampler import Sampler

PINNED = (
    [8, 4, 1, 6, 3, 2, 7, 5, 9, 0],
    [3, 9, 1, 6, 2, 5, 4, 8, 0, 7],
    [4, 6, 0, 3, 9, 5, 1, 8, 7, 2],
)


@given(st.integers(1, 50), st.integers(1, 120), st.integers(0, 2**64 - 1), st.integers(0, 3))
def test_every_record_comes_once_an_epoch(count: int, batch: int, seed: int, start: int) -> None:
    """Cut into epochs, the stream of batches is a permutation of all records in each."""
    sampler = Sampler(count, batch, seed)
    stream = np.concatenate([sampler.indices(i) for i in range(-(-3 * count // batch))])
    for epoch in range(3):
        piece = stream[epoch * count : (epoch + 1) * count]
        assert sorted(piece.tolist()) == list(range(count))
    assert np.array_equal(sampler.indices(start), Sampler(count, batch, seed).indices(start))


def test_batches_cross_epochs_and_are_found_from_any_position() -> None:
    """Iterations asked for in any order give what they give in order."""
    ordered = Sampler(10, 4, 7)
    batches = [ordered.indices(i).tolist() for i in range(20)]
    mixed = Sampler(10, 4, 7)
    for i in (19, 0, 7, 2, 18, 1):
        assert mixed.indices(i).tolist() == batches[i]
    assert [len(batch) for batch in batches] == [4] * 20


def test_the_order_is_pinned() -> None:
    """A change of these numbers would break the resume of every run in progress."""
    sampler = Sampler(10, 10, 7)
    assert sampler.indices(0).tolist() == PINNED[0]
    assert sampler.indices(1).tolist() == PINNED[1]
    assert sampler.indices(2**40).tolist() == PINNED[2]
    assert sampler.indices(0).dtype == np.int64


def test_seeds_and_epochs_give_other_orders() -> None:
    """Neither another seed nor another epoch repeats an order."""
    orders = {tuple(Sampler(100, 100, s).indices(i)) for s in range(10) for i in range(10)}
    assert len(orders) == 100


@pytest.mark.parametrize(
    ("count", "batch", "seed", "words"),
    [
        (0, 1, 0, "a sampler needs at least one record, not 0"),
        (1, 0, 0, "a batch needs at least one record, not 0"),
        (1, 1, -1, "a seed is between 0 and 2"),
        (1, 1, 2**64, "a seed is between 0 and 2"),
    ],
)
def test_impossible_arguments_are_refused(count: int, batch: int, seed: int, words: str) -> None:
    """No records, no batch, or a seed too large for the generator."""
    with pytest.raises(ValueError, match=f"^{words}"):
        Sampler(count, batch, seed)


def test_negative_iterations_are_refused() -> None:
    """Iterations count from 0."""
    with pytest.raises(ValueError, match="^iterations count from 0, not -1$"):
        Sampler(1, 1, 0).indices(-1)
