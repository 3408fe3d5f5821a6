"""Random numbers of an iteration: they depend on seed and iteration alone, so nothing is kept."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

PICTURES, SCALE = 1, 2
"""What numbers are drawn for: streams that share none, nor any with the order of records."""


class Draws:
    """Numbers for `count` pictures of one iteration, as Darknet draws them (darknet: utils.c).

    Philox's raw numbers are specified, so they are the same with every version of NumPy. `stream`
    is PICTURES or SCALE.
    """

    def __init__(self, seed: int, iteration: int, stream: int, count: int = 1) -> None:
        key = np.array([seed, iteration], np.uint64)
        counter = np.array([0, 0, stream, 0], np.uint64)
        self._generator = np.random.Philox(key=key, counter=counter)
        self.count = count

    def fractions(self, each: int = 0) -> Floats:
        """Numbers in [0, 1): one for each picture, or (count, each)."""
        raw = self._generator.random_raw(self.count * max(each, 1))
        found = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return found.reshape(self.count, each) if each else found

    def uniform(self, low: Floats | float, high: Floats | float) -> Floats:
        """Numbers between two bounds, in either order (rand_uniform)."""
        return low + self.fractions() * (high - low)

    def scale(self, most: float) -> Floats:
        """Factors from 1 to `most`, half of them inverted (rand_scale)."""
        factor = self.uniform(1, most)
        return np.where(self.coins(), factor, 1 / factor)

    def integer(self, low: int, high: int) -> Floats:
        """Whole numbers, both bounds included, in either order (rand_int)."""
        low, high = min(low, high), max(low, high)
        return low + np.floor(self.fractions() * (high - low + 1))

    def coins(self) -> npt.NDArray[np.bool_]:
        """Heads or tails (rand() % 2)."""
        return self.fractions() < 0.5
