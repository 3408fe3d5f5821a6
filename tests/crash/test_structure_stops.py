"""A stop at every operation of the persistent array, stack and queue."""

import functools
from collections.abc import Callable

import numpy as np
import pytest

from crash.regions import SIZE, TWIN, check_structure
from crash.stops import BOTH, cut_everywhere
from plinius.pm.medium import Granularity
from plinius.pm.region import Region, format_region
from plinius.structures.persistent_array import PersistentArray
from plinius.structures.stack_and_queue import PersistentQueue, PersistentStack
from plinius.testing import PlainMedium, SimulatedMedium

KINDS = {"array": PersistentArray, "stack": PersistentStack, "queue": PersistentQueue}
each_granularity = pytest.mark.parametrize("granularity", BOTH, ids=lambda one: one.value)


@functools.cache
def fresh_image() -> bytes:
    """A region with one of each, none of them empty, one node of the queue nearly full."""
    medium = PlainMedium(bytes(SIZE))
    format_region(medium, TWIN)
    region = Region(medium, "r")
    PersistentArray.create(region, "array", 40)[:] = np.arange(40)
    stack = PersistentStack.create(region, "stack")
    queue = PersistentQueue.create(region, "queue", "int64")
    for number in range(3):
        stack.push(bytes([number]) * 20)
        queue.push(number)
    return bytes(medium.bytes)


def contents(region: Region) -> dict[str, list[object]]:
    """The contents of all structures; each used block of the heap has one owner."""
    found, owned = {}, []
    for name in region.heap.roots():
        one = KINDS[name].open(region, name)
        found[name] = one[:].tolist() if isinstance(one, PersistentArray) else one.items()
        owned += one.blocks()
    assert sorted(owned) == sorted(region.heap.used())
    return found


def swap_elements(region: Region) -> None:
    PersistentArray.open(region, "array").swap(np.array([0, 3]), np.array([30, 0]))


def push_both(region: Region) -> None:
    with region.twins.transaction():
        PersistentStack.open(region, "stack").push(b"new")
        PersistentQueue.open(region, "queue").push(77)


def push_what_needs_a_node(region: Region) -> None:
    PersistentStack.open(region, "stack").push(b"\0" * 2990 + b"long item!")


def pop_both(region: Region) -> None:
    with region.twins.transaction():
        PersistentStack.open(region, "stack").pop()
        PersistentQueue.open(region, "queue").pop()


def pop_the_last_of_the_queue(region: Region) -> None:
    queue = PersistentQueue.open(region, "queue")
    with region.twins.transaction():
        while len(queue):
            queue.pop()


def from_queue_to_stack(region: Region) -> None:
    with region.twins.transaction():
        item = PersistentQueue.open(region, "queue").pop()
        PersistentStack.open(region, "stack").push(str(item).encode())


def drop_the_stack(region: Region) -> None:
    PersistentStack.open(region, "stack").drop()


def make_another(region: Region) -> None:
    with region.twins.transaction():
        PersistentStack.open(region, "stack").drop()
        PersistentStack.create(region, "stack", "int64").push(5)


CHANGES: list[Callable[[Region], None]] = [
    swap_elements, push_both, push_what_needs_a_node, pop_both, pop_the_last_of_the_queue,
    from_queue_to_stack, drop_the_stack, make_another,
]  # fmt: skip


@each_granularity
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_stop_anywhere_leaves_the_structures_before_or_after(
    change: Callable[[Region], None], granularity: Granularity
) -> None:
    """A transaction changes several of them together or not at all; no block is lost."""
    done = Region(PlainMedium(fresh_image()), "r")
    before = contents(done)
    change(done)
    after = contents(done)
    medium = SimulatedMedium(image=fresh_image(), granularity=granularity)
    region = Region(medium, "r")
    seen = []

    def check(image: bytes, ended: bool) -> None:
        again = PlainMedium(image)
        found = contents(Region(again, "r"))
        check_structure(again.bytes)
        assert found == after if ended else found in (before, after)
        seen.append(found == after)

    cut_everywhere(medium, lambda _: change(region), check, samples=4, limit=1024)
    assert before != after and {*seen} == {True, False}
