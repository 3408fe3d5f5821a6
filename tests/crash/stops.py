"""The stops of plinius.testing with a seed of this folder, shown by a failure to reproduce it."""

import os
import secrets

import numpy as np

from plinius.pm.medium import Granularity
from plinius.testing import Check, Protocol, SimulatedMedium, Tally, check_every_stop
from plinius.testing import kill_everywhere as kill_everywhere

SEED = int(os.environ.get("PLINIUS_TEST_SEED", secrets.randbits(32)))
"""What all sampling in this folder is drawn from."""

BOTH = (Granularity.CACHE_LINE, Granularity.PAGE)


def rng_of(name: str) -> np.random.Generator:
    """The random numbers of one test."""
    return np.random.default_rng([SEED, *name.encode()])


def cut_everywhere(
    medium: SimulatedMedium, protocol: Protocol, check: Check, *, samples: int = 2,
    limit: int = 4096, rng: np.random.Generator | None = None,
) -> Tally:  # fmt: skip
    """Cut the power before each operation: `check_every_stop`, whose failure shows the seed."""
    rng = rng or rng_of("cut")
    try:
        return check_every_stop(medium, protocol, check, samples=samples, limit=limit, rng=rng)
    except BaseException as failure:
        failure.add_note(f"PLINIUS_TEST_SEED={SEED} does it again")
        raise


def cut_image_everywhere(
    image: bytes, protocol: Protocol, check: Check,
    granularity: Granularity = Granularity.CACHE_LINE, *, samples: int = 2, limit: int = 4096,
) -> Tally:  # fmt: skip
    """`cut_everywhere`, on a medium with the bytes of an image."""
    medium = SimulatedMedium(image=image, granularity=granularity)
    return cut_everywhere(medium, protocol, check, samples=samples, limit=limit)
