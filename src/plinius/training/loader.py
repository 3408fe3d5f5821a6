"""A data loader that resumes at the next batch, for loops whose state is mirrored."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from plinius.errors import MismatchError
from plinius.training.sampler import Sampler
from plinius.training.torch_dataset import SealedDataset


class ResumableLoader:
    """Shuffled batches of exactly `batch` records of a dataset, sealed or in clear.

    Give it to Mirror as a part of the state: the state is the number of batches given so far, and
    the id of a `plinius.SealedDataset`, so that no other dataset goes on in its place.
    Every record is drawn once before any is drawn again, so a batch can cross into the next
    shuffle. An epoch is as many batches as fit into the dataset, at least one. `options` are those
    of torch.utils.data.DataLoader (num_workers, collate_fn ...). The order depends on `seed`
    alone. Random numbers that a dataset draws in worker processes are not part of the state.

    Raises ValueError for a dataset, batch or seed that `Sampler` refuses.
    """

    def __init__(self, dataset: Dataset[Any], batch: int, seed: int = 0, **options: Any) -> None:
        self._dataset, self._options, self._seed = dataset, options, seed
        self._sampler = Sampler(len(dataset), batch, seed)  # type: ignore[arg-type]
        self.iteration = 0

    def __len__(self) -> int:
        """Batches per epoch."""
        return max(1, self._sampler.count // self._sampler.batch)

    def __iter__(self) -> Iterator[Any]:
        """The remaining batches of the epoch; each is counted before it is yielded."""
        remaining = range(self.iteration, (self.iteration // len(self) + 1) * len(self))
        generator = torch.Generator()  # its own: the run's must not be drawn from
        generator.manual_seed(self._seed % 2**63 ^ self.iteration)
        batches = [self._sampler.indices(iteration).tolist() for iteration in remaining]
        for batch in DataLoader(
            self._dataset, batch_sampler=batches, generator=generator, **self._options
        ):
            self.iteration += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The number of batches given so far, and the id of a sealed dataset."""
        state: dict[str, Any] = {"iteration": self.iteration}
        if isinstance(self._dataset, SealedDataset):
            state["dataset"] = self._dataset.id
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after that many batches, from the next `iter()` on.

        Raises MismatchError if they were batches of another sealed dataset.
        """
        wanted = state_dict.get("dataset")
        if isinstance(self._dataset, SealedDataset) and wanted not in (None, self._dataset.id):
            raise MismatchError(
                f"The loader was at batches of dataset {wanted}, and this is {self._dataset.id}",
                "Give the dataset that the run began with, or start another run",
            )
        self.iteration = state_dict["iteration"]
