"""A loader of plain data that goes on where it was: for loops that a mirror makes survive."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from plinius.data.sampler import Sampler


class ResumableLoader:
    """Shuffled batches of a dataset, all of them full; the next one is part of the run's state.

    Every record shows once before any shows again, so a batch may cross into the next shuffle.
    An epoch is as many batches as fit into the dataset, at least one. `options` are those of
    torch.utils.data.DataLoader (num_workers, collate_fn ...). The order depends on `seed` alone;
    random numbers that a dataset draws in worker processes are not part of the state.

    Raises ValueError as `Sampler` does.
    """

    def __init__(self, dataset: Dataset[Any], batch: int, seed: int = 0, **options: Any) -> None:
        self._dataset, self._options, self._seed = dataset, options, seed
        self._sampler = Sampler(len(dataset), batch, seed)  # type: ignore[arg-type]
        self.iteration = 0

    def __len__(self) -> int:
        """Batches in an epoch."""
        return max(1, self._sampler.count // self._sampler.batch)

    def __iter__(self) -> Iterator[Any]:
        """The batches to the end of the epoch; each counts as soon as it is given."""
        ahead = range(self.iteration, (self.iteration // len(self) + 1) * len(self))
        generator = torch.Generator()  # its own, so that the run's is not drawn from
        generator.manual_seed(self._seed % 2**63 ^ self.iteration)
        batches = [self._sampler.indices(iteration).tolist() for iteration in ahead]
        for batch in DataLoader(
            self._dataset, batch_sampler=batches, generator=generator, **self._options
        ):
            self.iteration += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where it is."""
        return {"iteration": self.iteration}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there, at the next `iter`."""
        self.iteration = state_dict["iteration"]
