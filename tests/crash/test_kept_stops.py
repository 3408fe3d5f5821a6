"""A stop at every store, flush and fence of commits that are kept."""

import pytest

import plinius.slots.chunks
from crash.mirrors import KEY, empty_region, state
from crash.regions import owned_once
from crash.stops import BOTH, cut_everywhere, kill_everywhere
from plinius.history.commit_history import CommitHistory
from plinius.history.kept_commits import genuine, open_kept
from plinius.pm.medium import Granularity
from plinius.pm.region import Region
from plinius.slots import Slots
from plinius.testing import PlainMedium, SimulatedMedium

each_granularity = pytest.mark.parametrize("granularity", BOTH, ids=lambda one: one.value)
Kept = dict[str, str]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 256 bytes, so that a small tensor has several; smaller tensors share one."""
    monkeypatch.setattr(plinius.slots.chunks, "CHUNK_BYTES", 256)
    monkeypatch.setattr(plinius.slots.chunks, "SMALL_BYTES", 64)


class Run:
    """A run of small states that keeps its last two commits, and names some."""

    def __init__(self, medium: PlainMedium | SimulatedMedium) -> None:
        region = Region(medium, "r")
        slots = Slots.open(region, KEY)
        self.slots = slots or Slots.create(region, KEY)
        self.history = CommitHistory(region, self.slots, KEY, keep=2, every=1)
        manifest = self.slots.newest()
        if manifest:
            self.history.resume(manifest)
            self.slots.snapshot(manifest)

    def commit(self, iteration: int) -> None:
        """Commit a state of which one tensor never changes, as the mirror does."""
        self.slots.write(self.history.before_commit(state(iteration, frozen=True)))
        self.history.after_commit(iteration)


def after(commits: int, best: int | None = None) -> bytes:
    """A region with so many commits, of which one was named."""
    medium = PlainMedium(empty_region())
    run = Run(medium)
    for iteration in range(commits):
        run.commit(iteration)
        if iteration == best:
            run.history.keep("best")
    return bytes(medium.bytes)


def found_in(image: bytes) -> tuple[str, Kept]:
    """The digest of the newest state, and of each kept one by name; all of them must open."""
    medium = PlainMedium(image)
    region = Region(medium, "r")
    region.consistency_check()
    owned_once(medium.bytes)
    slots = Slots.open(region, KEY)
    assert slots is not None
    newest = slots.newest()
    assert newest is not None
    kept = {}
    for name, (head, digest) in genuine(region, newest).items():
        reader, manifest = open_kept(region, KEY, head, digest)
        kept[name] = reader.snapshot(manifest).digest()
    return slots.snapshot(newest).digest(), kept


def digest(iteration: int) -> str:
    return state(iteration, frozen=True).digest()


@each_granularity
def test_a_stop_anywhere_in_a_commit_that_is_kept_leaves_what_was_kept_before_or_it_too(
    granularity: Granularity,
) -> None:
    """The oldest goes only when the new one is there; every one that is there opens."""
    image = after(4, best=2)
    best = {"best": digest(2)}
    before = {"3": digest(2), "4": digest(3)} | best
    wanted = {digest(3): [before], digest(4): [before, before | {"5": digest(4)},
              {"4": digest(3), "5": digest(4)} | best]}  # fmt: skip
    assert found_in(image) == (digest(3), before)
    medium = SimulatedMedium(image=image, granularity=granularity)
    run = Run(medium)
    seen = []

    def check(image: bytes, ended: bool) -> None:
        newest, kept = found_in(image)
        assert kept in wanted[newest]
        if ended:
            assert (newest, kept) == (digest(4), wanted[digest(4)][-1])
        seen.append((newest, len(kept)))
        again = PlainMedium(image)
        run = Run(again)
        run.commit(8)
        run.commit(9)
        newest, kept = found_in(bytes(again.bytes))
        assert newest == digest(9)
        assert sorted(kept.values()) == sorted([digest(2), digest(8), digest(9)])

    cut_everywhere(medium, lambda _: run.commit(4), check, samples=3, limit=64)
    assert set(seen) == {(digest(3), 3), (digest(4), 3), (digest(4), 4)}


@each_granularity
def test_a_stop_anywhere_in_replacing_a_named_commit_leaves_one_or_the_other(
    granularity: Granularity,
) -> None:
    """The best state of before, or the new one: never none, and never half of one."""
    medium = SimulatedMedium(image=after(4, best=1), granularity=granularity)
    run = Run(medium)
    seen = set()

    def check(image: bytes, ended: bool) -> None:
        newest, kept = found_in(image)
        assert newest == digest(3)
        assert not ended or kept["best"] == digest(3)
        seen.add(kept["best"])

    cut_everywhere(medium, lambda _: run.history.keep("best"), check, samples=3, limit=64)
    assert seen == {digest(1), digest(3)}


def test_a_kill_anywhere_in_keeping_leaves_a_run_that_goes_on_and_keeps() -> None:
    """The next process sees all stores, durable or not."""

    def protocol(medium: SimulatedMedium) -> None:
        run = Run(medium)
        run.commit(3)
        run.history.keep("best")

    def then(killed: SimulatedMedium) -> None:
        run = Run(killed)
        run.commit(7)
        assert run.history.keep("best")
        newest, kept = found_in(killed.after_kill().images(0, 0)[0])
        assert (newest, kept["best"]) == (digest(7), digest(7))
        assert len(kept) == 3

    assert kill_everywhere(after(3, best=0), protocol, then) > 50
