"""The persistent array, stack and queue."""

import random
import threading
from collections import deque
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crash.stops import BOTH, cut_image_everywhere, kill_everywhere
from plinius.errors import PliniusError, RegionError, RegionFullError
from plinius.pm.medium import PAGE, Granularity
from plinius.pm.region import Region
from plinius.structures.persistent_array import PersistentArray
from plinius.structures.stack_and_queue import Item, PersistentQueue, PersistentStack
from plinius.testing import PlainMedium
from unit.regions import TWIN, plain

CHAINS = [PersistentStack, PersistentQueue]
Chain = type[PersistentStack] | type[PersistentQueue]


def nothing_leaks(region: Region, *owners: PersistentArray | PersistentStack) -> None:
    owned = [block for owner in owners for block in owner.blocks()]
    assert sorted(owned) == sorted(region.heap.used())
    region.consistency_check()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30))
def test_many_swaps_in_one_call_equal_single_swaps(swaps: list[tuple[int, int]]) -> None:
    """However often an element occurs."""
    array = PersistentArray.create(plain(), "a", 10)
    array[:] = np.arange(10)
    wanted = list(range(10))
    for one, other in swaps:
        wanted[one], wanted[other] = wanted[other], wanted[one]
    pairs = np.array(swaps, np.int64).reshape(-1, 2)
    array.swap(pairs[:, 0], pairs[:, 1])
    assert list(array[:]) == wanted


@pytest.mark.parametrize("kind", ["int64", "float64"])
def test_an_array_is_indexed_as_numpy_does(region: Region, kind: str) -> None:
    """By an integer, a slice, a list of indices; zeros at first; found again by name."""
    array = PersistentArray.create(region, "a", 100, kind)
    wanted = np.zeros(100, kind)
    assert (array.kind, len(array)) == (kind, 100)
    for index, values in (
        (3, 7), (-1, -5), (slice(10, 20), np.arange(10)), (slice(90, 5, -7), 2),
        (slice(60, 60), []), (np.array([5, 6, 5]), [1, 2, 3]), (slice(None, None, 9), 4),
    ):  # fmt: skip
        array[index] = values
        wanted[index] = values
        assert np.array_equal(PersistentArray.open(region, "a")[:], wanted)
        assert np.array_equal(array[index], wanted[index])
    array.swap(3, 4)
    assert (array[3], array[4]) == (wanted[4], wanted[3])
    nothing_leaks(region, array)


def test_an_array_refuses_what_does_not_fit(region: Region) -> None:
    """With Python's own errors, and keeps its elements."""
    array = PersistentArray.create(region, "a", 4)
    for act, error in (
        (lambda: array[4], IndexError),
        (lambda: array[-5], IndexError),
        (lambda: array[np.array([0, -1])], IndexError),
        (lambda: array["x"], TypeError),
        (lambda: array[np.array([0.5])], TypeError),
        (lambda: array.__setitem__(0, 1.5), TypeError),
        (lambda: array.__setitem__(slice(0, 2), [1, 2, 3]), ValueError),
        (lambda: array.swap(0, 4), IndexError),
        (lambda: array.swap(np.array([0, 1]), np.array([2])), ValueError),
        (lambda: PersistentArray.create(region, "a", 4), ValueError),
        (lambda: PersistentArray.create(region, "b", -1), ValueError),
        (lambda: PersistentArray.create(region, "b", 4, "int32"), ValueError),
        (lambda: PersistentArray.create(region, "b", TWIN), RegionFullError),
    ):
        with pytest.raises(error):
            act()
    assert not array[:].any()
    nothing_leaks(region, array)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(CHAINS), st.lists(st.one_of(st.none(), st.integers(0, 6000)), max_size=60))
def test_a_stack_and_a_queue_agree_with_pythons(cls: Chain, steps: list[int | None]) -> None:
    """Items of any length, also larger than a node; nothing leaks; all are there on opening."""
    region = plain(256 * 1024)
    chain = cls.create(region, "c")
    wanted: deque[bytes] = deque()
    for step, length in enumerate(steps):
        if length is None and wanted:
            assert chain.pop() == (wanted.pop() if cls is PersistentStack else wanted.popleft())
        elif length is not None:
            item = bytes([step]) * length
            chain.push(item)
            wanted.append(item)
        again = cls.open(region, "c")
        assert again.items() == list(reversed(wanted) if cls is PersistentStack else wanted)
        assert len(again) == len(wanted)
        nothing_leaks(region, again)
    chain.drop()
    assert not region.heap.used()


