"""The order of records: it depends on seed and epoch alone, so a resumed run restores nothing."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt


class Streams:
    """The order of the pieces of a text: each sequence of a pass goes on where it ended.

    The text has `count` records that follow each other; `sequences` of them, at equal distances,
    are in each of `passes` of an iteration (darknet: examples/rnn.c, get_rnn_data). So the state
    that a recurrent layer keeps is that of the text before. After the last record comes the first.
    """

    def __init__(self, count: int, sequences: int, passes: int) -> None:
        self.count, self.passes = count, passes
        self._starts = np.arange(sequences, dtype=np.int64) * count // sequences

    def indices(self, iteration: int) -> npt.NDArray[np.int64]:
        """The records of one iteration, pass by pass: (passes * sequences,)."""
        steps = np.arange(self.passes, dtype=np.int64)[:, None] + iteration * self.passes
        return ((self._starts + steps) % self.count).reshape(-1)


class Sampler:
    """Draws batches of `batch` record indices below `count`, each record once per epoch.

    The indices of iterations 0, 1, ... are the permutations of epochs 0, 1, ... end to end, so a
    batch can cross into the next epoch. They depend on the arguments alone, not on the NumPy
    version: Philox's raw numbers are specified, and the sort is stable. Two epochs are in memory,
    8 bytes per record each. Raises ValueError unless count and batch are at least 1 and `seed` is
    0 to 2**64 - 1.
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
        """The records of one iteration, shape (batch,). Raises ValueError if it is negative."""
        if iteration < 0:
            raise ValueError(f"iterations count from 0, not {iteration}")
        out = np.empty(self.batch, np.int64)
        epoch, position = divmod(iteration * self.batch, self.count)
        done = 0
        while done < self.batch:
            drawn = self._epoch(epoch)[position : position + self.batch - done]
            out[done : done + len(drawn)] = drawn
            done += len(drawn)
            epoch, position = epoch + 1, 0
        return out

    def _permutation(self, epoch: int) -> npt.NDArray[np.int64]:
        key = np.array([self.seed, epoch], np.uint64)
        numbers = np.random.Philox(key=key).random_raw(self.count)
        return np.argsort(numbers, kind="stable").astype(np.int64, copy=False)
