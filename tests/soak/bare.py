"""Kinds of work that need no torch: regions made, grown and filled, and mirror commits."""

import functools
import hashlib
import time
from pathlib import Path
from random import Random

import numpy as np

from crash.mirrors import newest
from plinius.data.dataset_extent import EXTENT, load_dataset, open_dataset
from plinius.data.records import ArraySpec, Source
from plinius.data.sealed_dataset import seal_dataset
from plinius.keys import OwnerKey
from plinius.pm.region import Region
from plinius.slots import Slots
from plinius.snapshot import Snapshot, TensorBytes
from resume.forks import creating, wait_until
from soak.kinds import Fall, Kind, recovered

KEY = OwnerKey(hashlib.sha256(b"soak").digest())
EXTENTS, ROOT = 4, "block"
RECORDS, RECORD_BYTES = 4000, 1500
WORDS = 150_000  # of the mirrored state: 600 kB, so that it has more chunks than one


class Create(Kind):
    """A region is made whole or not at all; the next creation takes over what a kill leaves."""

    name = "create"

    def renew(self) -> None:
        """No region; what another kill left of one may stay."""
        self.region.unlink(missing_ok=True)
        self.extent_bytes = self.random.choice((0, 1 << 16, 1 << 22))
        self.told[0] = 0

    def work(self) -> None:
        Region.create(self.region, self.extent_bytes)
        self.told[0] = 1

    def wait(self, pid: int) -> None:
        """At any moment, or as soon as one of its two names is seen."""
        names = (lambda: True, creating(self.region).exists, self.region.exists)
        happened = self.random.choice(names)
        if happened is names[0]:
            super().wait(pid)
        else:
            wait_until(pid, happened)
            time.sleep(self.random.uniform(0, self.span / 4))

    def look(self, fall: Fall) -> None:
        begun = creating(self.region).exists()
        if not self.region.exists():
            assert not self.told[0], "a region that was told is not there"
            fall.where.append("creating" if begun else "nothing yet")
            return
        fall.where.append("two names" if begun else "made")
        found = recovered(self.region, lambda r: (r.heap.roots(), r.heap.extents()), fall)
        assert found == ({}, {}), "a new region is not empty"
        assert not creating(self.region).exists(), "the first name stayed"
        self.renew()


def extent_of(number: int) -> bytes:
    """What extent e<number> holds: larger ones as numbers go up, so that the region must grow."""
    random = Random(number)
    return random.randbytes(random.randint(1, 20_000) + 300 * number)


def directory_after(steps: int) -> tuple[list[int], int]:
    """The extents after so many steps, and how often the block was replaced.

    Steps go round: an extent is added; the oldest is dropped if there are more than four; the
    block is replaced by another one, in a transaction.
    """
    added, dropped = (steps + 2) // 3, max(0, (steps + 1) // 3 - EXTENTS)
    return list(range(dropped, added)), steps // 3


class Grow(Kind):
    """Extents are added and dropped, the region grows, blocks of its heap come and go."""

    name = "grow"
    ROUNDS, STEPS = 10, 240

    def renew(self) -> None:
        self.region.unlink(missing_ok=True)
        Region.create(self.region, 0).close()
        self.told[0], self.rounds = 0, 0

    def work(self) -> None:
        self._go_on(self.STEPS)

    def rehearse(self) -> None:
        self._go_on(30)

    def look(self, fall: Fall) -> None:
        told = self.told[0]
        steps = steps_done(recovered(self.region, _directory, fall), told)
        fall.where.append(("adding", "dropping", "a transaction")[steps % 3])
        self.told[0] = steps
        self.rounds += 1
        if self.rounds % self.ROUNDS == 0:
            self.renew()

    def _go_on(self, until: int) -> None:
        with Region.open(self.region) as region:
            for step in range(self.told[0], until):
                _step(region, step)
                self.told[0] = step + 1


def steps_done(found: "_Directory", told: int) -> int:
    """How many steps a directory is the result of: those that were reported, or one more."""
    for steps in (told + 1, told):
        extents, replaced = directory_after(steps)
        if found == _wanted(tuple(extents), replaced):
            return steps
    raise AssertionError(f"the directory is not that of {told} steps, nor of one more")


_Directory = tuple[dict[str, bytes], bytes | None, int]


def _directory(region: Region) -> _Directory:
    extents = {n: bytes(region.medium.read(*_at(s))) for n, s in region.heap.extents().items()}
    roots = region.heap.roots()
    block = region.twins.read(*_at(roots[ROOT])) if ROOT in roots else None
    return extents, block, len(region.heap.used())


@functools.lru_cache(maxsize=2)
def _wanted(extents: tuple[int, ...], replaced: int) -> _Directory:
    block = extent_of(replaced)[:900] if replaced else None
    return {f"e{number}": extent_of(number) for number in extents}, block, bool(replaced)


def _at(span: object) -> tuple[int, int]:
    return span.offset, span.length  # type: ignore[attr-defined]


def _step(region: Region, step: int) -> None:
    (before, _), (after, replaced) = directory_after(step), directory_after(step + 1)
    for number in set(after) - set(before):
        data = extent_of(number)
        region.add_extent(f"e{number}", len(data), lambda m, at: m.write(at, data))  # noqa: B023
    for number in set(before) - set(after):
        region.drop_extent(f"e{number}")
    if step % 3 == 2:
        data, old = extent_of(replaced)[:900], region.heap.roots().get(ROOT)
        with region.twins.transaction():
            at = region.heap.allocate(len(data))
            region.twins.store(at, data)
            region.heap.set_root(ROOT, at, len(data))
            if old is not None:
                region.heap.free(old.offset)