@pytest.mark.parametrize("cls", CHAINS)
def test_ten_thousand_integers_go_in_and_come_out(cls: Chain) -> None:
    """In one transaction each way, in nodes of a page."""
    region = plain(1 << 20)
    chain = cls.create(region, "c", "int64")
    with region.twins.transaction():
        for number in range(-5000, 5000):
            chain.push(number)
    assert len(chain.blocks()) < 60
    with region.twins.transaction():
        out = [chain.pop() for _ in range(10_000)]
    assert out == sorted(out, reverse=cls is PersistentStack)
    nothing_leaks(region, chain)


@pytest.mark.parametrize("cls", CHAINS)
def test_an_operation_that_is_refused_changes_nothing(region: Region, cls: Chain) -> None:
    """Popping from an empty one does not even roll back the open transaction."""
    chain, numbers = cls.create(region, "c"), cls.create(region, "n", "int64")
    with region.twins.transaction():
        chain.push(b"kept")
        with pytest.raises(IndexError, match="n is empty"):
            numbers.pop()
    for act, error in (
        (lambda: chain.push(1), TypeError),
        (lambda: chain.push("text"), TypeError),
        (lambda: numbers.push(b"1"), TypeError),
        (lambda: numbers.push(2**63), OverflowError),
        (lambda: chain.push(bytes(TWIN)), RegionFullError),
        (lambda: cls.create(region, "c"), ValueError),
        (lambda: cls.create(region, "d", "float64"), ValueError),
    ):
        with pytest.raises(error):
            act()
    assert chain.items() == [b"kept"]
    nothing_leaks(region, chain, numbers)


@pytest.mark.parametrize("cls", CHAINS)
def test_structures_join_a_transaction_and_roll_back_with_it(region: Region, cls: Chain) -> None:
    """All of them or none."""
    chain, array = cls.create(region, "c"), PersistentArray.create(region, "a", 3)
    chain.push(b"old")
    with pytest.raises(KeyError), region.twins.transaction():
        chain.pop()
        chain.push(b"new" * 2000)
        array[:] = 1
        raise KeyError
    assert chain.items() == [b"old"]
    assert not array[:].any()
    nothing_leaks(region, chain, array)


def test_a_name_leads_to_its_own_structure_only(region: Region) -> None:
    """Another structure, a missing one and a dropped one are refused."""
    made = [cls.create(region, cls.WHAT) for cls in CHAINS]
    made.append(PersistentArray.create(region, "array", 5))
    for one in made:
        for other in made:
            if other is not one:
                with pytest.raises(RegionError, match=f"The {one.WHAT} {other.name} cannot be"):
                    type(one).open(region, other.name)
        with pytest.raises(RegionError, match="holds no"):
            type(one).open(region, "nowhere")
    stale = PersistentArray.open(region, "array")
    made.pop().drop()
    with pytest.raises(RegionError, match="was dropped"):
        stale[0] = 1
    nothing_leaks(region, *made)


