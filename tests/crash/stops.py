"""A stop at every operation: what a cut there may leave, each image handed to a check.

Between two fences the images only grow in number: with the value it lasted with, a later store
may be as if it had never been. So all images of the stop before a fence (or a drain, a change of
size, or the end) are all images of every stop since the one before. There they are enumerated if
they are at most `limit`, and sampled if not; at every other stop they are sampled.
"""

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from plinius.pm.medium import Granularity
from plinius.testing import SimulatedMedium

SEED = int(os.environ.get("PLINIUS_TEST_SEED", secrets.randbits(32)))
"""What every sampling in this folder draws from; shown by a failure, set to reproduce it."""

BOTH = (Granularity.CACHE_LINE, Granularity.PAGE)

Act = Callable[[SimulatedMedium], object]
Check = Callable[[bytes, bool], object]
"""Given an image and whether the act had returned: raises if the image is not as promised."""


@dataclass
class Tally:
    """What was looked at: stops, images, and for each fence or drain whether all of its were."""

    stops: int = 0
    images: int = 0
    distinct: int = 0
    all_at_fence: list[bool] = field(default_factory=list)

    @property
    def exhaustive(self) -> bool:
        """Whether every image of every stop was checked."""
        return all(self.all_at_fence)


def rng_of(name: str) -> np.random.Generator:
    """The random numbers of one test."""
    return np.random.default_rng([SEED, *name.encode()])


def cut_everywhere(
    medium: SimulatedMedium, act: Act, check: Check, *, samples: int = 2, limit: int = 4096,
    rng: np.random.Generator | None = None,
) -> Tally:  # fmt: skip
    """Run `act` on the medium once, and check what a cut at each of its operations may leave."""
    rng = rng or rng_of("cut")
    tally = Tally()
    seen: set[tuple[int, bool]] = set()
    failures: list[BaseException] = []
    ends = {"fence", "resize", "end"}
    if medium.granularity is not Granularity.PAGE:
        ends.add("drain")  # which completes nothing on a disk

    def one(image: bytes, ended: bool) -> None:
        tally.images += 1
        mark = (hash(image), ended)
        if mark not in seen:
            seen.add(mark)
            tally.distinct += 1
            check(image, ended)

    def stop(operation: str) -> None:
        tally.stops += 1
        try:
            if operation in ends:
                every = medium.every_image(limit)
                tally.all_at_fence.append(every is not None)
                if every is None:
                    every = iter(medium.images(int(rng.integers(2**62)), 8 * samples))
            else:
                every = (medium.sampled_image(rng) for _ in range(samples))
            for image in every:
                one(image, operation == "end")
        except BaseException as failure:
            medium.watch = None
            failure.add_note(
                f"stopped at operation {len(medium.operations)}, before {operation}; "
                f"PLINIUS_TEST_SEED={SEED} does it again"
            )
            failures.append(failure)
            raise

    medium.watch = stop
    try:
        act(medium)
    finally:
        medium.watch = None
        if failures:
            raise failures[0]
    stop("end")
    return tally


def cut_image_everywhere(
    image: bytes, act: Act, check: Check, granularity: Granularity = Granularity.CACHE_LINE,
    *, samples: int = 2, limit: int = 4096,
) -> Tally:  # fmt: skip
    """`cut_everywhere` from what a past cut left."""
    medium = SimulatedMedium(image=image, granularity=granularity)
    return cut_everywhere(medium, act, check, samples=samples, limit=limit)


def kill_everywhere(
    image: bytes, act: Act, then: Callable[[SimulatedMedium], object],
    granularity: Granularity = Granularity.CACHE_LINE,
) -> int:  # fmt: skip
    """Run `act`, killed before each operation in turn: `then` gets what the next process maps.

    Returns the number of kills.
    """
    medium = SimulatedMedium(image=image, granularity=granularity)
    kills: list[SimulatedMedium] = []
    medium.watch = lambda _: kills.append(medium.killed())
    act(medium)
    kills.append(medium.killed())
    for killed in kills:
        then(killed)
    return len(kills)