class Load(Kind):
    """A sealed dataset is loaded into a region."""

    name = "load"

    def prepare(self) -> None:
        self.data = self.folder / "soak.sealed"
        spec = ArraySpec(np.dtype("u1"), (RECORD_BYTES,))
        rows = np.random.default_rng(1).integers(0, 256, (RECORDS, RECORD_BYTES), "u1")
        source = Source(
            "noise", RECORDS, spec, ArraySpec(np.dtype("<i8"), ()),
            lambda: ((row, np.array(i, "<i8")) for i, row in enumerate(rows)),
        )  # fmt: skip
        seal_dataset(source, KEY, self.data)

    def renew(self) -> None:
        self.region.unlink(missing_ok=True)
        Region.create(self.region, 0).close()
        self.told[0] = 0

    def work(self) -> None:
        with Region.open(self.region) as region:
            load_dataset(region, self.data, KEY)
            self.told[0] = 1

    def look(self, fall: Fall) -> None:
        if recovered(self.region, self._loaded, fall):
            fall.where.append("loaded")
            self.renew()
        else:
            assert not self.told[0], "a dataset that was told is not there"
            fall.where.append("loading")

    def _loaded(self, region: Region) -> bool:
        span = region.extent(EXTENT)
        if span is None:
            return False
        whole = self.data.read_bytes()
        assert region.medium.read(*_at(span)) == whole, "the dataset is not what was sealed"
        found = open_dataset(region, KEY).open_batch(range(0, RECORDS, 400))[1].tolist()
        assert found == [*range(0, RECORDS, 400)], "records are not in their places"
        return True


def state_after(before: Snapshot | None) -> Snapshot:
    """The state that follows another, from its bytes alone; the first one follows none."""
    iteration = before.iteration + 1 if before else 0
    if before is None:
        words, tally = np.arange(WORDS, dtype="<u4"), b""
    else:
        words = np.frombuffer(before.tensors[0].data, "<u4") * np.uint32(1664525)
        words += np.uint32(1013904223 + iteration)
        tally = hashlib.sha256(bytes(before.tensors[1].data)).digest()
    tensors = (
        TensorBytes("words", "int32", (WORDS,), memoryview(words.data).cast("B")),
        TensorBytes("tally", "uint8", (len(tally),), memoryview(tally)),
    )
    return Snapshot(iteration, tensors, {"average_loss": 1 / (iteration + 1)}, {}, {})


class Commit(Kind):
    """A mirror is made, and a state that follows from the mirrored one is committed to it."""

    name = "mirror"
    ITERATIONS = 400
    ANEW = 0.2  # how often a mirror that holds is left, so that others are made

    def prepare(self) -> None:
        self._digests: list[str] = []
        self._last: Snapshot | None = None

    def renew(self) -> None:
        self.region.unlink(missing_ok=True)
        Region.create(self.region, 0).close()
        self.told[0] = 0

    def work(self) -> None:
        self._go_on(self.ITERATIONS)

    def rehearse(self) -> None:
        self._go_on(15)

    def wait(self, pid: int) -> None:
        """At any moment, or a little after the next commit was reported."""
        if self.random.random() < 0.5:
            super().wait(pid)
            return
        goal = self.told[0] + self.random.randint(1, 3)
        wait_until(pid, lambda: self.told[0] >= goal)
        time.sleep(self.random.uniform(0, self.span / 10))

    def look(self, fall: Fall) -> None:
        told = self.told[0] - 1
        found = recovered(self.region, _mirrored, fall)
        if isinstance(found, str):
            assert told < 0, f"iteration {told} was told, and there is none"
            fall.where.append(found)
            return
        iteration, digest = found
        assert told <= iteration <= told + 1, f"{told} was told, and {iteration} is left"
        assert digest == self._digest(iteration), "a state that the uninterrupted run has not"
        self.told[0] = iteration + 1  # now that it was seen, it may not be lost either
        fall.where.append("a commit")
        if iteration + 20 > self.ITERATIONS or self.random.random() < self.ANEW:
            self.renew()

    def _digest(self, iteration: int) -> str:
        while len(self._digests) <= iteration:
            self._last = state_after(self._last)
            self._digests.append(self._last.digest())
        return self._digests[iteration]

    def _go_on(self, until: int) -> None:
        with Region.open(self.region) as region:
            mirror = Slots.open(region, KEY)
            state = newest(mirror) if mirror else None
            mirror = mirror or Slots.create(region, KEY)
            while self.told[0] <= until:
                state = state_after(state)
                mirror.write(state)
                self.told[0] = state.iteration + 1


def _mirrored(region: Region) -> tuple[int, str] | str:
    mirror = Slots.open(region, KEY)
    snapshot = newest(mirror) if mirror else None
    if snapshot is None:
        return "before the first commit" if mirror else "making the mirror"
    return snapshot.iteration, snapshot.digest()


def kinds_of(_: Path, folder: Path, place: str, random: Random) -> list[Kind]:
    """These kinds in a place."""
    return [kind(folder / kind.name, place, random) for kind in (Create, Grow, Load, Commit)]