def test_threads_share_structures_and_lose_nothing(region: Region) -> None:
    """A reader never sees half of a transaction."""
    stack = PersistentStack.create(region, "s", "int64")
    queue = PersistentQueue.create(region, "q", "int64")
    array = PersistentArray.create(region, "a", 8)
    halves: list[object] = []
    done = threading.Event()

    def work(first: int) -> None:
        for number in range(first, first + 25):
            with region.twins.transaction():
                stack.push(number)
                array[:] = number
            with region.twins.transaction():
                queue.push(stack.pop())

    def look() -> None:
        while not done.is_set():
            if len(set(array[:].tolist())) != 1:
                halves.append(array[:])

    workers = [threading.Thread(target=work, args=(first,)) for first in (0, 100, 200)]
    reader = threading.Thread(target=look)
    for thread in (reader, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    done.set()
    reader.join()
    assert not halves
    assert sorted(queue.items()) == [n + k for n in (0, 100, 200) for k in range(25)]
    assert len(stack) == 0
    nothing_leaks(region, stack, queue, array)


def worked(region: Region) -> None:
    """Some of everything, in more than one node."""
    stack = PersistentStack.create(region, "s")
    queue = PersistentQueue.create(region, "q", "int64")
    PersistentArray.create(region, "a", 20)[:] = np.arange(20)
    with region.twins.transaction():
        for number in range(300):
            stack.push(bytes([number % 256]) * (number % 40))
            queue.push(number)
        for _ in range(20):
            queue.pop()


def shown(region: Region) -> tuple[list[Item], list[Item], list[int]]:
    stack, queue = PersistentStack.open(region, "s"), PersistentQueue.open(region, "q")
    array = PersistentArray.open(region, "a")
    nothing_leaks(region, stack, queue, array)
    return stack.items(), queue.items(), array[:].tolist()


def use(region: Region) -> None:
    """One operation of each kind, some of which make or free a node."""
    PersistentStack.open(region, "s").push(b"x" * 3000)
    assert PersistentStack.open(region, "s").pop() == b"x" * 3000
    PersistentQueue.open(region, "q").pop()
    PersistentArray.open(region, "a").swap(np.arange(9), np.arange(9) + 1)


@pytest.mark.parametrize("granularity", BOTH)
def test_a_stop_anywhere_in_an_operation_leaves_it_done_or_not_begun(
    granularity: Granularity,
) -> None:
    """Every stop of pushes, pops and swaps, and the process killed there and started again."""
    region = plain()
    worked(region)
    start = bytes(region.medium.bytes)
    states = [shown(region)]
    stack, queue, array = (
        cls.open(region, name)
        for cls, name in ((PersistentStack, "s"), (PersistentQueue, "q"), (PersistentArray, "a"))
    )
    steps: list[Callable[[], object]] = [
        lambda: stack.push(b"x" * 3000), stack.pop, queue.pop,
        lambda: array.swap(np.arange(9), np.arange(9) + 1),
    ]  # fmt: skip
    for step in steps:
        step()
        states.append(shown(region))

    def check(found: bytes, ended: bool) -> None:
        state = shown(Region(PlainMedium(found), "r"))
        assert state == states[-1] if ended else state in states

    cut_image_everywhere(start, lambda m: use(Region(m, "r")), check, granularity, limit=16)
    kill_everywhere(
        start,
        lambda m: use(Region(m, "r")),
        lambda m: check(bytes(m.read(0, m.size)), False),
        granularity,
    )


@pytest.mark.parametrize("seed", range(4))
def test_altered_bytes_are_refused_or_followed_within_bounds(seed: int) -> None:
    """Whatever words the host changes: a typed refusal or an answer, never another failure."""
    region = plain()
    worked(region)
    start = bytes(region.medium.bytes)
    used = max(offset + size for offset, size in region.heap.used().items())
    rng = random.Random(seed)
    node_words = [
        PAGE + at + 8 * word for at in region.heap.used() for word in range(6)
    ]  # headers and nodes, where the offsets are
    refused = 0
    for _ in range(400):
        altered = bytearray(start)
        for _ in range(rng.randint(1, 3)):
            near = rng.choice([*node_words, PAGE + rng.randrange(used)])
            value = rng.choice([0, 1, 8, 4056, 2**63, 2**64 - 1, rng.randrange(used), 1 << 40])
            altered[near : near + 8] = value.to_bytes(8, "little")
        try:
            again = Region(PlainMedium(altered), "r")
            PersistentStack.open(again, "s").push(b"x")
            PersistentStack.open(again, "s").pop()
            PersistentQueue.open(again, "q").pop()
            PersistentArray.open(again, "a").swap(0, 1)
        except (PliniusError, IndexError):
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("popped", [1, 8])
@pytest.mark.parametrize("empty", [False, True])
def test_a_queue_with_impossible_popped_bytes_is_refused(
    region: Region, popped: int, empty: bool
) -> None:
    """Not a multiple of 8, or of a first node that is not there: the next item would be hidden."""
    queue = PersistentQueue.create(region, "queue", "int64")
    if not empty:
        queue.push(5)
    at = queue.blocks()[0]
    with region.twins.transaction():
        region.twins.store(at + 32, popped.to_bytes(8, "little"))
    with pytest.raises(RegionError, match="cannot be used"):
        PersistentQueue.open(region, "queue")
