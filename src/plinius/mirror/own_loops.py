"""What a loop of one's own is told: that it is not alone, or that its resume is not exact."""

import gc
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import distributed
from torch.utils.data import DataLoader, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from plinius.errors import StateError
from plinius.slots import Manifest
from plinius.state.exactness import not_bit_exact

INEXACT = "inexact_since"
_SHUFFLES = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


class InexactResumeWarning(UserWarning):
    """A resumed run is not, or may not be, bit-identical to one that was not interrupted."""


def require_one_process() -> None:
    """Raise StateError in one of several processes of a distributed run (torchrun).

    In a region of its own each would mirror another iteration, and in a shared one only the first.
    """
    if distributed.is_available() and distributed.is_initialized():
        rank, size = distributed.get_rank(), distributed.get_world_size()
    else:
        rank, size = _number("RANK"), _number("WORLD_SIZE")
    if size > 1:
        raise StateError(
            f"This is process {rank} of {size}, and a Mirror keeps the state of one process",
            "Train in one process; for runs that do not belong together, start each without RANK "
            "and WORLD_SIZE (env -u RANK -u WORLD_SIZE)",
        )


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() and len(text) < 10 else 0


def inexactness(
    manifest: Manifest, changed: Sequence[str], parts: Mapping[str, Any], *, again: bool
) -> tuple[str | None, int | None]:
    """Why a run that was restored is not bit-identical from here on, and since when it is not.

    Both are None if it is. `changed` is what the objects did not restore, `parts` the state. Warns
    of it, and of loaders that shuffle, unless it was asked `again`.
    """
    text = "; ".join(filter(None, [not_bit_exact(manifest.environment), *changed])) or None
    since = cast(int | None, manifest.environment.get(INEXACT))
    if text:
        _warn(
            f"From iteration {manifest.iteration} on, this run is not bit-identical to one that "
            f"was not interrupted: {text}. For an exact resume use the same torch, processor and "
            "tuning variables, and call torch.set_num_threads(mirror.threads()) before mirror_in."
        )
        since = manifest.iteration if since is None else since
    elif manifest.iteration and not again and _shuffles_outside(parts):
        _warn(
            "A DataLoader that shuffles is not part of the state: unless the run was mirrored at "
            "the end of an epoch, it now draws other batches than it would have. Use "
            'plinius.ResumableLoader, as a part of the state ({"loader": loader}).'
        )
    return text, since


def _warn(text: str) -> None:
    warnings.warn(text, InexactResumeWarning, stacklevel=5)  # the line that calls mirror_in


def _shuffles_outside(parts: Mapping[str, Any]) -> bool:
    """Whether a loader is alive whose order comes from random numbers that are no part.

    A part that can be iterated over and has a state is trusted to be what the loop reads from.
    It looks at all objects of the process, some 20 ms for 100,000.
    """
    given = [*parts.values()]
    if any(hasattr(part, "__iter__") and hasattr(part, "state_dict") for part in given):
        return False
    objects = gc.get_objects()
    loaders = {kind for kind in set(map(type, objects)) if DataLoader in kind.__mro__}
    known = {id(part) for part in given}
    return bool(loaders) and any(
        type(it.sampler) in _SHUFFLES and id(it.generator) not in known
        for it in objects
        if type(it) in loaders
    )
