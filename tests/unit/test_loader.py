"""The loader: every record once a shuffle, and on from any batch."""

from itertools import islice

import pytest
import torch

from plinius.training.loader import ResumableLoader


def records(count: int) -> torch.utils.data.TensorDataset:
    return torch.utils.data.TensorDataset(torch.arange(count))


def batches(loader: ResumableLoader, count: int) -> list[list[int]]:
    seen: list[list[int]] = []
    while len(seen) < count:
        seen += [batch[0].tolist() for batch in islice(loader, count - len(seen))]
    return seen


def test_every_record_shows_once_before_any_shows_again() -> None:
    """Though an epoch has only full batches, none is left out in the long run."""
    loader = ResumableLoader(records(10), 3, seed=4)  # type: ignore[arg-type]
    assert len(loader) == 3
    flat = [record for batch in batches(loader, 20) for record in batch]
    assert all(sorted(flat[start : start + 10]) == [*range(10)] for start in range(0, 60, 10))


@pytest.mark.parametrize("stop", [0, 1, 2, 3, 4, 7])
def test_it_continues_from_the_batch_it_was_at(stop: int) -> None:
    """Also in the middle of an epoch, in another process's loader."""
    whole = batches(ResumableLoader(records(10), 3), 9)  # type: ignore[arg-type]
    first, second = ResumableLoader(records(10), 3), ResumableLoader(records(10), 3)  # type: ignore[arg-type]
    before = batches(first, stop)
    second.load_state_dict(first.state_dict())
    assert before + batches(second, 9 - stop) == whole


def test_worker_processes_do_not_change_the_order() -> None:
    """What they fetch ahead does not count."""
    plain = ResumableLoader(records(12), 4)  # type: ignore[arg-type]
    workers = ResumableLoader(records(12), 4, num_workers=1)  # type: ignore[arg-type]
    assert batches(workers, 1) == batches(plain, 1)
    assert workers.state_dict() == plain.state_dict() == {"iteration": 1}
    assert batches(workers, 3) == batches(plain, 3)


def test_it_draws_nothing_from_the_random_numbers_of_the_run() -> None:
    """Otherwise a resumed run would draw once more than one that was not."""
    before = torch.get_rng_state()
    batches(ResumableLoader(records(10), 3), 7)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before)


def test_fewer_records_than_a_batch_make_epochs_of_one() -> None:
    """A batch then has records twice."""
    loader = ResumableLoader(records(2), 3)  # type: ignore[arg-type]
    assert len(loader) == 1
    assert [len(batch) for batch in batches(loader, 2)] == [3, 3]


def test_a_batch_of_nothing_is_refused() -> None:
    """As the sampler says."""
    with pytest.raises(ValueError, match="a batch needs at least one record"):
        ResumableLoader(records(2), 0)  # type: ignore[arg-type]
