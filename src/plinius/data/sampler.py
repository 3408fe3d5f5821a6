"""The order of records: a function of seed and epoch, so a resumed run has nothing to restore."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt


class Sampler:
    """Draws batches of `batch` record indices below `count`, each record once an epoch.

    The indices of all iterations, from 0, are the permutations of epoch 0, 1, ... end to end, so
    a batch may cross into the next epoch. They depend on `seed` (0 to 2**64 - 1) and the
    arguments alone, not on the numpy version: Philox's raw stream is guaranteed, and sorting is
    stable. Memory is 8 bytes a record for each of two epochs. Raises ValueError.
    """

    def __init__(self, count: int, batch: int, seed: int) -> None:
        if count < 1:
            raise ValueError(f"a sampler needs at least one record, not {count}")
        if batch < 1:
            raise ValueError(f"a batch needs at least one record, not {batch}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"a seed is between 0 and 2**64 - 1, not {seed}")
        self.count, self.batch, self.seed = count, batch, seed
        self._epoch = lru_cache(maxsize=2)(self._permutation)

    def indices(self, iteration: int) -> npt.NDArray[np.int64]:
        """The records of one iteration, shape (batch,)."""
        if iteration < 0:
            raise ValueError(f"iterations count from 0, not {iteration}")
        out = np.empty(self.batch, np.int64)
        epoch, place = divmod(iteration * self.batch, self.count)
        done = 0
        while done < self.batch:
            piece = self._epoch(epoch)[place : place + self.batch - done]
            out[done : done + len(piece)] = piece
            done += len(piece)
            epoch, place = epoch + 1, 0
        return out

    def _permutation(self, epoch: int) -> npt.NDArray[np.int64]:
        key = np.array([self.seed, epoch], np.uint64)
        numbers = np.random.Philox(key=key).random_raw(self.count)
        return np.argsort(numbers, kind="stable").astype(np.int64, copy=False)
