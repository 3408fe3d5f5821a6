"""Stops: a protocol is stopped at each of its operations, and what is left is checked.

Between two fences the possible images only become more: a store after the first image may be absent
from it. So the images of the moment before a fence (or before a drain, a change of size, or the
end) include all images of the moments since the fence before. At these moments they are enumerated
if there are at most `limit`, and sampled otherwise; at all other moments they are sampled.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from plinius.pm.medium import Granularity
from plinius.testing.simulated_medium import SimulatedMedium

Protocol = Callable[[SimulatedMedium], object]
"""What is stopped: stores, flushes and fences on the medium it is given."""

Check = Callable[[bytes, bool], object]
"""Raises an error if an image is not as promised. Arguments: the image, and whether the protocol
had finished before the stop.
"""


@dataclass
class Tally:
    """How much was checked."""

    stops: int = 0
    """Operations before which the protocol was stopped, its end included."""
    images: int = 0
    """Images that a power cut may leave there."""
    distinct: int = 0
    """Different images, each of which was checked."""
    all_at_fence: list[bool] = field(default_factory=list)
    """For each fence, drain, change of size and the end: whether all images were enumerated."""

    @property
    def exhaustive(self) -> bool:
        """Whether every image of every stop was checked."""
        return all(self.all_at_fence)


def check_every_stop(
    medium: SimulatedMedium,
    protocol: Protocol,
    check: Check,
    *,
    samples: int = 2,
    limit: int = 4096,
    rng: np.random.Generator | None = None,
) -> Tally:
    """Run a protocol once, and check what a power cut before each of its operations may leave.

    `samples` images are drawn from `rng` where they are not enumerated, and 8 times as many before
    a fence with more than `limit` images. The error of a check is raised again, with a note that
    says where the protocol was stopped.
    """
    rng = rng or np.random.default_rng()
    tally = Tally()
    seen: set[tuple[int, bool]] = set()
    failures: list[BaseException] = []
    complete_before = {"fence", "resize", "end"}
    if medium.granularity is not Granularity.PAGE:
        complete_before.add("drain")  # which does nothing on a disk

    def check_images(images: Iterable[bytes], finished: bool) -> None:
        for image in images:
            tally.images += 1
            mark = (hash(image), finished)
            if mark not in seen:
                seen.add(mark)
                tally.distinct += 1
                check(image, finished)

    def stop(operation: str) -> None:
        tally.stops += 1
        try:
            if operation in complete_before:
                images: Iterable[bytes] | None = medium.every_image(limit)
                tally.all_at_fence.append(images is not None)
                if images is None:
                    images = medium.images(int(rng.integers(2**62)), 8 * samples)
            else:
                images = (medium.sampled_image(rng) for _ in range(samples))
            check_images(images, operation == "end")
        except BaseException as failure:
            medium.watch = None
            failure.add_note(
                f"stopped before operation {len(medium.operations)}, which is: {operation}"
            )
            failures.append(failure)
            raise

    medium.watch = stop
    try:
        protocol(medium)
    finally:
        medium.watch = None
        if failures:
            raise failures[0]
    stop("end")
    return tally


def kill_everywhere(
    image: bytes,
    protocol: Protocol,
    then: Callable[[SimulatedMedium], object],
    granularity: Granularity = Granularity.CACHE_LINE,
) -> int:
    """Run a protocol, killed before each of its operations in turn, and once at its end.

    It starts on a medium with the bytes of `image`. `then` is given the medium of the next process,
    for every kill. Returns the number of kills.
    """
    medium = SimulatedMedium(image=image, granularity=granularity)
    kills: list[SimulatedMedium] = []
    medium.watch = lambda _: kills.append(medium.after_kill())
    protocol(medium)
    kills.append(medium.after_kill())
    for killed in kills:
        then(killed)
    return len(kills)
